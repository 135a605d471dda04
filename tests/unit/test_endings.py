"""How a run ends that nobody stopped, and what it leaves."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_demo.errors import ConfigError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import read_checkpoint
from cnn_demo.runs.recording import load_snapshot
from cnn_demo.runs.service import Service
from cnn_demo.settings import SPACE_LIMITS, Settings
from cnn_demo.training import loop
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import CheckpointSaved
from cnn_demo.training.loop import Loop, Snapshot

FIELDS = {"model": "resnet50", "dataset": "shapes", "optimizer": "sgd", "learning_rate": 0.05}
CPU = torch.device("cpu")
NOWHERE = "http://127.0.0.1:9"


def test_a_run_that_the_time_limit_ends_says_so(tmp_path: Path, tiny: Dataset) -> None:
    limits = replace(SPACE_LIMITS, minutes=0.01)
    where = Settings(checkpoints=tmp_path, data=None, cache=tmp_path, hub=NOWHERE, toronto=NOWHERE, limits=limits)
    service = Service(where, CPU)
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

    def take_step(self: Loop) -> None:
        usual(self)
        if self.step == 2:
            next(self.network.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Loop, "take_step", take_step)
    run, steps = folder.create(tmp_path, config), [0]
    for event in recording.train_run(run, tiny, CPU, lambda: is_stopped and steps[-1] == 2):
        steps.append(getattr(event, "step", 0))
    assert run.history().state == ("stopped" if is_stopped else "diverged")
    saved = read_checkpoint(run.folder / "model.safetensors", "x")  # raises where a weight is not finite
    snapshot = load_snapshot(run.folder)
    assert saved.step == 0 and (snapshot is not None) == is_stopped
    assert not snapshot or all(value.isfinite().all() for value in snapshot.weights.values())


def test_a_batch_that_does_not_fit_is_refused_in_a_sentence(
    tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_step(self: Loop) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Loop, "take_step", take_step)
    run = folder.create(tmp_path, RunConfig(**FIELDS, epochs=1, batch_size=60, validation_pictures=20))
    with pytest.raises(
        ConfigError, match=r"^Batch size: CPU, \d threads? has no memory for 60 images at a time; try 30.$"
    ):
        list(recording.train_run(run, tiny, CPU, lambda: False))
    history = run.history()
    assert history.state == "failed" and history.finished.message.endswith("try 30.")
    assert load_snapshot(run.folder).step == 0  # it can be continued


def test_training_goes_on_while_a_slow_disk_writes(
    tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two saves lie 10 s at least, so 0.1 s for each are 1 % of the time."""
    assert loop.EPOCH_SAVE_SECONDS >= 10 and loop.SAVE_SECONDS >= 10
    save, copy, take_step = recording.save_snapshot, recording.copied, Loop.take_step
    written: list[tuple[int, int]] = []  # steps taken before and after
    steps: list[int] = []
    copies: list[float] = []  # seconds that the training waited

    def slow(*given: Any) -> CheckpointSaved | None:
        begun = len(steps)
        time.sleep(0.5)
        written.append((begun, len(steps)))
        return save(*given)

    def timed(snapshot: Snapshot) -> Snapshot:
        begun = time.monotonic()
        found = copy(snapshot)
        copies.append(time.monotonic() - begun)
        return found

    def counted(self: Loop) -> None:
        take_step(self)
        steps.append(self.step)

    monkeypatch.setattr(recording, "save_snapshot", slow)
    monkeypatch.setattr(recording, "copied", timed)
    monkeypatch.setattr(Loop, "take_step", counted)
    monkeypatch.setattr(loop, "EPOCH_SAVE_SECONDS", 1.0)
    run = folder.create(tmp_path, RunConfig(**FIELDS, epochs=8, batch_size=20, validation_pictures=0))
    saved = [e.step for e in recording.train_run(run, tiny, CPU, lambda: False) if isinstance(e, CheckpointSaved)]
    assert len(saved) == len(written) >= 3 and max(copies) < 0.1
    assert all(end > begun for begun, end in written[:-1]), written
