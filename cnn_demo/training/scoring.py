"""Validation and test: logits over a set of images, and what they say of the weights.

`Scorer` evaluates during a run; `evaluation_of` turns test logits into everything the page, the card and the
`evaluate` command show.
"""

import base64
import math
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pictures.dataset import Dataset, normalise
from ..pictures.photo import to_png
from .budget import Budget, Stopped
from .events import SAMPLES, Validated

EVALUATION_BATCH = {"cuda": 2500}  # images at a time; elsewhere 500
BINS = 15  # of the calibration error
MISTAKES = 12
EVALUATION: dict[str, Any] = {  # the form of what the page and the card show of it: texts, numbers, lists
    **{name: 0.0 for name in ("pictures", "accuracy", "validation_pictures", "temperature", "ece_before", "ece_after")},
    **{"classes": [""], "confusion": [[0.0]], "mistakes": [{"label": "", "answer": "", "score": 0.0, "png": ""}]},
}


class Diverged(Exception):
    """Raised when a loss is infinite or not a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What the validation images say of the weights' scores: the logits divided by `temperature` are calibrated.

    limits: the energy (-logsumexp of the logits, arXiv 2010.03759) that 95 % of the images stay below, and the top
    score that 95 % reach: beyond them a picture is unusual, an answer unsure.
    """

    temperature: float
    limits: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """An evaluation: mean loss in nats, accuracy 0 to 1, and the float32 logits `N,classes` it rests on."""

    loss: float
    accuracy: float
    logits: Tensor


class Evaluation(dict[str, Any]):
    """The test at a run's end; see `evaluation_of`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The weights to keep, and what their validation found; before the first one these are the latest weights."""

    step: int
    weights: dict[str, Tensor]
    accuracy: float | None = None
    calibration: Calibration | None = None


@dataclass
class Scorer:
    """Validation and test of one run, and the best weights so far."""

    network: nn.Module
    data: Dataset
    validation_index: Tensor
    autocast: AbstractContextManager[None]
    budget: Budget
    best: Best

    def __post_init__(self) -> None:
        device = self.data.test_labels.device
        self.batch = EVALUATION_BATCH.get(device.type, 500)
        self.mean, self.std = (torch.tensor(values, device=device) for values in (self.data.mean, self.data.std))
        labels = self.data.train_labels[self.validation_index].cpu()
        order = mix(labels, len(self.data.classes), self.budget.config.seed)
        self.validation_index = self.validation_index[order.to(device)]
        self.samples = self.validation_index[: min(SAMPLES, len(self.data.classes))]  # one of each class, in order

    def time_evaluation(self) -> None:
        """Measure the evaluation of one image; a network in eval mode is not changed by it.

        A GPU chooses its algorithms by the shape, so the first batch of a shape takes longer than the next ones.
        """
        self.network.eval()
        device = self.data.test_labels.device
        count = min(100 if device.type == "cpu" else self.batch, len(self.data.test_labels))
        part, times = torch.arange(count, device=device), []
        for _ in range(3):
            begun = time.monotonic()
            self._logits(self.data.test_pictures, part)
            times.append(time.monotonic() - begun)
        _, self.budget.evaluation_seconds = self.budget.group.agree(False, min(times) / count)
        self.network.train()

    def validate(self, step: int, last: bool) -> Generator[None, None, Score | None]:
        """Validate, if images are held out, and keep the weights if they are the best; yield after each batch."""
        index, budget = self.validation_index, self.budget
        # one before the last may take a third of the time left
        too_long = 3 * len(index) * budget.evaluation_seconds >= budget.training_limit() - budget.seconds()
        if not len(index) or (too_long and not last):
            return None
        deadline = budget.deadline(len(index)) if last else math.inf
        pictures, labels = self.data.train_pictures, self.data.train_labels
        score = yield from self.evaluate(pictures, labels, index, deadline)
        if self.best.accuracy is None or score.accuracy >= self.best.accuracy:
            calibration = calibrate(score.logits, labels[index].cpu()[: len(score.logits)])
            weights = _cloned(self.network)
            self.best = Best(step=step, weights=weights, accuracy=score.accuracy, calibration=calibration)
        return score

    def check(self, count: int) -> Generator[None, None, Score]:
        """Validate on `count` of the images, always the same; yield after each batch. Raises Diverged."""
        index = self.validation_index[:count]
        return (yield from self.evaluate(self.data.train_pictures, self.data.train_labels, index, math.inf))

    def describe(self, score: Score, step: int) -> Validated:
        """Return the event of a validation."""
        scores = score.logits[: len(self.samples)].softmax(1)
        return Validated(
            seconds=self.budget.seconds(),
            step=step,
            pictures=len(score.logits),
            accuracy=score.accuracy,
            answers=tuple((int(one.argmax()), round(float(one[label]), 3)) for label, one in enumerate(scores)),
        )

    def test(self, step: int) -> Generator[None, None, tuple[Score, Evaluation]]:
        """Test the best weights, which stay in the network; yield after each batch."""
        data, latest = self.data, _cloned(self.network)
        if self.best.step != step:
            self.network.load_state_dict(self.best.weights)
        index = torch.arange(len(data.test_labels), device=data.test_labels.device)
        deadline = max(self.budget.config.seconds or math.inf, self.budget.deadline(len(index)))
        try:
            score = yield from self.evaluate(data.test_pictures, data.test_labels, index, deadline)
        except Stopped:  # what is saved now must be the run, not its best weights
            self.network.load_state_dict(latest)
            raise
        held_out = len(self.validation_index) if self.best.calibration else 0
        return score, Evaluation(evaluation_of(data, score.logits, self.best.calibration, held_out))

    def evaluate(
        self, pictures: Tensor, labels: Tensor, index: Tensor, deadline: float
    ) -> Generator[None, None, Score]:
        """Yield after each batch of the images of `index`; return the Score of those done in time. Raises Diverged."""
        found, begun = list[Tensor](), self.budget.seconds()
        self.network.eval()
        try:
            for part in index.split(self.batch):
                found.append(self._logits(pictures, part))
                if self.budget.seconds() + self.batch * self.budget.evaluation_seconds >= deadline:
                    break
                yield
        finally:
            self.network.train()
        logits = torch.cat(found)
        self.budget.agree()
        if len(logits) >= self.batch:  # a better measure than the one before the first step
            self.budget.evaluation_seconds = (self.budget.seconds() - begun) / len(logits)
        expected = labels[index].cpu()[: len(logits)]
        loss = F.cross_entropy(logits.double(), expected).item()
        if not math.isfinite(loss):
            raise Diverged
        return Score(loss=loss, accuracy=_mean(logits.argmax(1) == expected), logits=logits)

    def _logits(self, pictures: Tensor, index: Tensor) -> Tensor:
        """Return the float32 logits `N,classes` of the images of `index`, on the CPU."""
        self.budget.check_stop()
        with torch.inference_mode(), self.autocast:
            logits: Tensor = self.network(normalise(pictures[index], self.mean, self.std))
        return logits.float().cpu()


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Return the calibration of validation logits `N,classes`."""
    temperature = fit_temperature(logits, labels)
    top = (logits / temperature).softmax(1).amax(1)
    limits = ((-logits.logsumexp(1)).quantile(0.95).item(), top.quantile(0.05).item())
    return Calibration(temperature=temperature, limits=limits)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the divisor of the logits `N,classes` under which the labels are likeliest, 0.25 to 4, to within 1 %.

    The loss has one minimum over it (Guo et al. 2017, arXiv 1706.04599), so a grid is refined around its best point.
    """
    low, high = 0.25, 4.0
    for _ in range(3):
        grid = torch.logspace(math.log2(low), math.log2(high), 17, base=2)
        scaled = (logits / grid.view(-1, 1, 1)).log_softmax(2)  # 17,N,classes
        losses = -scaled[:, torch.arange(len(labels)), labels].mean(1)
        best = int(losses.argmin())
        low, high = float(grid[max(0, best - 1)]), float(grid[min(16, best + 1)])
    return float(grid[best])


def reliability(scores: Tensor, labels: Tensor) -> list[list[float]]:
    """Return for 15 bins of the top score of `N,classes`: images, mean top score, accuracy (both 0 in an empty bin)."""
    top, answers = scores.max(1)
    bins = (top * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    sums = [torch.zeros(BINS).index_add(0, bins, values) for values in (top, (answers == labels).float())]
    rows = torch.stack([counts.float(), *(values / counts.clamp(min=1) for values in sums)], dim=1)
    found: list[list[float]] = rows.tolist()
    return found


def calibration_error(bins: list[list[float]]) -> float:
    """Return the expected calibration error of `reliability` bins: the mean gap of top score and accuracy."""
    return sum(count * abs(score - accuracy) for count, score, accuracy in bins) / sum(count for count, *_ in bins)


def evaluation_of(
    data: Dataset, logits: Tensor, calibration: Calibration | None, held_out: int, flip_accuracy: float | None = None
) -> dict[str, Any]:
    """Return the evaluation of weights by their logits `N,classes` of the first N test images, as JSON-ready values.

    Accuracies, scores and errors 0 to 1, loss in nats. accuracy: one view; accuracy_flip: logits of an image and its
    horizontal flip averaged, if measured. temperature, limits: see Calibration, from `held_out` validation images.
    ece_before, ece_after: calibration error before and after dividing by the temperature; reliability: the bins after.
    confusion: a row for each true class. mistakes: the highest scores of wrong answers, images as PNG in base64.
    """
    temperature = calibration.temperature if calibration else 1.0
    labels = data.test_labels.cpu()[: len(logits)]
    scores = (logits / temperature).softmax(1)
    bins = reliability(scores, labels)
    top, answers = scores.max(1)
    wrong = (answers != labels).nonzero()[:, 0]
    worst: list[int] = wrong[top[wrong].argsort(descending=True)[:MISTAKES]].tolist()
    classes = len(data.classes)
    confusion = torch.bincount(labels * classes + answers, minlength=classes**2).view(classes, classes)
    return {
        "dataset": data.name,
        "classes": list(data.classes),
        "pictures": len(labels),
        "accuracy": _mean(answers == labels),
        "accuracy_flip": flip_accuracy,
        "loss": F.cross_entropy(logits, labels).item(),
        "validation_pictures": held_out,
        "temperature": temperature,
        "limits": list(calibration.limits) if calibration else None,
        "ece_before": calibration_error(reliability(logits.softmax(1), labels)),
        "ece_after": calibration_error(bins),
        "reliability": bins,
        "confusion": confusion.tolist(),
        "mistakes": [
            {
                "index": index,
                "label": data.classes[int(labels[index])],
                "answer": data.classes[int(answers[index])],
                "score": top[index].item(),
                "png": encode(data.test_pictures[index]),
            }
            for index in worst
        ],
    }


def is_evaluation(value: Any) -> bool:
    """Tell whether a JSON value, such as a file that was changed by hand, can be shown as an evaluation."""
    if not _has_form(value, EVALUATION) or not _has_form(value.get("accuracy_flip") or 0.0, 0.0):
        return False
    rows, bins = value["confusion"], value.get("reliability") or []
    if not _has_form(bins, [[0.0]]):
        return False
    return {len(row) for row in (rows, *rows)} == {len(value["classes"])} and {len(row) for row in bins} <= {3}


def _has_form(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_has_form(value.get(name), part) for name, part in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(_has_form(item, form[0]) for item in value)
    return isinstance(value, str) if form == "" else type(value) in (int, float) and math.isfinite(value)


def mix(labels: Tensor, classes: int, seed: int) -> Tensor:
    """Return an order of images with `labels` `N`, random but fixed: one of each class by number, then the second..."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    mixed = labels[order]
    before = F.one_hot(mixed, classes).cumsum(0).gather(1, mixed[:, None])[:, 0]  # of its class
    return order[(before * classes + mixed).argsort()]


def encode(pixels: Tensor) -> str:
    """Return uint8 `3,H,W` as a PNG in base64."""
    return base64.b64encode(to_png(pixels)).decode()


def _cloned(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _mean(correct: Tensor) -> float:
    return int(correct.sum()) / len(correct)
