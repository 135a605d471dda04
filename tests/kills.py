"""A training that is killed at exact points of its writing, each time continued by the next process.

    python -m tests.fuzz kills

A point is the moment after one step of writing: a file was opened, half written, synced, renamed, deleted. One run
counts its points; of another one each process is killed at a later point than the one before. The suite skips most.
"""

# ruff: noqa: T201

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cnn_demo.pictures import shapes
from cnn_demo.pictures.dataset import TENSORS, Dataset, make_dataset
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import read_checkpoint
from cnn_demo.runs.files import RESUME, STATE, WEIGHTS, read_json
from cnn_demo.training import loop
from cnn_demo.training.config import RunConfig

FIELDS = {"epochs": 1, "batch_size": 50, "validation_pictures": 20, "precision": "float32"}  # 2 steps of 100 images
CONFIG = RunConfig(model="resnet50", dataset="shapes", optimizer="sgd", **FIELDS)
State = tuple[int, int] | None  # which snapshot a run continues from


class Writer:
    """A file that is written in halves, with a point after each thing done to it."""

    def __init__(self, file: Any, point: Callable[[str], None]) -> None:
        self.file, self.point = file, point
        self.fileno = file.fileno

    def __enter__(self) -> Writer:
        self.point("opened")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.point("half written")
        self.file.write(content[half:])
        self.point("written")

    def flush(self) -> None:
        self.file.flush()
        self.point("flushed")


def install(reached: Callable[[str], None]) -> None:
    """Call `reached` with a name after each step of writing in this process."""
    for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):

        @functools.wraps(real := getattr(os, name))
        def call(path: Any, *given: Any, real: Any = real, name: str = name, **more: Any) -> None:
            real(path, *given, **more)
            file = os.readlink(f"/proc/self/fd/{path}") if name == "fsync" else path
            reached(f"{name} {os.path.basename(file)}")

        setattr(os, name, call)
    opened = Path.open

    def open_file(path: Path, mode: str = "r", *given: Any, **more: Any) -> Any:
        file = opened(path, mode, *given, **more)
        return Writer(file, lambda what: reached(f"{what} {path.name}")) if mode in ("wb", "ab") else file

    Path.open = open_file


def work(root: Path, run_id: str, sent: Connection, kill_at: int) -> None:
    """Train a run with a checkpoint after each step; this process is killed at that point, or sends its points."""
    tensors = load_file(root / "images")
    data = make_dataset("shapes", "a test", *(tensors[name] for name in TENSORS))
    loop.SAVE_SECONDS = loop.EPOCH_SAVE_SECONDS = loop.PROGRESS_SECONDS = 0.0
    run = folder.find(root, run_id)
    points: list[tuple[str, State]] = []

    def reached(name: str) -> None:
        points.append((name, snapshot_of(run)))
        if len(points) == kill_at:
            sent.send(name)
            os.kill(os.getpid(), signal.SIGKILL)

    install(reached)
    for _ in recording.train_run(run, data, torch.device("cpu"), lambda: False):
        pass
    sent.send(points)


def snapshot_of(run: folder.Run) -> State:
    """Return which snapshot a continuation would begin with."""
    state = read_json(run.folder / RESUME / STATE)
    return (state["step"], state["validated_step"]) if state else None


def kill_at_points(place: Path, data: Dataset, every: int) -> list[str]:
    """Kill a training at every so manyth point, and return these. Raises AssertionError where that did any harm."""
    save_file({name: getattr(data, name).contiguous() for name in TENSORS}, place / "images")
    whole, run = folder.create(place, CONFIG), folder.create(place, CONFIG)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.kills"])  # torch is imported once, not in each of them

    def train(run: folder.Run, kill_at: int) -> Any:
        received, sent = processes.Pipe(duplex=False)
        worker = processes.Process(target=work, args=(place, run.id, sent, kill_at))
        worker.start()
        sent.close()
        answer = received.recv()
        worker.join(timeout=120)
        assert worker.exitcode == (-signal.SIGKILL if isinstance(answer, str) else 0)
        return answer

    points, killed, target = train(whole, 0), [], 0
    passed: dict[State, int] = {}  # how many points come before a snapshot counts
    for number, (_, state) in enumerate(points):
        passed.setdefault(state, number)
    while run.history().state != "finished":
        target, before = target + every, snapshot_of(run)
        name = train(run, max(1, target - passed[before]))
        state = run.history().state
        assert state == "finished" or (state == "interrupted" and isinstance(name, str)), name
        assert state == "finished" or (snapshot_of(run) or (0, 0)) >= (before or (0, 0)), name
        if run.has(WEIGHTS):
            read_checkpoint(run.folder / WEIGHTS, "x").network()
        killed += [name] if isinstance(name, str) else []
    a, b = (load_file(r.folder / WEIGHTS) for r in (whole, run))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a), "the weights differ"
    epochs = [[(e.step, e.train_loss, e.validation_loss) for e in r.history().epochs] for r in (whole, run)]
    assert epochs[0] == epochs[1] and len(epochs[0]) == CONFIG.epochs, epochs
    assert run.evaluation() == whole.evaluation() is not None, "the evaluations differ"
    return killed


def main() -> None:
    """Kill at all points and print each."""
    data, begun = shapes.draw(), time.monotonic()
    parts = (data.train_pictures[:120], data.train_labels[:120], data.test_pictures[:40], data.test_labels[:40])
    place = Path(tempfile.mkdtemp())
    try:
        killed = kill_at_points(place, make_dataset("shapes", "a test", *parts), 1)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(*killed, sep="\n")
    print(f"{len(killed)} kills, {len(set(killed))} kinds of points, {time.monotonic() - begun:.0f} s: no harm")
