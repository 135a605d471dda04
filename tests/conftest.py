"""What all tests share."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cnn_demo.pictures import shapes as drawing
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder, recording
from cnn_demo.training.config import RunConfig
from tests.apps import App


@pytest.fixture(scope="session")
def shapes() -> Dataset:
    return drawing.draw()


@pytest.fixture(scope="session")
def tiny(shapes: Dataset) -> Dataset:
    """120 training and 40 test images of shapes."""
    return Dataset(
        name="shapes",
        source="a test",
        classes=shapes.classes,
        mean=shapes.mean,
        std=shapes.std,
        train_pictures=shapes.train_pictures[:120],
        train_labels=shapes.train_labels[:120],
        test_pictures=shapes.test_pictures[:40],
        test_labels=shapes.test_labels[:40],
    )


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory, tiny: Dataset, cpu: torch.device) -> Path:
    """A folder with one finished run, named as a shipped checkpoint is."""
    root = tmp_path_factory.mktemp("shipped")
    fields = {"dataset": "shapes", "epochs": 3, "batch_size": 10, "validation_pictures": 20}
    config = RunConfig(model="resnet50", optimizer="sgd", learning_rate=0.05, **fields)
    run = folder.create(root, config)
    for _ in recording.train_run(run, tiny, cpu, lambda: False):
        pass
    return run.folder.rename(root / "resnet50")


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Iterator[App]:
    """The running app, with one shipped checkpoint. A test leaves it as it was."""
    root = tmp_path_factory.mktemp("app") / "checkpoints"
    shutil.copytree(shipped, root / "resnet50")
    app = App(root)
    yield app
    app.end(signal.SIGINT)
