"""Runs that wait and run: one worker thread per device, one active run per owner, sources in turn."""

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import CnnDemoError, RunError
from ..pictures.catalog import DATASETS
from ..pictures.sources import DatasetCache
from ..settings import Settings
from ..training.budget import Stopped
from ..training.device import Threads
from ..training.events import Progress, RunFinished
from . import recording, zero
from .folder import Run
from .history import History
from .status import about

SIGNED_IN = "user "  # begins the source of a visitor who is signed in
CAN_CONTINUE = ("stopped", "failed", "interrupted")


@dataclass(eq=False)
class Job:
    """A run that waits or is trained."""

    run: Run
    owner: str
    source: str  # the visitor's: "user NAME" if they are signed in, else their network address
    seconds: float  # of training at a time
    history: History
    visitor: Context  # of the owner's request: on ZeroGPU the run uses their quota
    stop: threading.Event = field(default_factory=threading.Event)
    note: str = ""  # what is being prepared, before the training starts
    share: float = 0.0  # of that


class Queue:
    """The jobs of this process. Its threads start with the first run and end with the process."""

    def __init__(
        self, settings: Settings, data: DatasetCache, devices: list[torch.device], make_room: Callable[[], None]
    ) -> None:
        self.changed = threading.Condition()  # guards all below
        self._settings, self._data, self._devices, self._make_room = settings, data, devices, make_room
        self._jobs: dict[str, Job] = {}  # waiting and running
        self._waiting: list[Job] = []
        self._served: dict[str, float] = {}  # when a source's last run began, of those in the queue
        self._workers: list[threading.Thread] = []
        self._rates: dict[str, float] = {}  # measured images per second of a network
        self._closed = False

    def check(self, owner: str, source: str) -> None:
        """Raise RunError where `owner` has an active run, or too many runs wait, in all or of their source."""
        if not owner:
            raise RunError("A run needs an owner: any secret text, by which you stop or continue it later.")
        if active := self.active(owner):
            raise RunError(f"You have an active run, {active}; stop it first, or wait until it ends.")
        limits, sources = self._settings.limits, [job.source for job in self._waiting]
        if len(sources) >= limits.waiting:
            raise RunError(f"{len(sources)} runs are waiting already. Try again later, or duplicate the Space.")
        if sources.count(source) >= limits.waiting_each:
            whose = "of yours" if source.startswith(SIGNED_IN) else "from your network address"
            raise RunError(f"{sources.count(source)} runs {whose} are waiting already; start again when one has ended.")

    def add(self, run: Run, owner: str, source: str, seconds: float) -> None:
        """Queue a run, which then trains for `seconds` at most. Raises what `check` raises."""
        job = Job(run, owner, source, seconds, run.history(), visitor=copy_context())
        with self.changed:
            self.check(owner, source)
            self._jobs[run.id] = job
            self._waiting.append(job)
            for device in [] if self._workers else self._devices:
                self._workers.append(threading.Thread(target=self._work, args=(device,), daemon=True))
                self._workers[-1].start()
            self.changed.notify_all()

    def stop(self, run_id: str) -> None:
        """Stop a job; one that waits leaves the queue. A run that is no job is left alone."""
        with self.changed:
            if job := self._jobs.get(run_id):
                job.stop.set()
                if job in self._waiting:
                    self._waiting.remove(job)
                    del self._jobs[run_id]
                    recording.end_run(job.run, "stopped", "Left the queue.")

    def close(self) -> None:
        """Stop all jobs, so that they can be continued, and wait for the workers."""
        with self.changed:
            self._closed = True
            for run_id in list(self._jobs):
                with contextlib.suppress(CnnDemoError):  # the others must stop, too
                    self.stop(run_id)
            self.changed.notify_all()
        for worker in self._workers:
            worker.join(timeout=20)

    def active(self, owner: str) -> str | None:
        """Return the id of the owner's waiting or running run."""
        return next((job.run.id for job in list(self._jobs.values()) if job.owner == owner), None)

    def find(self, run_id: str) -> Run | None:
        """Return the run of a job."""
        return job.run if (job := self._jobs.get(run_id)) else None

    def states(self) -> dict[str, str]:
        """Return the state of each job by run id."""
        with self.changed:
            return {job.run.id: self._state(job) for job in self._jobs.values()}

    def view(self, run_id: str) -> tuple[Run, History, dict[str, Any]] | None:
        """Return a job's run, history and what differs from it in a report, as of one moment; None if it is no job."""
        with self.changed:
            job = self._jobs.get(run_id)
            if job is None:
                return None
            changes: dict[str, Any] = {"state": self._state(job), "share": job.share if job.note else None}
            changes["text"] = self._describe(job, changes["state"])
            known = {name: value for name, value in changes.items() if value is not None}
            return job.run, replace(job.history, finished=None), known

    def _seconds_left(self, job: Job) -> float:
        """Return the seconds that a job still needs, by measured speed; NaN where that is not known."""
        config, latest = job.run.config, job.history.latest
        if zero.is_zero():  # a run lasts as long as its call
            return zero.call_seconds(config, latest.seconds if latest else 0.0)
        if job not in self._waiting:
            left = latest.seconds_left if latest else None
            return math.nan if left is None else left
        if config.seconds:
            return config.seconds
        images = (config.epochs or 0) * DATASETS[config.dataset].train_pictures
        return images / self._rates.get(config.model, math.nan)

    def _work(self, device: torch.device) -> None:
        """Train one run after the other."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._waiting.remove(job := self._line()[0])
                present = {other.source for other in self._jobs.values()}
                self._served = {name: at for name, at in self._served.items() if name in present}
                self._served[job.source] = time.monotonic()
            try:
                self._train(job, device)
            except Exception as error:  # it is in the run's log; the next run must have its turn
                trace = None if isinstance(error, CnnDemoError) else error
                logging.getLogger(__name__).error("The run %s failed: %s", job.run.id, error, exc_info=trace)
            with self.changed:
                del self._jobs[job.run.id]

    def _train(self, job: Job, device: torch.device) -> None:
        def report(text: str, share: float) -> None:
            if job.stop.is_set():
                raise Stopped
            job.note, job.share = text, share

        try:
            self._make_room()  # others that waited with it have grown since
            data = self._data.get(job.run.config.dataset, report)
        except Stopped:
            return recording.end_run(job.run, "stopped", "Stopped while the images were being loaded.")
        except Exception as error:
            recording.end_run(job.run, "failed", str(error))
            raise
        job.note, end = "", time.monotonic() + job.seconds
        if zero.is_zero():
            job.note, job.share = "waiting for this Space's GPU", 0.0
            steps = zero.train_run(job.run, self._settings, job.stop.is_set, job.visitor)
        else:
            over = f"this Space's time limit of {job.seconds / 60:g} minutes ended the run; it can be continued."
            stop = lambda: job.stop.is_set() or (time.monotonic() > end and over)  # noqa: E731
            steps = recording.train_run(job.run, data, device, stop)
        threads = Threads()
        try:
            for event in steps:
                threads.adapt()
                job.note = ""
                if isinstance(event, RunFinished):
                    continue  # read from the log, as soon as the run is unlocked
                with self.changed:
                    job.history.add(event)
                if isinstance(event, Progress) and event.images_per_second:
                    self._rates[job.run.config.model] = event.images_per_second
        except Stopped:
            recording.end_run(job.run, "stopped", "Stopped while it waited for this Space's GPU.")
        except CnnDemoError as error:
            if zero.is_zero():  # the call may have ended with no process left to log it, or before it began
                history = job.run.history()
                if history.finished is None or history.seq == job.history.seq:
                    recording.end_run(job.run, "failed", str(error))
            raise
        finally:
            threads.restore()
            torch.cuda.empty_cache()  # for other programs; without a GPU it does nothing

    def _line(self) -> list[Job]:
        """Return the waiting jobs in order: the first of each source, served longest ago first, then the second."""
        turns = Counter(job.source for job in self._jobs.values() if job not in self._waiting)
        keyed = []
        for arrival, job in enumerate(self._waiting):
            keyed.append((turns[job.source], self._served.get(job.source, 0.0), arrival, job))
            turns[job.source] += 1
        return [job for *_, job in sorted(keyed, key=lambda key: key[:3])]

    def _state(self, job: Job) -> str:
        if job in self._waiting:
            return "queued"
        if job.stop.is_set():
            return "stopping"
        return "preparing" if job.history.state in ("queued", *CAN_CONTINUE) else job.history.state

    def _describe(self, job: Job, state: str) -> str | None:
        """Return what only the queue knows of a job, in words; None where its history says it all."""
        if state == "queued":
            ahead, line = [other for other in self._jobs.values() if other not in self._waiting], self._line()
            ahead += line[: (place := line.index(job))]
            seconds = sum(map(self._seconds_left, ahead)) / len(self._devices)
            ordinal = {0: "next", 1: "2nd", 2: "3rd"}.get(place, f"{place + 1}th")
            return f"Waiting: {ordinal} in line" + ("" if math.isnan(seconds) else f", {about(seconds)}")
        if state == "stopping":
            return "Stopping: saving the best weights"
        preparing = f"Preparing: {job.note}" if job.note else "Preparing the network"
        return preparing if state == "preparing" else None
