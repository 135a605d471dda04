"""Runs as jobs: the queue, who may do what, and what a watcher sees."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnn_demo.answers.inference import Classifier
from cnn_demo.errors import CheckpointError, ConfigError, DownloadError, RunError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder
from cnn_demo.runs.history import History, thin
from cnn_demo.runs.queue import Queue
from cnn_demo.runs.service import Service
from cnn_demo.settings import SPACE_LIMITS, Settings
from cnn_demo.training import events
from cnn_demo.training.config import RunConfig

FIELDS = {"model": "resnet50", "dataset": "shapes", "batch_size": 10, "validation_pictures": 20}
FIELDS |= {"optimizer": "sgd", "learning_rate": 0.05}  # quick: with Muon a small step takes three times as long
SHORT = RunConfig(**FIELDS, epochs=2)
LONG = RunConfig(**FIELDS, epochs=1000)


def settings(root: Path) -> Settings:
    nowhere = "http://127.0.0.1:9"
    return Settings(checkpoints=root, data=None, cache=root / "cache", hub=nowhere, toronto=nowhere)


@pytest.fixture
def service(tmp_path: Path, tiny: Dataset) -> Iterator[Service]:
    service = Service(settings(tmp_path), torch.device("cpu"))
    service.data._loaded["shapes"] = tiny
    yield service
    service.close()


def wait(service: Service, run: str, *states: str) -> dict[str, Any]:
    """Return the first report in which the run is in one of the states."""
    deadline = time.monotonic() + 60
    while (seen := service.watch(run))["state"] not in states:
        assert time.monotonic() < deadline, seen["state"]
        time.sleep(0.02)
    return seen


def test_watching_in_pieces_adds_up_to_the_whole_run(service: Service) -> None:
    run = service.submit(SHORT, "anna")
    pieces, seq = [], -1
    while True:
        seen = service.watch(run, seq, "anna")
        assert seen["mine"]
        if seen["reset"]:
            pieces.clear()
        pieces += seen["points"]
        seq = seen["seq"]
        if "end" in seen:
            break
        time.sleep(0.02)
    whole = service.watch(run)
    assert whole["state"] == "finished" and not whole["mine"] and whole["saved"]
    column = whole["columns"]["epochs"].index("epoch")
    assert pieces == whole["points"] and [row[column] for row in whole["epochs"]] == [1, 2]
    assert all(len(row) == len(whole["columns"]["points"]) for row in pieces) and "columns" not in seen
    assert whole["end"]["test_pictures"] == 40 and whole["evaluated"]
    assert service.evaluation(run)["accuracy"] == whole["end"]["test_accuracy"]
    assert service.watch(run, whole["seq"])["points"] == []


def test_an_update_is_less_than_a_kilobyte(tmp_path: Path) -> None:
    run = folder.create(tmp_path, SHORT, "anna")
    log = [
        events.RunStarted(
            step=0,
            steps_per_epoch=1000,
            device="CPU, 2 threads",
            precision="bfloat16",
            parameters=8_898_826,
            train_pictures=45_000,
            validation_pictures=5000,
            test_pictures=10_000,
        )
    ]
    for step in range(1, 2001):
        logged = ((step, 1.2345678),) if step % 100 == 0 else ()
        log.append(
            events.Progress(
                phase="training",
                epoch=2,
                step=step,
                share=0.123456789,
                learning_rate=0.0987654321,
                images_per_second=1234.56789,
                seconds_left=1234.56789,
                loss=1.23456789,
                loss_low=1.23456789,
                loss_high=1.23456789,
                logged=logged,
            )
        )
    with run.locked():
        for event in log:
            run.log.append(event)
    seen = Service(settings(tmp_path)).watch(run.id, after=run.log.read()[-5].seq, owner="anna")
    assert len(seen["points"]) == 4 and len(seen["log"]) == 1
    assert len(json.dumps(seen)) < 1000


def test_only_the_owner_may_stop_continue_and_discard(service: Service) -> None:
    run = service.submit(LONG, "anna")
    wait(service, run, "training")
    for change in (service.stop, service.resume, service.discard):
        with pytest.raises(RunError, match="not started by you"):
            change(run, "bert")
        with pytest.raises(RunError, match="not started by you"):
            change(run, "")
    with pytest.raises(RunError, match="is active"):
        service.discard(run, "anna")
    begun = time.monotonic()
    service.stop(run, "anna")
    assert time.monotonic() - begun < 0.5
    assert service.watch(run)["state"] in ("stopping", "stopped")
    step = wait(service, run, "stopped")["end"]["step"]
    service.resume(run, "anna")
    assert wait(service, run, "training")["started"]["step"] == step
    service.stop(run, "anna")
    wait(service, run, "stopped")
    service.discard(run, "anna")
    with pytest.raises(RunError, match="no run"):
        service.watch(run)


def test_runs_wait_for_their_turn_and_can_leave_the_queue(service: Service) -> None:
    first = service.submit(LONG, "anna")
    with pytest.raises(RunError, match=f"active run, {first}"):
        service.submit(SHORT, "anna")
    with pytest.raises(RunError, match="owner"):
        service.submit(SHORT, "")
    wait(service, first, "training")
    second, third = service.submit(SHORT, "bert"), service.submit(SHORT, "cleo")
    assert "next in line" in service.watch(second)["text"] and "2nd in line" in service.watch(third)["text"]
    assert service.watch(third)["state"] == "queued" and service.active("cleo") == third
    service.stop(second, "bert")
    assert service.watch(second)["state"] == "stopped" and service.active("bert") is None
    assert "next in line" in service.watch(third)["text"]
    service.stop(first, "anna")
    assert wait(service, third, "finished")


def test_the_waiting_time_follows_the_measured_speed(service: Service) -> None:
    first = service.submit(LONG, "anna")
    deadline = time.monotonic() + 30
    waiting = service.submit(RunConfig(model="resnet50", dataset="shapes", seconds=60), "bert")
    last = service.submit(SHORT, "cleo")
    while "about" not in service.watch(last)["text"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    jobs, left = service._queue._jobs, service._queue._seconds_left
    assert left(jobs[waiting]) == 60 and left(jobs[first]) > 0 and "about" in service.watch(waiting)["text"]
    service.stop(last, "cleo")
    service.stop(waiting, "bert")
    service.stop(first, "anna")


def test_a_list_shows_own_and_unowned_runs(service: Service) -> None:
    mine = service.submit(SHORT, "anna")
    wait(service, mine, "finished")
    folder.create(service.root, SHORT)  # from the command line
    assert len(service.listing("anna")) == 2
    (line,) = service.listing("bert")
    assert line["run"] != mine and not line["mine"] and line["state"] == "interrupted"
    assert service.listing("") == [line]


def test_a_killed_program_leaves_runs_that_can_be_continued(service: Service, tmp_path: Path, tiny: Dataset) -> None:
    run = folder.create(tmp_path, SHORT, "anna")
    with run.locked():
        run.log.append(
            events.RunStarted(
                step=0,
                steps_per_epoch=10,
                device="CPU",
                precision="float32",
                parameters=1,
                train_pictures=100,
                validation_pictures=20,
                test_pictures=40,
            )
        )
    seen = service.watch(run.id, owner="anna")
    assert seen["started"]["train_pictures"] == 100  # it had begun
    assert seen["state"] == "interrupted" and "Continue" in seen["text"]
    service.resume(run.id, "anna")
    wait(service, run.id, "finished")
    with pytest.raises(RunError, match="has finished"):
        service.resume(run.id, "anna")


def test_a_run_without_images_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> Dataset:
        raise DownloadError("CIFAR-10 could not be downloaded. The cable is cut.")

    monkeypatch.setattr("cnn_demo.pictures.sources.load", load)
    service = Service(settings(tmp_path), torch.device("cpu"))
    service.data.prepare()
    run = service.submit(RunConfig(model="resnet50", epochs=1), "anna")
    assert wait(service, run, "failed")["text"] == "CIFAR-10 could not be downloaded. The cable is cut."
    assert "cable" in service.data.problem
    service.close()


def test_a_run_can_be_stopped_while_its_images_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, where: Settings, report: Any) -> Dataset:
        while True:
            report("downloading CIFAR-10", 0.4)
            time.sleep(0.01)

    monkeypatch.setattr("cnn_demo.pictures.sources.load", load)
    service = Service(settings(tmp_path), torch.device("cpu"))
    run = service.submit(RunConfig(model="resnet50", epochs=1), "anna")
    deadline = time.monotonic() + 30
    while service.watch(run)["text"] != "Preparing: downloading CIFAR-10":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert service.watch(run)["share"] == 0.4
    service.stop(run, "anna")
    wait(service, run, "stopped")
    service.close()


def test_closing_the_service_stops_what_runs_and_what_waits(service: Service) -> None:
    first, second = service.submit(LONG, "anna"), service.submit(LONG, "bert")
    wait(service, first, "training")
    service.close()
    assert service.watch(first)["state"] == service.watch(second)["state"] == "stopped"


def test_the_owner_secret_is_not_on_the_disk(service: Service) -> None:
    run = service.submit(SHORT, "a-very-secret-text")
    wait(service, run, "finished")
    for file in (service.root / run).rglob("*"):
        assert file.is_dir() or b"a-very-secret-text" not in file.read_bytes(), file


def test_thinning_keeps_every_extreme() -> None:
    history = History()
    for step in range(1, 10_001):
        loss = 2.0 + (5.0 if step == 777 else -1.5 if step == 8888 else 0.0)
        history.add(
            events.Progress(phase="training", epoch=1, step=step, share=0, loss=loss, loss_low=loss, loss_high=loss)
        )
    points = thin(history.curve, 400)
    assert len(points) <= 400 and points[-1].step == 10_000
    assert max(p.loss_high for p in points) == 7.0 and min(p.loss_low for p in points) == 0.5
    assert thin(history.curve[:400], 400) == list(history.curve[:400])


def test_a_watcher_gets_few_validations_and_the_last_one(tmp_path: Path) -> None:
    run = folder.create(tmp_path, SHORT)
    with run.locked():
        for step in range(1000):
            run.log.append(events.Validated(step=step, pictures=10, accuracy=0.5, answers=((3, 0.123),) * 10))
    service = Service(settings(tmp_path), torch.device("cpu"))
    seen = service.watch(run.id)
    assert len(seen["validations"]) == 100 and seen["classes"][3] == "frame"
    assert seen["validations"][-1] == [999, 10, 0.5, ((3, 0.123),) * 10] and len(json.dumps(seen)) < 30_000
    assert [step for step, *_ in service.watch(run.id, after=seen["seq"] - 2)["validations"]] == [999]


def test_errors_do_not_name_other_runs(service: Service) -> None:
    run = service.submit(SHORT, "anna")
    wait(service, run, "finished")
    for ask in (service.watch, lambda name: service.stop(name, "bert")):
        with pytest.raises(RunError) as error:
            ask("resnet50-gone")
        assert run not in str(error.value) and str(service.root) not in str(error.value)
    with pytest.raises(CheckpointError) as refused:
        service.submit(replace(SHORT, start_from="gone"), "bert")
    assert run not in str(refused.value)
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for name in ("gone", "../x", __file__):
        with pytest.raises(CheckpointError) as unknown:
            Classifier(service.root).answer(name, pixels)
        assert run not in str(unknown.value)


def test_start_from_holds_out_what_the_checkpoint_held_out(service: Service, shipped: Path) -> None:
    shutil.copytree(shipped, service.root / "resnet50")  # it held out 20 images
    for given, expected in ((None, 20), (7, 7)):
        run = service.submit(replace(SHORT, start_from="resnet50", validation_pictures=given), f"owner {expected}")
        assert folder.find(service.root, run).config.validation_pictures == expected
    with pytest.raises(ConfigError, match="Give 20 or fewer"):
        service.submit(replace(SHORT, start_from="resnet50", validation_pictures=21), "bert")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        service.submit(replace(SHORT, start_from=str(shipped)), "bert")


def test_a_refused_run_leaves_no_folder(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the same person's other request was faster while the folder was being made."""
    first = service.submit(LONG, "anna")
    monkeypatch.setattr(service._queue, "check", lambda owner, source: None)
    monkeypatch.setattr(service._queue, "add", lambda run, owner, *_: Queue.check(service._queue, owner, ""))
    with pytest.raises(RunError, match="active run"):
        service.submit(SHORT, "anna")
    assert [run.id for run in folder.list_runs(service.root)] == [first]


def test_the_owner_renames_a_run(service: Service) -> None:
    run = service.submit(SHORT, "anna")
    wait(service, run, "finished")
    with pytest.raises(RunError, match="not started by you"):
        service.rename(run, "bert", "mine")
    service.rename(run, "anna", "first try")
    assert service.watch(run)["title"] == "first try" == service.listing("anna")[0]["title"]


def test_a_run_whose_starting_checkpoint_is_gone_fails_with_the_reason(service: Service) -> None:
    start = service.submit(SHORT, "anna")
    wait(service, start, "finished")
    first = service.submit(LONG, "anna")
    wait(service, first, "training")
    second = service.submit(replace(SHORT, start_from=start), "bert")
    folder.discard(folder.find(service.root, start))
    service.stop(first, "anna")
    assert start in wait(service, second, "failed")["text"]


def test_neither_stop_nor_shapes_wait_for_a_download(
    tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def load(name: str, where: Settings, report: Any) -> Dataset:
        if name == "shapes":
            return tiny
        report("downloading CIFAR-10", 0.4)
        ended.wait(60)
        raise DownloadError("too late")

    monkeypatch.setattr("cnn_demo.pictures.sources.load", load)
    service = Service(settings(tmp_path), torch.device("cpu"))
    service.data.prepare()
    run = service.submit(RunConfig(model="resnet50", epochs=1), "anna")
    deadline = time.monotonic() + 30
    while service.watch(run)["text"] != "Preparing: downloading CIFAR-10":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    service.stop(run, "anna")
    wait(service, run, "stopped")
    wait(service, service.submit(SHORT, "anna"), "finished")
    ended.set()
    service.close()


def test_leaving_the_queue_keeps_what_was_trained(service: Service) -> None:
    run = service.submit(LONG, "anna")
    deadline = time.monotonic() + 60
    while not service.watch(run)["epochs"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    service.stop(run, "anna")
    before = wait(service, run, "stopped")["end"]
    other = service.submit(LONG, "bert")
    wait(service, other, "training")
    service.resume(run, "anna")
    service.stop(run, "anna")
    after = service.watch(run)["end"]
    assert after["step"] == before["step"] and after["seconds"] > 0
    assert after["best_step"] == before["best_step"] > 0
    service.stop(other, "bert")


def test_a_shared_space_tells_its_limits(tmp_path: Path) -> None:
    where = settings(tmp_path)
    note = Service(replace(where, is_space=True, limits=SPACE_LIMITS), torch.device("cpu")).note
    assert "temporary" in note and "CPU" in note and "stops after 10 minutes (60 if you are signed in)" in note
    assert "the latest 20 are kept" in note and Service(where).note == ""
