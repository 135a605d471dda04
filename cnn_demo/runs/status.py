"""A run in words and in the rows that a page or a program gets of it."""

import dataclasses
import math
from typing import Any

from ..pictures.catalog import DATASETS
from ..training.config import RunConfig
from . import files, zero
from .folder import Run
from .history import History, course_log, on_gpu, thin

POINTS = 300  # of a curve, sent at once
VALIDATIONS = 100  # sent at once; then the latest: an update stays under a kilobyte
LOG_LINES = 2000  # of a log, sent at once
# What the rows of an answer hold. Loss in nats, accuracy 0 to 1.
COLUMNS = {
    "points": ["step", "loss", "loss_low", "loss_high", "accuracy", "learning_rate"],
    "validations": ["step", "pictures", "accuracy", "answers"],
    "epochs": ["step", "epoch", "train_loss", "validation_loss", "validation_accuracy", "best"],
}


def report(run: Run, history: History, after: int) -> dict[str, Any]:
    """Return what is new in a run since the event `after`, in JSON-ready values.

    reset: forget what was drawn; the answer then also holds what does not change, and `columns`, the names in a row.
    """
    config, started, latest = run.config, history.started, history.latest
    reset = after < (started.seq if started else 0)  # a new watcher, or the run went back to an earlier checkpoint
    after = -1 if reset else after
    curve = [point for point in history.curve if after < point.seq <= history.seq]
    validations = [one for one in history.validations if after < one.seq <= history.seq]
    every = math.ceil(len(validations) / (VALIDATIONS if reset else 1)) or 1
    epochs = [epoch for epoch in history.epochs if after < epoch.seq <= history.seq]
    answer: dict[str, Any] = {
        "run": run.id,
        "title": run.title,
        "seq": history.seq,
        "reset": reset,
        "state": history.state,
        "saved": run.has(files.WEIGHTS),
        "text": describe(history, config, run.has(files.WEIGHTS)),
        "share": latest.share if latest else 0.0,
        "points": [_row(point, COLUMNS["points"]) for point in thin(curve, POINTS)],
        "validations": [_row(one, COLUMNS["validations"]) for one in validations[::-every][::-1]],
        "epochs": [_row(epoch, COLUMNS["epochs"]) for epoch in epochs],
        "log": [line for point in curve for line in course_log(point, history, config.epochs)][-LOG_LINES:],
    }
    if reset:
        answer |= {
            "columns": COLUMNS,
            "source": run.source,
            "config": config.to_dict(),
            "classes": DATASETS[config.dataset].classes,
            "command": config.to_command(),
            "owned": bool(run.owner),
            "started": dataclasses.asdict(started) if started else None,
        }
    return answer


def describe(history: History, config: RunConfig, saved: bool) -> str:
    """Return the state of a run in words. saved: whether there are weights of it."""
    latest, end = history.latest, history.finished
    if history.state == "interrupted":
        again = "resumes at the last checkpoint" if saved else "starts it again"
        return f"Interrupted: the program ended while this run was active. Continue {again}"
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
        text += on_gpu(latest, history.started)
    left = latest.seconds_left
    if left is not None and (not zero.is_zero() or left < zero.call_seconds(config)):  # else the call ends before
        text += f" · {about(left)} left"
    return text


def about(seconds: float) -> str:
    """Return a time for a screen: about 40 s, about 3 min, about 2 h."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _row(event: Any, names: list[str]) -> list[Any]:
    """Return fields of an event; numbers are rounded to four digits, which is finer than a pixel."""
    values = [getattr(event, name) for name in names]
    return [float(f"{value:.4g}") if isinstance(value, float) else value for value in values]
