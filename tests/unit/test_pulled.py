"""Pulling: what a stranger may have put into a repository, and how pulled runs are stored."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from cnn_demo.answers.inference import Classifier
from cnn_demo.errors import CheckpointError, HubError, RunError
from cnn_demo.pictures import photo
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs.checkpoints import find_checkpoint
from cnn_demo.runs.folder import Run, create
from cnn_demo.runs.recording import train_run
from cnn_demo.sharing import hub
from cnn_demo.sharing import pulled as pulled_runs
from cnn_demo.training.config import RunConfig
from tests.hub_server import Fault, HubServer
from tests.sharing import ADA, curve, push, quiet

KILLED = "import pathlib, sys; from cnn_demo.sharing import hub; " + (
    "hub.pull(pathlib.Path(sys.argv[1]), sys.argv[2], 'ada/net', False)"
)
DATA = Path(__file__).parents[1] / "data"


def test_an_export_of_version_0_can_be_pulled_used_and_started_from(
    server: HubServer, tmp_path: Path, tiny: Dataset, cpu: torch.device
) -> None:
    with tarfile.open(DATA / "exported_0.tar.xz") as archive:
        exported = {Path(m.name).name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    server.add_repo("ada/net", exported)
    run = hub.pull(tmp_path, server.url, "ada/net", False)
    history = run.history()
    assert (run.config.model, run.config.epochs, run.config.validation_pictures) == ("resnet50", 2, 20)
    assert history.state == "stopped" and history.curve and history.best.validation_accuracy == 0.1
    pixels = photo.to_input(Image.effect_noise((64, 64), 80).convert("RGB"))
    checkpoint, answer = Classifier(tmp_path).answer(run.id, pixels)
    assert checkpoint.held_out == 20 and checkpoint.step == history.best.step
    assert sum(prediction.score for prediction in answer.predictions) == pytest.approx(1, abs=1e-5)
    assert {prediction.label for prediction in answer.predictions} == set(tiny.classes)
    recipe = {"model": "resnet50", "dataset": "shapes", "epochs": 1, "batch_size": 50, "optimizer": "sgd"}
    config = RunConfig(**recipe, start_from="hf:ada/net")
    new = create(tmp_path, config)
    assert new.config.validation_pictures == 20
    *_, end = train_run(new, tiny, cpu, lambda: False)
    assert end.reason == "finished"


def test_concurrent_pulls_write_one_run(
    run: Run, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, server)
    written = []
    describe = pulled_runs.describe_config
    monkeypatch.setattr(pulled_runs, "describe_config", lambda config: written.append(config) or describe(config))
    with ThreadPoolExecutor(4) as pool:  # as the processes of torchrun do, or two tabs
        pulled = list(pool.map(lambda _: hub.pull(tmp_path / "new", server.url, "ada/net", False), range(8)))
    assert len({found.folder for found in pulled}) == len(written) == 1
    assert curve(pulled[0]) == curve(run)
    assert find_checkpoint(tmp_path / "new", "hf:ada/net").model == run.config.model


def test_private_and_missing_repositories(run: Run, server: HubServer, tmp_path: Path) -> None:
    hub.push(run, server.url, "ada/secret", ADA, True, quiet)
    assert server.repos["models", "ada/secret"].private
    for token in (False, "bob-token"):
        with pytest.raises(HubError, match="does not exist on the Hub, or it is private"):
            hub.pull(tmp_path / "root", server.url, "ada/secret", token)
    assert hub.pull(tmp_path / "root", server.url, "ada/secret", ADA, "a secret").belongs_to("a secret")
    with pytest.raises(HubError, match="This revision does not exist"):
        hub.pull(tmp_path / "root", server.url, "ada/secret@nope", ADA)
    with pytest.raises(HubError, match="sign-in"):
        hub.pull(tmp_path / "root", server.url, "ada/secret", "an old token")


def test_each_owner_gets_an_own_copy(run: Run, server: HubServer, tmp_path: Path) -> None:
    hub.push(run, server.url, "ada/secret", ADA, True, quiet)
    owners = ("a secret", "another", "")
    runs = [hub.pull(tmp_path / "root", server.url, "ada/secret", ADA, owner) for owner in owners]
    assert len({run.folder for run in runs}) == 3
    server.requests.clear()
    for found, owner in zip(runs, owners, strict=True):
        assert [found.belongs_to(secret) for secret in owners] == [secret == owner != "" for secret in owners]
        assert hub.pull(tmp_path / "root", server.url, "ada/secret", ADA, owner).folder == found.folder
    assert not [r for r in server.requests if "resolve" in r["path"]]  # nothing was downloaded again


def damage(files: dict[str, bytes], what: str) -> dict[str, bytes]:
    """Return the files of a repository with one thing wrong."""
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
        tensors[next(iter(tensors))] = torch.zeros(7, 7)
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
        ("no weights", r"no model\.safetensors"),
        ("pickle", "pickle, which is never opened"),
        ("shapes", "not those of one"),
        ("classes", r"its config\.json describes"),
        ("model", r"its config\.json describes"),
        ("unknown field", "was not written by this program"),
        ("large config", "bytes; at most 100,000 are allowed"),
        ("deep", "was not written by this program"),
    ],
)
def test_a_damaged_repository_is_refused_in_one_sentence(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, what: str, sentence: str
) -> None:
    server.add_repo("eve/net", damage(files, what))
    with pytest.raises(CheckpointError, match=sentence) as failure:
        hub.pull(tmp_path / "root", server.url, "eve/net", False)
    assert str(tmp_path) not in str(failure.value) and "\n" not in str(failure.value)
    assert not list((tmp_path / "root").glob("*"))


def test_a_file_that_is_too_large_is_not_downloaded(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.FILE_BYTES, "model.safetensors", 1000)
    server.add_repo("eve/net", files)
    with pytest.raises(CheckpointError, match="at most 1,000 are allowed"):
        hub.pull(tmp_path / "root", server.url, "eve/net", False)
    assert not [r for r in server.requests if r["path"].endswith("model.safetensors")]


@pytest.mark.parametrize(
    ("route", "name"),
    [("GET /cdn/", "model.safetensors"), ("GET .*/config.json", "config.json"), ("GET .*/events", "events.jsonl")],
)
def test_a_file_altered_at_equal_size_is_refused(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, route: str, name: str
) -> None:
    server.add_repo("ada/net", files)
    server.faults.append(Fault(route, how="alter", times=99))
    with pytest.raises(HubError, match=f"{name} of ada/net arrived damaged"):
        hub.pull(tmp_path / "root", server.url, "ada/net", False)
    assert not list((tmp_path / "root").iterdir())
    server.faults.clear()
    hub.pull(tmp_path / "root", server.url, "ada/net", False)


def test_what_a_killed_pull_left_is_removed(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "root"
    server.add_repo("ada/net", files)
    server.faults.append(Fault("GET /cdn/", how="wait", seconds=2))
    command = [sys.executable, "-c", KILLED, str(root), server.url]
    with subprocess.Popen(command) as process:
        while not list(root.glob(".pull-*/config.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    (left,) = root.glob(".pull-*")
    pulled = hub.pull(root, server.url, "ada/net", False)
    assert left.exists()  # another process may still download into it
    os.utime(left, (0, 0))
    server.add_repo("ada/net", files)
    new = hub.pull(root, server.url, "ada/net", False)
    assert {path.name for path in root.iterdir()} == {pulled.id, new.id, ".pull"}


def test_a_run_from_a_private_repository_says_so_and_hides_its_name_in_its_id(
    run: Run, server: HubServer, tmp_path: Path
) -> None:
    hub.push(run, server.url, "ada/secret", ADA, True, quiet)
    push(run, server, "ada/public")
    for owner in ("", "a person"):
        private = hub.pull(tmp_path, server.url, "ada/secret", ADA, owner)
        assert private.source["private"] and "secret" not in private.id and private.id.startswith("hf-private-")
        public = hub.pull(tmp_path, server.url, "ada/public", ADA, owner)
        assert public.source["private"] is False and public.id.startswith("hf-ada-public-")
    assert len({path.name for path in tmp_path.glob("hf-*")}) == 4


def test_a_pulled_run_without_its_weights_is_downloaded_again(
    server: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    commit = server.add_repo("ada/net", files)
    run = hub.pull(tmp_path, server.url, "ada/net", False)
    (run.folder / "model.safetensors").unlink()
    assert hub.pull(tmp_path, server.url, f"ada/net@{commit}", False).has("model.safetensors")


def test_only_three_files_are_downloaded_and_only_valid_events_saved(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, cpu: torch.device
) -> None:
    lines = files["events.jsonl"].decode().splitlines()
    bad = [
        '{"kind": "Progress", "phase": "<b>", "epoch": 1, "step": 1, "share": 0}',
        '{"kind": "os"}',
        "not json",
        "[1]",
        '{"kind": "RunFinished", "reason": "finished", "message": 3, "epochs": 0, "step": 1}',
        "[" * 40_000,
        lines[-1].replace('"test_loss": ', '"test_loss": NaN, "x": '),
    ]
    extra = {"../escape.txt": b"x", "model.py": b"import os", "README.md": b"<script>alert(1)</script>"}
    server.add_repo("eve/net", {**files, **extra, "events.jsonl": "\n".join([*lines, *bad]).encode()})
    run = hub.pull(tmp_path / "root", server.url, "eve/net", False)
    events = run.log.read()
    assert [event.seq for event in events] == list(range(len(lines)))
    saved = {path.name for path in run.folder.iterdir()}
    assert saved == {"model.safetensors", "config.json", "events.jsonl", "source.json"}
    assert {path.name for path in (tmp_path / "root").iterdir()} <= {run.id, ".pull"}
    assert not (tmp_path / "escape.txt").exists()
    with pytest.raises(RunError, match="come from the Hub"):
        next(train_run(run, None, cpu, lambda: False))
