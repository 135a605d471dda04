"""Small runs of the training loop, without a disk."""

from collections.abc import Callable

import torch

from cnn_demo.networks.models import build
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs.recording import copied
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import Event
from cnn_demo.training.loop import Snapshot, train


def never() -> bool:
    return False


def small(**changes: object) -> RunConfig:
    """A run of 2 epochs of 10 steps on the tiny set, in float32."""
    values = {"model": "resnet50", "dataset": "shapes", "epochs": 2, "batch_size": 10, "validation_pictures": 20}
    values |= {"precision": "float32", "optimizer": "sgd", "learning_rate": 0.05}
    return RunConfig(**values | changes)


def run(
    config: RunConfig, data: Dataset, stop: Callable[[], bool] = never, start: Snapshot | None = None
) -> tuple[list[Event], list[Snapshot]]:
    """Train to the end; return the events, and copies of the snapshots."""
    network = build(config.model, len(data.classes), config.seed)
    found: list = []
    for item in train(network, data, config, device=torch.device("cpu"), stop=stop, start=start):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        found.append(copied(item) if isinstance(item, Snapshot) else item)
    return [i for i in found if isinstance(i, Event)], [i for i in found if isinstance(i, Snapshot)]
