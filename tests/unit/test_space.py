"""Uploading a Space, starting a job."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from cnn_demo import cli
from cnn_demo.errors import CnnDemoError, HubError, InputError
from cnn_demo.sharing import jobs, space
from cnn_demo.sharing.hub import Token
from cnn_demo.training.config import RunConfig
from tests.hub_server import Fault, HubServer
from tests.sharing import ADA, quiet

ROOT = Path(__file__).parents[2]
RECIPE = RunConfig(model="vgg16", epochs=1)
PROGRAM = b"""import os, sys
open("calls", "a").write(" ".join(sys.argv[1:]) + chr(10))
print('{"run_id": "the-run"}')
sys.exit(int(os.environ.get("EXIT", 0)))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of this program without its weights; some files in it are not tracked."""
    folder = tmp_path_factory.mktemp("checkout") / "cnn-demo"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cnn_demo", folder / "cnn_demo", ignore=ignored)
    for name in ("app.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("checkpoints/vgg16/config.json", "checkpoints/my-run/config.json", "tests/test_x.py"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    for name in (".env", "cnn_demo/.env", "cnn_demo/.card.py.swp", "checkpoints/vgg16/owner"):
        (folder / name).write_text("a secret")
    return folder


def upload(server: HubServer, checkout: Path, name: str = "ada/cnn", force: bool = False) -> str:
    return space.upload_space(server.url, name, checkout, ADA, quiet, force)


def test_space_gets_the_files_it_needs_in_one_commit(server: HubServer, checkout: Path) -> None:
    address = upload(server, checkout)
    repo = server.repos["spaces", "ada/cnn"]
    assert address == f"{server.url}/spaces/ada/cnn" and repo.titles == ["initial commit", "CNN Demo"]
    names = set(repo.files)
    product = {str(path.relative_to(checkout)) for path in (checkout / "cnn_demo").rglob("*.*")}
    product -= {"cnn_demo/.env", "cnn_demo/.card.py.swp"}
    assert names == product | {
        *(".gitattributes", "app.py", "README.md", "LICENSE", "pyproject.toml", "checkpoints/vgg16/config.json"),
        *("requirements.txt", "requirements-preinstalled.txt"),
    }
    assert repo.files["app.py"] == (checkout / "app.py").read_bytes()
    created = next(json.loads(r["body"]) for r in server.requests if r["path"] == "/api/repos/create")
    assert created["sdk"] == "gradio" and created["type"] == "space"

    server.add_repo("ada/cnn", {**repo.files, "left over.txt": b"x"}, kind="spaces")
    upload(server, checkout)  # again: it is this program's
    assert set(repo.files) == names and len(repo.commits) == 4


def test_requirements_of_a_space_leave_out_what_it_installs_itself(server: HubServer, checkout: Path) -> None:
    upload(server, checkout)
    files = server.repos["spaces", "ada/cnn"].files
    pins, preinstalled = (files[name].decode() for name in space.REQUIREMENTS)
    assert "torch==2.11.0" in pins and "torchvision==0.26.0" in pins
    assert not re.search("^(gradio|huggingface|spaces)", pins, re.M)
    assert preinstalled.startswith("gradio[mcp,oauth]==") and "\nhuggingface-hub==" in preinstalled
    both = sorted((pins + preinstalled).split())
    assert both == sorted((ROOT / "requirements.txt").read_text().split())


def test_space_of_another_program_is_replaced_only_by_force(server: HubServer, checkout: Path) -> None:
    other = {"app.py": b"print()", "data.csv": b"1", "README.md": b"# Mine", ".gitattributes": b""}
    server.add_repo("ada/other", other, kind="spaces")
    with pytest.raises(InputError, match=r"2 files would be deleted \(app\.py, data\.csv\).*--force"):
        upload(server, checkout, "ada/other")
    repo = server.repos["spaces", "ada/other"]
    assert len(repo.commits) == 1 and repo.files == other
    upload(server, checkout, "ada/other", force=True)
    assert "data.csv" not in repo.files and "cnn_demo/cli.py" in repo.files


def test_a_commit_made_meanwhile_is_not_overwritten(server: HubServer, checkout: Path) -> None:
    def report(text: str, share: float) -> None:
        if text.startswith("uploading"):
            server.add_repo("ada/cnn", {"cnn_demo/x.py": b"of someone else"}, kind="spaces")

    with pytest.raises(HubError, match="Someone else changed"):
        space.upload_space(server.url, "ada/cnn", checkout, ADA, report, False)
    assert server.repos["spaces", "ada/cnn"].files == {"cnn_demo/x.py": b"of someone else"}


def test_without_git_or_a_checkout_nothing_is_uploaded(
    server: HubServer, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"  # as pip leaves it
    shutil.copytree(checkout / "cnn_demo", installed / "cnn_demo")
    with pytest.raises(InputError, match=r"this needs git, and .*site-packages to be a git checkout"):
        upload(server, installed)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="this needs git"):
        upload(server, checkout)
    assert not server.requests


def test_a_space_is_uploaded_without_progress_bars_of_the_client(
    server: HubServer, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    large = checkout / "checkpoints" / "vgg16" / "model.safetensors"
    large.write_bytes(b"x" * 100_000)
    subprocess.run(["git", "-C", str(checkout), "add", "-f", str(large)], check=True)
    try:
        upload(server, checkout, "ada/bars")
    finally:
        subprocess.run(["git", "-C", str(checkout), "rm", "-q", "-f", str(large)], check=True)
    assert "checkpoints/vgg16/model.safetensors" in server.repos["spaces", "ada/bars"].files
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["ada/cnn@v1", "https://huggingface.co/ada/cnn/commit/" + "a" * 40])
def test_a_space_or_job_refuses_a_revision(server: HubServer, checkout: Path, name: str) -> None:
    with pytest.raises(InputError, match="only main is written to; enter ada/cnn"):
        upload(server, checkout, name)
    for space_name, repo in ((name, "ada/net"), ("ada/net", name)):
        with pytest.raises(InputError, match="only main is written to; enter ada/cnn"):
            jobs.launch(server.url, RECIPE, "t4-small", space_name, repo, ADA)
    assert not server.requests


def test_upload_needs_a_sign_in(server: HubServer, checkout: Path) -> None:
    with pytest.raises(HubError, match="hf auth login"):
        space.upload_space(server.url, "ada/cnn", checkout, False, quiet, False)
    assert not server.requests


@pytest.fixture
def program(server: HubServer) -> dict[str, bytes]:
    """The files of a private Space: a program that does nothing, and a PyTorch that finds a GPU."""
    torch = b"class ones:\n    def __init__(self, n): pass\n    cuda = exp = lambda self: self\n    item = cuda\n"
    files = {"requirements.txt": b"", "torch.py": torch, "cnn_demo/cli.py": b"", "cnn_demo/__main__.py": PROGRAM}
    files["checkpoints/vgg16/model.safetensors"] = b"all of the weights"
    server.add_repo("ada/cnn", files, private=True, kind="spaces")
    return files


def execute(server: HubServer, folder: Path, **environ: str) -> tuple[int, str, list[str]]:
    """Do what the posted job does; return its exit code, what it printed and the program's calls."""
    (job,) = server.jobs
    (folder / "pip").write_text("#!/bin/sh\n")  # everything is installed
    (folder / "pip").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"PATH": path, "HOME": str(folder), **job["environment"], **job["secrets"], **environ}
    done = subprocess.run(job["command"], cwd=folder, env=given, capture_output=True, text=True, timeout=60)
    calls = folder / "app" / "calls"
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines() if calls.is_file() else []


def test_job_trains_with_the_whole_weights_and_pushes(
    server: HubServer, program: dict[str, bytes], tmp_path: Path
) -> None:
    address = jobs.launch(server.url, RunConfig(model="vgg16", epochs=20), "t4-small", "ada/cnn", "ada/net", ADA)
    (job,) = server.jobs
    assert address and job["flavor"] == "t4-small" and job["secrets"] == {"HF_TOKEN": ADA}
    assert ADA not in json.dumps({**job, "secrets": ""})
    code, printed, calls = execute(server, tmp_path)
    assert code == 0, printed
    assert calls == ["train vgg16 --epochs 20 --dataset cifar10 --json", "push the-run ada/net"]
    name = "checkpoints/vgg16/model.safetensors"
    assert (tmp_path / "app" / name).read_bytes() == program[name]


def test_job_pushes_nothing_of_a_run_that_diverged(
    server: HubServer, program: dict[str, bytes], tmp_path: Path
) -> None:
    jobs.launch(server.url, RECIPE, "t4-small", "ada/cnn", "ada/net", ADA)
    code, _, calls = execute(server, tmp_path, EXIT="3")
    assert code == 3 and [call.split()[0] for call in calls] == ["train"]


def test_job_without_a_usable_gpu_fails_before_it_trains(
    server: HubServer, program: dict[str, bytes], tmp_path: Path
) -> None:
    driver = {"torch.py": b"raise RuntimeError('the driver is too old')"}
    server.add_repo("ada/cnn", {**program, **driver}, kind="spaces")
    jobs.launch(server.url, RECIPE, "t4-small", "ada/cnn", "ada/net", ADA)
    code, printed, calls = execute(server, tmp_path)
    assert code == 1 and jobs.NO_GPU in printed and not calls
    server.jobs.clear()
    jobs.launch(server.url, RECIPE, "cpu-basic", "ada/cnn", "ada/net", ADA)  # asked for
    assert jobs.USE_GPU not in server.jobs[0]["command"][-1]


def test_a_job_that_cannot_succeed_is_not_posted(server: HubServer, program: dict[str, bytes]) -> None:
    def refused(start: str | None = None, repo: str = "ada/net", token: Token = ADA) -> str:
        with pytest.raises(CnnDemoError) as caught:
            config = RunConfig(model="vgg16", epochs=1, start_from=start)
            jobs.launch(server.url, config, "t4-small", "ada/cnn", repo, token)
        return str(caught.value)

    assert "hf auth login" in refused(token=False)
    assert "private" in refused(token="bob-token")  # whose Space it is not
    assert "may not write" in refused(repo="bob/net")
    del program["checkpoints/vgg16/model.safetensors"]
    server.add_repo("ada/cnn", program, kind="spaces")
    assert "ada/cnn has no checkpoints/vgg16/model.safetensors. Upload this program" in refused(start="vgg16")
    server.add_repo("ada/cnn", {"app.py": b""}, kind="spaces")
    assert "ada/cnn has no cnn_demo/cli.py" in refused()
    assert not server.jobs


def test_a_job_is_started_from_the_command_line(
    server: HubServer,
    program: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"HF_TOKEN": ADA, "HF_ENDPOINT": server.url, "CNN_DEMO_CHECKPOINTS": str(tmp_path / "none")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    command = ["train", "vgg16", "--on", "jobs", "--space", "ada/cnn", "--push", "ada/net"]
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"job": f"{server.url}/jobs/ada/job1", "push": "ada/net"}
    assert cli.main(command) == 0 and "cnn_demo pull ada/net" in capsys.readouterr().out
    assert len(server.jobs) == 2
    assert cli.main([*command, "--start-from", "my-run"]) == 2
    assert "cannot read 'my-run'" in capsys.readouterr().err and len(server.jobs) == 2


def test_a_job_that_may_have_started_is_not_to_be_started_again(server: HubServer, program: dict[str, bytes]) -> None:
    server.faults.append(Fault("POST /api/jobs", how="drop", times=10))
    with pytest.raises(HubError, match="look at your jobs"):
        jobs.launch(server.url, RECIPE, "t4-small", "ada/cnn", "ada/net", ADA)
