"""A run as its events tell it: a pure reducer. Charts, tables and cards read only this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..training.events import CheckpointSaved, EpochDone, Event, Progress, RunFinished, RunQueued, RunStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The state of a run: `state` is queued, preparing, training, validating, testing, or how it ended."""

    state: str = "preparing"
    seq: int = -1
    started: RunStarted | None = None
    latest: Progress | None = None
    curve: tuple[Progress, ...] = ()
    epochs: tuple[EpochDone, ...] = ()
    best: EpochDone | None = None
    finished: RunFinished | None = None

    def fold(self, event: Event) -> History:
        """Return the history with one more event. What a resumed run does again replaces what was lost."""
        seen = replace(self, seq=event.seq)
        match event:
            case RunQueued():
                return replace(seen, state="queued")
            case RunStarted():
                # A killed run resumes at its last checkpoint: later points were never saved and come again.
                curve = tuple(point for point in self.curve if point.step <= event.step)
                epochs = tuple(epoch for epoch in self.epochs if epoch.step <= event.step)
                best = next((epoch for epoch in reversed(epochs) if epoch.best), None)
                again = replace(seen, curve=curve, epochs=epochs, best=best)
                return replace(again, state="training", started=event, finished=None)
            case Progress():
                curve = self.curve if event.loss is None else (*self.curve, event)
                return replace(seen, state=event.phase, latest=event, curve=curve)
            case EpochDone():
                best = event if event.best else self.best
                # a kill between the log and the checkpoint lets an epoch end twice
                epochs = tuple(epoch for epoch in self.epochs if epoch.step < event.step)
                return replace(seen, epochs=(*epochs, event), best=best)
            case CheckpointSaved():
                return seen
            case RunFinished():
                return replace(seen, state=event.reason, finished=event)
        raise TypeError(f"unknown event {event!r}")


def course_log(event: Progress, history: History, epochs: int | None) -> list[str]:
    """Return the course project's log lines for the 100th steps in an event: `Epoch [1/1], Step [100/500] Loss: ...`.

    `epochs` is the budget; of a budget in seconds nobody knows it.
    """
    if history.started is None:
        return []
    lines = []
    for step, loss in event.logged:
        epoch, position = divmod(step - 1, history.started.steps_per_epoch)
        total = f"/{epochs}" if epochs else ""
        place = f"Step [{position + 1}/{history.started.steps_per_epoch}]"
        lines.append(f"Epoch [{epoch + 1}{total}], {place} Loss: {loss:.4f}")
    return lines


def thin(curve: Sequence[Progress], count: int) -> list[Progress]:
    """Return at most `count` points: each the last of its neighbours, with their mean loss, both extremes, all logs."""
    size = math.ceil(len(curve) / count)
    if size <= 1:
        return list(curve)
    points = []
    for first in range(0, len(curve), size):
        part = [point for point in curve[first : first + size] if point.loss is not None]
        points.append(
            replace(
                part[-1],
                loss=sum(point.loss or 0.0 for point in part) / len(part),
                loss_low=min(point.loss_low or 0.0 for point in part),
                loss_high=max(point.loss_high or 0.0 for point in part),
                logged=tuple(logged for point in part for logged in point.logged),
            )
        )
    return points
