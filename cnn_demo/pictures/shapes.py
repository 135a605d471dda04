"""The data set `shapes`, drawn by the program: a first run needs no network."""

import torch
from torch import Tensor

from .catalog import DATASETS
from .dataset import Dataset, make_dataset

INFO = DATASETS["shapes"]


def draw() -> Dataset:
    """Return images of ten shapes that vary in position, size, rotation, colours and noise; each time the same."""
    generator = torch.Generator().manual_seed(10)
    train, test = _draw(INFO.train_pictures, generator), _draw(INFO.test_pictures, generator)
    return make_dataset("shapes", "drawn by the program", *train, *test)


def _draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images uint8 `count,3,32,32` and labels: a shape is where a function of x, y is below zero."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.randint(len(INFO.classes), (count,), generator=generator)
    size, angle = uniform(6, 12, 1, 1), uniform(-0.4, 0.4, 1, 1)
    axis = torch.arange(32.0)
    y, x = axis.view(1, 32, 1) - uniform(11, 20, 1, 1), axis.view(1, 1, 32) - uniform(11, 20, 1, 1)
    u, v = (x * angle.cos() + y * angle.sin()) / size, (y * angle.cos() - x * angle.sin()) / size
    distance = torch.empty(count, 32, 32)
    for label, name in enumerate(INFO.classes):
        chosen = labels == label
        distance[chosen] = _distance(name, u[chosen], v[chosen])
    inside = (0.5 - distance * size).clamp(0, 1).unsqueeze(1)  # one pixel of soft edge
    back, front = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    front = torch.where((front - back).abs().amax(1, keepdim=True) < 0.35, 1 - back.round(), front)  # never invisible
    noise = uniform(0.02, 0.15, 1, 1, 1) * torch.randn(count, 3, 32, 32, generator=generator)
    pictures = back + (front - back) * inside + noise
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _distance(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Return how far outside the unit shape each point lies (negative: inside). u, v: `N,32,32`."""
    radius, box = u.hypot(v), torch.maximum(u.abs(), v.abs())
    distances = {
        "disc": lambda: radius - 0.9,
        "ring": lambda: (radius - 0.75).abs() - 0.2,
        "square": lambda: box - 0.8,
        "frame": lambda: (box - 0.7).abs() - 0.17,
        "triangle": lambda: torch.maximum(v - 0.6, 1.7 * u.abs() - v - 0.9),
        "diamond": lambda: u.abs() * 1.2 + v.abs() - 0.95,
        "cross": lambda: torch.maximum(torch.minimum((u - v).abs(), (u + v).abs()) - 0.3, radius - 1),
        "plus": lambda: torch.maximum(torch.minimum(u.abs(), v.abs()) - 0.22, box - 0.95),
        "bars": lambda: torch.maximum((torch.remainder(v + 1.0, 0.75) - 0.375).abs() - 0.18, box - 0.95),
        "crescent": lambda: torch.maximum(radius - 0.95, 0.75 - (u - 0.45).hypot(v)),
    }
    return distances[name]()
