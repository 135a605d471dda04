"""Tests a checkpoint: what a run records at its end, for any weights and with flip averaging."""

from typing import Any

import torch
from torch import Tensor

from ..networks.models import Network
from ..pictures.dataset import Dataset, Report, normalise, split
from ..runs.checkpoints import Checkpoint
from ..training.scoring import calibrate, evaluation_of


def evaluate(checkpoint: Checkpoint, data: Dataset, report: Report) -> dict[str, Any]:
    """Return a checkpoint's evaluation (see scoring.evaluation_of), calibrated on the images it held out, if any."""
    network, held_out = checkpoint.network(), checkpoint.held_out or 0
    calibration = None
    if held_out:
        index = split(data.train_labels, held_out)[1]
        logits = logits_of(network, checkpoint, data.train_pictures[index], "validation", report)
        calibration = calibrate(logits, data.train_labels[index])
    logits = logits_of(network, checkpoint, data.test_pictures, "test", report)
    flipped = logits_of(network, checkpoint, data.test_pictures.flip(-1), "flipped test", report)
    correct = (logits + flipped).argmax(1) == data.test_labels
    return evaluation_of(data, logits, calibration, held_out, flip_accuracy=int(correct.sum()) / len(correct))


def logits_of(network: Network, checkpoint: Checkpoint, pictures: Tensor, which: str, report: Report) -> Tensor:
    """Return the logits `N,classes` of uint8 `N,3,32,32`."""
    found = []
    for i, part in enumerate(parts := pictures.split(250)):
        with torch.inference_mode():
            found.append(network(normalise(part, checkpoint.mean, checkpoint.std)))
        report(f"evaluating the {which} images", (i + 1) / len(parts))
    return torch.cat(found)
