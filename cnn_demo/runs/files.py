"""The files of a run folder: their names, how they are written whole at every moment, and the log of events."""

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

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
LONG_LOG = 20_000  # lines; an hour of training has 14,400
POINTS = (b'{"kind": "Progress"', b'{"kind": "Validated"')  # how lines begin that are many
PART = ".part"  # suffix of a file that is being written
UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # what a damaged line raises


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
def writing(path: Path, advice: str = "", what: str = "written") -> Iterator[None]:
    """Turn an error of the disk into one sentence: RunError where the place is wrong, DiskError where the disk is."""
    try:
        yield
    except OSError as error:
        wrong_place = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST)
        kind = RunError if wrong_place else DiskError
        raise kind(f"{path} cannot be {what}: {error.strerror}. {advice}".rstrip()) from error


def modified(path: Path) -> float:
    """Return when a file or folder was last changed; 0 where it has just been removed."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


class EventLog:
    """events.jsonl of one run. Only who has locked the run may append."""

    _reported: ClassVar[set[Path]] = set()  # damaged ones, each once

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next_seq = 0

    def read(self, after: int = -1) -> list[Event]:
        """Return the events with a `seq` above `after`. Damaged lines are left out; of our own log the first is logged.

        A last line that a crash cut off is left out, too. Raises RunError where the file cannot be read.
        """
        found, lines = [], [b""]
        with writing(self.path, what="read"), contextlib.suppress(FileNotFoundError):
            lines = self.path.read_bytes().split(b"\n")
        step, counts = 1 + len(lines) // LONG_LOG, dict.fromkeys(POINTS, 0)
        for number, line in enumerate(lines, start=1):
            if kind := next(filter(line.startswith, POINTS), None):
                counts[kind] += 1
                if counts[kind] % step and number < len(lines) - 1:
                    continue  # of a run of hours no screen shows each point
            try:
                event = events.from_dict(json.loads(line))
            except UNREADABLE:
                if number < len(lines) and self.path not in self._reported and not self.path.with_name(SOURCE).exists():
                    self._reported.add(self.path)
                    logger = logging.getLogger(__name__)
                    logger.warning("Line %d of the log of %s is damaged and left out", number, self.path.parent.name)
            else:
                if event.seq > after:
                    found.append(event)
        return found

    def size(self) -> int:
        """Return the size in bytes; it changes whenever something happens."""
        return os.path.getsize(self.path) if os.path.isfile(self.path) else 0

    def repair(self) -> None:
        """Cut off a half-written last line, and find the next `seq`."""
        with writing(self.path), contextlib.suppress(FileNotFoundError):
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
        self._next_seq = max((event.seq for event in self.read()), default=-1) + 1

    def append(self, event: Event) -> Event:
        """Write an event and return it with its `seq`. All but points of curves are synced to the disk."""
        event, size = replace(event, seq=self._next_seq), self.size()
        with writing(self.path):
            try:
                with self.path.open("ab") as file:
                    file.write(json.dumps(events.to_dict(event)).encode() + b"\n")
                    if not isinstance(event, (events.Progress, events.Validated)):
                        file.flush()
                        os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)  # no half line for the next one to be glued to
                raise
        self._next_seq += 1
        return event
