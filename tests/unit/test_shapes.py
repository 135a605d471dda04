"""The drawn data set, the split and the normalisation."""

import hashlib

import torch

from cnn_demo.pictures.catalog import DATASETS
from cnn_demo.pictures.dataset import TENSORS, Dataset, normalise, split
from cnn_demo.pictures.shapes import draw


def test_shapes_are_the_same_each_time_and_vary(shapes: Dataset) -> None:
    again = draw()
    assert all(torch.equal(getattr(shapes, name), getattr(again, name)) for name in TENSORS)
    assert shapes.train_labels.bincount().min() > 1000
    assert shapes.train_pictures.flatten(1).unique(dim=0).shape[0] == len(shapes.train_pictures)


def test_catalog_counts_are_those_of_the_data(shapes: Dataset) -> None:
    info = DATASETS["shapes"]
    assert (len(shapes.train_labels), len(shapes.test_labels)) == (info.train_pictures, info.test_pictures)
    assert int(shapes.train_labels.max()) + 1 == len(info.classes) == len(shapes.classes)


def test_labels_are_those_of_the_first_release(shapes: Dataset) -> None:
    """Checkpoints trained on shapes are tested on the same images; pixels may differ in the last bit elsewhere."""
    digest = hashlib.sha256(shapes.test_labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "a2431cc69445d31a"
    assert abs(shapes.test_pictures.double().mean().item() - 127.688) < 0.01


def test_split_is_fixed_and_stratified(shapes: Dataset) -> None:
    training, validation = split(shapes.train_labels, 1003)
    counts = shapes.train_labels[validation].bincount()
    assert len(validation) == 1003 and counts.max() - counts.min() <= 1
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(len(shapes.train_labels)))
    assert torch.equal(split(shapes.train_labels, 1003)[1], validation)
    assert len(split(shapes.train_labels, 0)[1]) == 0


def test_normalise_centres_and_scales() -> None:
    pictures = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    values = normalise(pictures, (0.2, 0.2, 0.2), (0.4, 0.4, 0.4))[:, 0, 0, 0]
    torch.testing.assert_close(values, torch.tensor([-0.5, 0.0, 2.0]))
