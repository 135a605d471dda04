"""Run folders: what is in them, and that a kill, a full disk or a second process loses nothing."""

import errno
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cnn_demo.answers.inference import classify
from cnn_demo.errors import DiskError, InputError, RunError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import find_checkpoint, read_checkpoint
from cnn_demo.runs.history import history_of
from cnn_demo.runs.recording import load_snapshot
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import CheckpointSaved, Event, Progress, RunFinished
from tests.kills import kill_at_points

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


def train(run: folder.Run, data: Dataset, stop_at: int = 10**9) -> list[Event]:
    """Train a run, stopping at a step."""
    steps = [0]
    events = []
    for event in recording.train_run(run, data, torch.device("cpu"), lambda: steps[-1] >= stop_at):
        events.append(event)
        steps.append(getattr(event, "step", 0))
    return events


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_exactly_these_files(tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, CONFIG)
    assert run.history().state == "interrupted"  # no process works on it yet
    events = train(run, tiny)
    assert files(run.folder) == {"config.json", "events.jsonl", "model.safetensors", "evaluation.json", "lock"}
    assert run.history().state == "finished"
    written = run.log.read()
    assert [e.seq for e in written] == list(range(len(events) + 1))
    assert written[1:] == events
    assert run.log.read(after=3) == written[4:]
    config = json.loads((run.folder / "config.json").read_text())
    assert config["command"] == CONFIG.to_command() and config["classes"] == list(tiny.classes)
    assert config["versions"]["torch"].startswith("2.") and config["input_size"] == 32
    saved = read_checkpoint(run.folder / "model.safetensors", run.id)
    assert saved.step == events[-1].best_step and saved.validation_accuracy == events[-1].validation_accuracy
    assert folder.Run(run.folder).config == CONFIG


def test_stop_leaves_a_run_that_continues_exactly(tmp_path: Path, tiny: Dataset) -> None:
    whole = folder.create(tmp_path, CONFIG)
    train(whole, tiny)
    run = folder.create(tmp_path, CONFIG)
    train(run, tiny, stop_at=5)
    assert run.history().state == "stopped"
    assert load_snapshot(run.folder).check_pictures == 10
    step = run.history().finished.step
    kept = {"state.json", f"weights-{step}.safetensors", f"optimizer-{step}.safetensors"}
    assert 0 < step < 10 and files(run.folder / "resume") == kept
    run.write_json("evaluation.json", {"accuracy": 0.5})
    events = train(run, tiny)
    assert events[0].step == step and events[-1].reason == "finished"
    a, b = (load_file(r.folder / "model.safetensors") for r in (whole, run))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [e.step for e in run.history().epochs] == [5, 10]
    assert run.evaluation() == whole.evaluation() and run.evaluation()["pictures"] == 40  # of these weights


def test_new_weights_remove_the_evaluation_of_the_old_ones(tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, CONFIG)
    train(run, tiny, stop_at=1)
    run.write_json("evaluation.json", {"accuracy": 0.5})
    train(run, tiny, stop_at=8)  # past the first validation
    assert run.history().state == "stopped" and not run.has("evaluation.json") and run.evaluation() is None


def test_a_run_has_a_readable_title_that_can_be_changed(tmp_path: Path) -> None:
    run = folder.create(tmp_path, CONFIG)
    hour, minute = re.search(r"-(\d\d)(\d\d)\d\d-[0-9a-f]{8}$", run.id).groups()
    assert run.title == f"ResNet50-C4, 2 epochs, {hour}:{minute}"
    assert folder.create(tmp_path, RunConfig(model="vgg16", seconds=60)).title.startswith("VGG16, 60 s, ")
    run.rename("  my first\n net ")
    assert folder.Run(run.folder).title == "my first net" == run.summary()["title"]
    for title in ("", "  ", "x" * 81, "a\0b", "a\u202eb"):
        with pytest.raises(InputError, match="1 to 80 printable characters"):
            run.rename(title)
    assert run.title == "my first net"


def test_a_run_folder_of_the_first_version_still_loads(tmp_path: Path, tiny: Dataset) -> None:
    """Written by commit 2965443: stopped after 6 of 10 steps, owned by "anna", with weights that compress well."""
    with tarfile.open(Path(__file__).parents[1] / "data" / "run_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (run,) = folder.list_runs(tmp_path)
    assert run.belongs_to("anna") and not run.belongs_to("bert") and run.history().state == "stopped"
    assert run.title == "ResNet50-C4, 2 epochs, 11:53" and run.evaluation() is None
    checkpoint = find_checkpoint(tmp_path, run.id)
    assert (checkpoint.step, checkpoint.temperature, checkpoint.held_out) == (5, 1.0, 20)
    assert len(classify(checkpoint.network(), checkpoint, tiny.test_pictures[0]).predictions) == 10
    again = folder.create(tmp_path, RunConfig(**CONFIG.to_dict() | {"start_from": run.id, "validation_pictures": None}))
    assert again.config.validation_pictures == 20
    events = train(run, tiny)
    assert events[0].step == 6 and events[-1].reason == "finished" and events[-1].step == 10
    assert run.has("evaluation.json")


def test_an_ended_run_says_what_to_do_instead(tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, CONFIG)
    train(run, tiny)
    with pytest.raises(RunError, match=f"--start-from {run.id}"):
        train(run, tiny)


def test_starting_from_a_checkpoint_starts_with_its_weights(tmp_path: Path, tiny: Dataset) -> None:
    first = folder.create(tmp_path, CONFIG)
    train(first, tiny)
    config = RunConfig(**CONFIG.to_dict() | {"start_from": first.id, "learning_rate": 1e-6, "schedule": "constant"})
    second = folder.create(tmp_path, config)
    for event in recording.train_run(second, tiny, torch.device("cpu"), never):
        if isinstance(event, CheckpointSaved):
            break
    a, b = (load_file(r.folder / "model.safetensors") for r in (first, second))
    assert event.step == 0 and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_continues_without_the_checkpoint_it_started_from(tmp_path: Path, tiny: Dataset) -> None:
    first = folder.create(tmp_path, CONFIG)
    train(first, tiny, stop_at=3)
    second = folder.create(tmp_path, RunConfig(**CONFIG.to_dict() | {"start_from": first.id}))
    train(second, tiny, stop_at=3)
    shutil.rmtree(first.folder)
    assert train(second, tiny)[-1].reason == "finished"


def test_a_half_written_last_line_is_ignored_and_then_cut_off(tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, CONFIG)
    run.log.append(RunFinished(reason="stopped", message="", epochs=0, step=0))
    log = run.folder / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"kind": "Progress", "ste')
    again = folder.find(tmp_path, run.id)
    assert [e.seq for e in again.log.read()] == [0, 1] and again.history().state == "stopped"
    events = train(again, tiny)
    assert events[0].seq == 2 and events[-1].reason == "finished"
    assert all(json.loads(line) for line in log.read_bytes().splitlines())


def test_two_processes_cannot_work_on_one_run(tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, CONFIG)
    with run.locked():
        assert run.is_locked() and run.history().state == "queued"
        with pytest.raises(RunError, match="is locked: another process trains it"):
            train(folder.find(tmp_path, run.id), tiny)
    assert not run.is_locked()


def test_a_full_disk_is_one_error_and_leaves_the_last_checkpoint(
    tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder.create(tmp_path, CONFIG)
    train(run, tiny, stop_at=1)
    before = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    step = load_snapshot(run.folder).step
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"No space left on device\. The last checkpoint saved of .* is still there"):
        train(run, tiny)
    monkeypatch.undo()
    end = run.history().finished
    assert end.reason == "failed" and "No space left" in end.message
    assert end.step == run.history().latest.step > 0 and end.seconds > 0
    assert {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")} == before
    assert not list(run.folder.rglob("*.part"))
    assert train(run, tiny)[0].step == step  # with space again it continues


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, tiny: Dataset) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        folder.create(tmp_path / "file", CONFIG)


@pytest.mark.parametrize("run_id", ["../x", "/etc", "a/b", "", "nothing", "..", "A\n"])
def test_a_malformed_run_id_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(RunError, match="There is no run"):
        folder.find(tmp_path, run_id)


def test_a_run_killed_while_it_writes_continues_exactly(tmp_path: Path, tiny: Dataset) -> None:
    killed = kill_at_points(tmp_path, tiny, every=36)  # all points: python -m tests.fuzz kills
    assert len(killed) >= 5, killed


def test_the_history_of_a_killed_and_continued_run_has_no_step_twice(tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, CONFIG)
    events = train(run, tiny)
    killed = [e for e in run.log.read() if e.seq < events[-1].seq]
    history = history_of([*killed, *run.log.read()])  # all of it again, from step 0
    assert [e.step for e in history.epochs] == [5, 10] and history.state == "finished"
    points = [e.step for e in run.log.read() if isinstance(e, Progress) and e.loss is not None]
    assert [p.step for p in history.curve] == points
