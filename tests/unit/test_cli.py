"""The command line as a person or a script uses it: words, exit codes, JSON, Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cnn_demo import cli, settings
from cnn_demo.pictures import shapes
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder
from cnn_demo.training import device, distributed
from tests import bench, bench_gpu

ROOT = Path(__file__).parents[2]
TRAIN_KEYS = {"run_id", "model", "dataset", "reason", "epochs", "steps", "seconds", "images_per_second"}
TRAIN_KEYS |= {"validation_accuracy", "test_accuracy", "test_pictures", "checkpoint"}


@pytest.fixture
def root(tmp_path: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoints folder of its own, no network, and 160 images of shapes."""
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(tmp_path / "runs"))
    monkeypatch.setenv("CNN_DEMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CNN_DEMO_TORONTO", "http://127.0.0.1:9")
    monkeypatch.delenv("CNN_DEMO_DATA", raising=False)
    monkeypatch.setattr(shapes, "draw", lambda: tiny)
    monkeypatch.setattr(device, "keep_freed_memory", lambda keep=True: None)
    return tmp_path / "runs"


SHORT = ["--batch-size", "20", "--validation-pictures", "20", "--epochs", "1"]


def last_json(capsys: pytest.CaptureFixture[str]) -> object:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train_then_classify_then_list(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "resnet50", "--dataset", "shapes", *SHORT, "--json"]) == 0
    result = last_json(capsys)
    assert set(result) == TRAIN_KEYS
    assert (result["model"], result["dataset"], result["reason"]) == ("resnet50", "shapes", "finished")
    assert (result["epochs"], result["steps"]) == (1, 5) and 0 <= result["test_accuracy"] <= 1
    assert Path(result["checkpoint"]).is_file()

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (50, 40), "red").save(tmp_path / "pictures" / "b.png")
    Image.new("RGB", (50, 40), "blue").save(tmp_path / "pictures" / "a.JPG")
    (tmp_path / "pictures" / "note.txt").touch()
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    files = [str(tmp_path / "bad.png"), str(tmp_path / "pictures"), str(tmp_path / "empty")]
    assert cli.main(["classify", *files, "--checkpoint", result["run_id"], "--json"]) == 0
    rows = last_json(capsys)
    assert [Path(row["file"]).name for row in rows] == ["bad.png", "a.JPG", "b.png", "empty"]
    assert "holds no pictures" in rows[3]["error"]
    assert list(rows[0]) == ["file", "checkpoint", "predictions", "error"]
    assert "is not a picture" in rows[0]["error"] and rows[0]["predictions"] == []
    assert rows[1]["error"] is None and len(rows[1]["predictions"]) == 10
    assert rows[1]["predictions"][0].keys() == {"label", "score"}
    assert cli.main(["classify", *files]) == 0  # without a name: the first there is
    assert "which knows only: disc, ring" in capsys.readouterr().err
    assert cli.main(["classify", files[0]]) == 2

    assert cli.main(["runs"]) == 0
    assert result["run_id"] in capsys.readouterr().out
    assert cli.main(["runs", "--json"]) == 0
    assert last_json(capsys)[0]["state"] == "finished"


def test_without_network_a_run_trains_on_shapes_and_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "resnet50", *SHORT, "--json"]) == 0
    out = capsys.readouterr()
    assert "could not be downloaded" in out.err and "shapes instead" in out.err
    assert json.loads(out.out.splitlines()[-1])["dataset"] == "shapes"
    assert cli.main(["train", "resnet50", "--dataset", "cifar10", *SHORT]) == 1  # asked for by name: not replaced
    assert cli.main(["train", "resnet50", *SHORT, "--data", "nowhere"]) == 2


def test_one_flag_changes_one_field(root: Path) -> None:
    for extra in ([], ["--schedule", "cosine"]):
        assert cli.main(["train", "resnet50", "--dataset", "shapes", *SHORT, *extra]) == 0
    a, b = (run.config.to_dict() for run in folder.list_runs(root))
    assert {key for key in a if a[key] != b[key]} == {"schedule"}


ON_JOBS = ["train", "vgg16", "--on", "jobs", "--space", "ada/cnn", "--push", "ada/net"]
BAD = [
    ["train", "vgg19"],
    ["train", "vgg16", "--dataset", "mnist"],
    ["train", "vgg16", "--preset", "fast"],
    ["train", "vgg16", "--optimizer", "lion"],
    ["train", "vgg16", "--epochs", "0"],
    ["train", "vgg16", "--epochs", "-1"],
    ["train", "vgg16", "--epochs", "many"],
    ["train", "vgg16", "--epochs", "1e99"],
    ["train", "vgg16", "--seconds", "0"],
    ["train", "vgg16", "--seconds", "nan"],
    ["train", "vgg16", "--seconds", "1e9"],
    ["train", "vgg16", "--epochs", "1", "--seconds", "9"],
    ["train", "vgg16", "--batch-size", "0"],
    ["train", "vgg16", "--batch-size", "99999999"],
    ["train", "vgg16", "--learning-rate", "-0.1"],
    ["train", "vgg16", "--learning-rate", "fast"],
    ["train", "vgg16", "--dataset", "shapes", "--start-from", "nothing"],
    ["train", "vgg16", "--dataset", "shapes", "--batch-size", "4096", "--validation-pictures", "9000"],
    ["train"],
    ["train", "vgg16", "--colour", "red"],
    ["fly"],
    ["train", "vgg16", "--dataset", "shapes", "--start-from", __file__],
    ["train", "vgg16", "--dataset", "shapes", "--start-from", "x" * 300],
    ["continue", "../x"],
    ["continue", "nothing"],
    ["classify", "x.png"],
    ["classify", "x.png", "--checkpoint", "../../etc/passwd"],
    ["stages", "vgg19"],
    ["stages", "vgg16", "--input-size", "16"],
    ["stages", "vgg16", "--input-size", "big"],
    ["stages", "resnet50", "--input-size", "99999"],
    [*ON_JOBS, "--data", "."],
    [*ON_JOBS, "--start-from", "my-run"],
    [*ON_JOBS, "--start-from", __file__],
    [*ON_JOBS, "--preset", "course"],  # without the shipped checkpoint
    [*ON_JOBS, "--dataset", "shapes", "--batch-size", "4096", "--validation-pictures", "9000"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_error_and_exit_2(
    root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as left:  # argparse
        code = left.code
    err = capsys.readouterr().err.splitlines()
    assert code == 2 and err[-1].startswith("cnn_demo: ") and err[-1].endswith("."), err
    assert not any("Traceback" in line for line in err)
    assert not root.exists()  # nothing was started


def test_without_torchrun_a_number_of_processes_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "resnet50", "--dataset", "shapes", *SHORT]) == 2
    assert "WORLD_SIZE is 2: start the program by torchrun" in capsys.readouterr().err and not root.exists()
    started = subprocess.run([sys.executable, ROOT / "app.py"], capture_output=True, text=True)
    assert started.returncode == 2 and started.stderr.startswith("cnn_demo: The page is one process")
    assert len(started.stderr.splitlines()) == 1


def test_a_batch_for_other_processes_leaves_no_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "joined", lambda rank: contextlib.nullcontext(distributed.Group(0, 3)))
    assert cli.main(["train", "resnet50", "--dataset", "shapes", *SHORT]) == 2
    assert "Batch size: for 3 processes give a multiple, not 20." in capsys.readouterr().err
    assert not root.exists()


def test_an_unwritable_folder_is_exit_2(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(tmp_path / "file" / "runs"))
    assert cli.main(["train", "resnet50", "--dataset", "shapes", *SHORT]) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_stages_prints_sums_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stages", "vgg16"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    for column in (-1, -2, -3):
        numbers = [float(row[column].replace(",", "")) for row in rows]
        assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.05)
    assert cli.main(["stages", "resnet50", "--input-size", "224", "--json"]) == 0
    table = last_json(capsys)
    assert list(table) == ["model", "input", "parameters", "macs", "stages"] and table["input"] == [3, 224, 224]
    keys = [
        "name",
        "description",
        "layers",
        "output",
        "stride",
        "receptive_field",
        "parameters",
        "macs",
        "activation_bytes",
    ]
    assert all(list(stage) == keys for stage in table["stages"])


def test_bench_of_a_gpu_goes_on_where_it_was(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU, where it measures the same."""
    chosen: list[dict[str, Any]] = [
        {"part": "smoke", "model": "resnet50", "optimizer": "sgd", "precision": "float32", "batch_size": 50},
        {"part": "grid", "model": "resnet50", "batch_size": 10, "graph": True, "cudnn_benchmark": False},
        *({"part": "records", "recipe": "83.2", "seed": seed} for seed in (0, 1)),
    ]
    assert len([*bench_gpu.cells()]) == len({json.dumps(cell) for cell in bench_gpu.cells()}) == 101
    monkeypatch.setattr(bench_gpu, "cells", lambda: iter(chosen))
    monkeypatch.setattr(bench_gpu, "RECIPES", {"83.2": ("resnet50", 0.832, {"epochs": 1, "batch_size": 50})})
    output, done = tmp_path / "cells", [0]
    for count in (2, 4):
        monkeypatch.setattr(bench_gpu, "cells", lambda count=count: iter(chosen[:count]))
        bench_gpu.measure(tiny, torch.device("cpu"), output, None, seconds=0.5)
        done.append(len(output.read_text().splitlines()))
    assert done == [0, 2, 4]
    smoke, grid, *records = (json.loads(line) for line in output.read_text().splitlines())
    assert smoke["reason"] == "finished" and smoke["step"] == 2 and grid["images_per_second"] > 0
    assert all(0 <= one["accuracy"] <= 1 and one["seconds"] > 0 for one in records)
    assert next(iter(bench_gpu.summary(output))).startswith("resnet50 to 83.2%, 2 seeds: ")


def test_bench_ends_with_one_line_of_json(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shapes.draw()
    monkeypatch.setattr(bench, "load", lambda *_: images)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "ROUND_SECONDS", 0.5)
    monkeypatch.setattr(bench, "BATCH_SIZE", 16)
    monkeypatch.setattr(sys, "argv", ["bench", "resnet50"])
    bench.main()
    result = last_json(capsys)
    assert result["ratio"] == pytest.approx(
        result["images_per_second"] / result["baseline_images_per_second"], abs=0.01
    )
    assert result["model"] == "resnet50" and result["torch"] == torch.__version__


def test_help_needs_no_torch() -> None:
    for arguments in (["--help"], ["train", "--help"]):
        begun = time.monotonic()
        found = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "cnn_demo", *arguments], capture_output=True, cwd=ROOT
        )
        assert time.monotonic() - begun < 0.5 and found.returncode == 0
        assert b"torch" not in found.stderr and b"gradio" not in found.stderr
    assert b"--learning-rate" in found.stdout


def test_stages_takes_little_longer_than_importing_torch() -> None:
    """Under 2 s in all where the import takes its usual 1.1 s; a shared machine takes longer for both."""
    importing = min(timed("-c", "import torch") for _ in range(2))
    assert min(timed("-m", "cnn_demo", "stages", "resnet50") for _ in range(2)) < importing + 0.6


def timed(*arguments: str) -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
    return time.monotonic() - begun


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CNN_DEMO_CHECKPOINTS": str(root), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "cnn_demo", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"never printed {words!r}")


def test_ctrl_c_stops_and_saves_and_continue_resumes(tmp_path: Path) -> None:
    process = start(
        tmp_path, "train", "resnet50", *["--dataset", "shapes", "--epochs", "9", "--batch-size", "64", "--json"]
    )
    while not any(run.history().curve for run in folder.list_runs(tmp_path)):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    wait_for(process, "stopping and saving")
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    result = json.loads(out.splitlines()[-1])
    assert process.returncode == 0 and result["reason"] == "stopped" and result["steps"] > 0
    assert result["test_accuracy"] is None

    process = start(tmp_path, "continue", result["run_id"], "--json")
    wait_for(process, f"from step {result['steps']}")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1])["steps"] >= result["steps"]


def test_a_second_ctrl_c_exits_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def busy(arguments: object, where: object) -> int:
        with cli.stop_on_interrupt(settings.read_rank()) as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("continued")

    monkeypatch.setattr(cli, "runs", busy)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["runs"]) == 1
    assert "exited at once" in capsys.readouterr().err and signal.getsignal(signal.SIGINT) is before
