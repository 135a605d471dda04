"""Our training loop against the plain loop that people copy, in one process, turn by turn.

    python -m tests.bench vgg16 [--data FOLDER]
    python -m tests.bench gpu --help: what a GPU makes of ours alone

The plain loop: float32, NCHW, a DataLoader with 2 workers, torchvision's RandomCrop and RandomHorizontalFlip on PIL
images, SGD, `.item()` in each step. Both train the same network on the same images with the same optimizer.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from cnn_demo import settings
from cnn_demo.networks.catalog import NETWORKS
from cnn_demo.networks.cpu_convolution import Conv2d
from cnn_demo.networks.models import build
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.pictures.sources import load
from cnn_demo.training.config import from_dict
from cnn_demo.training.device import device_name, keep_freed_memory, pick_device
from cnn_demo.training.events import Progress
from cnn_demo.training.loop import train
from tests import bench_gpu

BATCH_SIZE = 128
ROUNDS = 5
ROUND_SECONDS = 8.0


def bench(model: str, data: Dataset, device: torch.device, report: Callable[[str, float], None]) -> dict[str, Any]:
    """Return the images per second of both loops, medians and ranges over ROUNDS turns, and their ratio."""
    loops = {"ours": our_loop(model, data, device), "baseline": plain_loop(model, data, device)}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for i in range(-1, ROUNDS):  # turn -1 warms up
        for j, (name, loop) in enumerate(loops.items()):
            report(f"measuring the {name} loop", (2 * (i + 1) + j) / (2 * (ROUNDS + 1)))
            keep_freed_memory(name == "ours")
            rates[name].append(images_per_second(loop, device))
    for loop in loops.values():
        loop.close()
    ours, baseline = rates["ours"][1:], rates["baseline"][1:]
    return {
        "model": model,
        "device": device_name(device),
        "images_per_second": round(statistics.median(ours), 1),
        "images_per_second_range": [round(min(ours), 1), round(max(ours), 1)],
        "baseline_images_per_second": round(statistics.median(baseline), 1),
        "baseline_images_per_second_range": [round(min(baseline), 1), round(max(baseline), 1)],
        "ratio": round(statistics.median(ours) / statistics.median(baseline), 2),
        "batch_size": BATCH_SIZE,
        "dataset": data.name,
        "rounds": ROUNDS,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def images_per_second(loop: Iterator[int], device: torch.device) -> float:
    """Return how fast a loop goes for ROUND_SECONDS; it yields the number of its steps so far."""
    next(loop)  # what was prepared while the other loop ran does not count
    first = next(loop)
    begun = time.perf_counter()
    while True:
        step = next(loop)
        if time.perf_counter() - begun >= ROUND_SECONDS:
            if device.type == "cuda":
                torch.cuda.synchronize()
            return (step - first) * BATCH_SIZE / (time.perf_counter() - begun)


def our_loop(model: str, data: Dataset, device: torch.device) -> Generator[int, None, None]:
    """Yield the step of each progress event of the real training loop."""
    recipe = {"epochs": 1000, "batch_size": BATCH_SIZE, "optimizer": "sgd", "schedule": "constant"}
    # nothing held out: the plain loop has no validation that could fall into a turn either
    config = from_dict({"model": model, "dataset": data.name, "validation_pictures": 0, **recipe})
    network = build(model, len(data.classes), config.seed)
    for event in train(network, data, config, device=device, stop=lambda: False):
        if isinstance(event, Progress) and event.phase == "training":
            yield event.step


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The training images one by one through PIL, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, data: Dataset, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pictures = data.train_pictures.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = data.train_labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[index])), self.labels[index]


def plain_loop(model: str, data: Dataset, device: torch.device) -> Generator[int, None, None]:
    """Yield the step after each step of the plain loop."""
    network = build(model, len(data.classes), 0).to(device).requires_grad_(True)  # biases before BN, too
    for module in network.modules():
        if isinstance(module, Conv2d):  # nn.Conv2d's own way, on the CPU too
            module.forward = nn.Conv2d.forward.__get__(module)  # type: ignore[method-assign]
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    loader = DataLoader(Images(data, augment), batch_size=BATCH_SIZE, shuffle=True, num_workers=2, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    step, total = 0, 0.0
    while True:
        for pictures, labels in loader:
            loss = F.cross_entropy(network(pictures.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            step += 1
            yield step


def main() -> None:
    """Print a table, then one line of JSON."""
    if sys.argv[1:2] == ["gpu"]:
        return bench_gpu.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Compare our training loop with the plain one."
    )
    parser.add_argument("model", choices=list(NETWORKS))
    parser.add_argument("--data", type=Path, help="a folder that holds CIFAR-10; without it, the cache or a download")
    arguments = parser.parse_args()
    data = load("cifar10", replace(settings.read(), data=arguments.data), show)
    result = bench(arguments.model, data, pick_device(), show)
    print(f"{arguments.model} on {result['device']}")
    for name, key in (("plain loop", "baseline_images_per_second"), ("this program", "images_per_second")):
        print("{:14}{:10,.1f} images/s   range {:,.1f} to {:,.1f}".format(name, result[key], *result[f"{key}_range"]))
    print(f"ratio {result['ratio']}")
    print(json.dumps(result))


def show(text: str, share: float) -> None:
    """Print what is being done."""
    print(f"{share:4.0%}  {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
