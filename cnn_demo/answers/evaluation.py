"""Tests a checkpoint: what a run records at its end, for any weights and with flip averaging."""

from typing import Any

import torch
from torch import Tensor

from ..pictures.dataset import Dataset, Report, normalise, split
from ..runs.checkpoints import Checkpoint
from ..training.scoring import calibrate, evaluation_of


@torch.inference_mode()
def evaluate(checkpoint: Checkpoint, data: Dataset, report: Report) -> dict[str, Any]:
    """Return a checkpoint's evaluation (see scoring.evaluation_of), calibrated on the images it held out, if any."""
    network, held_out, calibration = checkpoint.network(), checkpoint.held_out or 0, None

    def logits_of(pictures: Tensor, which: str) -> Tensor:
        found = []
        for i, part in enumerate(parts := pictures.split(250), start=1):
            found.append(network(normalise(part, checkpoint.mean, checkpoint.std)))
            report(f"evaluating the {which} images", i / len(parts))
        return torch.cat(found)

    if held_out:
        index = split(data.train_labels, held_out)[1]
        calibration = calibrate(logits_of(data.train_pictures[index], "validation"), data.train_labels[index])
    logits = logits_of(data.test_pictures, "test")
    flipped = logits_of(data.test_pictures.flip(-1), "flipped test")
    correct = (logits + flipped).argmax(1) == data.test_labels
    return evaluation_of(data, logits, calibration, held_out, flip_accuracy=int(correct.sum()) / len(correct))
