"""What strangers send, damage and forbid is answered in a sentence: a few of each kind of tests/fuzz.py, the rules."""

import contextlib
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cnn_demo import cli
from cnn_demo.errors import CheckpointError, InputError, RunError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import checkpoints, folder, recording
from cnn_demo.runs.files import EventLog
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import EpochDone, RunFinished
from cnn_demo.ui.events import checked
from cnn_demo.ui.run_view import answering
from tests import fuzz

CONFIG = RunConfig(model="resnet50", dataset="shapes", epochs=2, batch_size=20, optimizer="sgd", precision="float32")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> folder.Run:
    """A new run, where the command line looks for it."""
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return folder.create(tmp_path / "runs", CONFIG, "anna")


@pytest.mark.parametrize(("kind", "count"), [(fuzz.pictures, 500), (fuzz.commands, 50), (fuzz.folders, 6)])
def test_a_few_of_each_kind_are_answered(tmp_path: Path, kind: Any, count: int, run: folder.Run) -> None:
    found = kind(count, tmp_path)
    assert found["answered"] == sum(found.values()) >= count


def test_arguments_are_checked_against_what_is_declared() -> None:
    @checked
    def watch(run: str, after: int = -1, more: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"run": run, "after": after}

    assert watch("a", after=3) == {"run": "a", "after": 3} == watch("a", 3, None) == watch("a", 3, {"x": []})
    for wrong in (
        {},
        {"run": 5},
        {"run": None},
        {"run": "\ud800"},
        {"run": "a", "after": "x"},
        {"run": "a", "after": 1.0},
    ):
        with pytest.raises(InputError):
            watch(**wrong)
    for wrong in ({"after": True}, {"more": []}, {"more": {"x": "\ud800"}}, {"other": 1}, {"more": {"x": fuzz.DEEP}}):
        if "x" not in wrong.get("more", {}) or wrong["more"]["x"] == "\ud800":
            with pytest.raises(InputError):
                watch("a", **wrong)


def test_the_page_gets_a_sentence_and_only_our_own_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def listing(owner: str) -> dict[str, Any]:
        return {"runs": 1 // len(owner)}

    answer = answering(listing)
    for asked in (None, [], 5, {}, {"owner": 5}, {"owner": "a", "more": 1}):
        assert set(answer(asked)) == {"error"}
    assert not caplog.records
    assert "server log" in answer({"owner": ""})["error"] and len(caplog.records) == 1


def test_an_owner_of_any_text_leaves_no_empty_folder(tmp_path: Path) -> None:
    assert folder.create(tmp_path, CONFIG, "\ud800").belongs_to("\ud800")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", "ä".encode(), None])
def test_a_run_with_a_damaged_owner_is_nobodys(run: folder.Run, content: bytes | None) -> None:
    (run.folder / "owner").unlink()
    (run.folder / "owner").mkdir() if content is None else (run.folder / "owner").write_bytes(content)
    again = folder.Run(run.folder)
    assert again.owner and not again.belongs_to("anna") and not again.belongs_to("damaged")


@pytest.mark.parametrize(
    "line", [b'{"kind": "Progress", "logged": [[1e999, 1]]}', b"[" * 100_000, b'{"kind": []}', b"5", b"\xff"]
)
def test_a_damaged_event_is_left_out_and_reported_once(
    run: folder.Run, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    log = run.folder / "events.jsonl"
    log.write_bytes(log.read_bytes() + line + b"\n" + b'{"half')  # the last one is being written
    EventLog._reported.clear()
    for _ in range(2):
        assert [event.seq for event in folder.Run(run.folder).log.read()] == [0]
    assert [record.getMessage() for record in caplog.records] == [
        f"Line 2 of the log of {run.id} is damaged and left out"
    ]
    EventLog._reported.clear()
    run.write_json("source.json", {"repo": "a/b", "commit": "c", "revisions": []})
    assert run.log.read() and len(caplog.records) == 1  # a stranger's log


def test_an_unreadable_log_is_a_damaged_run_in_the_list_and_a_sentence_where_it_is_opened(
    run: folder.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, read = folder.create(run.folder.parent, CONFIG), Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.parent.name == run.id:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    models = {found.id: found.summary()["model"] for found in folder.list_runs(run.folder.parent)}
    assert models == {run.id: "damaged", good.id: "resnet50"}
    with pytest.raises(RunError, match=r"events\.jsonl cannot be read: Permission denied"):
        run.history()
    with pytest.raises(RunError, match="Permission denied"), run.locked():
        pass


def test_a_log_that_is_a_folder_hides_only_its_run(run: folder.Run) -> None:
    good = folder.create(run.folder.parent, CONFIG)
    (run.folder / "events.jsonl").unlink()
    (run.folder / "events.jsonl").mkdir()
    (run.folder / "model.safetensors").mkdir()
    assert [found.id for found in folder.list_runs(run.folder.parent)] == [good.id]
    assert checkpoints.checkpoint_names(run.folder.parent) == []


def test_a_damaged_source_is_still_a_run_from_the_hub(run: folder.Run) -> None:
    for content in ("5", '{"repo": 5}', '{"repo": "a/b", "commit": "c"}', "[" * 100_000):
        (run.folder / "source.json").write_text(content)
        again = folder.Run(run.folder)
        again.add_revision("main")
        assert again.title == "ResNet50-C4 from the Hub" and folder.Run(run.folder).source["revisions"] == ["main"]


def test_lists_leave_out_what_a_stranger_claims(run: folder.Run) -> None:
    run.log.append(EpochDone(epoch=1, step=1, train_loss=1, validation_loss=1, validation_accuracy=1, best=True))
    run.log.append(RunFinished(reason="finished", message="", epochs=1, step=1, test_accuracy=1.0))
    assert (run.summary()["test_accuracy"], run.summary()["validation_accuracy"]) == (1, 1)
    run.write_json("source.json", {"repo": "a/b", "commit": "c", "revisions": []})
    summary = folder.Run(run.folder).summary()
    assert (summary["test_accuracy"], summary["validation_accuracy"], summary["state"]) == (None, None, "finished")


def test_folders_of_runs_killed_while_they_were_made_go_after_an_hour(tmp_path: Path) -> None:
    def unmade(number: int, age: float, *names: str) -> Path:
        path = tmp_path / f"vgg16-20260101-120000-{number:08x}"
        path.mkdir()
        for name in names:
            (path / name).touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    old = [unmade(1, 4000), unmade(2, 4000, "owner", "config.json.part")]
    kept = [
        unmade(3, 60, "owner"),
        unmade(4, 4000, "model.safetensors"),
        unmade(5, 4000, "config.json", "events.jsonl"),
    ]
    locked = folder.Run(unmade(6, 0))
    with locked.locked():
        os.utime(locked.folder, (0, 0))
        folder.create(tmp_path, CONFIG)
        assert not any(path.exists() for path in old) and all(path.exists() for path in [*kept, locked.folder])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny: Dataset) -> folder.Run:
    """A run that stopped after its first checkpoint."""
    config = RunConfig(**CONFIG.to_dict() | {"validation_pictures": 20})
    run = folder.create(tmp_path_factory.mktemp("stopped"), config)
    for event in recording.train_run(run, tiny, torch.device("cpu"), lambda: (run.folder / "resume").exists()):
        assert event
    return run


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("state.json", lambda state: state | {"step": "7"}),
        ("state.json", lambda state: state | {"losses": None}),
        ("state.json", lambda state: state | {"scaler": [1]}),
        ("state.json", lambda state: state | {"weights": "../x"}),
        ("state.json", lambda state: []),
        ("state.json", lambda state: json.loads("[" * 900 + "]" * 900)),
        ("weights", {"x": torch.zeros(3)}),
        ("optimizer", {"conv/exp_avg": torch.zeros(3)}),
        ("optimizer", {"1/momentum_buffer": torch.zeros(())}),
    ],
)
def test_a_damaged_snapshot_is_one_sentence(
    tmp_path: Path, tiny: Dataset, stopped: folder.Run, name: str, change: Any
) -> None:
    run = folder.Run(tmp_path / stopped.id)
    shutil.copytree(stopped.folder, run.folder)
    state = json.loads((run.folder / "resume" / "state.json").read_text())
    if name == "state.json":
        (run.folder / "resume" / name).write_text(json.dumps(change(state)))
    else:
        save_file(change, run.folder / "resume" / state[name])
    with pytest.raises(RunError, match=r"saved state of .* cannot be used"):
        list(recording.train_run(run, tiny, torch.device("cpu"), lambda: True))
    assert run.history().state == "failed"


def test_a_log_that_cannot_be_written_is_one_sentence(run: folder.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(RunError, match=r"events\.jsonl cannot be written: Permission denied"), run.locked():
        pass


def test_a_refusal_of_the_system_is_one_sentence_of_the_command_line(
    run: folder.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "list_runs", lambda root: os.listdir("/nowhere/" + "x" * 5000))
    assert cli.main(["runs"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cnn_demo: /nowhere/xxx") and err.endswith("cannot be used: File name too long.\n")
    assert len(err) < 300


def test_a_strangers_text_cannot_steer_the_terminal(run: folder.Run, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((run.folder / "config.json").read_text())
    values["recipe"]["start_from"] = "\x1b[31mred\x07"
    run.write_json("config.json", values)
    run.write_json("source.json", {"repo": "a/b", "commit": "c", "revisions": []})
    assert cli.main(["continue", run.id]) == 2
    err = capsys.readouterr().err
    assert "?[31mred?" in err and "\x1b" not in err and "come from the Hub" in err


def test_weights_with_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    from cnn_demo.answers.inference import classify
    from cnn_demo.networks.models import build

    weights = build("resnet50", 10, 0).state_dict()
    weights[list(weights)[-2]].fill_(3e38)  # of the last layer
    checkpoint = checkpoints.Checkpoint(
        **{"name": "x", "model": "resnet50", "dataset": "shapes", "classes": tuple("abcdefghij"), "step": 7},
        **{"mean": (0.5,) * 3, "std": (0.5,) * 3, "validation_accuracy": None, "limits": None, "temperature": 1.0},
        **{"held_out": None, "weights": weights},
    )
    with pytest.raises(CheckpointError, match="not a finite number"):
        classify(checkpoint.network(), checkpoint, torch.zeros(3, 32, 32, dtype=torch.uint8))


def test_a_first_snapshot_that_fails_speaks_of_no_checkpoint_before(
    run: folder.Run, stopped: folder.Run, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = recording.load_snapshot(stopped.folder)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording, "write_file", refuse)
    for where, words in ((run, r"device\.$"), (stopped, "is still there")):
        with pytest.raises(Exception, match=words):
            recording.save_snapshot(where.folder, snapshot, CONFIG, tiny)


def test_export_refuses_a_folder_of_something_else(
    stopped: folder.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(stopped.folder.parent))
    for other in ({"README.md": "mine", "code.py": "x"}, {"README.md": "mine"}):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        for name, content in other.items():
            (tmp_path / "out" / name).write_text(content)
        assert cli.main(["export", stopped.id, str(tmp_path / "out")]) == 2
        assert "(README.md would be replaced)" in capsys.readouterr().err
        assert (tmp_path / "out" / "README.md").read_text() == "mine"
    assert cli.main(["export", stopped.id, str(tmp_path / "out"), "--force"]) == 0
    assert cli.main(["export", stopped.id, str(tmp_path / "new")]) == 0
    assert cli.main(["export", stopped.id, str(tmp_path / "new")]) == 0  # an earlier export


def test_a_diverged_run_exits_3(run: folder.Run, tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    end = RunFinished(reason="diverged", message="The loss is not finite.", epochs=0, step=3)
    monkeypatch.setattr(cli, "load_data", lambda *_: tiny)
    monkeypatch.setattr(recording, "train_run", lambda *_: iter([end]))
    for extra, words in (["--json"], '"reason": "diverged"'), ([], "diverged: The loss"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert cli.main(["continue", run.id, *extra]) == 3
        assert words in output.getvalue()
