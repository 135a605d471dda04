"""Run folders: what is in them, and that nothing is lost to a kill, a full disk or a second process."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cnn_demo.errors import DiskError, RunError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder as runs
from cnn_demo.runs.checkpoints import read_checkpoint
from cnn_demo.runs.history import History
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import CheckpointSaved, Event, Progress, RunFinished

CONFIG = RunConfig(
    model="resnet50",
    dataset="shapes",
    epochs=2,
    batch_size=20,
    optimizer="sgd",
    precision="float32",
    validation_pictures=20,
)


def never() -> bool:
    return False


def drive(run: runs.Run, data: Dataset, stop_at: int = 10**9) -> list[Event]:
    """Drive a run, stopping at a step."""
    steps = [0]
    events = []
    for event in runs.drive(run, data, torch.device("cpu"), lambda: steps[-1] >= stop_at):
        events.append(event)
        steps.append(getattr(event, "step", 0))
    return events


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_exactly_these_files(tmp_path: Path, tiny: Dataset) -> None:
    run = runs.create(tmp_path, CONFIG)
    assert run.history().state == "interrupted"  # nobody works on it yet
    events = drive(run, tiny)
    assert files(run.folder) == {"config.json", "events.jsonl", "model.safetensors", "lock"}
    assert run.history().state == "finished"
    written = run.events()
    assert [e.seq for e in written] == list(range(len(events) + 1))
    assert written[1:] == events
    assert run.events(after=3) == written[4:]
    config = json.loads((run.folder / "config.json").read_text())
    assert config["command"] == CONFIG.to_command() and config["classes"] == list(tiny.classes)
    assert config["versions"]["torch"].startswith("2.") and config["input_size"] == 32
    saved = read_checkpoint(run.folder / "model.safetensors", run.id)
    assert saved.step == events[-1].best_step and saved.validation_accuracy == events[-1].validation_accuracy
    assert runs.Run(run.folder).config == CONFIG


def test_stop_leaves_a_run_that_continues_exactly(tmp_path: Path, tiny: Dataset) -> None:
    whole = runs.create(tmp_path, CONFIG)
    drive(whole, tiny)
    run = runs.create(tmp_path, CONFIG)
    drive(run, tiny, stop_at=5)
    assert run.history().state == "stopped"
    step = run.history().finished.step
    kept = {"state.json", f"weights-{step}.safetensors", f"optimizer-{step}.safetensors"}
    assert 0 < step < 10 and files(run.folder / "resume") == kept
    run.save_evaluation({"accuracy": 0.5})
    events = drive(run, tiny)
    assert events[0].step == step and events[-1].reason == "finished"
    a, b = (load_file(r.folder / "model.safetensors") for r in (whole, run))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [e.step for e in run.history().epochs] == [5, 10]
    assert not (run.folder / "evaluation.json").exists()  # it was about other weights


def test_an_ended_run_says_what_to_do_instead(tmp_path: Path, tiny: Dataset) -> None:
    run = runs.create(tmp_path, CONFIG)
    drive(run, tiny)
    with pytest.raises(RunError, match=f"--start-from {run.id}"):
        drive(run, tiny)


def test_starting_from_a_checkpoint_starts_with_its_weights(tmp_path: Path, tiny: Dataset) -> None:
    first = runs.create(tmp_path, CONFIG)
    drive(first, tiny)
    config = RunConfig(**CONFIG.to_dict() | {"start_from": first.id, "learning_rate": 1e-6, "schedule": "constant"})
    second = runs.create(tmp_path, config)
    for event in runs.drive(second, tiny, torch.device("cpu"), never):
        if isinstance(event, CheckpointSaved):
            break
    a, b = (load_file(r.folder / "model.safetensors") for r in (first, second))
    assert event.step == 0 and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_without_the_checkpoint_it_started_from(tmp_path: Path, tiny: Dataset) -> None:
    first = runs.create(tmp_path, CONFIG)
    drive(first, tiny, stop_at=3)
    second = runs.create(tmp_path, RunConfig(**CONFIG.to_dict() | {"start_from": first.id}))
    drive(second, tiny, stop_at=3)
    shutil.rmtree(first.folder)
    assert drive(second, tiny)[-1].reason == "finished"


def test_a_cut_last_line_is_passed_over_and_then_cut_off(tmp_path: Path, tiny: Dataset) -> None:
    run = runs.create(tmp_path, CONFIG)
    run.append(RunFinished(reason="stopped", message="", epochs=0, step=0))
    log = run.folder / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"kind": "Progress", "ste')
    again = runs.find(tmp_path, run.id)
    assert [e.seq for e in again.events()] == [0, 1] and again.history().state == "stopped"
    events = drive(again, tiny)
    assert events[0].seq == 2 and events[-1].reason == "finished"
    assert all(json.loads(line) for line in log.read_bytes().splitlines())


def test_two_processes_cannot_work_on_one_run(tmp_path: Path, tiny: Dataset) -> None:
    run = runs.create(tmp_path, CONFIG)
    with run.held():
        assert run.is_held() and run.history().state == "queued"
        with pytest.raises(RunError, match="being trained by another process"):
            drive(runs.find(tmp_path, run.id), tiny)
    assert not run.is_held()


def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoint(
    tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, CONFIG)
    drive(run, tiny, stop_at=1)
    before = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    step = run.load_snapshot().step
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"No space left on device\. The checkpoint of .* is kept"):
        drive(run, tiny)
    monkeypatch.undo()
    end = run.history().finished
    assert end.reason == "failed" and "No space left" in end.message
    assert end.step == run.history().latest.step > 0 and end.seconds > 0
    assert {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")} == before
    assert not list(run.folder.rglob("*.part"))
    assert drive(run, tiny)[0].step == step  # with space again it goes on


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, tiny: Dataset) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        runs.create(tmp_path / "file", CONFIG)


@pytest.mark.parametrize("run_id", ["../x", "/etc", "a/b", "", "nothing", "..", "A\n"])
def test_a_run_id_that_is_none_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(RunError, match="There is no run"):
        runs.find(tmp_path, run_id)


WORKER = """
import dataclasses, sys, torch
from pathlib import Path
from cnn_demo.pictures import dataset as data
from cnn_demo.runs import folder as runs
from cnn_demo.training import loop as training
shapes = data.draw_shapes()
parts = {f"{part}_{what}": size for part, size in (("train", 120), ("test", 40)) for what in ("pictures", "labels")}
tiny = dataclasses.replace(shapes, **{name: getattr(shapes, name)[:size] for name, size in parts.items()})
run = runs.find(Path(sys.argv[1]), sys.argv[2])
training.SNAPSHOT_SECONDS = 0.0
for event in runs.drive(run, tiny, torch.device("cpu"), lambda: False):
    print(type(event).__name__, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_run_that_loads_and_continues(tmp_path: Path, tiny: Dataset) -> None:
    """A checkpoint is written after each step here, so most kills fall into a write."""
    config = RunConfig(**CONFIG.to_dict() | {"epochs": 4})
    whole = runs.create(tmp_path, config)
    drive(whole, tiny)
    run = runs.create(tmp_path, config)
    generator, kills, steps = random.Random(0), 0, []
    while run.history().state != "finished":
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), run.id],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if kills < 6:  # after so many events, and then at any moment within about a step and its checkpoint
            for _ in range(generator.randint(2, 9)):
                worker.stdout.readline()
            time.sleep(generator.uniform(0, 0.3))
            worker.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = worker.communicate(timeout=120)
        assert "Error" not in errors, errors
        assert run.history().state in ("interrupted", "finished")
        if (run.folder / "model.safetensors").is_file():
            read_checkpoint(run.folder / "model.safetensors", "x").network()
        if run.history().state == "interrupted" and (snapshot := run.load_snapshot()):
            steps.append(snapshot.step)
    assert kills >= 3 and steps == sorted(steps) and any(steps)
    a, b = (load_file(r.folder / "model.safetensors") for r in (whole, run))
    assert all(torch.equal(a[name], b[name]) for name in a)
    told = [[(e.step, e.train_loss, e.validation_loss) for e in r.history().epochs] for r in (whole, run)]
    assert told[0] == told[1] and [step for step, *_ in told[0]] == [5, 10, 15, 20]


def test_the_history_of_a_killed_and_continued_run_has_no_step_twice(tmp_path: Path, tiny: Dataset) -> None:
    run = runs.create(tmp_path, CONFIG)
    events = drive(run, tiny)
    killed = [e for e in run.events() if e.seq < events[-1].seq]
    history = History()
    for event in [*killed, *run.events()]:  # all of it again, from step 0
        history = history.fold(event)
    assert [e.step for e in history.epochs] == [5, 10] and history.state == "finished"
    points = [e.step for e in run.events() if isinstance(e, Progress) and e.loss is not None]
    assert [p.step for p in history.curve] == points
