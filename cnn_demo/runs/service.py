"""Runs as jobs: a queue, a worker per device, owners; and what a page may ask about a run.

A run belongs to the server, never to a page: pages come and go and ask `watch(run, after)`. Whoever knows a run's id
may watch it; only its owner may stop, continue or discard it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, CnnDemoError, ConfigError, RunError
from ..pictures import dataset as data
from ..pictures.dataset import Dataset
from ..runs import folder as runs
from ..runs import zero as gpu
from ..runs.checkpoints import NAME
from ..runs.folder import Run
from ..runs.history import History, course_log, thin
from ..settings import Settings
from ..training.config import RunConfig
from ..training.events import Progress, RunFinished
from ..training.loop import Stopped, device_name, keep_freed_memory

POINTS = 400  # of a curve, sent at once
SPACE_EPOCHS, SPACE_SECONDS = 50, 3600  # of a run where the queue is shared with strangers
SPACE_QUEUE = 50  # runs that wait there
LOG_LINES = 2000  # of a log, sent at once
CAN_CONTINUE = ("stopped", "failed", "interrupted")


@dataclass(eq=False)
class Job:
    """A run that waits or is worked on. note and share: what is being prepared, before the training starts."""

    run: Run
    owner: str
    history: History
    visitor: Context  # whose request it is: on ZeroGPU the run uses their quota
    stop: threading.Event = field(default_factory=threading.Event)
    note: str = ""
    share: float = 0.0


class Service:
    """All runs of this process. Its threads start with the first run and end with the process."""

    def __init__(self, settings: Settings, device: torch.device | None = None) -> None:
        keep_freed_memory()  # before there are threads
        self.root, self.hub, self.sign_in = settings.checkpoints, settings.hub, settings.sign_in
        self._settings = settings
        self._devices = [device] if device else find_devices()
        self.place = place(self._devices[0]) if settings.is_space else ""
        self._changed = threading.Condition()  # guards all below
        self._jobs: dict[str, Job] = {}  # waiting and running
        self._waiting: list[Job] = []
        self._workers: list[threading.Thread] = []
        self._rates: dict[str, float] = {}  # measured pictures per second of a network
        self._histories: dict[Path, tuple[tuple[int, bool], History]] = {}
        self._summaries: dict[Path, tuple[tuple[int, bool], dict[str, Any]]] = {}
        self._closed = False
        self.problem = ""  # why CIFAR-10 could not be brought when the program started
        self._data_locks = {name: threading.Lock() for name in data.SETS}
        self._loading = ("waiting for the pictures", 0.0)  # what is done for CIFAR-10, and how much of it
        self._data: dict[str, Dataset] = {}

    def prepare(self) -> None:
        """Begin to read CIFAR-10 (or to download it), so that the first run need not wait for it."""

        def load() -> None:
            try:
                self._load("cifar10", lambda text, share: setattr(self, "_loading", (text, share)))
            except CnnDemoError as error:
                self.problem = str(error)
                logging.getLogger(__name__).warning("%s", error)

        threading.Thread(target=load, name="prepare", daemon=True).start()

    # --- what a page may change ---

    def submit(self, config: RunConfig, owner: str) -> str:
        """Queue a new run of `owner` (a secret of theirs); return its id.

        Raises RunError where they have an active one, CheckpointError where `start_from` is a path, else what
        `runs.create` raises.
        """
        if self._settings.is_space and ((config.epochs or 0) > SPACE_EPOCHS or (config.seconds or 0) > SPACE_SECONDS):
            raise ConfigError(
                "epochs" if config.epochs else "seconds",
                f"On a Space, which is everybody's, a run has at most {SPACE_EPOCHS} epochs or {SPACE_SECONDS:,} "
                "seconds. Duplicate the Space for longer ones.",
            )
        self._check_start(config)
        with self._changed:
            self._check_free(owner)
            if self._settings.is_space and len(self._waiting) >= SPACE_QUEUE:
                raise RunError(f"{SPACE_QUEUE} runs are waiting already. Try again later, or duplicate the Space.")
            run = runs.create(self.root, config, owner)
            self._enqueue(run, owner)
        return run.id

    def hold_out(self, config: RunConfig) -> RunConfig:
        """Return what `runs.hold_out` returns. Raises CheckpointError where `start_from` is a path, or nothing."""
        self._check_start(config)
        return runs.hold_out(self.root, config)

    def resume(self, run_id: str, owner: str) -> None:
        """Queue a run that stopped, failed or was interrupted. Raises RunError where that cannot be."""
        with self._changed:
            run = self._own(run_id, owner)
            self._check_free(owner)
            state = "come from the Hub" if run.source else run.history().state
            if state not in CAN_CONTINUE:
                raise RunError(f"The run {run_id} has {state}; only a run that stopped can be continued.")
            self._enqueue(run, owner)

    def stop(self, run_id: str, owner: str) -> None:
        """Tell a run to stop and keep what it has; one that waits leaves the queue. An ended one is left alone."""
        with self._changed:
            self._own(run_id, owner)
            job = self._jobs.get(run_id)
            if job is None:
                return
            job.stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
                del self._jobs[run_id]
                job.run.end("stopped", "Taken out of the queue.")

    def discard(self, run_id: str, owner: str) -> None:
        """Remove a run that is not active, its weights with it."""
        with self._changed:
            run = self._own(run_id, owner)
            if run_id in self._jobs:
                raise RunError(f"The run {run_id} is active; stop it first.")
            runs.discard(run)

    def close(self) -> None:
        """Stop all runs, so that they can be continued, and wait for the workers."""
        with self._changed:
            self._closed = True
            for job in list(self._jobs.values()):
                with contextlib.suppress(CnnDemoError):  # the others must stop, too
                    self.stop(job.run.id, job.owner)
            self._changed.notify_all()
        for worker in self._workers:
            worker.join(timeout=20)

    # --- what a page may ask ---

    def active(self, owner: str) -> str | None:
        """Return the id of the owner's waiting or running run."""
        return next((job.run.id for job in list(self._jobs.values()) if job.owner == owner), None)

    def watch(self, run_id: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        """Return the run's state and what is new since the event `after`, in JSON-ready values.

        `reset` tells to forget what was drawn: the watcher is new, or the run went back to an earlier checkpoint.
        points: [step, loss, lowest, highest, learning rate]; epochs: [step, epoch, training loss, validation loss,
        validation accuracy, is best]. Loss in nats, accuracy 0 to 1.
        """
        with self._changed:  # one moment's view of a run that goes on
            job = self._jobs.get(run_id)
            state, text = (self._state(job), self._describe(job)) if job else ("", "")
            history = job.history if job else History()
        run = job.run if job else self._find(run_id)
        history = history if job else self._history(run)
        config, started, latest = run.config, history.started, history.latest
        reset = after < (started.seq if started else 0)
        after = -1 if reset else after
        curve = [point for point in history.curve if point.seq > after]
        answer: dict[str, Any] = {
            "run": run_id,
            "seq": history.seq,
            "reset": reset,
            "state": state or history.state,
            "mine": run.belongs_to(owner),
            "saved": (run.folder / "model.safetensors").is_file(),
            "text": text or describe(history, config),
            "share": job.share if job and job.note else latest.share if latest else 0.0,
            "points": [
                [p.step, *_short(p.loss, p.loss_low, p.loss_high, p.learning_rate)] for p in thin(curve, POINTS)
            ],
            "epochs": [
                [e.step, e.epoch, *_short(e.train_loss, e.validation_loss, e.validation_accuracy), e.best]
                for e in history.epochs
                if e.seq > after
            ],
            "log": [line for p in curve for line in course_log(p, history, config.epochs)][-LOG_LINES:],
        }
        if reset:
            answer |= {
                "source": run.source,
                "config": config.to_dict(),
                "command": config.to_command(),
                "owned": bool(run.owner),
            }
            answer["started"] = dataclasses.asdict(started) if started else None
        if history.finished and not job:
            answer["end"] = dataclasses.asdict(history.finished)
        return answer

    def listing(self, owner: str) -> list[dict[str, Any]]:
        """Return a line for each run that `owner` may see in a list: their own, and those that nobody owns."""
        found = []
        with self._changed:
            states = {job.run.id: self._state(job) for job in self._jobs.values()}
        for run in runs.listing(self.root):
            if run.owner and not run.belongs_to(owner):
                continue
            summary = self._summary(run)
            if summary["model"] != "damaged":
                state = states.get(run.id, summary["state"])
                found.append({"run": run.id, **summary, "mine": bool(run.owner), "state": state})
        return found

    def _summary(self, run: Run) -> dict[str, Any]:
        """Return the line of a run; read again only when its log has grown."""
        key = (run.log_bytes(), run.is_held())
        known = self._summaries.get(run.folder)
        if known is None or known[0] != key:
            known = self._summaries[run.folder] = (key, run.summary())
        return known[1]

    def wait_seconds(self, job: Job) -> float | None:
        """Return the seconds until a waiting job begins, by measured speed; None where that is not known."""
        ahead = self._waiting[: self._waiting.index(job)] if job in self._waiting else []
        running = [other for other in self._jobs.values() if other not in self._waiting]
        if gpu.is_zero():  # each lasts as long as its call
            ahead, running = ahead + running, []
        left: list[float | None] = [job.history.latest.seconds_left if job.history.latest else None for job in running]
        left += [self.run_seconds(other.run.config) for other in ahead]
        return None if None in left else sum(s for s in left if s is not None) / len(self._devices)

    def run_seconds(self, config: RunConfig) -> float | None:
        """Return how long a run will have the device, by its network's measured speed; None where none was."""
        if gpu.is_zero():
            return gpu.call_seconds(config)
        if config.epochs is None:
            return config.seconds
        rate = self._rates.get(config.model)
        return config.epochs * data.SETS[config.dataset][3] / rate if rate else None

    def exportable(self, run_id: str, owner: str) -> Run:
        """Return a run that `owner` may save elsewhere: theirs, or nobody's. Raises RunError."""
        run = self._find(run_id)
        return self._own(run_id, owner) if run.owner else run

    # --- the queue ---

    def _find(self, run_id: str) -> Run:
        """Return a run. Its id is all that watching takes, so an error names no other one."""
        try:
            return runs.find(self.root, run_id)
        except RunError as error:
            raise RunError(f"There is no run {run_id[:80]!r} here.") from error

    def _history(self, run: Run) -> History:
        """Return the history of a run that is no job; its log is read again only when something has changed."""
        key = (run.log_bytes(), run.is_held())
        known = self._histories.get(run.folder)
        if known is None or known[0] != key:
            known = self._histories[run.folder] = (key, run.history())
            while len(self._histories) > 32:
                self._histories.pop(next(iter(self._histories)), None)
        return known[1]

    def _own(self, run_id: str, owner: str) -> Run:
        run = self._jobs[run_id].run if run_id in self._jobs else self._find(run_id)
        if not run.belongs_to(owner):
            raise RunError(f"The run {run_id} was not started by you; you can watch it, not change it.")
        return run

    def _check_start(self, config: RunConfig) -> None:
        start = config.start_from
        if start and not (NAME.fullmatch(start) and (self.root / start / "model.safetensors").is_file()):
            raise CheckpointError(f"There is no checkpoint {start[:80]!r} here to start from.")

    def _check_free(self, owner: str) -> None:
        if not owner:
            raise RunError("A run needs an owner: any secret text, by which you stop or continue it later.")
        if active := self.active(owner):
            raise RunError(f"You have an active run, {active}; stop it first, or wait for its end.")

    def _enqueue(self, run: Run, owner: str) -> None:
        job = Job(run=run, owner=owner, history=run.history(), visitor=copy_context())
        self._jobs[run.id] = job
        self._waiting.append(job)
        if not self._workers:
            for device in self._devices:
                worker = threading.Thread(target=self._work, args=(device,), name=f"train-{device}", daemon=True)
                self._workers.append(worker)
                worker.start()
        self._changed.notify_all()

    def _work(self, device: torch.device) -> None:
        """Take one run after the other, first come first served."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._waiting.pop(0)
            try:
                self._train(job, device)
            except Exception:  # it is in the run's log; the next run must have its turn
                logging.getLogger(__name__).exception("The run %s failed", job.run.id)
            with self._changed:
                del self._jobs[job.run.id]

    def _train(self, job: Job, device: torch.device) -> None:
        def report(text: str, share: float) -> None:
            if job.stop.is_set():
                raise Stopped
            job.note, job.share = text, share

        try:
            pictures = self._load(job.run.config.dataset, report)
        except Stopped:
            job.run.end("stopped", "Stopped while the pictures were being prepared.")
            return
        except Exception as error:
            job.run.end("failed", str(error))
            if not isinstance(error, CnnDemoError):
                raise
            return
        job.note = ""
        if gpu.is_zero():
            steps = gpu.drive(job.run, self._settings, job.stop.is_set, job.visitor)
        else:
            steps = runs.drive(job.run, pictures, device, job.stop.is_set)
        try:
            for event in steps:
                if isinstance(event, RunFinished):
                    continue  # told from the log, as soon as the run is let go
                job.history = job.history.fold(event)
                if isinstance(event, Progress) and event.images_per_second:
                    self._rates[job.run.config.model] = event.images_per_second
        except CnnDemoError as error:
            if gpu.is_zero():  # the call may have ended with nobody left to log it, or before it began
                history = job.run.history()
                if history.finished is None or history.seq == job.history.seq:
                    job.run.end("failed", str(error))
            raise

    def _load(self, name: str, report: data.Report) -> Dataset:
        """Return a data set, read once per process. Raises what `data.load` raises."""
        lock = self._data_locks[name]
        while not lock.acquire(timeout=0.2):
            report(*self._loading)
        try:
            if name not in self._data:
                report("reading the pictures" if name == "cifar10" else "drawing the pictures", 0.0)
                self._data[name] = data.load(name, self._settings, report)
            if name == "cifar10":
                self.problem = ""
            return self._data[name]
        finally:
            lock.release()

    # --- words ---

    def _state(self, job: Job) -> str:
        if job in self._waiting:
            return "queued"
        if job.stop.is_set():
            return "stopping"
        return "preparing" if job.history.state in ("queued", *CAN_CONTINUE) else job.history.state

    def _describe(self, job: Job) -> str:
        state = self._state(job)
        if state == "queued":
            seconds, place = self.wait_seconds(job), self._waiting.index(job) + 1
            ordinal = {1: "next", 2: "2nd", 3: "3rd"}.get(place, f"{place}th")
            return f"Waiting: {ordinal} in line" + ("" if seconds is None else f", {about(seconds)}")
        if state == "stopping":
            return "Stopping: saving what was learned"
        if state == "preparing":
            return f"Preparing: {job.note}" if job.note else "Preparing the network"
        return describe(job.history, job.run.config)


def find_devices() -> list[torch.device]:
    """Return the GPUs, or the CPU; on ZeroGPU none may be asked for here, and one run after the other gets one."""
    gpus = 0 if gpu.is_zero() else torch.cuda.device_count()
    return [torch.device("cuda", i) for i in range(gpus)] or [torch.device("cpu")]


def place(device: torch.device) -> str:
    """Return what a visitor of a Space must know of it, in words."""
    on = "a GPU that is lent for a minute at a time (ZeroGPU)" if gpu.is_zero() else device_name(device)
    return (
        f"This Space trains on {on}. Its disk is temporary: when it restarts or falls asleep, all runs made here are "
        "gone. Keep one with Save or download."
    )


def describe(history: History, config: RunConfig) -> str:
    """Return the state of a run in words."""
    latest, end = history.latest, history.finished
    if history.state == "interrupted":
        return "Interrupted: the program ended while this run was active. Continue takes up where it was saved"
    if end is not None:
        return end.message
    if latest is None:
        return "Preparing the network"
    words = {"training": "Training", "validating": "Validating after", "testing": "Testing the best weights after"}
    of = f" of {config.epochs}" if config.epochs else ""
    text = f"{words[latest.phase]} epoch {latest.epoch}{of}, step {latest.step:,}"
    if latest.images_per_second:
        text += f" · {latest.images_per_second:,.0f} images/s"
    if history.started is not None:
        text += f" · on {history.started.device}"
    if latest.seconds_left is not None and (not gpu.is_zero() or latest.seconds_left < gpu.call_seconds(config)):
        text += f" · {about(latest.seconds_left)} left"
    return text


def about(seconds: float) -> str:
    """Return a time for a screen: about 40 s, about 3 min, about 2 h."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _short(*values: float | None) -> list[float | None]:
    """Return values rounded to five digits, which is finer than a pixel."""
    return [None if value is None else float(f"{value:.5g}") for value in values]
