"""ZeroGPU: a Space's shared GPU, lent for a call. The only module that imports `spaces`, which a Space has installed.

A forked process trains, and is killed when its time is over. What it does goes to the run's folder; events come back.
"""

import time
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path

try:
    import spaces  # before anything touches CUDA
except ImportError:
    spaces = None

import torch

from ..errors import CnnDemoError
from ..pictures import sources
from ..settings import Settings
from ..training.config import RunConfig
from ..training.device import pick_device
from ..training.events import Event
from . import recording
from .folder import Run

LONGEST_CALL_SECONDS = 75  # a half card counts one and a half times: the most a visitor who is not signed in may ask
AROUND_SECONDS = 15  # starting, loading the images, writing: not part of a budget in seconds
MARGIN_SECONDS = 5  # to stop and save before the platform kills the process


def is_zero() -> bool:
    """Tell whether this is a ZeroGPU Space."""
    return spaces is not None and bool(spaces.config.Config.zero_gpu)


def call_seconds(config: RunConfig) -> int:
    """Return the seconds of GPU to ask for. A longer run stops when they are over, and Continue asks again."""
    wanted = LONGEST_CALL_SECONDS if config.seconds is None else config.seconds + AROUND_SECONDS
    return int(min(wanted, LONGEST_CALL_SECONDS))


def note(config: RunConfig) -> str:
    """Return what a run costs its visitor, in words; "" off ZeroGPU."""
    if not is_zero():
        return ""
    longer = config.seconds is None or config.seconds + AROUND_SECONDS > LONGEST_CALL_SECONDS
    rest = "; a longer run stops there, and Continue resumes it" if longer else ""
    return (
        f"Asks for {call_seconds(config)} s of this Space's GPU{rest}. Only what is used counts against your daily "
        "quota: 2 minutes signed out, 5 signed in, 40 with PRO."
    )


def train_run(run: Run, where: Settings, stop: Callable[[], bool], visitor: Context) -> Iterator[Event]:
    """Train a run on the lent GPU, with the quota of the request whose context is `visitor`. Raises CnnDemoError."""
    events = _work(str(run.folder), where, call_seconds(run.config))
    while True:
        try:
            event = visitor.run(next, events)
        except StopIteration:
            return
        except Exception as error:
            sentence = str(getattr(error, "message", error))
            raise CnnDemoError(f"The GPU call ended: {sentence}. The last checkpoint is there.") from error
        if stop():
            run.request_stop()
        yield event


def _work(folder: str, where: Settings, seconds: int) -> Iterator[Event]:
    """Train the run in the process that has the GPU. The arguments are pickled and hold no secret."""
    end = time.monotonic() + seconds - MARGIN_SECONDS
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    run = Run(Path(folder))
    data = sources.load(run.config.dataset, where, lambda text, share: None)
    yield from recording.train_run(run, data, pick_device(), lambda: run.is_stop_requested() or time.monotonic() > end)


if is_zero():  # elsewhere `spaces` may be absent
    _work = spaces.GPU(duration=lambda folder, where, seconds: seconds)(_work)
