"""How a run ends that nobody stopped, and what it leaves."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import read_checkpoint
from cnn_demo.runs.recording import load_snapshot
from cnn_demo.runs.service import Service
from cnn_demo.settings import SPACE_LIMITS, Settings
from cnn_demo.training.config import RunConfig
from cnn_demo.training.loop import Loop

FIELDS = {"model": "resnet50", "dataset": "shapes", "optimizer": "sgd", "learning_rate": 0.05}
NOWHERE = "http://127.0.0.1:9"


def test_a_run_that_the_time_limit_ends_says_so(tmp_path: Path, tiny: Dataset) -> None:
    limits = replace(SPACE_LIMITS, minutes=0.01)
    where = Settings(checkpoints=tmp_path, data=None, cache=tmp_path, hub=NOWHERE, toronto=NOWHERE, limits=limits)
    service = Service(where, torch.device("cpu"))
    service.data._loaded["shapes"] = tiny
    run = service.submit(RunConfig(**FIELDS, epochs=1000, batch_size=10, validation_pictures=20), "anna", "1.1.1.1")
    while "end" not in (seen := service.watch(run)):
        time.sleep(0.05)
    service.close()
    end = seen["end"]
    sentence = f"At step {end['step']} this Space's time limit of 0.01 minutes ended the run; it can be continued."
    assert (end["reason"], end["message"], seen["text"]) == ("stopped", sentence, sentence)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    """The loss of the step that ruins the weights is finite, and nothing is held out that would tell."""
    config = RunConfig(**FIELDS, epochs=1, batch_size=60, validation_pictures=0)
    usual = Loop.take_step

    def take_step(loop: Loop) -> None:
        usual(loop)
        if loop.step == 2:
            next(loop.network.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Loop, "take_step", take_step)
    run, steps = folder.create(tmp_path, config), [0]
    for event in recording.train_run(run, tiny, torch.device("cpu"), lambda: is_stopped and steps[-1] == 2):
        steps.append(getattr(event, "step", 0))
    assert run.history().state == ("stopped" if is_stopped else "diverged")
    saved = read_checkpoint(run.folder / "model.safetensors", "x")  # raises where a weight is not finite
    snapshot = load_snapshot(run.folder)
    assert saved.step == 0 and (snapshot is not None) == is_stopped
    assert not snapshot or all(value.isfinite().all() for value in snapshot.weights.values())
