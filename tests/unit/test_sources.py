"""Data sets by name, loaded once for many threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cnn_demo.errors import DataError, DownloadError
from cnn_demo.pictures import cifar10, sources
from cnn_demo.pictures.dataset import Dataset, Report
from cnn_demo.settings import Settings
from tests.apps import NOWHERE


@pytest.fixture
def where(tmp_path: Path) -> Settings:
    return Settings(checkpoints=tmp_path, data=None, cache=tmp_path, hub=NOWHERE, toronto=NOWHERE)


def quiet(text: str, share: float) -> None:
    pass


def test_unknown_name_is_not_taken_for_cifar10(where: Settings) -> None:
    for load in (
        lambda: sources.load("cifar100", where, quiet),
        lambda: sources.DatasetCache(where).get("mnist", quiet),
    ):
        with pytest.raises(DataError, match="Data set: choose cifar10, shapes, not"):
            load()


def test_threads_that_wait_see_the_progress_of_the_one_that_loads(
    where: Settings, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that asks loads; the others wait and get the same data set."""

    def load(where: Settings, report: Report) -> Dataset:
        loads.append(where)
        report("downloading", 0.5)
        assert others_know.wait(timeout=30)
        return tiny

    def report(text: str, share: float) -> None:
        if threading.current_thread().name.startswith("waits") and (text, share) == ("downloading", 0.5):
            others_know.set()

    monkeypatch.setattr(cifar10, "load", load)
    loads: list[Settings] = []
    others_know = threading.Event()
    cache = sources.DatasetCache(where)
    cache.prepare()
    while not loads:
        pass
    with ThreadPoolExecutor(3, thread_name_prefix="waits") as pool:
        found = list(pool.map(lambda _: cache.get("cifar10", report), range(3)))
    assert found == [tiny] * 3 and len(loads) == 1 and cache.problem == ""


def test_problem_at_start_is_kept_until_the_data_is_there(
    where: Settings, tiny: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(where: Settings, report: Report) -> Dataset:
        raise DownloadError("No network.")

    monkeypatch.setattr(cifar10, "load", fail)
    cache = sources.DatasetCache(where)
    cache.prepare()
    for thread in threading.enumerate():
        if thread.name == "prepare":
            thread.join()
    assert cache.problem == "No network." and "No network." in caplog.text
    with pytest.raises(DownloadError):
        cache.get("cifar10", quiet)
    monkeypatch.setattr(cifar10, "load", lambda where, report: tiny)
    assert cache.get("cifar10", quiet) is tiny and cache.problem == ""


def test_a_report_that_raises_stops_the_wait_and_frees_the_lock(where: Settings, tiny: Dataset) -> None:
    def stop(text: str, share: float) -> None:
        raise InterruptedError

    cache = sources.DatasetCache(where)
    with pytest.raises(InterruptedError):
        cache.get("shapes", stop)
    cache._loaded["shapes"] = tiny
    assert cache.get("shapes", quiet) is tiny
