"""From what the network sees of a picture to its prediction: a score for each class."""

import functools
import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..networks.models import Network, build
from ..pictures.catalog import DATASETS
from ..pictures.dataset import normalise
from ..runs.checkpoints import NAME, Checkpoint, read_checkpoint
from ..runs.files import EVALUATION, WEIGHTS, modified
from ..runs.folder import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One class and its score, 0 to 1: the softmax output, not the probability that it is right."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """All classes, the most likely first, and whether the picture or the answer is beyond the checkpoint's limits."""

    predictions: list[Prediction]
    unusual: bool
    unsure: bool


@torch.inference_mode()
def classify(network: Network, checkpoint: Checkpoint, pixels: Tensor) -> Answer:
    """Return the answer for uint8 `3,32,32`. `network` is the checkpoint's, in eval mode. Raises CheckpointError."""
    logits = network(normalise(pixels[None], checkpoint.mean, checkpoint.std))[0]
    scores = finite((logits / checkpoint.temperature).softmax(0), checkpoint)
    order = scores.argsort(descending=True).tolist()
    highest_energy, lowest_score = checkpoint.limits or (math.inf, 0.0)
    return Answer(
        predictions=[Prediction(label=checkpoint.classes[i], score=float(scores[i])) for i in order],
        unusual=float(-logits.logsumexp(0)) > highest_energy,
        unsure=float(scores.max()) < lowest_score,
    )


def finite(values: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Return what the checkpoint's network computed. Raises CheckpointError where that is not finite."""
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"The weights of {checkpoint.name} are too large: their answer is not a finite number.")
    return values


class Classifier:
    """Classifies with the checkpoints of one folder; the latest few networks stay in memory."""

    def __init__(self, root: Path) -> None:
        self._root, self._lock = root, threading.Lock()
        self._load = functools.lru_cache(maxsize=4)(self._read)
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    def answer(self, name: str, pixels: Tensor, owner: str = "") -> tuple[Checkpoint, Answer]:
        """Return a checkpoint by name, without weights, and its answer to uint8 `3,32,32`. Raises CheckpointError."""
        checkpoint, network = self.load(name, owner)
        return checkpoint, classify(network, checkpoint, pixels)

    def load(self, name: str, owner: str = "") -> tuple[Checkpoint, Network]:
        """Return a checkpoint by name, without weights, and its network, which all share. Raises CheckpointError.

        owner: the visitor's secret, which a checkpoint of a private repository asks for.
        """
        file = self._root / name / WEIGHTS
        if not NAME.fullmatch(name) or not file.is_file():
            raise CheckpointError(f"There is no checkpoint {name[:80]!r} here.")  # others may be private
        if Run(file.parent).is_private_to_others(owner):
            raise CheckpointError("This checkpoint is from a private repository; only who opened it can use it.")
        versions = modified(file), modified(file.with_name(EVALUATION))  # training or evaluation changes them
        with self._lock:  # one thread reads it
            return self._load(name, versions)

    def untrained(self, name: str, owner: str = "") -> Network:
        """Return a checkpoint's network before its training: random weights, drawn from the run's seed as the run did.

        Raises CheckpointError, RunError (a damaged recipe), InputError (the run started from other weights).
        """
        self.load(name, owner)
        with self._lock:
            return self._drawn(name)

    def _read(self, name: str, versions: tuple[float, float]) -> tuple[Checkpoint, Network]:
        checkpoint = read_checkpoint(self._root / name / WEIGHTS, name)
        return replace(checkpoint, weights={}), checkpoint.network()

    def _draw(self, name: str) -> Network:
        config = Run(self._root / name).config
        if config.start_from:
            start = f"{name} started from {config.start_from}, not from random weights"
            raise InputError(f"{start}: compare it with that checkpoint.")
        network = build(config.model, len(DATASETS[config.dataset].classes), config.seed)
        return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def percent(score: float) -> str:
    """Return a score for a screen: one decimal, never "100 %" below 0.9995, never "0.0 %"."""
    if score >= 0.9995:
        return "100 %"
    return f"{min(score, 0.999) * 100:.1f} %" if score >= 0.001 else "<0.1 %"
