"""What the tests of sharing share: a test Hub, a run, and its exported files."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnn_demo.runs.folder import Run
from cnn_demo.sharing.export import export
from tests.hub_server import HubServer, hub_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(time, "sleep", lambda seconds, real=time.sleep: real(min(seconds, 0.05)))  # between retries
    with hub_server(tmp_path / "xet") as running:
        yield running
        for thread in threading.enumerate():  # a call that was given up still retries; not into the next test
            if thread.name == "hub":
                thread.join(30)


@pytest.fixture
def run(shipped: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(shipped, tmp_path / "from" / "resnet50")))


@pytest.fixture
def files(run: Run, tmp_path: Path) -> dict[str, bytes]:
    """What a pushed repository contains."""
    export(run, tmp_path / "files", "ada/net")
    return {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
