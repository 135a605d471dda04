"""Checkpoints: reading weights that anyone may have written.

Only safetensors is read, never a pickle, and a file's size, metadata, names, shapes and number formats are looked at
before a tensor is. A checkpoint is one file: its metadata says what the weights need to be used.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..networks.models import BUILDERS, Network, build

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,80}")  # of a run, a shipped checkpoint, or a file of ours: never a path
PREFIX = "hf:"  # of a checkpoint on the Hub: hf:owner/name, hf:owner/name@revision
EVALUATION = "evaluation.json"  # beside the weights that it measured
CHECKPOINT_BYTES = 400_000_000  # four times the largest network, in float32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """Weights and what they need to be used.

    step: of the run they come from; validation_accuracy: there, 0 to 1; limits: there, see training.Score.
    temperature: what logits are divided by to become honest scores (see evaluation.py); 1 where it was not measured.
    held_out: the training pictures that the weights never learned; None where nobody knows.
    """

    name: str
    model: str
    dataset: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    step: int
    validation_accuracy: float | None
    limits: tuple[float, float] | None
    temperature: float
    held_out: int | None
    weights: dict[str, Tensor]

    def network(self) -> Network:
        """Return the network with these weights, in eval mode, on the CPU."""
        network = build(self.model, len(self.classes), seed=0)
        network.load_state_dict(self.weights)
        return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def find_checkpoint(root: Path, name: str) -> Checkpoint:
    """Return the checkpoint of a name: a shipped one's or a run's in `root`, else a folder or a file.

    Raises CheckpointError where there is none, or it cannot be used.
    """
    if name.startswith(PREFIX):
        repo, _, revision = name[len(PREFIX) :].partition("@")
        candidates = [*pulled(root, repo, revision or "main"), root / name]
    else:
        candidates = [root / name] if NAME.fullmatch(name) else []
    for path in (*candidates, Path(name)):
        with suppress(OSError):  # a name too long for a path
            file = path / "model.safetensors" if path.is_dir() else path
            if file.is_file():
                return read_checkpoint(file, name)
    known = ", ".join(name for name in checkpoint_names(root) if name in BUILDERS)  # a run's id is its owner's
    names = f"a name ({known}), a run's id" if known else "a run's id"
    raise CheckpointError(f"There is no checkpoint {name!r}. Give {names}, a run's folder or a .safetensors file.")


def pulled(root: Path, repo: str, revision: str) -> list[Path]:
    """Return the folders that hold a repository of the Hub at a revision (a branch, tag or commit), the latest first.

    Each holds source.json: where it is from.
    """
    found = []
    for file in root.glob(f"{PREFIX[:-1]}-*/source.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            source = json.loads(file.read_text())
            if source["repo"] == repo and revision in (source["commit"], *source["revisions"]):
                found.append(file.parent)
    return sorted(found, key=modified, reverse=True)


def checkpoint_names(root: Path) -> list[str]:
    """Return the names of all checkpoints in `root`: those named after their network, then runs, the latest first."""
    folders = [path.parent for path in root.glob("*/model.safetensors") if NAME.fullmatch(path.parent.name)]
    shipped = {folder.name for folder in folders if folder.name in BUILDERS}
    rest = sorted((f for f in folders if f.name not in shipped), key=modified, reverse=True)
    return sorted(shipped, reverse=True) + [folder.name for folder in rest]


def modified(path: Path) -> float:
    """Return when a file or folder was last changed; 0 where it has just been removed."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def read_checkpoint(file: Path, name: str) -> Checkpoint:
    """Return a checkpoint from a safetensors file that nobody vouches for.

    Its size, metadata, names, shapes and number formats are looked at before a tensor is read.
    """
    try:
        if file.stat().st_size > CHECKPOINT_BYTES:
            raise CheckpointError(
                f"{file} is larger than any checkpoint of these networks ({CHECKPOINT_BYTES:,} bytes)."
            )
        with file.open("rb") as opened:
            if opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise CheckpointError(
                    f"{file} is not a safetensors file but looks like a pickle, which is never opened."
                )
        with safe_open(file, "pt") as tensors:
            fields = _metadata((tensors.metadata() or {}) | _beside(file))
            with torch.device("meta"):
                expected = BUILDERS[fields["model"]](len(fields["classes"])).state_dict()
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            if shapes != {key: tuple(value.shape) for key, value in expected.items()}:
                raise CheckpointError(f"{file} says it is a {fields['model']}, but its tensors are not those of one.")
            for key, part in slices.items():
                allowed = ("F32", "F16", "BF16") if expected[key].is_floating_point() else ("I64",)
                if part.get_dtype() not in allowed:
                    raise CheckpointError(f"{file}: {key} is {part.get_dtype()}; {', '.join(allowed)} is allowed.")
            weights = {key: tensors.get_tensor(key).to(expected[key].dtype) for key in shapes}
            if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
                raise CheckpointError(f"{file} holds weights that are no numbers.")
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{file} does not say what it is (model, classes, mean, std): {error}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}).") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    return Checkpoint(name=name, weights=weights, **fields)


def _beside(file: Path) -> dict[str, str]:
    """Return what stands beside the weights and not yet in them: what `evaluate` measured, how many were held out."""
    found = {}
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        config = json.loads(file.with_name("config.json").read_text())
        found["held_out"] = json.dumps(config["recipe"]["validation_pictures"])
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        evaluation = json.loads(file.with_name(EVALUATION).read_text())
        found |= {name: json.dumps(evaluation[name]) for name in ("temperature", "limits")}
    return found


def _metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the checked fields of a checkpoint's metadata. Raises what a bad value makes Python raise."""
    classes = json.loads(metadata["classes"])
    mean, std = json.loads(metadata["mean"]), json.loads(metadata["std"])
    accuracy = json.loads(metadata["validation_accuracy"])
    limits = json.loads(metadata.get("limits", "null"))
    temperature, held_out = float(metadata.get("temperature", 1)), json.loads(metadata.get("held_out", "null"))
    if not 0.05 <= temperature <= 20:
        raise ValueError("temperature")
    if metadata["model"] not in BUILDERS:
        raise ValueError(f"model {metadata['model']!r}")
    if not isinstance(classes, list) or not 2 <= len(classes) <= 1000 or not all(isinstance(c, str) for c in classes):
        raise ValueError("classes")
    for values in (mean, std):
        if not isinstance(values, list) or len(values) != 3 or not all(type(v) is float and 0 < v <= 1 for v in values):
            raise ValueError("mean or std")
    return {
        "model": metadata["model"],
        "dataset": metadata["dataset"],
        "classes": tuple(classes),
        "mean": tuple(mean),
        "std": tuple(std),
        "step": int(metadata["step"]),
        "validation_accuracy": None if accuracy is None else float(accuracy),
        "limits": None if limits is None else (float(limits[0]), float(limits[1])),
        "temperature": temperature,
        "held_out": None if held_out is None else int(held_out),
    }
