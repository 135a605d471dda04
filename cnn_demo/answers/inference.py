"""From a picture to a prediction: centre crop, 32x32, network, ten scores. The page and the command line share it."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..errors import CheckpointError, DataError
from ..networks.models import Network
from ..pictures.dataset import normalise
from ..runs.checkpoints import EVALUATION, NAME, Checkpoint, modified, read_checkpoint

INPUT_PX = 32
LARGEST_PX = 100_000_000  # width x height; a phone's largest photos have 50 to 200 million
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows more, some of which start other programs


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One class and its score, 0 to 1: the network's own weight for it, not the chance that it is right."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """All classes, the most likely first, and whether the picture or the answer is beyond the checkpoint's limits."""

    predictions: list[Prediction]
    unusual: bool
    unsure: bool


def read_picture(path: Path) -> Image.Image:
    """Return the picture of a file as RGB, upright. Raises DataError where it is none, damaged or too large."""
    if path.is_dir():
        raise DataError(f"The folder {path} holds no pictures ({', '.join(SUFFIXES)}).")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PX:
                raise DataError(f"{path} has {picture.width} x {picture.height} pixels; {LARGEST_PX:,} are allowed.")
            return to_rgb(picture)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture; give one of {', '.join(SUFFIXES)}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large; {LARGEST_PX:,} pixels are allowed.") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a damaged file
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read ({reason}).") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB: turned as its EXIF says, transparency on white, 16 bit scaled to 8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = picture.convert("F").point(lambda value: value / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def crop(picture: Image.Image) -> Image.Image:
    """Return the largest centred square of a picture."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def to_input(square: Image.Image) -> Tensor:
    """Return what the network sees of a square picture: uint8 `3,32,32`, shrunk with every pixel counted."""
    small = square.resize((INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels: Tensor = pil_to_tensor(small)
    return pixels


def classify(network: Network, checkpoint: Checkpoint, pixels: Tensor) -> Answer:
    """Return the answer for uint8 `3,32,32`. `network` is the checkpoint's, in eval mode."""
    with torch.inference_mode():
        logits = network(normalise(pixels[None], checkpoint.mean, checkpoint.std))[0]
    scores = (logits / checkpoint.temperature).softmax(0)
    order = scores.argsort(descending=True).tolist()
    highest_energy, lowest_score = checkpoint.limits or (math.inf, 0.0)
    return Answer(
        predictions=[Prediction(label=checkpoint.classes[i], score=float(scores[i])) for i in order],
        unusual=float(-logits.logsumexp(0)) > highest_energy,
        unsure=float(scores.max()) < lowest_score,
    )


class Classifier:
    """Answers by the checkpoints of one folder; keeps the latest few networks in memory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[str, int, float], tuple[Checkpoint, Network]] = OrderedDict()

    def answer(self, name: str, square: Image.Image) -> tuple[Checkpoint, Answer]:
        """Return the checkpoint of a name (never a path) and its answer to a square picture.

        Raises CheckpointError where there is none of that name, or it cannot be used. It names no other checkpoint:
        these are their owners'.
        """
        if not NAME.fullmatch(name) or not (self._root / name / "model.safetensors").is_file():
            raise CheckpointError(f"There is no checkpoint {name[:80]!r} here.")
        checkpoint, network = self._load(name)
        return checkpoint, classify(network, checkpoint, to_input(square))

    def _load(self, name: str) -> tuple[Checkpoint, Network]:
        file = self._root / name / "model.safetensors"
        # a run in training writes it again; `evaluate` says more of it
        key = (name, file.stat().st_mtime_ns, modified(file.with_name(EVALUATION)))
        with self._lock:
            if key not in self._loaded:
                checkpoint = read_checkpoint(file, name)
                self._loaded[key] = replace(checkpoint, weights={}), checkpoint.network()
                for old in [known for known in self._loaded if known[0] == name and known != key]:
                    del self._loaded[old]
            self._loaded.move_to_end(key)
            while len(self._loaded) > 4:
                self._loaded.popitem(last=False)
            return self._loaded[key]


def percent(score: float) -> str:
    """Return a score for a screen: one decimal, never "100 %" below 0.9995, never "0.0 %"."""
    if score >= 0.9995:
        return "100 %"
    if score < 0.001:
        return "<0.1 %"
    return f"{min(score, 0.999) * 100:.1f} %"
