"""Scores for all classes, and honest text for them."""

from dataclasses import replace

import pytest
import torch

from cnn_demo.answers import inference
from cnn_demo.networks.models import build
from cnn_demo.runs.checkpoints import Checkpoint


def test_all_classes_are_scored_most_likely_first() -> None:
    network = build("resnet50", 4, 0)
    checkpoint = Checkpoint(
        name="x",
        model="resnet50",
        dataset="x",
        classes=("a", "b", "c", "d"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        step=0,
        validation_accuracy=None,
        limits=None,
        temperature=2.0,
        held_out=None,
        weights=network.state_dict(),
    )
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    answer = inference.classify(checkpoint.network(), checkpoint, black)
    scores = [p.score for p in answer.predictions]
    assert sorted(p.label for p in answer.predictions) == ["a", "b", "c", "d"]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert not answer.unusual and not answer.unsure  # without measured limits no hint is given
    sharper = inference.classify(checkpoint.network(), replace(checkpoint, temperature=1.0), black)
    assert sharper.predictions[0].score > scores[0]  # twice the temperature, more doubt
    strict = replace(checkpoint, limits=(-1e9, 1.0))
    answer = inference.classify(checkpoint.network(), strict, black)
    assert answer.unusual and answer.unsure


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (1.0, "100 %"),
        (0.9995, "100 %"),
        (0.99949, "99.9 %"),
        (0.9991, "99.9 %"),
        (0.5, "50.0 %"),
        (0.001, "0.1 %"),
        (0.0004, "<0.1 %"),
    ],
)
def test_percentages_are_honest(score: float, text: str) -> None:
    assert inference.percent(score) == text
