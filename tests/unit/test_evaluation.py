"""The evaluation of weights, against sums done by hand and a plain pass."""

import base64
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cnn_demo import cli
from cnn_demo.answers import evaluation
from cnn_demo.answers.inference import Classifier, classify
from cnn_demo.errors import RunError
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.pictures.photo import to_input
from cnn_demo.runs.checkpoints import find_checkpoint, read_checkpoint
from cnn_demo.runs.folder import Run
from cnn_demo.sharing import export
from cnn_demo.training import scoring


def quiet(text: str, share: float) -> None:
    assert 0 <= share <= 1, text


@pytest.fixture(scope="module")
def result(shipped: Path, tiny: Dataset) -> dict:
    return evaluation.evaluate(export.half_size(Run(shipped)), tiny, quiet)


def test_the_calibration_error_of_sums_done_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 0, 1])
    # bins: 0.9 twice, half right: gap 0.4 x 2; 0.6 right: 0.4; 0.7 right: 0.3 -> (0.8 + 0.4 + 0.3) / 4
    assert scoring.calibration_error(scoring.reliability(scores, labels)) == pytest.approx(0.375)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=generator) * 3
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator)[:, 0]
    assert scoring.fit_temperature(logits, labels) == pytest.approx(true, rel=0.03)


def test_it_agrees_with_a_plain_pass_over_the_test_images(shipped: Path, tiny: Dataset, result: dict) -> None:
    checkpoint = export.half_size(Run(shipped))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny.mean, tiny.std))
    with torch.no_grad():
        network = checkpoint.network()
        logits = network((tiny.test_pictures / 255 - mean) / std)
        mirrored = network((tiny.test_pictures / 255 - mean).flip(3) / std)
    right = (logits.argmax(1) == tiny.test_labels).float().mean().item()
    assert result["accuracy"] == pytest.approx(right) and result["pictures"] == 40
    both = ((logits + mirrored).argmax(1) == tiny.test_labels).float().mean().item()
    assert result["accuracy_flip"] == pytest.approx(both)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, tiny.test_labels).item(), rel=1e-3)
    table = torch.tensor(result["confusion"])
    assert table.sum() == 40 and table.trace() == round(right * 40)
    assert table.sum(1).tolist() == torch.bincount(tiny.test_labels, minlength=10).tolist()


def test_reliability_bins_hold_every_image(result: dict) -> None:
    assert len(result["reliability"]) == 15 and sum(count for count, *_ in result["reliability"]) == 40
    assert sum(count * accuracy for count, _, accuracy in result["reliability"]) == pytest.approx(
        40 * result["accuracy"], abs=1e-3
    )
    gaps = sum(count * abs(score - accuracy) for count, score, accuracy in result["reliability"]) / 40
    assert result["ece_after"] == pytest.approx(gaps)


def test_mistakes_are_the_most_confident_wrong_answers(tiny: Dataset, result: dict) -> None:
    mistakes = result["mistakes"]
    wrong = result["pictures"] - sum(row[i] for i, row in enumerate(result["confusion"]))
    assert len(mistakes) == min(12, wrong) > 0
    assert [m["score"] for m in mistakes] == sorted((m["score"] for m in mistakes), reverse=True)
    for mistake in mistakes:
        assert mistake["label"] != mistake["answer"]
        assert tiny.classes[tiny.test_labels[mistake["index"]]] == mistake["label"]
        picture = Image.open(io.BytesIO(base64.b64decode(mistake["png"])))
        assert picture.tobytes() == tiny.test_pictures[mistake["index"]].permute(1, 2, 0).numpy().tobytes()


def test_an_export_has_the_calibration_and_half_the_bytes(shipped: Path, tmp_path: Path, result: dict) -> None:
    run = Run(shipped)
    before = run.evaluation()
    run.write_json("evaluation.json", result)
    try:
        export.export(run, tmp_path / "out", "ada/net")
        again = tmp_path / "again"
        export.export(run, again, "ada/net")
    finally:
        run.write_json("evaluation.json", before)
    folder = tmp_path / "out"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}
    size = (folder / "model.safetensors").stat().st_size
    assert size < 0.52 * (shipped / "model.safetensors").stat().st_size
    checkpoint, full = (read_checkpoint(f / "model.safetensors", "x") for f in (folder, shipped))
    assert checkpoint.temperature == result["temperature"] and checkpoint.limits == tuple(result["limits"])
    for name, value in full.weights.items():
        torch.testing.assert_close(checkpoint.weights[name], value, rtol=1e-3, atol=1e-4)
    assert json.loads((folder / "evaluation.json").read_text()) == result


def test_scores_of_an_evaluated_run_are_calibrated(shipped: Path, tmp_path: Path, result: dict) -> None:
    run = Run(Path(shutil.copytree(shipped, tmp_path / "resnet50")))
    classifier, pixels = Classifier(tmp_path), to_input(Image.effect_noise((64, 64), 80).convert("RGB"))
    run.write_json("evaluation.json", result | {"temperature": 1.0})
    plain = {p.label: p.score for p in classifier.answer("resnet50", pixels)[1].predictions}
    run.write_json("evaluation.json", result | {"temperature": 2.0})
    for checkpoint, answer in (
        classifier.answer("resnet50", pixels),
        (found := find_checkpoint(tmp_path, "resnet50"), classify(found.network(), found, pixels)),
    ):
        assert checkpoint.temperature == 2.0
        total = sum(score**0.5 for score in plain.values())
        for prediction in answer.predictions:
            assert prediction.score == pytest.approx(plain[prediction.label] ** 0.5 / total, abs=1e-4)


DAMAGED = [
    *({"classes": value} for value in (None, [1, 2], ["a"])),
    *({"confusion": value} for value in ([], [[1]], [["<b>"] * 10] * 10, [[1e999] * 10] * 10)),
    *({"reliability": value} for value in ([[1, 2]], 3)),
    *({"mistakes": value} for value in ([{}], None)),
    *({name: "many"} for name in ("accuracy", "pictures", "ece_after", "temperature")),
]


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_a_damaged_evaluation_is_named(shipped: Path, tmp_path: Path, result: dict, damage: dict) -> None:
    run = Run(Path(shutil.copytree(shipped, tmp_path / "resnet50")))
    assert scoring.is_evaluation(result) and run.evaluation()
    run.write_json("evaluation.json", result | damage)
    with pytest.raises(RunError, match="make it again: python -m cnn_demo evaluate resnet50"):
        run.evaluation()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "text", "3", "[" * 100_000])
def test_what_is_no_evaluation_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(RunError, match="is damaged"):
        Run(tmp_path).evaluation()


def test_a_run_in_training_is_not_evaluated(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Path(shutil.copytree(shipped, tmp_path / "resnet50")))
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(tmp_path))
    before = run.evaluation()
    with run.locked():
        assert cli.main(["evaluate", "resnet50"]) == 2
    assert "is locked: another process trains it" in capsys.readouterr().err and run.evaluation() == before


def test_weights_too_large_for_half_are_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = read_checkpoint(shipped / "model.safetensors", "x")
    huge = {name: value * 1e6 if value.dim() > 1 else value for name, value in full.weights.items()}
    monkeypatch.setattr(export, "read_checkpoint", lambda file, name: replace(full, weights=huge))
    with pytest.raises(RunError, match="too large"):
        export.half_size(Run(shipped))
