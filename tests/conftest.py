"""What all tests share."""

import pytest
import torch

from cnn_demo.data import Dataset, draw_shapes


@pytest.fixture(scope="session")
def shapes() -> Dataset:
    return draw_shapes()


@pytest.fixture(scope="session")
def tiny(shapes: Dataset) -> Dataset:
    """120 training and 40 test pictures of shapes."""
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
