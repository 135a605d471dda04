"""What one training run is: RunConfig, its limits, and the presets.

Each field's metadata (label, help, group, choices or range) is the one source of the command-line flag, the control
on the page and the text of the error. Standard library only: `--help` and a wrong flag must answer without torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..networks.catalog import NETWORKS
from ..pictures.catalog import DATASETS

# The rate that suits each optimizer when none is given. Muon's is for the convolutions (see optimizers.py).
LEARNING_RATES = {"sgd": 0.1, "adamw": 0.001, "muon": 0.1}
VALIDATION_PICTURES = 5000  # held out where nothing else is said
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> title of its button, fields
    "quick": ("Quick: 60 seconds", {"seconds": 60.0}),
    "best": ("Best: 20 epochs", {"epochs": 20, "augmentation": "flip_translate_cutout"}),
    # one epoch of 500 steps of 100 images from a checkpoint; AdamW without decay is Adam
    "course": (
        "Fine-tune: 500 steps (the course project's experiment)",
        {
            **{"epochs": 1, "batch_size": 100, "optimizer": "adamw", "weight_decay": 0.0, "learning_rate": 0.001},
            **{"schedule": "constant", "label_smoothing": 0.0, "augmentation": "none", "validation_pictures": 0},
        },
    ),
}
# What a preset changes where a GPU trains: there 60 seconds are many epochs. Estimates, until one has measured them.
ON_GPU: dict[str, dict[str, Any]] = {
    "quick": {"batch_size": 512, "learning_rate": 0.07, "label_smoothing": 0.2, "augmentation": "flip_translate_cutout"}
}
GROUPS = {"budget": "Budget", "optimizer": "Optimizer", "images": "Images", "more": "More"}  # of the form; "": above
# Labels of the form, by value.
SCHEDULES = {"constant": "Constant", "cosine": "Cosine", "one_cycle": "One-cycle"}
OPTIMIZERS = {"sgd": "SGD with momentum", "adamw": "AdamW", "muon": "Muon"}
SHIFT, CUTOUT = "flip_translate", "flip_translate_cutout"
AUGMENTATIONS = {"none": "None", "flip": "Flip", SHIFT: "Flip and shift", CUTOUT: "Flip, shift and cutout"}
PRECISIONS = {"auto": "Automatic", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
KINDS: dict[str, type] = {"str": str, "int": int, "float": float}
HELD_OUT_HELP = "training images held out to choose the best weights; 0 saves the last weights; if empty, "
HELD_OUT_HELP += f"{VALIDATION_PICTURES:,}, or as many as the starting checkpoint held out"


def setting(label: str, group: str, help_text: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """Return a field with its help text and limits: `choices` (value -> label), or `low` and `high`, both allowed."""
    metadata = {"label": label, "group": group, "help": help_text, "choices": {}, **limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One training run, completely. Two configurations that differ in one field give runs that differ in that alone.

    Raises ConfigError: a value is of another type, not among the choices or out of range, or the budget is not exactly
    one of `epochs` and `seconds`.
    """

    model: str = setting("Network", "", "network to train", choices={name: n.title for name, n in NETWORKS.items()})
    dataset: str = setting(
        "Data set", "images", "images to train on", "cifar10", choices={name: d.title for name, d in DATASETS.items()}
    )
    epochs: int | None = setting("Epochs", "budget", "passes over the training images", None, low=1, high=1000)
    seconds: float | None = setting(
        "Seconds", "budget", "time to train and test; 60 if neither is given", None, low=1, high=86_400
    )
    batch_size: int = setting("Batch size", "optimizer", "images per step", 256, low=2, high=4096)
    optimizer: str = setting(
        "Optimizer", "optimizer", "Muon orthogonalizes the updates of convolutions", "muon", choices=OPTIMIZERS
    )
    learning_rate: float = setting(
        "Learning rate", "optimizer", "peak of the schedule", LEARNING_RATES["muon"], low=1e-6, high=10
    )
    schedule: str = setting("Schedule", "optimizer", "learning rate over the budget", "one_cycle", choices=SCHEDULES)
    weight_decay: float = setting(
        "Weight decay", "optimizer", "on weights; Muon fixes its kernels' norm instead", 5e-4, low=0, high=1
    )
    label_smoothing: float = setting(
        "Label smoothing", "optimizer", "fraction of the target spread over all classes", 0.1, low=0, high=0.5
    )
    augmentation: str = setting(
        "Augmentation", "images", "shifts by 2 px, with cutout (8x8 px) by 4 px", SHIFT, choices=AUGMENTATIONS
    )
    precision: str = setting(
        "Precision",
        "more",
        "automatic: bfloat16 or float16 where the hardware is fast; on a GPU float32 convolutions use TF32",
        "auto",
        choices=PRECISIONS,
    )
    validation_pictures: int | None = setting("Validation images", "images", HELD_OUT_HELP, None, low=0, high=25_000)
    seed: int = setting("Seed", "more", "random seed", 0, low=0, high=2**31 - 1)
    start_from: str | None = setting("Start from", "more", "checkpoint: its name, run id, folder or file", None)

    @property
    def held_out(self) -> int:
        """Return how many training images are held out for validation."""
        return VALIDATION_PICTURES if self.validation_pictures is None else self.validation_pictures

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if (self.epochs is None) == (self.seconds is None):
            given = "neither" if self.epochs is None else "both"
            raise ConfigError("epochs", f"Budget: give either epochs or seconds; {given} was given.")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_command(self) -> str:
        """Return the command line that makes this run; fields at their usual value are left out."""
        words = ["python", "-m", "cnn_demo", "train", self.model]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            usual = LEARNING_RATES[self.optimizer] if field.name == "learning_rate" else field.default
            if field.name == "validation_pictures" and self.start_from is None and value == VALIDATION_PICTURES:
                continue
            if value != usual:
                words += [flag(field.name), str(value).removesuffix(".0")]
        return shlex.join(words)


def kind_of(field: dataclasses.Field[Any]) -> type:
    """Return str, int or float: what a field holds where it is not None."""
    return KINDS[str(field.type).split(" ")[0]]


def flag(name: str) -> str:
    """Return the command-line flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` in the field's type, or raise ConfigError with the limits in the sentence."""
    kind, choices, label = kind_of(field), field.metadata["choices"], field.metadata["label"]
    if value is None and field.default is None:
        return None
    given = "" if value is None else f", not {str(value)[:40]!r}" if kind is str else f", not {str(value)[:40]}"
    if choices:
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(field.name, f"{label}: choose {', '.join(choices)}{given}.")
        return value
    if kind is str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ConfigError(field.name, f"{label}: give a name or leave it out{given}.")
        return value
    low, high = field.metadata["low"], field.metadata["high"]
    number = math.nan  # of what is neither a number nor its text
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not low <= number <= high or (kind is int and number != int(number)):
        noun = "whole number" if kind is int else "number"
        raise ConfigError(field.name, f"{label}: enter a {noun} from {low:,} to {high:,}{given}.")
    return kind(number)


def from_dict(values: Any) -> RunConfig:
    """Return the RunConfig of a JSON object; unknown or missing fields raise ConfigError."""
    names = [field.name for field in dataclasses.fields(RunConfig)]
    if not isinstance(values, dict) or not set(values) <= set(names) or "model" not in values:
        raise ConfigError(
            "model", f"A configuration is a JSON object with 'model' and some of: {', '.join(names[1:])}."
        )
    return RunConfig(**values)


def override(base: dict[str, Any], changes: dict[str, Any]) -> RunConfig:
    """Return the RunConfig of `base` with `changes` on top; without a budget the run lasts 60 seconds."""
    values = dict(base)  # a new budget replaces one of the other kind, another optimizer brings its own usual rate
    if "epochs" in changes or "seconds" in changes:
        values |= {"epochs": None, "seconds": None}
    if "optimizer" in changes and "learning_rate" not in changes:
        values["learning_rate"] = LEARNING_RATES.get(str(changes["optimizer"]), LEARNING_RATES["muon"])
    values.update(changes)
    if values.get("epochs") is None and values.get("seconds") is None:
        values["seconds"] = 60.0
    return from_dict(values)


def preset(name: str, model: str, on_gpu: bool = False) -> dict[str, Any]:
    """Return the fields that a preset sets for a model. Raises ConfigError for an unknown preset."""
    if name not in PRESETS:
        raise ConfigError("preset", f"Preset: choose {', '.join(PRESETS)}, not {name!r}.")
    start = {"start_from": model} if name == "course" else {}
    return {"model": model, **PRESETS[name][1], **start, **(ON_GPU.get(name, {}) if on_gpu else {})}
