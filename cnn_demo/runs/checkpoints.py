"""Checkpoints: weights in one file whose metadata says what they need to be used, written and read.

Anyone may have written it: never a pickle, and size, metadata, names, shapes and formats are checked before loading.
"""

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError
from ..networks.catalog import NETWORKS
from ..networks.models import Network, construct
from ..training.events import LARGEST
from .files import CONFIG, EVALUATION, SOURCE, WEIGHTS, modified, read_json, write_file

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,80}")  # of a run, a shipped checkpoint, or a file of ours: never a path
PREFIX = "hf:"  # of a checkpoint on the Hub: hf:owner/name, hf:owner/name@revision
JSON_FIELDS = ("classes", "mean", "std", "step", "validation_accuracy", "limits", "temperature", "held_out")
CHECKPOINT_BYTES = 400_000_000  # four times the largest network, in float32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """Weights and what they need to be used."""

    name: str
    model: str
    dataset: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    step: int  # of the run they come from
    validation_accuracy: float | None  # 0 to 1
    limits: tuple[float, float] | None  # as temperature: see scoring.Calibration; None if not measured
    temperature: float  # 1 if not measured
    held_out: int | None  # how many training images the weights never learned, if known
    weights: dict[str, Tensor]  # {} if only the rest was read

    def network(self) -> Network:
        """Return the network with these weights, in eval mode, on the CPU."""
        network = construct(self.model, len(self.classes))
        network.load_state_dict(self.weights)
        return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def find_checkpoint(root: Path, name: str, with_weights: bool = True) -> Checkpoint:
    """Return the checkpoint of a shipped name, a run in `root`, a folder or a file. Raises CheckpointError."""
    if name.startswith(PREFIX):
        repo, _, revision = name[len(PREFIX) :].partition("@")
        candidates = [*pulled_folders(root, repo, revision or "main"), root / name]
    else:
        candidates = [root / name] if NAME.fullmatch(name) else []
    for path in (*candidates, Path(name)):
        with suppress(OSError):  # a name too long for a path
            file = path / WEIGHTS if path.is_dir() else path
            if file.is_file():
                return read_checkpoint(file, name, with_weights)
    known = ", ".join(name for name in checkpoint_names(root) if name in NETWORKS)  # a run's id is its owner's
    names = f"a name ({known}), a run's id" if known else "a run's id"
    raise CheckpointError(f"There is no checkpoint {name!r}. Give {names}, a run's folder or a .safetensors file.")


def pulled_folders(root: Path, repo: str, revision: str) -> list[Path]:
    """Return the folders that hold a repository of the Hub at a revision (branch, tag or commit), the latest first."""
    found = []
    for file in root.glob(f"{PREFIX[:-1]}-*/{SOURCE}"):
        with suppress(KeyError, TypeError):
            source = read_json(file)
            if source["repo"] == repo and revision in (source["commit"], *source["revisions"]):
                found.append(file.parent)
    return sorted(found, key=modified, reverse=True)


def checkpoint_names(root: Path) -> list[str]:
    """Return the names of all checkpoints in `root`: those named after their network, then runs, the latest first."""
    files = [path for path in root.glob(f"*/{WEIGHTS}") if NAME.fullmatch(path.parent.name)]
    folders = [file.parent for file in files if os.path.isfile(file)]
    shipped = {folder.name for folder in folders if folder.name in NETWORKS}
    rest = sorted((f for f in folders if f.name not in shipped), key=modified, reverse=True)
    return sorted(shipped, reverse=True) + [folder.name for folder in rest]


def pack_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as a safetensors file, the same bytes each time: safetensors orders metadata by chance."""
    metadata = {"format": "pt", "model": checkpoint.model, "dataset": checkpoint.dataset}
    metadata |= {name: json.dumps(getattr(checkpoint, name)) for name in JSON_FIELDS}
    content = pack_tensors(checkpoint.weights)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = json.dumps(header | {"__metadata__": metadata}, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def pack_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as a safetensors file; channels-last kernels are written in the usual order."""
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"format": "pt"})


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; an evaluation of the weights that were there before is removed."""
    file.with_name(EVALUATION).unlink(missing_ok=True)
    write_file(file, pack_checkpoint(checkpoint))


def read_checkpoint(file: Path, name: str, with_weights: bool = True) -> Checkpoint:
    """Return a checkpoint from an untrusted safetensors file. Raises CheckpointError where it cannot be used."""
    try:
        if file.stat().st_size > CHECKPOINT_BYTES:
            raise CheckpointError(f"{file} is larger than any checkpoint ({CHECKPOINT_BYTES:,} bytes).")
        with file.open("rb") as opened:
            if opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise CheckpointError(f"{file} looks like a pickle, which is never opened; give a safetensors file.")
        with safe_open(file, "pt") as tensors:
            fields = _metadata((tensors.metadata() or {}) | _beside(file))
            with torch.device("meta"):
                expected = construct(fields["model"], len(fields["classes"])).state_dict()
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            if shapes != {key: tuple(value.shape) for key, value in expected.items()}:
                raise CheckpointError(f"{file} says it is a {fields['model']}, but its tensors are not those of one.")
            for key, part in slices.items():
                allowed = ("F32", "F16", "BF16") if expected[key].is_floating_point() else ("I64",)
                if part.get_dtype() not in allowed:
                    raise CheckpointError(f"{file}: {key} is {part.get_dtype()}; {', '.join(allowed)} is allowed.")
            names = shapes if with_weights else {}
            weights = {key: tensors.get_tensor(key).to(expected[key].dtype) for key in names}
            if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
                raise CheckpointError(f"{file} holds weights that are not finite numbers.")
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{file} does not say what it is (model, classes, mean, std): {error}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}).") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    return Checkpoint(name=name, weights=weights, **fields)


def _beside(file: Path) -> dict[str, str]:
    """Return what older files say only in config.json, and what was measured after the weights were written."""
    found = {}
    with suppress(KeyError, TypeError):
        found["held_out"] = json.dumps(read_json(file.with_name(CONFIG))["recipe"]["validation_pictures"])
    with suppress(KeyError, TypeError):
        evaluation = read_json(file.with_name(EVALUATION))
        found |= {name: json.dumps(evaluation[name]) for name in ("temperature", "limits")}
    return found


def _metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the checked fields of a checkpoint's metadata. Raises what a bad value makes Python raise."""
    usual = {"limits": "null", "temperature": "1.0", "held_out": "null"}  # of older files
    fields = {name: json.loads((usual | metadata)[name]) for name in JSON_FIELDS}
    classes, accuracy, limits, held_out = map(fields.get, ("classes", "validation_accuracy", "limits", "held_out"))
    colours = [fields["mean"], fields["std"]]
    correct = {
        "model": metadata["model"] in NETWORKS,
        "classes": isinstance(classes, list) and 2 <= len(classes) <= 1000 and {type(c) for c in classes} == {str},
        "mean or std": all(len(c) == 3 and all(type(v) is float and 1e-3 <= v <= 1 for v in c) for c in colours),
        "temperature": 0.05 <= float(fields["temperature"]) <= 20,
        "step": 0 <= int(fields["step"]) <= LARGEST,
        "validation_accuracy": accuracy is None or 0 <= float(accuracy) <= 1,
        "limits": limits is None or (math.isfinite(limits[0]) and math.isfinite(limits[1])),
    }
    if wrong := [name for name, is_correct in correct.items() if not is_correct]:
        raise ValueError(", ".join(wrong))
    return {
        **{"model": metadata["model"], "dataset": metadata["dataset"], "step": int(fields["step"])},
        **{name: tuple(fields[name]) for name in ("classes", "mean", "std")},
        "validation_accuracy": None if accuracy is None else float(accuracy),
        "limits": None if limits is None else (float(limits[0]), float(limits[1])),
        "temperature": float(fields["temperature"]),
        "held_out": None if held_out is None else int(held_out),
    }
