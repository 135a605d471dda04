"""A data set in memory (whole, as uint8, so that it fits on the device), its split and its normalisation."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .catalog import DATASETS

Report = Callable[[str, float], None]  # what is being done, and which fraction of it is done (0 to 1)
TENSORS = ("train_pictures", "train_labels", "test_pictures", "test_labels")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """A labelled set. Images: uint8 `N,3,32,32`. Labels: int64 `N`. mean, std: of values 0 to 1. source: in words."""

    name: str
    source: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_pictures: Tensor
    train_labels: Tensor
    test_pictures: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "Dataset":
        """Return the same set on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})


def make_dataset(name: str, source: str, *tensors: Tensor) -> Dataset:
    """Return a data set of the catalog from its four TENSORS."""
    info, parts = DATASETS[name], dict(zip(TENSORS, tensors, strict=True))
    return Dataset(name=name, source=source, classes=info.classes, mean=info.mean, std=info.std, **parts)


def split(labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Return the indices (training, validation) of a fixed split that holds out equally many of each class."""
    classes = int(labels.max()) + 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        share = held_out // classes + (label < held_out % classes)
        chosen[(labels.cpu() == label).nonzero()[:share, 0]] = True  # the first: they are in no order
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def normalise(pictures: Tensor, mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...]) -> Tensor:
    """Return uint8 `N,3,H,W` as float32 with `mean` (of values 0 to 1) at 0 and one `std` at 1."""
    centre, scale = (torch.as_tensor(v, device=pictures.device).view(3, 1, 1) * 255 for v in (mean, std))
    return (pictures.float() - centre) / scale
