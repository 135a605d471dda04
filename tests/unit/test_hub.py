"""Checkpoints on the Hub: the real client against a test server that answers as the Hub does."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from cnn_demo import cli
from cnn_demo.answers import inference
from cnn_demo.errors import DiskError, HubError, InputError
from cnn_demo.pictures import photo, sources
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs.checkpoints import find_checkpoint
from cnn_demo.runs.files import EVALUATION
from cnn_demo.runs.folder import Run, list_runs
from cnn_demo.sharing import export, hub
from tests.hub_server import Fault, HubServer
from tests.sharing import ADA, EVALUATED, curve, push, quiet


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ada/net", ("ada/net", "main")),
        ("ada/net@", ("ada/net", "main")),
        ("hf:ada/net@run-1", ("ada/net", "run-1")),
        (" https://huggingface.co/ada/net/tree/v1 ", ("ada/net", "v1")),
        ("https://huggingface.co/ada/net/commit/" + "a" * 40, ("ada/net", "a" * 40)),  # as a push returns it
        ("ada/net@" + "a" * 40, ("ada/net", "a" * 40)),
    ],
)
def test_names_and_links_are_parsed(text: str, expected: tuple[str, str]) -> None:
    assert hub.parse(text) == expected


@pytest.mark.parametrize("text", ["", "net", "a/b/c", "ada/../x", "ada/net@../x", "a b/c", "x" * 300, "../net"])
def test_invalid_repository_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a repository"):
        hub.parse(text)


@pytest.mark.parametrize("xet", [True, False])
def test_push_list_pull_and_classify(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    link = push(run, server)
    repo = server.repos["models", "ada/net"]
    assert bool(server.xet_hashes()) == xet
    assert len(repo.commits) == 2 and repo.tags == {f"run-{run.id}": repo.commits[-1][0]}
    assert link == f"{server.url}/ada/net/commit/{repo.commits[-1][0]}"
    assert set(repo.files) == {*export.FILES, EVALUATION, ".gitattributes"}
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    assert hub.list_repositories(server.url, "ada", ADA) == ["ada/net"]

    assert push(run, server) == link and len(repo.commits) == 2  # a second push changes nothing

    root = tmp_path / "other machine"
    pulled = hub.pull(root, server.url, "ada/net", False)
    source = {"repo": "ada/net", "commit": repo.commits[-1][0], "revisions": ["main"], "private": False}
    assert pulled.source == source
    assert pulled.config == run.config and curve(pulled) == curve(run)
    pixels = photo.to_input(Image.effect_noise((64, 64), 80).convert("RGB"))
    answers = []
    for name, where in (("resnet50", run.folder.parent), ("hf:ada/net", root), (pulled.id, root)):
        checkpoint = find_checkpoint(where, name)
        answers.append(inference.classify(checkpoint.network(), checkpoint, pixels).predictions)
    assert answers[1] == answers[2]
    for here, there in zip(answers[0], answers[1], strict=True):
        assert here.label == there.label and here.score == pytest.approx(there.score, abs=0.01)

    requests = len(server.requests)
    for commit in (f"hf:ada/net@{repo.commits[-1][0]}", link):
        assert hub.pull(root, server.url, commit, False).id == pulled.id
    assert len(server.requests) == requests  # a commit that is here needs no Hub
    server.close()
    notes: list[str] = []
    assert hub.pull(root, server.url, "ada/net", False, notify=notes.append).id == pulled.id  # and works offline
    assert "could not be reached" in notes[0] and f"Used instead: ada/net@{repo.commits[-1][0][:8]}" in notes[0]
    with pytest.raises(HubError, match="could not be reached"):
        hub.pull(root, server.url, "ada/other", False)


def test_a_continued_run_is_pushed_again_and_its_tag_moves(run: Run, server: HubServer) -> None:
    first = push(run, server)
    log = run.folder / "events.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    second = push(run, server)
    repo = server.repos["models", "ada/net"]
    assert first != second and len(repo.commits) == 3 and repo.tags == {f"run-{run.id}": repo.commits[-1][0]}


def test_pushing_an_earlier_run_again_puts_it_on_main(run: Run, server: HubServer, shipped: Path) -> None:
    other = Run(Path(shutil.copytree(shipped, run.folder.with_name("other"))))
    other.write_json("evaluation.json", EVALUATED)
    push(run, server)
    first = server.repos["models", "ada/net"].files
    push(other, server)
    link = push(run, server)
    repo = server.repos["models", "ada/net"]
    assert repo.files == first and link.endswith(repo.commits[-1][0]) and len(repo.commits) == 4
    assert repo.tags == {f"run-{run.id}": repo.commits[3][0], "run-other": repo.commits[2][0]}


def test_a_private_push_to_a_public_repository_is_refused(run: Run, server: HubServer) -> None:
    push(run, server)
    commits = len(server.repos["models", "ada/net"].commits)
    with pytest.raises(InputError, match="exists already and is public"):
        hub.push(run, server.url, "ada/net", ADA, True, quiet)
    assert len(server.repos["models", "ada/net"].commits) == commits


def test_the_evaluation_of_another_run_is_removed(run: Run, server: HubServer, shipped: Path) -> None:
    push(run, server)
    assert EVALUATION in server.repos["models", "ada/net"].files
    other = Run(Path(shutil.copytree(shipped, run.folder.with_name("other"))))
    (other.folder / EVALUATION).unlink()
    push(other, server)
    assert EVALUATION not in server.repos["models", "ada/net"].files


def test_every_request_carries_the_given_token_or_none(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "bob-token")  # the machine's own
    push(run, server)
    assert {r["token"] for r in server.requests if r["path"].startswith("/api")} == {ADA}
    server.requests.clear()
    hub.pull(tmp_path / "root", server.url, "ada/net", False)
    assert {r["token"] for r in server.requests} == {None}
    assert hub.machine_login() == "bob-token"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("POST .*/commit/", 412), "Someone else changed"),
        (Fault("POST .*/commit/", 413), "too large"),
        (Fault("POST .*/commit/", 409), "Another change"),
        (Fault("POST /api/repos/create", 403), "may not write"),
        (Fault("POST .*/commit/", 403, headers={"X-Error-Message": "Storage limit reached"}), "storage on the Hub is"),
        (Fault("POST /api/repos/create", 401), "does not accept the sign-in"),
        (Fault("GET .*/refs", 429, times=9), "Too many requests"),
        (Fault("POST .*/commit/", 422), "refused this"),
        (Fault("POST .*/commit/", 500, times=9), "internal error"),
        (Fault("POST .*/commit/", how="drop", times=9), "could not be reached"),
    ],
)
def test_a_failed_push_says_what_happened_and_commits_nothing(
    run: Run, server: HubServer, fault: Fault, sentence: str
) -> None:
    server.faults.append(fault)
    with pytest.raises(HubError, match=sentence) as failure:
        push(run, server)
    is_final = fault.status in (413, 422)
    assert ("try again" in str(failure.value)) != is_final and ADA not in str(failure.value)
    repo = server.repos.get(("models", "ada/net"))
    assert repo is None or (len(repo.commits) == 1 and not repo.tags)
    server.faults.clear()
    push(run, server)
    assert len(server.repos["models", "ada/net"].commits) == 2


def test_a_commit_made_meanwhile_is_not_overwritten(run: Run, server: HubServer) -> None:
    def report(text: str, share: float) -> None:
        if text == "uploading":
            server.add_repo("ada/net", {"events.jsonl": b"of someone else"})

    with pytest.raises(HubError, match="Someone else changed"):
        hub.push(run, server.url, "ada/net", ADA, False, report)
    assert server.repos["models", "ada/net"].files == {"events.jsonl": b"of someone else"}


def test_an_interrupted_upload_commits_nothing(run: Run, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.faults.append(Fault("PUT /lfs/", how="drop", times=99))
    with pytest.raises(HubError, match="could not be reached"):
        push(run, server)
    assert len(server.repos["models", "ada/net"].commits) == 1


@pytest.mark.parametrize(
    ("limit", "route"), [("CALL_SECONDS", "GET /api/models/ada/net"), ("TRANSFER_SECONDS", "HEAD .*/resolve/")]
)
def test_a_hub_that_does_not_answer_is_given_up(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, route: str
) -> None:
    push(run, server)
    monkeypatch.setattr(hub, limit, 0.3)
    server.faults.append(Fault(route, how="wait", seconds=3))
    began = time.monotonic()
    with pytest.raises(HubError, match=r"took more than 0\.3 s"):
        hub.pull(tmp_path / "root", server.url, "ada/net", False)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "other",
    [
        {"README.md": b"mine"},
        {"events.jsonl": b"{}"},
        {"events.jsonl": b"{}", "config.json": b'{"model_type": "bert"}', "README.md": b"---\ntags: [cnn-demo]\n---"},
        {"pytorch_model.bin": b"x", "README.md": b"mine"},
    ],
)
def test_repositories_with_other_content_are_not_overwritten(
    run: Run, server: HubServer, other: dict[str, bytes]
) -> None:
    server.add_repo("ada/net", other)
    with pytest.raises(InputError, match=r"not (a checkpoint of|written by) this program"):
        push(run, server)
    repo = server.repos["models", "ada/net"]
    assert len(repo.commits) == 1 and repo.files == other and not repo.tags


def test_an_empty_repository_is_used(run: Run, server: HubServer) -> None:
    server.add_repo("ada/net", {".gitattributes": b"*.bin filter=lfs", "README.md": b""})
    push(run, server)
    assert b"# ResNet50-C4" in server.repos["models", "ada/net"].files["README.md"]


def test_a_card_edited_on_the_hub_is_kept(run: Run, server: HubServer, shipped: Path) -> None:
    push(run, server)
    repo = server.repos["models", "ada/net"]
    card = repo.files["README.md"]
    edited = card.replace(b"license: mit", b"license: other").replace(b"tags: [cnn-demo, ", b"tags: [")
    server.add_repo("ada/net", {**repo.files, "README.md": edited, "mine.txt": b"x"})
    other = Run(Path(shutil.copytree(shipped, run.folder.with_name("other"))))
    log = other.folder / "events.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    for pushed in (other, run, other):  # a kept card is kept the next time, too
        notes: list[str] = []
        hub.push(pushed, server.url, "ada/net", ADA, False, quiet, notes.append)
        assert repo.files["README.md"] == edited and repo.files["mine.txt"] == b"x"
        assert len(notes) == 1 and "README.md of ada/net was edited" in notes[0]
    assert repo.files["events.jsonl"] == export.files_of(other)["events.jsonl"] and set(repo.tags) == {
        "run-other",
        f"run-{run.id}",
    }
    server.add_repo("ada/net", {name: content for name, content in repo.files.items() if name != "README.md"})
    hub.push(run, server.url, "ada/net", ADA, False, quiet, notes.append)
    assert repo.files["README.md"] == card and len(notes) == 1  # a deleted one is written again


def test_push_refuses_a_revision(run: Run, server: HubServer) -> None:
    with pytest.raises(InputError, match="names the revision v1, but only main is written to; enter ada/net"):
        push(run, server, "ada/net@v1")
    assert not server.requests


def test_who_may_not_write_is_told_so(run: Run, server: HubServer) -> None:
    with pytest.raises(HubError, match="may not write"):
        push(run, server, "bob/net")
    with pytest.raises(HubError, match="hf auth login"):
        push(run, server, token=False)
    with pytest.raises(HubError, match="may not write"):
        push(run, server, "ada/fresh", "reader-token")


def test_logs_never_hold_a_presigned_address(
    run: Run,
    server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "huggingface_hub")  # as HF_DEBUG does
    server.faults.append(Fault("PUT /lfs/", 503, times=2))
    push(run, server)
    server.faults.append(Fault("PUT /lfs/", 503, times=99))
    server.blobs.clear()
    with pytest.raises(HubError) as failure:
        push(run, server, "ada/other")
    assert sum(request["method"] == "PUT" for request in server.requests) > 4  # tried again
    said = capfd.readouterr()
    for text in (caplog.text, said.out, said.err, str(failure.value)):
        assert "Signature" not in text and "/lfs/" not in text and ADA not in text


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("GET /api/models/ada/net", status, times=9) for status in (401, 403, 429, 503)),
        Fault("GET /cdn/", 503, times=99),
        Fault("GET .*/config.json", how="drop", times=99),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.status} {fault.how}",
)
def test_a_local_copy_serves_when_the_hub_does_not(
    run: Run, server: HubServer, files: dict[str, bytes], tmp_path: Path, fault: Fault
) -> None:
    server.add_repo("ada/net", files)
    pulled = hub.pull(tmp_path / "root", server.url, "ada/net", False)
    server.add_repo("ada/net", files | {"model.safetensors": files["model.safetensors"]})  # a new commit
    server.faults.append(fault)
    notes: list[str] = []
    again = hub.pull(tmp_path / "root", server.url, "ada/net", False, notify=notes.append)
    assert again.id == pulled.id
    assert len(notes) == 1 and f"Used instead: ada/net@{pulled.source['commit'][:8]}, downloaded before." in notes[0]
    assert "may not write" not in notes[0]
    fault.times = 99
    with pytest.raises(HubError) as failure:
        hub.pull(tmp_path / "empty", server.url, "ada/net", False)
    assert "may not write" not in str(failure.value)


def test_what_is_gone_from_the_hub_is_not_replaced_by_a_local_copy(run: Run, server: HubServer, tmp_path: Path) -> None:
    push(run, server)
    hub.pull(tmp_path / "root", server.url, "ada/net", False)
    server.repos["models", "ada/net"].private = True
    for name in ("ada/net", "ada/missing"):
        with pytest.raises(HubError, match="does not exist on the Hub") as failure:
            hub.pull(tmp_path / "root", server.url, name, False)
        assert str(failure.value).endswith(f"(reading {name}) Nothing on this machine was changed.")


def test_a_local_copy_serves_when_the_hub_stalls(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    push(run, server)
    pulled = hub.pull(tmp_path / "root", server.url, "ada/net", False)
    monkeypatch.setattr(hub, "CALL_SECONDS", 0.3)
    server.faults.append(Fault("GET /api/models/ada/net", how="wait", seconds=2))
    assert hub.pull(tmp_path / "root", server.url, "ada/net", False).id == pulled.id
    assert "took more than 0.3 s" in caplog.text and "Used instead" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        RuntimeError(
            "Task error: File reconstruction error: IO Error: No space left on device (os error 28)"
        ),  # hf_xet
    ],
)
def test_a_full_local_disk_is_not_the_hub(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(*_: object, **__: object) -> None:
        raise error

    server.add_repo("ada/net", files)
    hub.pull(tmp_path, server.url, "ada/net", False)
    server.add_repo("ada/net", files)
    monkeypatch.setattr(hub.HfApi, "hf_hub_download", download)
    with pytest.raises(DiskError, match="This machine's disk is full or cannot be written"):
        hub.pull(tmp_path, server.url, "ada/net", False)


def test_command_line_with_hub_names(
    run: Run,
    server: HubServer,
    shapes: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def environment(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    environment(HF_ENDPOINT=server.url, HF_TOKEN=ADA, CNN_DEMO_CHECKPOINTS=str(run.folder.parent))
    monkeypatch.setattr(sources, "load", lambda *_: shapes)
    assert cli.main(["push", "resnet50", "ada/net"]) == 0
    assert capsys.readouterr().out.startswith(f"{server.url}/ada/net/commit/")
    commit = server.repos["models", "ada/net"].commits[-1][0]

    root = tmp_path / "clean"
    environment(CNN_DEMO_CHECKPOINTS=str(root))
    picture = tmp_path / "a.png"
    Image.effect_noise((40, 40), 60).save(picture)
    assert cli.main(["classify", str(picture), "--checkpoint", f"hf:ada/net@run-{run.id}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["checkpoint"] == f"hf:ada/net@{commit}"
    again = ["train", "resnet50", "--dataset", "shapes", "--seconds", "2", "--start-from", "hf:ada/net"]
    assert cli.main([*again, "--validation-pictures", "21"]) == 2
    assert "Give 20 or fewer" in capsys.readouterr().err
    assert cli.main(again) == 0
    new = next(run for run in list_runs(root) if not run.source)
    assert new.config.start_from == f"hf:ada/net@{commit}"  # the same on any machine
    assert new.config.validation_pictures == 20  # what it has not learned
    server.close()
    assert cli.main(["pull", "ada/net"]) == 0 and "classify PICTURE" in capsys.readouterr().out
    assert cli.main(["pull", "ada/unknown"]) == 1
    assert cli.main(["push", new.id, "no name"]) == 2
    assert cli.main(["train", "resnet50", "--on", "jobs"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "could not be reached" in errors[-3] and "is not a repository" in errors[-2] and "--space" in errors[-1]
