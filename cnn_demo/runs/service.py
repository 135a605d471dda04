"""What people may do with runs, and what they are shown of them.

Who knows a run's id may watch it; only its owner may stop, continue, rename or discard it. No run belongs to a page.
"""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import CheckpointError, CnnDemoError, ConfigError, DiskError, RunError
from ..pictures.sources import DatasetCache
from ..settings import Limits, Settings
from ..training.config import RunConfig
from ..training.device import device_name, find_devices, keep_freed_memory, unusable_gpu
from . import folder, storage, zero
from .checkpoints import NAME
from .files import EVALUATION, WEIGHTS
from .folder import Run
from .history import History
from .queue import CAN_CONTINUE, SIGNED_IN, Queue
from .status import report

WATCHED_SECONDS = 60  # since a page last asked for a run
HISTORIES = 32  # of ended runs, in memory
Result = TypeVar("Result")


class Service:
    """All runs of this process, and its data sets."""

    def __init__(self, settings: Settings, device: torch.device | None = None) -> None:
        keep_freed_memory()  # before there are threads
        self.root, self.hub, self.sign_in = settings.checkpoints, settings.hub, settings.sign_in
        self.data = DatasetCache(settings)
        # On ZeroGPU none may be asked for here, and one run after the other gets one.
        devices = [device or torch.device("cpu")] if device or zero.is_zero() else find_devices()
        space = describe_space(devices[0], settings.limits) if settings.is_space else ""
        several = f"{len(devices)} GPUs train {len(devices)} runs at a time." if len(devices) > 1 else ""
        problem = "" if zero.is_zero() else unusable_gpu()
        self.note = " ".join(filter(None, (space, several, problem and f"{problem} Until then the CPU trains.")))
        self.has_gpu = zero.is_zero() or devices[0].type == "cuda"
        self.is_space, self._limits = settings.is_space, settings.limits
        self._queue = Queue(settings, self.data, devices, self.make_room)
        self.close, self.active = self._queue.close, self._queue.active
        self._histories: dict[Path, tuple[object, History]] = {}  # and from which state of the files they are
        self._summaries: dict[Path, tuple[object, dict[str, Any]]] = {}
        self._sources: dict[str, str] = {}  # of runs, for the limits; never on the disk
        self._watched: dict[str, float] = {}  # when a run was last asked for
        self._room = threading.RLock()  # while runs are deleted, or one is made that is not yet in the queue

    def submit(self, config: RunConfig, owner: str, source: str = "") -> str:
        """Queue a new run of `owner` (a secret of theirs); return its id. Raises RunError, InputError, DiskError.

        source: whose it is for the limits, "user NAME" or a network address.
        """
        if (config.seconds or 0) > (longest := self._seconds(source)):
            raise ConfigError(
                "seconds",
                f"Seconds: here a run lasts at most {longest:,.0f} s, {60 * self._limits.minutes_signed_in:,.0f} s for "
                "who is signed in. Duplicate the Space for longer ones.",
            )
        start = config.start_from
        if start and not (NAME.fullmatch(start) and (self.root / start / WEIGHTS).is_file()):
            raise CheckpointError(f"Start from: there is no checkpoint {start[:80]!r} here.")
        if start and Run(self.root / start).is_private_to_others(owner):
            raise CheckpointError("Start from: this checkpoint is from a private repository of someone else.")
        self._queue.check(owner, source)
        with self._room:
            self.make_room(start, source)
            run = folder.create(self.root, config, owner)  # reads and writes files: before the queue is locked
            self._sources[run.id] = source
            try:
                self._queue.add(run, owner, source, longest)
            except CnnDemoError:
                folder.discard(run)
                raise
        return run.id

    def resume(self, run_id: str, owner: str, source: str = "") -> str:
        """Queue a run that stopped, failed or was interrupted; return its id. Raises RunError where that cannot be."""
        run = self._owned(run_id, owner)
        state = "come from the Hub" if run.source else self._history(run).state
        if state not in CAN_CONTINUE and self._queue.find(run_id) is None:
            raise RunError(f"The run {run_id} has {state}; only a run that stopped can be continued.")
        with self._room:
            self._find(run_id)  # it may just have made room
            self._queue.add(run, owner, source, self._seconds(source))
        return run_id

    def stop(self, run_id: str, owner: str) -> None:
        """Stop a run and keep its weights; one that waits leaves the queue. An ended one is left alone."""
        self._owned(run_id, owner)
        self._queue.stop(run_id)

    def discard(self, run_id: str, owner: str) -> None:
        """Delete a run that is not active, and its weights."""
        run = self._owned(run_id, owner)
        with self._queue.changed:
            if self._queue.find(run_id):
                raise RunError(f"The run {run_id} is active; stop it first.")
            folder.discard(run)

    def rename(self, run_id: str, owner: str, title: str) -> None:
        """Give a run a title. Raises RunError where it is someone else's, InputError for a title that cannot be."""
        self._owned(run_id, owner).rename(title)

    def watch(self, run_id: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        """Return the run's state and what is new since the event `after`, as `status.report` does."""
        view = self._queue.view(run_id)
        if view is not None:
            run, history, changes = view
        else:
            run, changes = self._find(run_id), {}
            history = self._history(run)
        self._watched[run_id] = time.monotonic()
        answer = report(run, history, after) | changes
        answer |= {"mine": run.belongs_to(owner), "evaluated": run.has(EVALUATION)}
        if run.is_private_to_others(owner):
            answer |= {"title": "a private checkpoint"}
            answer |= {"source": {"repo": "a private repository", "commit": ""}} if answer["reset"] else {}
        if history.finished:
            answer["end"] = dataclasses.asdict(history.finished)
        return answer

    def listing(self, owner: str) -> list[dict[str, Any]]:
        """Return a line for each run that `owner` may see in a list: their own, and those without an owner."""
        states, found, surplus = self._queue.states(), [], {run.id for run in self._surplus()[0]}
        for run in folder.list_runs(self.root):
            if run.owner and not run.belongs_to(owner):
                continue
            summary = _cached(self._summaries, run, run.summary)
            if summary["model"] != "damaged":
                state = states.get(run.id, summary["state"])
                goes = run.id in surplus  # when the next run starts
                found.append({"run": run.id, **summary, "mine": bool(run.owner), "state": state, "goes": goes})
        return found

    def evaluation(self, run_id: str) -> dict[str, Any] | None:
        """Return what the test of a run found, None before it. Raises RunError where there is no such run."""
        return self._find(run_id).evaluation()

    def exportable(self, run_id: str, owner: str) -> Run:
        """Return a run that `owner` may save elsewhere: theirs, or one without an owner. Raises RunError."""
        return self._owned(run_id, owner) if self._find(run_id).owner else self._find(run_id)

    def add_opened(self, run: Run, source: str) -> None:
        """Count a checkpoint that was opened from the Hub as a run of a source. Raises DiskError; then it is gone."""
        self._sources[run.id], self._watched[run.id] = source, time.monotonic()
        try:
            self.make_room(source=source)
        except DiskError:
            folder.discard(run)
            raise

    def make_room(self, start: str | None = None, source: str = "") -> None:
        """Delete the runs that leave no room for the next, which is of `source`, but not `start`, from which it starts.

        Raises DiskError, and deletes none, where even that would not do.
        """
        with self._room:
            surplus, fits = self._surplus(start, source)
            if not fits:
                raise DiskError(
                    "There is no room for a new run: what is on the disk is being trained or watched. Try again in a "
                    "minute, or delete a run of yours."
                )
            for run in surplus:
                with contextlib.suppress(CnnDemoError):
                    folder.discard(run)
        for run_id in [run_id for run_id in list(self._sources) if not (self.root / run_id).is_dir()]:
            self._sources.pop(run_id, None)

    def _surplus(self, start: str | None = None, source: str = "") -> tuple[list[Run], bool]:
        if math.isinf(min(self._limits.disk_gb, self._limits.runs)):
            return [], True
        since = time.monotonic() - WATCHED_SECONDS
        self._watched = {run: seen for run, seen in list(self._watched.items()) if seen > since}
        active = [run for run_id in self._queue.states() if (run := self._queue.find(run_id))]
        started = {run.config.start_from or "" for run in active}
        kept = {start or "", *self._watched, *(run.id for run in active), *started}
        return storage.find_surplus(self.root, self._limits, self._sources, kept, source)

    def _seconds(self, source: str) -> float:
        minutes = self._limits.minutes_signed_in if source.startswith(SIGNED_IN) else self._limits.minutes
        return 60 * minutes

    def _find(self, run_id: str) -> Run:
        if (run := self._queue.find(run_id)) or (run := folder.get(self.root, run_id)):
            return run
        raise RunError(f"There is no run {run_id[:80]!r} here.")

    def _owned(self, run_id: str, owner: str) -> Run:
        run = self._find(run_id)
        if not run.belongs_to(owner):
            raise RunError(f"The run {run_id} was not started by you; you can watch it, not change it.")
        return run

    def _history(self, run: Run) -> History:
        """Return the history of a run that is no job."""
        history = _cached(self._histories, run, run.history)
        while len(self._histories) > HISTORIES:
            self._histories.pop(next(iter(self._histories), run.folder), None)
        return history


def _cached(known: dict[Path, tuple[object, Result]], run: Run, read: Callable[[], Result]) -> Result:
    """Return what `read` returns; it is called again only when the run's log, lock or title has changed."""
    state = (run.log.size(), run.is_locked(), run.title)
    found = known.get(run.folder)
    if found is None or found[0] != state:
        found = known[run.folder] = (state, read())
    return found[1]


def describe_space(device: torch.device, limits: Limits) -> str:
    """Return what a visitor of a Space must know of it, in words."""
    name = device_name(device)
    length = f"{limits.minutes:g} minutes ({limits.minutes_signed_in:g} if you are signed in)"
    if zero.is_zero():
        name, length = "a GPU lent for a minute at a time (ZeroGPU)", f"{zero.LONGEST_CALL_SECONDS} s of it at most"
    temporary = "Its disk is temporary: when it restarts or falls asleep, all runs made here are lost."
    return (
        f"This Space trains on {name}. A run stops after {length}; Continue resumes it. {temporary} Of your runs the "
        f"latest {limits.runs:g} are kept; the list marks what goes next. Keep one with Save or download."
    )
