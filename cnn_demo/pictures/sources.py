"""Data sets by name, loaded once per process."""

import logging
import threading

from ..errors import CnnDemoError, DataError
from ..settings import Settings
from . import cifar10, shapes
from .catalog import DATASETS
from .dataset import Dataset, Report


def load(name: str, where: Settings, report: Report) -> Dataset:
    """Return a data set by name. Raises DataError for an unknown name, else what its own module raises."""
    if name == "cifar10":
        return cifar10.load(where, report)
    if name == "shapes":
        return shapes.draw()
    raise DataError(f"Data set: choose {', '.join(DATASETS)}, not {name!r}.")


class DatasetCache:
    """Loads each data set once, for many threads. problem: why CIFAR-10 could not be loaded at start, else ""."""

    def __init__(self, settings: Settings) -> None:
        self.problem = ""
        self._settings = settings
        self._locks: dict[str, threading.Lock] = {}
        self._progress: dict[str, tuple[str, float]] = {}  # of the thread that loads
        self._loaded: dict[str, Dataset] = {}

    def prepare(self) -> None:
        """Start loading CIFAR-10 in a thread, so that the first run need not wait for it."""

        def work() -> None:
            try:
                self.get("cifar10", lambda text, share: None)
            except CnnDemoError as error:
                self.problem = str(error)
                logging.getLogger(__name__).warning("%s", error)

        threading.Thread(target=work, name="prepare", daemon=True).start()

    def get(self, name: str, report: Report) -> Dataset:
        """Return a data set; a thread that waits for another one reports its progress. Raises what `load` raises."""

        def note(text: str, share: float) -> None:
            self._progress[name] = text, share
            report(text, share)

        lock = self._locks.setdefault(name, threading.Lock())
        while not lock.acquire(timeout=0.2):
            report(*self._progress.get(name, ("waiting for the images", 0.0)))
        try:
            if name not in self._loaded:
                note("drawing the images" if name == "shapes" else "reading the images", 0.0)
                self._loaded[name] = load(name, self._settings, note)
            if name == "cifar10":
                self.problem = ""
            return self._loaded[name]
        finally:
            lock.release()
