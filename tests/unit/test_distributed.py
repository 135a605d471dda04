"""Two processes that torchrun starts train as one does: gloo on the CPU stands in for N GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cnn_demo.errors import ConfigError
from cnn_demo.pictures import shapes
from cnn_demo.pictures.dataset import TENSORS, Dataset
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import read_checkpoint
from cnn_demo.training.config import RunConfig
from cnn_demo.training.distributed import Group
from cnn_demo.training.events import EpochDone, Event, Progress, RunFinished, RunStarted

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
RECIPE = ["--dataset", "shapes", "--epochs", "1", "--batch-size", "100", "--validation-pictures", "10800"]
RECIPE += ["--optimizer", "sgd"]
CONFIG = RunConfig(model="resnet50", dataset="shapes", epochs=2, batch_size=100, validation_pictures=200)
SCRIPT = """
import sys
from pathlib import Path
import torch
from cnn_demo import settings
from cnn_demo.runs import folder, recording
from cnn_demo.training.distributed import joined
from tests.unit.test_distributed import CONFIG, some_shapes

images, root, cpu = some_shapes(), Path(sys.argv[1]), torch.device("cpu")
with joined(settings.read_rank()) as group:
    if group.rank:
        recording.train_as_worker(root, None, CONFIG, images, cpu, lambda: False, group)
    else:
        for event in recording.train_run(folder.create(root, CONFIG), images, cpu, lambda: False, group):
            pass
"""


def some_shapes() -> Dataset:
    """800 training and 300 test images."""
    images = shapes.draw()
    return replace(images, **{n: getattr(images, n)[: 800 if "train" in n else 300] for n in TENSORS})


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "cnn_demo", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENV | {"CNN_DEMO_CHECKPOINTS": str(root)}, **pipes)


def progress(event: Event) -> bool:
    return isinstance(event, Progress)


def result(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert len(lines) == 1, out  # rank 0 alone prints
    return json.loads(lines[0])


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, folder.Run]:
    """The same run by one process and by two: 2 epochs of 6 steps over 600 shapes."""
    roots = {processes: tmp_path_factory.mktemp(f"by-{processes}") for processes in (1, 2)}
    alone = folder.create(roots[1], CONFIG)
    for _ in recording.train_run(alone, some_shapes(), torch.device("cpu"), lambda: False):
        pass
    script = roots[2] / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([*TORCHRUN, "--nproc-per-node=2", str(script), str(roots[2])], check=True, cwd=ROOT, env=ENV)
    (together,) = folder.list_runs(roots[2])  # one folder for both processes
    return {1: alone, 2: together}


def test_two_processes_give_the_loss_curve_of_one(epochs: dict[int, folder.Run]) -> None:
    curves = {}
    for processes, run in epochs.items():
        history = run.history()
        assert history.state == "finished" and len(history.epochs) == 2
        assert [e.seq for e in run.log.read()] == list(range(len(run.log.read())))
        assert {e.pictures for e in history.validations} == {10, 200} and len(history.validations) > 10
        curves[processes] = [e.train_loss for e in history.epochs] + [e.validation_loss for e in history.epochs]
    # Each of two processes normalises (BN) by its own half of the batch, so the curves are near, not equal.
    for one, two in zip(curves[1], curves[2], strict=True):
        assert two == pytest.approx(one, rel=0.15)
    started = next(e for e in epochs[2].log.read() if isinstance(e, RunStarted))
    assert started.device.startswith("2 x CPU") and started.train_pictures == 600
    ends = {n: run.history().finished for n, run in epochs.items()}
    assert ends[2].test_pictures == ends[1].test_pictures == 300
    assert abs(ends[2].test_accuracy - ends[1].test_accuracy) < 0.15
    assert read_checkpoint(epochs[2].folder / "model.safetensors", "x").network() is not None


def test_interrupt_and_continue_reach_all_processes(tmp_path: Path) -> None:
    process = start(tmp_path, "train", "resnet50", *RECIPE, "--json")
    while not any(event.step for run in folder.list_runs(tmp_path) for event in run.log.read() if progress(event)):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "stopping and saving\n" in errors, "torchrun decides what a second Ctrl-C does"
    (run,) = folder.list_runs(tmp_path)
    history = run.history()
    assert history.state == "stopped" and 0 < history.finished.step < 12
    stopped = history.finished.step

    answer = result(start(tmp_path, "continue", run.id, "--json"))
    assert answer["reason"] == "finished" and answer["steps"] == 12
    events = [e for e in run.log.read() if isinstance(e, (RunStarted, RunFinished, EpochDone, Progress))]
    assert [e.step for e in events if isinstance(e, RunStarted)] == [0, stopped]


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for 3 processes give a multiple, not 256"):
        Group(1, 3).part(256)
    assert Group(1, 2).part(256) == slice(128, 256)
    assert Group().agree(True, 3.5) == (True, 3.5)
    value = torch.ones(3)
    Group().average([value])
    assert value.tolist() == [1, 1, 1]
