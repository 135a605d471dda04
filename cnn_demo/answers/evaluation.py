"""What a checkpoint is worth: accuracy, how honest its scores are, what it confuses, its worst mistakes."""

from __future__ import annotations

import base64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import encode_png

from ..networks.models import Network
from ..pictures.dataset import Dataset, Report, normalise, split
from ..runs.checkpoints import Checkpoint

MISTAKES = 12


def evaluate(checkpoint: Checkpoint, data: Dataset, held_out: int, report: Report) -> dict[str, Any]:
    """Return the evaluation of a checkpoint as JSON-ready values; accuracies, scores and errors 0 to 1, loss in nats.

    The `held_out` validation pictures give the temperature that scores are divided by (Guo et al. 2017,
    arXiv 1706.04599) and the limits beyond which a picture is unusual or an answer unsure (see training.Score). All
    else is measured on the test pictures: accuracy (one view), accuracy_flip (logits of the picture and its mirror
    image averaged), ece (expected calibration error, 15 bins) before and after, confusion (a row for each true class)
    and the mistakes that the network is surest of, with their pictures as PNG in base64.
    """
    network = checkpoint.network()
    temperature, limits = 1.0, None
    if held_out:
        held = split(data.train_labels, held_out)[1]
        logits = logits_of(network, checkpoint, data.train_pictures[held], "validation", report)
        temperature = fit_temperature(logits, data.train_labels[held])
        tops = (logits / temperature).softmax(1).amax(1)
        limits = [(-logits.logsumexp(1)).quantile(0.95).item(), tops.quantile(0.05).item()]

    labels = data.test_labels
    logits = logits_of(network, checkpoint, data.test_pictures, "test", report)
    mirrored = logits_of(network, checkpoint, data.test_pictures.flip(-1), "test, mirrored", report)
    scores = (logits / temperature).softmax(1)
    top, answers = scores.max(1)
    wrong = (answers != labels).nonzero()[:, 0]
    worst = wrong[top[wrong].argsort(descending=True)[:MISTAKES]].tolist()
    classes = len(data.classes)
    confusion = torch.bincount(labels * classes + answers, minlength=classes**2).view(classes, classes)
    return {
        "dataset": data.name,
        "classes": list(data.classes),
        "pictures": len(labels),
        "accuracy": _share(answers == labels),
        "accuracy_flip": _share((logits + mirrored).argmax(1) == labels),
        "loss": F.cross_entropy(logits, labels).item(),
        "validation_pictures": held_out,
        "temperature": temperature,
        "limits": limits,
        "ece_before": calibration_error(logits.softmax(1), labels),
        "ece_after": calibration_error(scores, labels),
        "confusion": confusion.tolist(),
        "mistakes": [
            {
                "index": index,
                "label": data.classes[int(labels[index])],
                "answer": data.classes[int(answers[index])],
                "score": top[index].item(),
                "png": base64.b64encode(bytes(encode_png(data.test_pictures[index]).numpy())).decode(),
            }
            for index in worst
        ],
    }


def logits_of(network: Network, checkpoint: Checkpoint, pictures: Tensor, what: str, report: Report) -> Tensor:
    """Return the logits `N,classes` of uint8 `N,3,32,32`."""
    found = []
    for i, part in enumerate(parts := pictures.split(250)):
        with torch.inference_mode():
            found.append(network(normalise(part, checkpoint.mean, checkpoint.std)))
        report(f"evaluating on the {what} pictures", (i + 1) / len(parts))
    return torch.cat(found)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the divisor of the logits `N,classes` that makes the labels likeliest, 0.25 to 4, to within 1 %."""
    candidates: list[float] = torch.logspace(-2, 2, 400, base=2).tolist()
    losses = [F.cross_entropy(logits / temperature, labels).item() for temperature in candidates]
    return candidates[losses.index(min(losses))]


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error of `N,classes`: how far top scores lie from the share that is right.

    15 bins of equal width, weighted by their pictures (Guo et al. 2017, arXiv 1706.04599).
    """
    top, answers = scores.max(1)
    bins = (top * 15).long().clamp(max=14)
    gaps = torch.zeros(15).index_add(0, bins, top - (answers == labels).float())
    return (gaps.abs().sum() / len(labels)).item()


def _share(right: Tensor) -> float:
    return int(right.sum()) / len(right)
