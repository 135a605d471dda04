"""ZeroGPU: a Space's shared GPU, lent for a call. The only module that imports `spaces`, which a Space has installed.

A forked process trains, and is killed when its time is over. What it does goes to the run's folder; events come back.
"""

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import Context
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

try:
    import spaces  # before anything touches CUDA
except ImportError:
    spaces = None

import torch

from ..errors import CnnDemoError
from ..pictures import sources
from ..settings import Settings
from ..training.budget import Stopped
from ..training.config import RunConfig
from ..training.device import pick_device
from ..training.events import CheckpointSaved, Event
from . import recording
from .folder import Run

LONGEST_CALL_SECONDS = 75  # a run of 60 s fits
PART_SECONDS = 60  # of a run that does not: who is not signed in has two such calls a day
AROUND_SECONDS = 15  # starting, loading the images, writing: not part of a budget in seconds
MARGIN_SECONDS = 5  # to stop and save before the platform kills the process
QUOTAS = {"signed out": 120, "signed in": 300, "with PRO": 2400}  # seconds a day


def is_zero() -> bool:
    """Tell whether this is a ZeroGPU Space."""
    return spaces is not None and bool(spaces.config.Config.zero_gpu)


def call_seconds(config: RunConfig, done: float = 0.0) -> int:
    """Return the seconds of GPU to ask for if `done` seconds are saved. A run that needs more stops when they end."""
    factor, left = _factor(), math.inf if config.seconds is None else max(0.0, config.seconds - done) + AROUND_SECONDS
    return round(math.ceil((left if left <= LONGEST_CALL_SECONDS else PART_SECONDS) / factor) * factor)


def note(config: RunConfig) -> str:
    """Return what a run costs its visitor, in words; "" off ZeroGPU."""
    if not is_zero():
        return ""
    quotas = ", ".join(f"{seconds // 60} {who}" for who, seconds in QUOTAS.items())
    return (
        f"Asks for {call_seconds(config)} s of this Space's GPU; a longer run stops then and can be continued. "
        f"Only what is used counts against your daily quota, in minutes: {quotas}."
    )


def train_run(run: Run, where: Settings, stop: Callable[[], bool], visitor: Context) -> Iterator[Event]:
    """Train a run on the lent GPU, on the quota of `visitor`'s request. Raises CnnDemoError, Stopped while it waits."""
    saved = [event.seconds for event in run.log.read() if isinstance(event, CheckpointSaved)]
    arrived: SimpleQueue[Event | Exception | None] = SimpleQueue()
    with tempfile.TemporaryDirectory() as ticket:

        def ask() -> None:  # in a thread, as the platform may let it wait for a minute
            try:
                for event in _work(str(run.folder), where, call_seconds(run.config, max(saved, default=0.0)), ticket):
                    arrived.put(event)
                arrived.put(None)
            except Exception as error:
                arrived.put(error)

        threading.Thread(target=visitor.run, args=(ask,), name="zero", daemon=True).start()
        while True:
            with contextlib.suppress(Empty):
                item = arrived.get(timeout=0.1)
                if item is None:
                    return
                if isinstance(item, Exception):
                    sentence = str(getattr(item, "message", item)).strip().rstrip(".")
                    ended = f"The GPU call ended: {sentence}. The last checkpoint is there."
                    refused = f"The GPU of this Space was refused: {sentence}."
                    raise CnnDemoError(refused if Path(ticket).is_dir() else ended) from item
                yield item
            if stop():
                if _take(ticket):
                    raise Stopped
                run.request_stop()


def _work(folder: str, where: Settings, seconds: int, ticket: str) -> Iterator[Event]:
    """Train the run in the process that has the GPU. The arguments are pickled and hold no secret."""
    if not _take(ticket):
        return
    end = time.monotonic() + (used := seconds - MARGIN_SECONDS)
    left = ", ".join(f"{max(0, quota - used):,} s {who}" for who, quota in QUOTAS.items())
    over = (
        f"this Space's GPU call ended after {used} s; the run can be continued, which asks for up to "
        f"{LONGEST_CALL_SECONDS} s more. Of your daily quota at most this is left: {left}."
    )
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    run = Run(Path(folder))
    data = sources.load(run.config.dataset, where, lambda text, share: None)
    stop = lambda: run.is_stop_requested() or (time.monotonic() > end and over)  # noqa: E731
    yield from recording.train_run(run, data, pick_device(), stop)


def _take(ticket: str) -> bool:
    """Take the ticket, a folder: of a call that begins and a stop before it, only one can. Return whether it did."""
    with contextlib.suppress(FileNotFoundError):
        Path(ticket).rmdir()
        return True
    return False


def _factor() -> float:
    """Return by what `spaces` multiplies the seconds of a function to ask for them: 1.5 on half an RTX Pro 6000."""
    asked = getattr(spaces.zero.client, "get_duration_seconds", None) if is_zero() else None
    return float(asked(timedelta(seconds=1), None)) if asked else 1.0


if is_zero():  # elsewhere `spaces` may be absent
    _work = spaces.GPU(duration=lambda folder, where, seconds, ticket: round(seconds / _factor()))(_work)
