"""Checkpoints on the Hub: the real client against a server of ours that knows what the Hub answers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import constants
from PIL import Image

from cnn_demo import cli
from cnn_demo.answers import inference
from cnn_demo.errors import CheckpointError, CnnDemoError, HubError, InputError, RunError
from cnn_demo.pictures import dataset as data
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder as runs
from cnn_demo.runs.checkpoints import find_checkpoint
from cnn_demo.runs.folder import Run
from cnn_demo.sharing import card, hub
from tests.hub_server import Fault, HubServer, hub_server

ADA = "ada-token"
EVALUATED = {
    **{"classes": ["a", "b"], "confusion": [[9, 1], [2, 8]], "mistakes": [], "accuracy": 0.85, "accuracy_flip": 0.86},
    **{"pictures": 20, "validation_pictures": 20, "temperature": 2.0, "limits": [-1.0, 0.3]},
    **{"ece_before": 0.07, "ece_after": 0.02},
}
ROOT = Path(__file__).parents[2]


def quiet(text: str, share: float) -> None:
    assert 0 <= share <= 1, text


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(time, "sleep", lambda seconds, real=time.sleep: real(min(seconds, 0.05)))  # between retries
    with hub_server(tmp_path / "xet") as running:
        yield running


@pytest.fixture
def run(shipped: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(shipped, tmp_path / "from" / "resnet50")))


@pytest.fixture
def files(run: Run, tmp_path: Path) -> dict[str, bytes]:
    """What a repository of ours holds."""
    card.export(run, tmp_path / "files", "ada/net")
    return {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}


def push(run: Run, server: HubServer, repo: str = "ada/net", token: hub.Token = ADA) -> str:
    return hub.push(run, server.url, repo, token, False, quiet)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ada/net", ("ada/net", "main")),
        ("hf:ada/net@run-1", ("ada/net", "run-1")),
        (" https://huggingface.co/ada/net/tree/v1 ", ("ada/net", "v1")),
        ("ada/net@" + "a" * 40, ("ada/net", "a" * 40)),
    ],
)
def test_names_and_links_are_read(text: str, expected: tuple[str, str]) -> None:
    assert hub.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "net", "a/b/c", "ada/../x", "ada/net@../x", "ada/net@", "a b/c", "x" * 300, "../net"]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    if text == "ada/net@":
        assert hub.parse(text)[1] == "main"
    else:
        with pytest.raises(InputError, match="no repository"):
            hub.parse(text)


def test_several_who_pull_at_once_get_the_same_run(run: Run, server: HubServer, tmp_path: Path) -> None:
    push(run, server)
    with ThreadPoolExecutor(4) as pool:  # as the ranks of torchrun do, or two tabs
        pulled = list(pool.map(lambda _: hub.pull(tmp_path / "new", server.url, "ada/net", False), range(8)))
    assert len({found.folder for found in pulled}) == 1
    assert pulled[0].history().curve == run.history().curve
    assert find_checkpoint(tmp_path / "new", "hf:ada/net").model == run.config.model


def test_what_is_to_be_private_is_never_put_where_all_see_it(run: Run, server: HubServer) -> None:
    push(run, server)
    commits = len(server.repos["models", "ada/net"].commits)
    with pytest.raises(InputError, match="there already, and public"):
        hub.push(run, server.url, "ada/net", ADA, True, quiet)
    assert len(server.repos["models", "ada/net"].commits) == commits


def test_another_runs_evaluation_does_not_stay_beside_the_weights(run: Run, server: HubServer, shipped: Path) -> None:
    run.save_evaluation(EVALUATED)
    push(run, server)
    assert "evaluation.json" in server.repos["models", "ada/net"].files
    other = Run(Path(shutil.copytree(shipped, run.folder.with_name("other"))))
    push(other, server)
    assert "evaluation.json" not in server.repos["models", "ada/net"].files


def test_a_card_says_nothing_that_only_a_stranger_claims(run: Run, server: HubServer, tmp_path: Path) -> None:
    push(run, server)
    pulled = hub.pull(tmp_path / "new", server.url, "ada/net", False)
    mine, theirs = (card.model_card(r, r.history(), None, "ada/net") for r in (run, pulled))
    for words in ("test pictures, one view each", "Best validation accuracy", " on CPU"):
        assert words in mine and words not in theirs


def test_a_job_that_may_have_started_is_not_asked_for_again(server: HubServer) -> None:
    server.close()
    with pytest.raises(HubError, match="look at your jobs"):
        hub.launch(server.url, "python -m cnn_demo train vgg16", "t4-small", "ada/cnn", "ada/net", ADA)


@pytest.mark.parametrize("xet", [True, False])
def test_pushed_listed_pulled_on_another_machine_and_answering(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    link = push(run, server)
    repo = server.repos["models", "ada/net"]
    assert bool(server.xet_hashes()) == xet
    assert len(repo.commits) == 2 and repo.tags == {f"run-{run.id}": repo.commits[-1][0]}
    assert link == f"{server.url}/ada/net/commit/{repo.commits[-1][0]}"
    assert set(repo.files) == {*card.FILES, ".gitattributes"}
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
    assert hub.own(server.url, "ada", ADA) == ["ada/net"]

    assert push(run, server) == link and len(repo.commits) == 2  # saving twice changes nothing

    root = tmp_path / "other machine"
    pulled = hub.pull(root, server.url, "ada/net", False)
    assert pulled.source == {"repo": "ada/net", "commit": repo.commits[-1][0], "revisions": ["main"]}
    assert pulled.config == run.config and pulled.history().curve == run.history().curve
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    answers = []
    for name, where in (("resnet50", run.folder.parent), ("hf:ada/net", root), (pulled.id, root)):
        checkpoint = find_checkpoint(where, name)
        answers.append(inference.classify(checkpoint.network(), checkpoint, inference.to_input(picture)).predictions)
    assert answers[1] == answers[2]
    for here, there in zip(answers[0], answers[1], strict=True):
        assert here.label == there.label and here.score == pytest.approx(there.score, abs=0.01)

    asked = len(server.requests)
    hub.pull(root, server.url, f"hf:ada/net@{repo.commits[-1][0]}", False)
    assert not [r for r in server.requests[asked:] if "resolve" in r["path"]]  # cached by commit
    server.close()
    assert hub.pull(root, server.url, "ada/net", False).id == pulled.id  # and works offline
    with pytest.raises(HubError, match="could not be reached"):
        hub.pull(root, server.url, "ada/other", False)


def test_a_run_that_went_on_is_saved_again_and_its_tag_moves(run: Run, server: HubServer) -> None:
    first = push(run, server)
    log = run.folder / "events.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    second = push(run, server)
    repo = server.repos["models", "ada/net"]
    assert first != second and len(repo.commits) == 3 and repo.tags == {f"run-{run.id}": repo.commits[-1][0]}


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


def test_the_card_names_what_was_measured_and_its_snippet_runs(run: Run, server: HubServer, tmp_path: Path) -> None:
    push(run, server)
    text = server.repos["models", "ada/net"].files["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert {"cnn-demo", "resnet50"} <= set(front["tags"]) and "datasets" not in front  # shapes are no data set there
    end = run.history().finished
    assert f"{end.test_accuracy:.2%}" in text and run.config.to_command() in text
    assert "| stage3 |" in text and "8,898,826" not in text

    Image.effect_noise((40, 50), 60).save(tmp_path / "my_photo.png")
    shutil.copy(tmp_path / "my_photo.png", tmp_path / "my_photo.jpg")
    snippet = re.search(r"```python\n(.+?)```", text, re.S)[1]
    # the client reads its environment once: a process of its own, as its reader would have
    environ = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 3, done.stderr


def test_the_model_index_of_cifar10(run: Run) -> None:
    description = json.loads((run.folder / "config.json").read_text())
    description["recipe"]["dataset"] = "cifar10"
    (run.folder / "config.json").write_text(json.dumps(description))
    text = card.model_card(run, run.history(), None, "ada/net")
    front = yaml.safe_load(text.split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": "uoft-cs/cifar10", "name": "CIFAR-10", "split": "test"}
    (metric,) = result["metrics"]
    assert metric["value"] == pytest.approx(run.history().finished.test_accuracy, abs=1e-4) and "40" in metric["name"]
    assert front["datasets"] == ["uoft-cs/cifar10"]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("POST .*/commit/", 412), "changed by someone else"),
        (Fault("POST .*/commit/", 413), "too large"),
        (Fault("POST .*/commit/", 409), "Another change"),
        (Fault("POST /api/repos/create", 403), "may not write"),
        (Fault("POST /api/repos/create", 401), "does not accept the sign-in"),
        (Fault("GET .*/refs", 429, times=9), "too many questions"),
        (Fault("POST .*/commit/", 500, times=9), "fault of its own"),
        (Fault("POST .*/commit/", how="drop", times=9), "could not be reached"),
    ],
)
def test_a_failed_save_says_what_happened_and_leaves_nothing_half(
    run: Run, server: HubServer, fault: Fault, sentence: str
) -> None:
    server.faults.append(fault)
    with pytest.raises(HubError, match=sentence) as told:
        push(run, server)
    assert "try again" in str(told.value) and ADA not in str(told.value)
    repo = server.repos.get(("models", "ada/net"))
    assert repo is None or (len(repo.commits) == 1 and not repo.tags)
    server.faults.clear()
    push(run, server)
    assert len(server.repos["models", "ada/net"].commits) == 2


def test_an_upload_that_breaks_off_commits_nothing(
    run: Run, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.faults.append(Fault("PUT /lfs/", how="drop", times=99))
    with pytest.raises(HubError, match="could not be reached"):
        push(run, server)
    assert len(server.repos["models", "ada/net"].commits) == 1


def test_a_hub_that_does_not_answer_is_left_after_a_while(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(hub, "CALL_SECONDS", 0.3)
    server.faults.append(Fault("GET /api/models/ada/net", how="wait", seconds=2))
    began = time.monotonic()
    with pytest.raises(HubError, match="took more than"):
        hub._asked(lambda: hub.HfApi(server.url, token=False).model_info("ada/net", token=False), "x", 0.3)
    assert time.monotonic() - began < 1.5


def test_what_others_made_is_not_written_over(run: Run, server: HubServer) -> None:
    server.add_repo("ada/net", {"pytorch_model.bin": b"x", "README.md": b"mine"})
    with pytest.raises(InputError, match="something else"):
        push(run, server)
    with pytest.raises(HubError, match="may not write"):
        push(run, server, "bob/net")
    with pytest.raises(HubError, match="hf auth login"):
        push(run, server, token=False)
    with pytest.raises(HubError, match="may not write"):
        push(run, server, "ada/fresh", "reader-token")


def test_private_missing_and_unknown(run: Run, server: HubServer, tmp_path: Path) -> None:
    hub.push(run, server.url, "ada/secret", ADA, True, quiet)
    assert server.repos["models", "ada/secret"].private
    for token in (False, "bob-token"):
        with pytest.raises(HubError, match="no such repository, or it is private"):
            hub.pull(tmp_path / "root", server.url, "ada/secret", token)
    assert hub.pull(tmp_path / "root", server.url, "ada/secret", ADA, "a secret").belongs_to("a secret")
    with pytest.raises(HubError, match="that revision"):
        hub.pull(tmp_path / "root", server.url, "ada/secret@nope", ADA)
    with pytest.raises(HubError, match="sign-in"):
        hub.pull(tmp_path / "root", server.url, "ada/secret", "an old token")


def hostile(files: dict[str, bytes], what: str) -> dict[str, bytes]:
    """Return a repository with one thing wrong in it."""
    config = json.loads(files["config.json"])
    tensors = safetensors.torch.load(files["model.safetensors"])
    size = int.from_bytes(files["model.safetensors"][:8], "little")
    metadata = json.loads(files["model.safetensors"][8 : 8 + size])["__metadata__"]
    if what == "no weights":
        return {name: content for name, content in files.items() if name != "model.safetensors"}
    if what == "pickle":
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(3)}, buffer)
        return files | {"model.safetensors": buffer.getvalue()}
    if what == "shapes":
        tensors["classifier.1.weight" if "classifier.1.weight" in tensors else next(iter(tensors))] = torch.zeros(7, 7)
        return files | {"model.safetensors": safetensors.torch.save(tensors, metadata)}
    if what == "classes":
        metadata["classes"] = json.dumps([f"class {i}" for i in range(10)])
        return files | {"model.safetensors": safetensors.torch.save(tensors, metadata)}
    if what == "model":
        config["recipe"]["model"] = "vgg16"
    if what == "unknown field":
        config["recipe"]["hook"] = "os.system"
    if what == "large config":
        config["x"] = "x" * 200_000
    if what == "deep":
        return files | {"config.json": b"[" * 50_000 + b"]" * 50_000}
    return files | {"config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no weights", "no model.safetensors"),
        ("pickle", "pickle, which is never opened"),
        ("shapes", "not those of one"),
        ("classes", "config.json speaks of"),
        ("model", "config.json speaks of"),
        ("unknown field", "none of this program's"),
        ("large config", "bytes; 100,000 are allowed"),
        ("deep", "none of this program's"),
    ],
)
def test_a_hostile_repository_gets_one_sentence_and_no_place(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, what: str, sentence: str
) -> None:
    server.add_repo("eve/net", hostile(files, what))
    with pytest.raises(CheckpointError, match=sentence) as told:
        hub.pull(tmp_path / "root", server.url, "eve/net", False)
    assert str(tmp_path) not in str(told.value) and "\n" not in str(told.value)
    assert not list((tmp_path / "root").glob("*"))


def test_a_huge_file_is_never_fetched(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CHECKPOINT_BYTES", 1000)
    server.add_repo("eve/net", files)
    with pytest.raises(CheckpointError, match="1,000 are allowed"):
        hub.pull(tmp_path / "root", server.url, "eve/net", False)
    assert not [r for r in server.requests if "resolve" in r["path"]]


def test_only_the_three_files_are_fetched_and_only_our_events_kept(
    server: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    lines = files["events.jsonl"].decode().splitlines()
    bad = [
        '{"kind": "Progress", "phase": "<b>", "epoch": 1, "step": 1, "share": 0}',
        '{"kind": "os"}',
        "not json",
        "[1]",
    ]
    bad += ['{"kind": "RunFinished", "reason": "finished", "message": 3, "epochs": 0, "step": 1}', "[" * 40_000]
    bad += [lines[-1].replace('"test_loss": ', '"test_loss": NaN, "x": ')]
    extra = {"../escape.txt": b"x", "model.py": b"import os", "README.md": b"<script>alert(1)</script>"}
    server.add_repo("eve/net", {**files, **extra, "events.jsonl": "\n".join([*lines, *bad]).encode()})
    run = hub.pull(tmp_path / "root", server.url, "eve/net", False)
    assert len(run.events()) == len(lines)
    assert [event.seq for event in run.events()] == list(range(len(lines)))
    kept = {path.name for path in (tmp_path / "root").rglob("*") if path.is_file()}
    assert kept == {"model.safetensors", "config.json", "events.jsonl", "source.json", ".pull"}
    assert not (tmp_path / "escape.txt").exists()
    with pytest.raises(RunError, match="come from the Hub"):
        next(runs.drive(run, None, torch.device("cpu"), lambda: False))


def test_the_zip_holds_the_same_files(run: Run, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    card.export_zip(run, tmp_path / "z" / f"{run.id}.zip")
    with zipfile.ZipFile(tmp_path / "z" / f"{run.id}.zip") as archive:
        names = {name.removeprefix(f"{run.id}/"): name for name in archive.namelist()}
        assert set(names) == set(card.FILES) == set(files)
        assert archive.read(names["model.safetensors"]) == files["model.safetensors"]
    assert [path.name for path in (tmp_path / "z").iterdir()] == [f"{run.id}.zip"]


def test_a_space_gets_what_it_needs_and_nothing_else(server: HubServer, tmp_path: Path) -> None:
    address = hub.publish(server.url, "ada/cnn", ROOT, ADA, quiet)
    repo = server.repos["spaces", "ada/cnn"]
    assert address == f"{server.url}/spaces/ada/cnn" and len(repo.commits) == 2
    names = set(repo.files)
    assert {"app.py", "README.md", "LICENSE", "requirements.txt", "cnn_demo/ui/live_chart.js"} <= names
    assert not [
        n for n in names if n.startswith(("tests/", ".venv", ".ci")) or "__pycache__" in n or n.endswith(".pyc")
    ]
    assert not [n for n in names if n.startswith("checkpoints/") and n.split("/")[1] not in ("vgg16", "resnet50")]
    pins = repo.files["requirements.txt"].decode()
    assert "torch==2.11.0" in pins and "torchvision==0.26.0" in pins
    assert not re.search("^(gradio|huggingface|spaces)", pins, re.M)
    asked = next(json.loads(r["body"]) for r in server.requests if r["path"] == "/api/repos/create")
    assert asked["sdk"] == "gradio" and asked["type"] == "space"
    server.add_repo("ada/cnn", {**repo.files, "left over.txt": b"x"}, kind="spaces")
    hub.publish(server.url, "ada/cnn", ROOT, ADA, quiet)
    assert set(repo.files) == names


def test_a_job_trains_the_same_command_and_pushes(server: HubServer) -> None:
    command = "python -m cnn_demo train vgg16 --epochs 20"
    address = hub.launch(server.url, command, "t4-small", "ada/cnn", "ada/net", ADA)
    (job,) = server.jobs
    assert address and job["flavor"] == "t4-small" and job["secrets"] == {"HF_TOKEN": ADA}
    script = job["command"][-1]
    assert f"{command} --json" in script and f"{server.url}/spaces/ada/cnn" in script and script.endswith("ada/net")
    assert ADA not in json.dumps({**job, "secrets": ""})
    with pytest.raises(CnnDemoError):
        hub.launch(server.url, command, "t4-small", "ada/cnn", "ada/net", False)


def test_the_command_line_pushes_pulls_and_takes_hub_names_everywhere(
    run: Run,
    server: HubServer,
    shapes: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": ADA,
        "CNN_DEMO_CHECKPOINTS": str(run.folder.parent),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(data, "draw_shapes", lambda: shapes)
    assert cli.main(["push", "resnet50", "ada/net"]) == 0
    assert capsys.readouterr().out.startswith(f"{server.url}/ada/net/commit/")
    commit = server.repos["models", "ada/net"].commits[-1][0]

    root = tmp_path / "clean"
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(root))
    picture = tmp_path / "a.png"
    Image.effect_noise((40, 40), 60).save(picture)
    assert cli.main(["classify", str(picture), "--checkpoint", f"hf:ada/net@run-{run.id}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["checkpoint"] == f"hf:ada/net@{commit}"
    again = ["train", "resnet50", "--dataset", "shapes", "--seconds", "2", "--start-from", "hf:ada/net"]
    assert cli.main([*again, "--validation-pictures", "21"]) == 2
    assert "--validation-pictures 20 or fewer" in capsys.readouterr().err
    assert cli.main(again) == 0
    new = next(run for run in runs.listing(root) if not run.source)
    assert new.config.start_from == f"hf:ada/net@{commit}"  # the same on any machine
    assert new.config.validation_pictures == 20  # what it has not learned
    server.close()
    assert cli.main(["pull", "ada/net"]) == 0 and "classify PICTURE" in capsys.readouterr().out
    assert cli.main(["pull", "ada/unknown"]) == 1
    assert cli.main(["push", new.id, "no name"]) == 2
    assert cli.main(["train", "resnet50", "--on", "jobs"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "could not be reached" in errors[-3] and "is no repository" in errors[-2] and "--space" in errors[-1]
