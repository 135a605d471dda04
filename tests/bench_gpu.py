"""What a GPU makes of the training loop, cell by cell, in one process and without a disk but for the results.

    python -m tests.bench gpu [--data FOLDER] [--output FILE] [--only smoke|grid|records|cold]

Each cell takes less than a minute and is a line of JSON in FILE; cells that are there already are left out, so that a
run that was cut off goes on where it was. Records are kept as airbench does (github.com/KellerJordan/cifar10-airbench):
the time is that of training alone, in a process that has trained before; accuracy is the mean over seeds.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnn_demo import settings
from cnn_demo.errors import CnnDemoError
from cnn_demo.networks.models import build
from cnn_demo.pictures.dataset import Dataset, normalise
from cnn_demo.pictures.sources import load
from cnn_demo.training import replay
from cnn_demo.training.config import CUTOUT, OPTIMIZERS, SHIFT, RunConfig
from cnn_demo.training.device import device_name, pick_device
from cnn_demo.training.events import Progress, RunFinished, RunStarted
from cnn_demo.training.loop import Snapshot, train

BATCHES = (256, 512, 1000, 1500, 2048)
SEEDS = 10
PRECISIONS = ("float32", "bfloat16", "float16")
RECIPES: dict[str, tuple[str, float, dict[str, Any]]] = {  # to begin with; estimates
    "90": ("vgg16", 0.90, {"epochs": 6, "learning_rate": 0.14, "augmentation": "flip"}),
    "93": ("vgg16", 0.93, {"epochs": 15, "learning_rate": 0.1, "augmentation": SHIFT, "label_smoothing": 0.2}),
    "94": ("vgg16", 0.94, {"epochs": 36, "learning_rate": 0.06, "augmentation": CUTOUT, "label_smoothing": 0.2}),
    "83.2": ("resnet50", 0.832, {"epochs": 8, "learning_rate": 0.14, "augmentation": SHIFT}),
}
Cell = dict[str, Any]


def cells() -> Iterator[Cell]:
    """Yield what there is to measure, in the order in which it is worth most."""
    for model, optimizer, precision in itertools.product(("vgg16", "resnet50"), OPTIMIZERS, PRECISIONS):
        yield {"part": "smoke", "model": model, "optimizer": optimizer, "precision": precision}
    yield {"part": "smoke", "model": "resnet50_full", "batch_size": 4096, "precision": "float32"}
    for model, batch, tuned, graph in itertools.product(("resnet50", "vgg16"), BATCHES, (False, True), (True, False)):
        yield {"part": "grid", "model": model, "batch_size": batch, "graph": graph, "cudnn_benchmark": tuned}
    for name, seed in itertools.product(RECIPES, range(SEEDS)):
        yield {"part": "records", "recipe": name, "seed": seed}
    for model in ("vgg16", "resnet50"):
        yield {"part": "cold", "model": model}


def smoke(cell: Cell, data: Dataset, device: torch.device, seconds: float) -> Cell:
    """Train for a moment, stop, continue to the end; or tell what was refused."""
    wanted = {"batch_size": 256, "epochs": 1} | {name: cell[name] for name in cell if name != "part"}
    config = RunConfig(dataset=data.name, validation_pictures=len(data.train_labels) // 10, **wanted)
    end, start, begun = None, None, time.monotonic()
    try:
        for stopping in (True, False):
            network = build(config.model, len(data.classes), config.seed)
            stop = lambda: stopping and time.monotonic() - begun > seconds  # noqa: B023, E731
            for item in train(network, data, config, device=device, stop=stop, start=start):
                start = item if isinstance(item, Snapshot) else start
                end = item if isinstance(item, RunFinished) else end
    except CnnDemoError as error:
        return {"refused": str(error)}
    assert end is not None
    return {"reason": end.reason, "test_accuracy": end.test_accuracy, "step": end.step}


def grid(cell: Cell, data: Dataset, device: torch.device, seconds: float) -> Cell:
    """Measure images per second once the steps are as fast as they get."""
    torch.backends.cudnn.benchmark = cell["cudnn_benchmark"]
    usual, rates, started = replay.can_replay, list[Progress](), None
    replay.can_replay = lambda device, precision: cell["graph"] and usual(device, precision)
    config = RunConfig(
        model=cell["model"], dataset=data.name, epochs=1000, batch_size=cell["batch_size"], validation_pictures=0
    )
    begun = time.monotonic()
    try:
        for item in train(
            build(config.model, len(data.classes), 0), data, config, device=device,
            stop=lambda: time.monotonic() - begun > 2 * seconds,
        ):  # fmt: skip
            started = item if isinstance(item, RunStarted) else started
            if isinstance(item, Progress) and item.images_per_second and time.monotonic() - begun > seconds:
                rates.append(item)
    except CnnDemoError as error:
        return {"refused": str(error)}
    finally:
        replay.can_replay, torch.backends.cudnn.benchmark = usual, False
        torch.cuda.empty_cache()
    assert started is not None
    speed = sorted(point.images_per_second for point in rates)[len(rates) // 2] if rates else 0.0
    share = speed * started.flops_per_image / started.peak_flops if started.peak_flops else None
    memory = max((point.memory for point in rates), default=0)
    return {"images_per_second": round(speed), "share_of_peak": share, "memory_gb": round(memory / 1e9, 2)}


def records(cell: Cell, data: Dataset, device: torch.device, seconds: float) -> Cell:
    """Train by a recipe on all training images; return the seconds of training and the accuracy on the test images."""
    model, target, fields = RECIPES[cell["recipe"]]
    usual = {"batch_size": 512, "validation_pictures": 0, "seed": cell["seed"]}
    config = RunConfig(model=model, dataset=data.name, **(usual | fields))
    network, last = build(model, len(data.classes), config.seed), 0.0
    for item in train(network, data, config, device=device, stop=lambda: False):
        last = item.seconds if isinstance(item, Progress) and item.phase == "training" else last
    there, right = data.to(device), [0, 0]
    with torch.inference_mode():
        for index in torch.arange(len(data.test_labels), device=device).split(2500):
            inputs = normalise(there.test_pictures[index], data.mean, data.std)
            plain = network.eval()(inputs)
            for i, logits in enumerate((plain, plain + network(inputs.flip(3)))):
                right[i] += int((logits.argmax(1) == there.test_labels[index]).sum())
    one, both = (count / len(data.test_labels) for count in right)
    return {"model": model, "target": target, "seconds": round(last, 3), "accuracy": one, "accuracy_flip": both}


def cold(cell: Cell, data: Dataset, device: torch.device, seconds: float) -> Cell:
    """Train by the quick preset in a process of its own, as a visitor's first click does."""
    command = [sys.executable, "-m", "cnn_demo", "train", cell["model"], "--preset", "quick", "--json"]
    begun = time.monotonic()
    done = subprocess.run([*command, "--device", str(device)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"refused": done.stderr[-500:]}
    result = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(time.monotonic() - begun, 1), "test_accuracy": result["test_accuracy"]}


PARTS: dict[str, Callable[[Cell, Dataset, torch.device, float], Cell]] = {
    "smoke": smoke, "grid": grid, "records": records, "cold": cold,
}  # fmt: skip


def measure(data: Dataset, device: torch.device, output: Path, only: str | None, seconds: float = 3.0) -> None:
    """Measure the cells that `output` does not hold yet; each is written as soon as it is known."""
    known = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    for cell in cells():
        is_known = any(cell.items() <= line.items() for line in known)
        if is_known or only not in (None, cell["part"]):
            continue
        found = PARTS[cell["part"]](cell, data, device, seconds)
        line = json.dumps(cell | found | {"device": device_name(device), "torch": torch.__version__})
        print(line, flush=True)
        with output.open("a") as file:
            file.write(line + "\n")


def summary(output: Path) -> Iterator[str]:
    """Yield a line for each recipe: mean and standard deviation over the seeds."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for name, (model, target, _) in RECIPES.items():
        found = [line for line in lines if line.get("recipe") == name]
        if len(found) > 1:
            text = f"{model} to {target:.1%}, {len(found)} seeds:"
            for key, unit in (("seconds", "s"), ("accuracy", ""), ("accuracy_flip", "with flips averaged")):
                values = [line[key] for line in found]
                text += f" {statistics.mean(values):.4g} +- {statistics.stdev(values):.2g} {unit};"
            yield text


def main(argv: list[str]) -> None:
    """Measure, then print what the records come to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder that holds CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("bench-gpu.jsonl"))
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--device")
    arguments = parser.parse_args(argv)
    data = load("cifar10", replace(settings.read(), data=arguments.data), lambda text, share: None)
    measure(data, pick_device(arguments.device), arguments.output, arguments.only)
    print(*summary(arguments.output), sep="\n")
