"""What happens in a run, as small frozen records: the only contract between training and whoever watches.

Loss in nats, accuracy and shares 0 to 1, time in seconds since the run first started (pauses left out).
`seq` is given by the log's single writer (runs.py). Standard library only.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events carry."""

    seq: int = -1
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQueued(Event):
    """The run folder exists and waits for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """Training begins, or goes on at `step` after a stop."""

    step: int
    steps_per_epoch: int
    device: str
    precision: str
    parameters: int
    train_pictures: int
    validation_pictures: int
    test_pictures: int
    flops_per_image: float = 0.0  # of training, and
    peak_flops: float = 0.0  # per second of the GPU's tensor cores; 0 where not known
    samples: tuple[str, ...] = ()  # a held-out image of each class, in their order: PNG of 32x32 in base64


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """Where the run is: at most one every 0.25 s, and before each checkpoint the rest."""

    phase: str  # training, validating or testing
    epoch: int
    step: int
    share: float  # of the budget that is spent
    learning_rate: float = 0.0
    images_per_second: float = 0.0
    memory: int = 0  # bytes of the GPU's that the run has taken at most
    seconds_left: float | None = None
    loss: float | None = None  # mean over the steps since the last event
    loss_low: float | None = None
    loss_high: float | None = None
    accuracy: float | None = None  # mean over the same steps, of their augmented images
    logged: tuple[tuple[int, float], ...] = ()  # (step, loss) of every 100th step among them


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """The network was validated on `pictures` held-out images: a fixed part of them, after an epoch all."""

    step: int
    pictures: int
    accuracy: float
    answers: tuple[tuple[int, float], ...]  # for each sample: the class it is taken for, the score of its true class


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone(Event):
    """An epoch (or the rest of a budget in seconds) was trained and, if images are held out, validated."""

    epoch: int
    step: int
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """The folder holds the run up to `step`; `best_step` is the step of the weights in model.safetensors."""

    step: int
    best_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The run ended: finished, stopped (can continue), diverged, or failed (can continue)."""

    reason: str
    message: str
    epochs: int
    step: int
    images_per_second: float = 0.0
    best_step: int = 0
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_pictures: int = 0


# A log may come from the Hub: what a field may hold.
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "bool": (bool,),
    "tuple[str, ...]": (tuple,),
    "tuple[tuple[int, float], ...]": (tuple,),
}
LARGEST = 2**53  # of a whole number: what JSON's readers keep exactly
LONGEST = 2000  # characters
LONGEST_PNG = 6000  # characters; 32x32 random pixels take 4,200
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x20\0\0\0\x20"  # of 32x32 pixels
SAMPLES = 10
WORDS = {
    "precision": ["float32", "bfloat16", "float16"],
    "phase": ["training", "validating", "testing"],
    "reason": ["finished", "stopped", "diverged", "failed", "interrupted"],
}
CLASSES = (RunQueued, RunStarted, Progress, Validated, EpochDone, CheckpointSaved, RunFinished)
KINDS = {kind.__name__: kind for kind in CLASSES}


def to_dict(event: Event) -> dict[str, Any]:
    """Return the event as JSON-ready values, its class name under "kind"."""
    return {"kind": type(event).__name__, **dataclasses.asdict(event)}


def from_dict(values: dict[str, Any]) -> Event:
    """Return the event of a JSON object. Raises KeyError, TypeError or ValueError where it is none, or not of ours."""
    fields = dict(values)
    kind = KINDS[fields.pop("kind")]
    for name in fields.keys() & {"logged", "answers"}:
        fields[name] = tuple((int(number), float(value)) for number, value in fields[name])
    if isinstance(fields.get("samples"), list):
        fields["samples"] = tuple(fields["samples"])
    for field in dataclasses.fields(kind):
        value = fields.get(field.name, field.default)
        allowed = type(value) in TYPES[str(field.type)] and value in WORDS.get(field.name, [value])
        if not allowed or not _fits(field.name, value):
            raise TypeError(f"{field.name} {str(value)[:40]!r}")
    event: Event = kind(**fields)
    return event


def _fits(name: str, value: Any) -> bool:
    """Tell whether a value is in its field's range."""
    if isinstance(value, str):
        return len(value) <= LONGEST and (name != "device" or value.isprintable())
    if name == "samples":
        return len(value) <= SAMPLES and all(map(_is_thumbnail, value))
    if name == "answers":
        return len(value) <= SAMPLES and all(_fits("step", answer) and _fits("share", score) for answer, score in value)
    if name == "logged":
        return all(_fits("step", step) and _fits("loss", loss) for step, loss in value)
    if value is None:
        return True
    if name == "share" or name.endswith("accuracy"):
        return bool(0 <= value <= 1)
    if isinstance(value, int):
        return {"seq": -1, "steps_per_epoch": 1}.get(name, 0) <= value <= LARGEST
    return math.isfinite(value)


def _is_thumbnail(value: Any) -> bool:
    """Tell whether a value is a small PNG in base64. Raises ValueError where it is no base64."""
    short = isinstance(value, str) and len(value) <= LONGEST_PNG
    return short and base64.b64decode(value, validate=True).startswith(PNG_START)
