"""A run as its events tell it. Charts, tables and cards read only this."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from ..training.events import CheckpointSaved, EpochDone, Event, Progress, RunFinished, RunQueued, RunStarted, Validated


@dataclass(slots=True)
class History:
    """What has happened in a run: `state` is queued, preparing, training, validating, testing, or how it ended.

    Its lists are only ever made longer, or replaced, so that a copy may share them; newer entries have higher seq.
    """

    state: str = "preparing"
    seq: int = -1
    started: RunStarted | None = None
    latest: Progress | None = None
    curve: list[Progress] = field(default_factory=list)
    validations: list[Validated] = field(default_factory=list)
    epochs: list[EpochDone] = field(default_factory=list)
    best: EpochDone | None = None
    finished: RunFinished | None = None

    def add(self, event: Event) -> None:
        """Add one more event. What a resumed run does again replaces what was lost."""
        self.seq = event.seq
        match event:
            case RunQueued():
                self.state = "queued"
            case RunStarted():
                # A killed run resumes at its last checkpoint: later points were never saved and come again.
                self.curve = [point for point in self.curve if point.step <= event.step]
                self.validations = [one for one in self.validations if one.step <= event.step]
                self.epochs = [epoch for epoch in self.epochs if epoch.step <= event.step]
                self.best = next((epoch for epoch in reversed(self.epochs) if epoch.best), None)
                self.state, self.started, self.finished = "training", event, None
            case Progress():
                self.state, self.latest = event.phase, event
                if event.loss is not None:
                    self.curve.append(event)
            case Validated():
                self.validations.append(event)
            case EpochDone():
                if self.epochs and self.epochs[-1].step >= event.step:  # killed between the log and the checkpoint
                    self.epochs = [epoch for epoch in self.epochs if epoch.step < event.step]
                self.epochs.append(event)
                self.best = event if event.best else self.best
            case RunFinished():
                self.state, self.finished = event.reason, event
            case other if not isinstance(other, CheckpointSaved):
                raise TypeError(f"unknown event {event!r}")


def history_of(events: Iterable[Event]) -> History:
    """Return the history of events."""
    history = History()
    for event in events:
        history.add(event)
    return history


def course_log(event: Progress, history: History, epochs: int | None) -> list[str]:
    """Return the course project's log lines of the 100th steps in an event: `Epoch [1/1], Step [100/500] Loss: ...`."""
    lines, steps = [], history.started.steps_per_epoch if history.started else 1
    for step, loss in event.logged:
        epoch, position = divmod(step - 1, steps)
        total = f"/{epochs}" if epochs else ""
        lines.append(f"Epoch [{epoch + 1}{total}], Step [{position + 1}/{steps}] Loss: {loss:.4f}")
    return lines


def on_gpu(latest: Progress, started: RunStarted) -> str:
    """Return how a run uses its GPU, in words: " · 412 TFLOP/s, 42% of its peak · 3.1 GB"; "" on a CPU."""
    flops = latest.images_per_second * started.flops_per_image
    speed = (
        f" · {flops / 1e12:,.0f} TFLOP/s, {flops / started.peak_flops:.0%} of its peak" if started.peak_flops else ""
    )
    return (speed if flops else "") + (f" · {latest.memory / 1e9:.1f} GB" if latest.memory else "")


def thin(curve: Sequence[Progress], count: int) -> list[Progress]:
    """Return at most `count` points: each the last of its neighbours, with their means, extremes and all logs."""
    size = math.ceil(len(curve) / count)
    if size <= 1:
        return list(curve)
    points = []
    for part in (curve[first : first + size] for first in range(0, len(curve), size)):
        low, high = min(point.loss_low or 0.0 for point in part), max(point.loss_high or 0.0 for point in part)
        mean, logged = fmean(p.loss or 0.0 for p in part), tuple(line for point in part for line in point.logged)
        known = [point.accuracy for point in part if point.accuracy is not None]
        accuracy = fmean(known) if known else None
        points.append(replace(part[-1], loss=mean, loss_low=low, loss_high=high, accuracy=accuracy, logged=logged))
    return points
