"""Limits of a public Space: disk, queue and time, shared fairly between sources."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_demo import settings
from cnn_demo.errors import CheckpointError, ConfigError, DiskError, InputError, RunError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder, storage
from cnn_demo.runs.service import Service
from cnn_demo.settings import SPACE_LIMITS, Limits, Settings
from cnn_demo.sharing import hub
from cnn_demo.training.config import RunConfig
from cnn_demo.ui.events import checkpoint_choices
from tests.hub_server import HubServer
from tests.sharing import push

FIELDS = {"model": "resnet50", "dataset": "shapes", "batch_size": 10, "validation_pictures": 20}
FIELDS |= {"optimizer": "sgd", "learning_rate": 0.05}
LONG = RunConfig(**FIELDS, epochs=1000)
MB = 1_000_000


def make_run(root: Path, owner: str, size: int = 5 * MB) -> folder.Run:
    """A run that ended, with weights of that size."""
    run = folder.create(root, LONG, owner)
    with (run.folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return run


@pytest.fixture
def space(tmp_path: Path, tiny: Dataset) -> Iterator[Service]:
    nowhere = "http://127.0.0.1:9"
    where = Settings(checkpoints=tmp_path, data=None, cache=tmp_path / "cache", hub=nowhere, toronto=nowhere)
    service = Service(replace(where, limits=SPACE_LIMITS, is_space=True), torch.device("cpu"))
    service.data._loaded["shapes"] = tiny
    yield service
    service.close()


def test_who_fills_the_disk_loses_their_own_runs(tmp_path: Path) -> None:
    limits = Limits(disk_gb=0.4)  # 100 MB beside the room for a new run
    first = make_run(tmp_path, "anna")
    sources = {first.id: "1.1.1.1"}
    for i in range(100):  # each with an owner of its own
        run = make_run(tmp_path, f"invented {i}")
        sources[run.id] = "2.2.2.2"
        for surplus in storage.find_surplus(tmp_path, limits, sources, {run.id})[0]:
            folder.discard(surplus)
        kept = folder.list_runs(tmp_path)
        assert 5 * MB * len(kept) <= 100 * MB and first.folder.is_dir() and run.folder.is_dir()
    assert len(kept) == 19
    ids = [run.id for run in kept if run.id != first.id]
    assert set(ids) == set(list(sources)[-18:])  # the latest


def test_what_ships_is_watched_or_is_trained_stays(tmp_path: Path) -> None:
    shipped = make_run(tmp_path, "")
    shipped.folder.rename(tmp_path / "resnet50")
    runs = [make_run(tmp_path, "anna") for _ in range(4)]
    with runs[1].locked():
        found, fits = storage.find_surplus(tmp_path, Limits(disk_gb=0.311), {}, {runs[0].id})
    assert {run.id for run in found} == {runs[2].id, runs[3].id} and fits


def test_where_all_is_watched_a_new_run_is_refused_and_nothing_is_deleted(space: Service) -> None:
    shown = [make_run(space.root, f"invented {i}", 60 * MB) for i in range(4)]
    other = make_run(space.root, "anna", 60 * MB)
    for run in shown:
        space.add_opened(run, "1.1.1.1")  # and so watched
    space._limits = replace(SPACE_LIMITS, disk_gb=0.5)  # 200 MB for 300
    with pytest.raises(DiskError, match="is being trained or watched"):
        space.submit(LONG, "bert", "2.2.2.2")
    space._limits = replace(SPACE_LIMITS, disk_gb=0.61)  # 310 MB for 300: room for others, but not for this source
    with pytest.raises(DiskError, match="is being trained or watched"):
        space.submit(LONG, "invented 5", "1.1.1.1")
    assert {run.id for run in folder.list_runs(space.root)} == {run.id for run in (*shown, other)}
    space._limits, space._watched = replace(SPACE_LIMITS, disk_gb=0.5), {}
    space.stop(space.submit(LONG, "bert", "2.2.2.2"), "bert")
    assert other.folder.exists() and not shown[0].folder.exists()


def test_shared_files_are_counted_once(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "anna", 60 * MB), make_run(tmp_path, "bert", 1)
    (second.folder / "model.safetensors").unlink()
    (second.folder / "model.safetensors").hardlink_to(first.folder / "model.safetensors")
    assert storage.find_surplus(tmp_path, Limits(disk_gb=0.4), {}, ()) == ([], True)


def test_a_folder_that_is_not_there_yet_has_room(tmp_path: Path) -> None:
    assert storage.find_surplus(tmp_path / "new", SPACE_LIMITS, {}, ()) == ([], True)


def test_the_list_tells_what_goes_next(space: Service) -> None:
    runs = [make_run(space.root, "anna", 10) for _ in range(int(SPACE_LIMITS.runs))]
    assert [row["run"] for row in space.listing("anna") if row["goes"]] == [runs[0].id]
    space.watch(runs[0].id)  # somebody looks at it
    assert [row["run"] for row in space.listing("anna") if row["goes"]] == [runs[1].id]
    space.stop(space.submit(LONG, "anna", "1.1.1.1"), "anna")
    assert not runs[1].folder.exists() and runs[0].folder.exists() and runs[2].folder.exists()


def test_what_an_active_run_starts_from_stays(space: Service, shipped: Path) -> None:
    runs = [make_run(space.root, "anna", 10) for _ in range(int(SPACE_LIMITS.runs))]
    (runs[0].folder / "model.safetensors").write_bytes((shipped / "model.safetensors").read_bytes())
    run = space.submit(replace(LONG, start_from=runs[0].id), "anna", "1.1.1.1")
    assert runs[0].folder.exists() and not runs[1].folder.exists()
    space._limits = replace(SPACE_LIMITS, runs=1)
    surplus = {found.id for found in space._surplus()[0]}
    assert surplus and not surplus & {runs[0].id, run}


def test_a_run_that_is_being_made_makes_no_room_for_another(space: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    space._limits = replace(SPACE_LIMITS, runs=1)
    others = []

    def create(*given: Any, real: Callable[..., folder.Run] = folder.create) -> folder.Run:
        run = real(*given)
        others.append(threading.Thread(target=space.make_room))
        others[0].start()
        others[0].join(0.3)
        return run

    monkeypatch.setattr(folder, "create", create)
    run = space.submit(LONG, "anna", "1.1.1.1")
    others[0].join(30)
    assert (space.root / run).is_dir()


def test_room_is_made_again_when_a_run_that_waited_begins(space: Service) -> None:
    space._limits = replace(SPACE_LIMITS, disk_gb=0.4, runs=float("inf"))  # one limit holds without the other
    first, second = (space.submit(LONG, owner, "1.1.1.1") for owner in ("anna", "bert"))
    grown = make_run(space.root, "carl", 200 * MB)
    space.stop(first, "anna")
    deadline = time.monotonic() + 30
    while space.watch(second)["state"] in ("queued", "preparing"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not grown.folder.exists()


def test_the_next_visitor_is_next_in_line_whatever_one_source_queues(space: Service) -> None:
    running = space.submit(LONG, "first", "1.1.1.1")
    refused = 0
    for i in range(150):
        try:
            space.submit(LONG, f"invented {i}", "1.1.1.1")
        except RunError as error:
            assert "30 runs from your network address are waiting already" in str(error)
            refused += 1
    assert refused == 120
    run = space.submit(LONG, "anna", "2.2.2.2")
    assert "next in line" in space.watch(run)["text"]
    signed_in = space.submit(LONG, "bert", "user bert")
    assert "2nd in line" in space.watch(signed_in)["text"]
    space.stop(running, "first")
    deadline = time.monotonic() + 30
    while space.watch(run)["state"] in ("queued", "preparing"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert space.watch(signed_in)["state"] == "queued"


def test_a_run_ends_when_its_time_is_over_and_can_be_continued(space: Service) -> None:
    with pytest.raises(ConfigError, match="at most 600 s, 3,600 s for who is signed in"):
        space.submit(RunConfig(**FIELDS, seconds=601), "anna", "1.1.1.1")
    space._limits = replace(SPACE_LIMITS, minutes=0.02)
    run = space.submit(LONG, "anna", "1.1.1.1")
    deadline = time.monotonic() + 30
    while "end" not in (seen := space.watch(run)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert seen["state"] == "stopped" and "can be continued" in seen["text"]
    assert space.resume(run, "anna", "user anna") == run


def test_limits_are_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert settings.read().limits == Limits()
    monkeypatch.setenv("SPACE_ID", "ada/cnn")
    monkeypatch.setenv("CNN_DEMO_MINUTES", "5")
    monkeypatch.setenv("CNN_DEMO_RUNS", "0")
    assert settings.read().limits == replace(SPACE_LIMITS, minutes=5, runs=float("inf"))
    for damaged in ("five", "nan", "-5"):
        monkeypatch.setenv("CNN_DEMO_MINUTES", damaged)
        with pytest.raises(InputError, match=f"CNN_DEMO_MINUTES: enter a positive number, or 0 for .* not '{damaged}'"):
            settings.read()


@pytest.mark.parametrize("command", [["app.py"], ["-m", "cnn_demo", "runs"]])
def test_a_damaged_limit_ends_the_start_with_a_sentence(command: list[str]) -> None:
    environ = os.environ | {"CNN_DEMO_DISK_GB": "5 GB"}
    done = subprocess.run([sys.executable, *command], cwd=settings.ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "cnn_demo: CNN_DEMO_DISK_GB: enter a positive number, or 0 for no limit, not '5 GB'.\n"


def test_a_checkpoint_that_many_open_is_stored_once(run: folder.Run, server: HubServer, tmp_path: Path) -> None:
    push(run, server)
    root = tmp_path / "root"
    first = hub.pull(root, server.url, "ada/net", False, "anna")
    downloads = len([request for request in server.requests if "/resolve/" in str(request)])
    second = hub.pull(root, server.url, "ada/net", False, "bert")
    assert len([request for request in server.requests if "/resolve/" in str(request)]) == downloads > 0
    weights = [(opened.folder / "model.safetensors").stat() for opened in (first, second)]
    assert first.id != second.id and weights[0].st_ino == weights[1].st_ino
    assert second.belongs_to("bert") and not second.belongs_to("anna") and second.config == first.config


def test_a_private_checkpoint_is_hidden_from_who_only_knows_its_id(space: Service) -> None:
    run = make_run(space.root, "anna", 10)
    run.write_json("source.json", {"repo": "anna/secret", "commit": "a" * 40, "revisions": [], "private": True})
    seen = space.watch(run.id, owner="bert")
    assert "secret" not in str(seen) and seen["title"] == "a private checkpoint"
    assert space.watch(run.id, owner="anna")["source"]["repo"] == "anna/secret"
    assert "secret" in str(checkpoint_choices(space, "anna", run.id)) and not checkpoint_choices(space, "bert", run.id)
    with pytest.raises(CheckpointError, match="private repository of someone else"):
        space.submit(replace(LONG, start_from=run.id), "bert", "1.1.1.1")
