"""What one training run is: RunConfig, its limits, and the presets.

Each field's metadata (help, kind, choices or range) is the one source of the command-line flag, the control on
the page and the text of the error. Standard library only: `--help` and a wrong flag must answer without torch.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

MODELS = ("vgg16", "resnet50", "resnet50_full")
DATASETS = ("cifar10", "shapes")

# The rate that suits each optimizer when none is given. Muon's is for the convolutions (see optimizers.py).
LEARNING_RATES = {"sgd": 0.1, "adamw": 0.001, "muon": 0.1}


def setting(
    help_text: str,
    kind: type,
    default: Any = dataclasses.MISSING,
    choices: tuple[str, ...] = (),
    low: float = -math.inf,
    high: float = math.inf,
) -> Any:
    """Return a dataclass field that carries its own documentation and limits (both ends allowed)."""
    metadata = {"help": help_text, "kind": kind, "choices": choices, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run, completely. Two configurations that differ in one field give runs that differ in that alone.

    Raises:
        ConfigError: a value has the wrong type, is not among the choices or out of range, or the budget is not
            exactly one of `epochs` and `seconds`.
    """

    model: str = setting("the network", str, choices=MODELS)
    dataset: str = setting("the pictures to learn from", str, "cifar10", choices=DATASETS)
    epochs: int | None = setting("budget: passes over the training pictures", int, None, low=1, high=1000)
    seconds: float | None = setting(
        "budget: seconds, evaluation included (default 60)", float, None, low=1, high=86_400
    )
    batch_size: int = setting("pictures per step", int, 256, low=2, high=4096)
    optimizer: str = setting("what turns gradients into steps", str, "muon", choices=("sgd", "adamw", "muon"))
    learning_rate: float = setting("peak learning rate", float, LEARNING_RATES["muon"], low=1e-6, high=10)
    schedule: str = setting(
        "how the learning rate moves over the budget", str, "one_cycle", choices=("constant", "cosine", "one_cycle")
    )
    weight_decay: float = setting(
        "decay of weight matrices and kernels (Muon keeps its kernels at a fixed norm instead)",
        float,
        5e-4,
        low=0,
        high=1,
    )
    label_smoothing: float = setting("share of the target given to all classes alike", float, 0.1, low=0, high=0.5)
    augmentation: str = setting(
        "random changes of each picture: mirror, shift by up to 2 px (with cutout 4 px), an 8x8 hole",
        str,
        "flip_translate",
        choices=("none", "flip", "flip_translate", "flip_translate_cutout"),
    )
    precision: str = setting(
        "number format of the heavy arithmetic; auto: bfloat16 or float16 where the hardware has it",
        str,
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    validation_pictures: int = setting(
        "training pictures held out to choose the best weights; 0: keep the last weights", int, 5000, low=0, high=25_000
    )
    seed: int = setting("where every random choice starts", int, 0, low=0, high=2**31 - 1)
    start_from: str | None = setting("a checkpoint to start from: its name, run id, folder or file", str, None)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if (self.epochs is None) == (self.seconds is None):
            given = "neither" if self.epochs is None else "both"
            raise ConfigError("epochs", f"A run has one budget, epochs or seconds; {given} was given.")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_command(self) -> str:
        """Return the command line that makes this run; fields at their usual value are left out."""
        words = ["python", "-m", "cnn_demo", "train", self.model]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            usual = LEARNING_RATES[self.optimizer] if field.name == "learning_rate" else field.default
            if value != usual:
                words += [flag(field.name), repr(value) if isinstance(value, float) else str(value)]
        return shlex.join(words)


def flag(name: str) -> str:
    """Return the command-line flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` in the field's type, or raise ConfigError with the limits in the sentence."""
    kind, choices = field.metadata["kind"], field.metadata["choices"]
    if value is None and field.default is None:
        return None
    if choices:
        if value not in choices:
            raise ConfigError(field.name, f"{flag(field.name)} {value!r} is not known; choose {', '.join(choices)}.")
        return value
    if kind is str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ConfigError(field.name, f"{flag(field.name)} {value!r} is not a name; give one or leave it out.")
        return value
    low, high = field.metadata["low"], field.metadata["high"]
    noun = "a whole number" if kind is int else "a number"
    number = _number(kind, value)
    if number is None or not low <= number <= high:
        raise ConfigError(
            field.name, f"{flag(field.name)} {str(value)[:40]} is not allowed; give {noun} from {low:,} to {high:,}."
        )
    return number


def _number(kind: type, value: Any) -> int | float | None:
    """Return `value` (a number, or its text) as int or float; None where it is neither, or is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return int(number) if kind is int else number


def from_dict(values: Any) -> RunConfig:
    """Return the RunConfig of a JSON object; unknown or missing fields raise ConfigError."""
    names = [field.name for field in dataclasses.fields(RunConfig)]
    if not isinstance(values, dict) or not set(values) <= set(names) or "model" not in values:
        raise ConfigError("model", f"A configuration is an object with 'model' and some of: {', '.join(names[1:])}.")
    return RunConfig(**values)


def override(base: dict[str, Any], changes: dict[str, Any]) -> RunConfig:
    """Return the RunConfig of `base` with `changes` on top, keeping the two rules a person expects.

    A new budget replaces the old one of the other kind, and another optimizer brings its own usual learning rate.
    With no budget at all the run lasts 60 seconds.
    """
    values = dict(base)
    if "epochs" in changes or "seconds" in changes:
        values.pop("epochs", None)
        values.pop("seconds", None)
    if "optimizer" in changes and "learning_rate" not in changes:
        values["learning_rate"] = LEARNING_RATES.get(changes["optimizer"], LEARNING_RATES["muon"])
    values.update(changes)
    if values.get("epochs") is None and values.get("seconds") is None:
        values["seconds"] = 60.0
    return from_dict(values)


def preset(name: str, model: str) -> dict[str, Any]:
    """Return the fields that a preset sets for a model.

    quick: best accuracy after 60 seconds. best: about 20 epochs. course: what the course project did, plain Adam for
    one epoch of 500 steps of 100 pictures, from a checkpoint.
    """
    presets: dict[str, dict[str, Any]] = {
        "quick": {"seconds": 60.0},
        "best": {"epochs": 20, "batch_size": 256, "augmentation": "flip_translate_cutout"},
        "course": {
            "epochs": 1,
            "batch_size": 100,
            "optimizer": "adamw",
            "weight_decay": 0.0,  # AdamW without decay is Adam
            "learning_rate": LEARNING_RATES["adamw"],
            "schedule": "constant",
            "label_smoothing": 0.0,
            "augmentation": "none",
            "validation_pictures": 0,
            "start_from": model,
        },
    }
    if name not in presets:
        raise ConfigError("preset", f"--preset {name!r} is not known; choose {', '.join(presets)}.")
    return {"model": model, **presets[name]}
