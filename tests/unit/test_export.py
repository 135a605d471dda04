"""What an exported run contains: the files and the model card."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import yaml

from cnn_demo.networks.stages import measure
from cnn_demo.runs.files import EVALUATION
from cnn_demo.runs.folder import Run
from cnn_demo.sharing import export, hub
from cnn_demo.sharing.card import model_card, seal
from cnn_demo.training.events import Validated, to_dict
from tests.hub_server import HubServer
from tests.sharing import EVALUATED, push

CODE = "https://huggingface.co/spaces/ada/cnn"


@pytest.fixture
def cifar_run(run: Run) -> Run:
    """A run that says it was trained on CIFAR-10."""
    description = json.loads((run.folder / "config.json").read_text())
    description["recipe"]["dataset"] = "cifar10"
    (run.folder / "config.json").write_text(json.dumps(description))
    return Run(run.folder)


def card(run: Run) -> str:
    return model_card(run, run.history(), run.evaluation(), "ada/net")


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_card_shows_results_settings_and_stages(run: Run) -> None:
    text = card(run)
    front = front_matter(text)
    assert {"cnn-demo", "resnet50"} <= set(front["tags"]) and "datasets" not in front  # shapes are not on the Hub
    assert f"**{run.history().finished.test_accuracy:.2%}** (40 images)" in text and run.config.to_command() in text
    for stage in measure("resnet50"):
        assert f"| {stage.name} | " in text and f"| {stage.parameters:,} | {stage.macs:,} |" in text
    assert "# ResNet50-C4 on Shapes" in text
    assert f"The run `{run.id}` finished after 3 epochs, 30 steps" in text


def test_card_shows_the_evaluation(run: Run) -> None:
    run.write_json("evaluation.json", EVALUATED)
    text = card(run)
    assert "| test accuracy | **85.00%** (20 images) |\n| test accuracy with flip averaging | 86.00% |" in text
    assert "2.00% (7.00% before temperature scaling by 2.000, fitted on 20 images)" in text
    assert "| class | a | b |\n| --- | --- | --- |\n| accuracy | 90.0% | 80.0% |" in text
    run.write_json(
        "evaluation.json", EVALUATED | {"accuracy_flip": None, "validation_pictures": 0}
    )  # as measured when a run ends
    assert "flip averaging" not in card(run) and "| expected calibration error | 2.00% |" in card(run)


def test_card_of_a_pulled_run_states_no_result_that_only_a_stranger_claims(
    run: Run, server: HubServer, tmp_path: Path
) -> None:
    push(run, server)
    (run.folder / EVALUATION).unlink()
    pulled = hub.pull(tmp_path / "new", server.url, "ada/net", False)
    for words in ("test accuracy", "best validation accuracy", "finished after"):
        assert words in card(run) and words not in card(pulled)


def test_the_seal_of_a_card_shows_whether_it_was_edited(run: Run) -> None:
    text = seal(card(run))
    assert text.startswith(card(run)) and text == seal(text)
    for edited in (text + "x", text.replace("mit", "other"), "x" + text, card(run), "", text.replace("\n", "\r\n")):
        assert edited != seal(edited)


def test_card_says_how_to_install_and_classify(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CNN_DEMO_CODE", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    classify = "cnn-demo classify my_photo.jpg --checkpoint hf:ada/net\n"
    assert classify in card(run) and "git+" not in card(run) and "with CNN Demo," in card(run)
    monkeypatch.setenv("CNN_DEMO_CODE", CODE)
    assert f"```sh\npip install git+{CODE}\n{classify}```" in card(run) and f"[CNN Demo]({CODE})" in card(run)


def test_card_of_cifar10_has_a_model_index(cifar_run: Run) -> None:
    front = front_matter(card(cifar_run))
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": "uoft-cs/cifar10", "name": "CIFAR-10", "split": "test"}
    (metric,) = result["metrics"]
    accuracy = cifar_run.history().finished.test_accuracy
    assert metric["value"] == pytest.approx(accuracy, abs=1e-4) and "40 images" in metric["name"]
    assert front["datasets"] == ["uoft-cs/cifar10"]


def test_zip_contains_the_same_files(run: Run, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    export.export_zip(run, tmp_path / "z" / f"{run.id}.zip")
    with zipfile.ZipFile(tmp_path / "z" / f"{run.id}.zip") as archive:
        zipped = {name.removeprefix(f"{run.id}/"): archive.read(name) for name in archive.namelist()}
    assert set(zipped) == set(files) == {*export.FILES, EVALUATION}
    assert {name for name in files if zipped[name] != files[name]} == {"README.md"}  # which names the repository
    assert [path.name for path in (tmp_path / "z").iterdir()] == [f"{run.id}.zip"]


def test_history_is_a_csv_table(files: dict[str, bytes]) -> None:
    head, *rows = files["history.csv"].decode().splitlines()
    assert head == "epoch,step,seconds,train_loss,validation_loss,validation_accuracy,best"
    assert [row.split(",")[:2] for row in rows] == [["1", "10"], ["2", "20"], ["3", "30"]]
    assert {row.split(",")[-1] for row in rows} <= {"True", "False"}


def test_a_long_runs_log_is_short_enough_to_be_opened_again(run: Run) -> None:
    lines = run.log.path.read_text().splitlines()
    last = json.loads(lines[-1])["seq"]
    checks = [Validated(seq=last + i, step=i, pictures=10, accuracy=0.5, answers=()) for i in range(1, 12_001)]
    run.log.path.write_text("\n".join([*lines, *(json.dumps(to_dict(check)) for check in checks)]) + "\n")
    log = [json.loads(line) for line in export.files_of(run)["events.jsonl"].splitlines()]
    steps = [event["step"] for event in log if event["kind"] == "Validated"]
    assert len(steps) <= 1000 and steps[-1] == 12_000 and steps == sorted(steps)
