"""The files of a run folder: their names, how they are written whole at every moment, and the log of events."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DiskError, RunError
from ..training import events
from ..training.events import Event

CONFIG = "config.json"  # the recipe, and what the weights need to be used
LOG = "events.jsonl"  # what happened, one event a line
WEIGHTS = "model.safetensors"  # the best weights so far; self-describing
RESUME = "resume"  # a folder: what only a continuation needs
STATE = "state.json"  # in RESUME: names the weights and optimizer files that belong together
EVALUATION = "evaluation.json"  # what the test found
TITLE = "title"  # the owner's name for the run
OWNER = "owner"  # SHA-256 of the owner's secret
SOURCE = "source.json"  # where a pulled run is from
STOP = "stop"  # there while another process asks the one that trains to stop
LOCK = "lock"  # locked by the process that trains; the system unlocks it when that process ends
PART = ".part"  # suffix of a file that is being written


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new one stands at `path`, whole."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; None where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_text())
    return None


@contextlib.contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an error of the disk into one sentence: RunError where the place is wrong, DiskError where the disk is."""
    try:
        yield
    except OSError as error:
        wrong_place = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST)
        kind = RunError if wrong_place else DiskError
        raise kind(f"{path} cannot be written: {error.strerror}. {advice}".rstrip()) from error


def modified(path: Path) -> float:
    """Return when a file or folder was last changed; 0 where it has just been removed."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


class EventLog:
    """events.jsonl of one run. Only who has locked the run may append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next_seq = 0

    def read(self, after: int = -1) -> list[Event]:
        """Return the events with a `seq` above `after`. A last line that a crash cut off is left out."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    event = events.from_dict(json.loads(line))
                    if event.seq > after:
                        found.append(event)
        return found

    def size(self) -> int:
        """Return the size in bytes; it changes whenever something happens."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def repair(self) -> None:
        """Cut off a half-written last line, and find the next `seq`."""
        with contextlib.suppress(FileNotFoundError):
            content = self.path.read_bytes()
            os.truncate(self.path, content.rfind(b"\n") + 1)
        self._next_seq = max((event.seq for event in self.read()), default=-1) + 1

    def append(self, event: Event) -> Event:
        """Write an event and return it with its `seq`. All but progress is synced to the disk."""
        event, size = replace(event, seq=self._next_seq), self.size()
        with writing(self.path):
            try:
                with self.path.open("ab") as file:
                    file.write(json.dumps(events.to_dict(event)).encode() + b"\n")
                    if not isinstance(event, events.Progress):
                        file.flush()
                        os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)  # no half line for the next one to be glued to
                raise
        self._next_seq += 1
        return event
