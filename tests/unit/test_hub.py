"""Checkpoints on the Hub: the real client against a test server that answers as the Hub does."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from cnn_demo import cli
from cnn_demo.answers import inference
from cnn_demo.errors import HubError, InputError
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
    assert pulled.source == {"repo": "ada/net", "commit": repo.commits[-1][0], "revisions": ["main"]}
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
    hub.pull(root, server.url, f"hf:ada/net@{repo.commits[-1][0]}", False)
    assert not [r for r in server.requests[requests:] if "resolve" in r["path"]]  # cached by commit
    server.close()
    assert hub.pull(root, server.url, "ada/net", False).id == pulled.id  # and works offline
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
    assert "try again" in str(failure.value) and ADA not in str(failure.value)
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


def test_repositories_with_other_content_are_not_overwritten(run: Run, server: HubServer) -> None:
    server.add_repo("ada/net", {"pytorch_model.bin": b"x", "README.md": b"mine"})
    with pytest.raises(InputError, match="something other"):
        push(run, server)
    with pytest.raises(HubError, match="may not write"):
        push(run, server, "bob/net")
    with pytest.raises(HubError, match="hf auth login"):
        push(run, server, token=False)
    with pytest.raises(HubError, match="may not write"):
        push(run, server, "ada/fresh", "reader-token")


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
