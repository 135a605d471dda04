"""The program as pip installs it: built from the repository, run from a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cnn_demo import settings
from cnn_demo.runs.folder import Run
from cnn_demo.sharing import space
from tests.hub_server import HubServer
from tests.sharing import ADA, push, quiet

ROOT = Path(__file__).parents[2]
SOURCES = ("cnn_demo", "pyproject.toml", "README.md", "LICENSE", "requirements.txt")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a source tree without a network, and return it."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(source)], check=True, timeout=120)
    (wheel,) = folder.glob("cnn_demo-*.whl")
    return wheel


def read_metadata(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements(metadata: str) -> set[str]:
    return set(re.findall(r"^Requires-Dist: (\S+)$", metadata, re.M))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package; what it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)], check=True)
    return folder


@pytest.fixture
def execute(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a command with the installed package outside of the repository."""

    def run_command(*command: str, **environ: str) -> str:
        settled = {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CNN_DEMO", "HF_"))}
        everything = inherited | settled | environ
        done = subprocess.run(command, cwd=tmp_path, env=everything, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_command


def test_metadata(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    for line in ("Name: cnn-demo", "Version: 0.2.0", "License-Expression: MIT"):
        assert f"\n{line}\n" in metadata
    (python,) = re.findall("^Requires-Python: (.*)$", metadata, re.M)
    assert set(python.split(",")) == {">=3.10", "<3.13"}
    assert requirements(metadata) == set((ROOT / "requirements.txt").read_text().split())


def test_wheel_contains_all_files_of_the_package_and_no_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for path in (ROOT / "cnn_demo").rglob("*.*") if "__pycache__" not in path.parts}
    assert names == {str(path.relative_to(ROOT)) for path in files}


def test_installed_package_runs_and_keeps_its_files_in_the_cache(
    installed: Path, execute: Callable[..., str], tmp_path: Path
) -> None:
    show = "import cnn_demo, cnn_demo.settings as s; print(cnn_demo.__file__, s.read().checkpoints, sep='\\n')"
    file, checkpoints = execute(sys.executable, "-c", show).splitlines()
    assert Path(file).is_relative_to(installed)
    assert Path(checkpoints) == tmp_path / "cache" / "cnn-demo" / "checkpoints"
    table = execute(str(installed / "bin" / "cnn-demo"), "stages", "vgg16")
    assert "15,253,578" in table and table == execute(sys.executable, "-m", "cnn_demo", "stages", "vgg16")
    assert settings.read().checkpoints == ROOT / "checkpoints"  # in a checkout


def test_the_second_line_of_the_card_runs(
    installed: Path, execute: Callable[..., str], run: Run, server: HubServer, tmp_path: Path
) -> None:
    push(run, server)
    card = server.repos["models", "ada/net"].files["README.md"].decode()
    (line,) = re.findall("^cnn-demo (classify .*)$", card, re.M)
    assert line == "classify my_photo.jpg --checkpoint hf:ada/net"
    Image.effect_noise((40, 50), 60).convert("RGB").save(tmp_path / "my_photo.jpg")
    command = [str(installed / "bin" / "cnn-demo"), *line.split()]
    assert "my_photo.jpg: " in execute(*command, HF_ENDPOINT=server.url)
    (answer,) = json.loads(execute(*command, "--json", HF_ENDPOINT=server.url))
    assert len(answer["predictions"]) == 10 and answer["error"] is None


def test_a_space_can_be_installed_from_its_git_address(server: HubServer, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "cnn_demo", checkout / "cnn_demo")
    for name in (*SOURCES[1:], "app.py"):
        shutil.copy(ROOT / name, checkout / name)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(checkout), *command], check=True)
    space.upload_space(server.url, "ada/cnn", checkout, ADA, quiet, False)
    for name, content in server.repos["spaces", "ada/cnn"].files.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    metadata = read_metadata(build_wheel(tmp_path / "clone", tmp_path / "wheels"))
    assert requirements(metadata) == set((ROOT / "requirements.txt").read_text().split())


def test_address_of_the_code(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CNN_DEMO_CODE", "SPACE_ID", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert settings.read_code() == ""  # a checkout does not know
    monkeypatch.syspath_prepend(str(installed))
    assert settings.read_code() == ""  # installed from a wheel
    (info,) = installed.glob("cnn_demo-*.dist-info")
    origin = {"url": "https://ada:secret@example.org/ada/cnn.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}
    (info / "direct_url.json").write_text(json.dumps(origin))
    assert settings.read_code() == "https://example.org/ada/cnn.git"
    monkeypatch.setenv("SPACE_ID", "ada/cnn")
    assert settings.read_code() == "https://huggingface.co/spaces/ada/cnn"
    monkeypatch.setenv("CNN_DEMO_CODE", "git+https://example.org/other/")
    assert settings.read_code() == "https://example.org/other"
