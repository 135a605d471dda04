"""Untrusted weights: what is refused, and in which words."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cnn_demo.errors import CheckpointError, ConfigError
from cnn_demo.networks.models import build
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import checkpoints, folder
from cnn_demo.training.config import RunConfig

METADATA = {
    "model": "resnet50",
    "dataset": "cifar10",
    "classes": json.dumps([f"class {i}" for i in range(10)]),
    "mean": "[0.5, 0.5, 0.5]",
    "std": "[0.25, 0.25, 0.25]",
    "step": "7",
    "validation_accuracy": "0.5",
}


def write(file: Path, weights: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file({k: v.contiguous() for k, v in weights.items()}, file, METADATA | metadata)
    return file


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return build("resnet50", 10, 0).state_dict()


def test_a_good_file_is_read_in_every_number_format(tmp_path: Path, weights: dict) -> None:
    x = torch.randn(2, 3, 32, 32)
    expected = build("resnet50", 10, 0).eval()(x)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    for name, content in (("a", weights), ("b", halves)):
        found = checkpoints.find_checkpoint(tmp_path, str(write(tmp_path / name, content)))
        assert (found.model, found.step, found.validation_accuracy) == ("resnet50", 7, 0.5)
        network = found.network()
        assert not network.training and all(p.dtype == torch.float32 for p in network.parameters())
        torch.testing.assert_close(network(x), expected, rtol=0.02, atol=0.02)


def test_a_checkpoint_is_found_by_name_folder_and_file(tmp_path: Path, weights: dict) -> None:
    (tmp_path / "root" / "vgg16").mkdir(parents=True)
    (tmp_path / "root" / "resnet50-x").mkdir()
    file = write(tmp_path / "root" / "resnet50-x" / "model.safetensors", weights)
    write(tmp_path / "root" / "vgg16" / "model.safetensors", weights)
    for name in ("resnet50-x", str(file), str(file.parent)):
        assert checkpoints.find_checkpoint(tmp_path / "root", name).name == name
    assert checkpoints.checkpoint_names(tmp_path / "root") == ["vgg16", "resnet50-x"]
    with pytest.raises(CheckpointError, match=r"no checkpoint 'resnet'.*(vgg16)"):
        checkpoints.find_checkpoint(tmp_path / "root", "resnet")


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('unpickled')",)


def pickled(file: Path, weights: dict) -> None:
    file.write_bytes(pickle.dumps(Evil()))


def torch_saved(file: Path, weights: dict) -> None:
    torch.save({"x": Evil()}, file)


def cut(file: Path, weights: dict) -> None:
    write(file, weights)
    file.write_bytes(file.read_bytes()[:-1000])


def nothing(file: Path, weights: dict) -> None:
    file.touch()


def text(file: Path, weights: dict) -> None:
    file.write_text("hello, I am not a tensor file at all")


def huge(file: Path, weights: dict) -> None:
    with file.open("wb") as opened:
        opened.truncate(checkpoints.CHECKPOINT_BYTES + 1)


def without_metadata(file: Path, weights: dict) -> None:
    save_file({k: v.contiguous() for k, v in weights.items()}, file)


def other_shapes(file: Path, weights: dict) -> None:
    write(file, weights, model="vgg16")


def many_classes(file: Path, weights: dict) -> None:
    write(file, weights, classes=json.dumps(["x"] * 100_000))


def no_such_model(file: Path, weights: dict) -> None:
    write(file, weights, model="__import__")


def integers(file: Path, weights: dict) -> None:
    write(file, {k: v.to(torch.int64) for k, v in weights.items()})


def bad_mean(file: Path, weights: dict) -> None:
    write(file, weights, mean='["a", 0, 0]')


def deep_classes(file: Path, weights: dict) -> None:
    write(file, weights, classes="[" * 100_000)


def no_limits(file: Path, weights: dict) -> None:
    write(file, weights, limits="[]")


def text_mean(file: Path, weights: dict) -> None:
    write(file, weights, mean='["0.5", "0.5", "0.5"]')


def not_numbers(file: Path, weights: dict) -> None:
    write(file, {k: v * torch.nan if v.is_floating_point() else v for k, v in weights.items()})


def infinite_accuracy(file: Path, weights: dict) -> None:
    write(file, weights, validation_accuracy="NaN")


def accuracy_above_one(file: Path, weights: dict) -> None:
    write(file, weights, validation_accuracy="1.5")


def endless_step(file: Path, weights: dict) -> None:
    write(file, weights, step="9" * 4200)


def nan_limits(file: Path, weights: dict) -> None:
    write(file, weights, limits="[NaN, 0.5]")


def zero_std(file: Path, weights: dict) -> None:
    write(file, weights, std="[0, 0, 0]")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pickled, "looks like a pickle"),
        (torch_saved, "looks like a pickle"),
        (cut, "not a whole safetensors file"),
        (nothing, "not a whole safetensors file"),
        (text, "not a whole safetensors file"),
        (huge, "larger than any checkpoint"),
        (without_metadata, "does not say what it is"),
        (other_shapes, "its tensors are not those of one"),
        (many_classes, "does not say what it is"),
        (no_such_model, "does not say what it is"),
        (integers, "I64; F32, F16, BF16 is allowed"),
        (deep_classes, "does not say what it is"),
        (zero_std, "does not say what it is"),
        (bad_mean, "does not say what it is"),
        (infinite_accuracy, "mean, std\\): validation_accuracy"),
        (accuracy_above_one, "mean, std\\): validation_accuracy"),
        (endless_step, "mean, std\\): step"),
        (nan_limits, "mean, std\\): limits"),
        (no_limits, "does not say what it is"),
        (text_mean, "does not say what it is"),
        (not_numbers, "weights that are not finite numbers"),
    ],
)
def test_a_hostile_or_damaged_file_is_one_error(tmp_path: Path, weights: dict, make: object, words: str) -> None:
    make(tmp_path / "model.safetensors", weights)
    with pytest.raises(CheckpointError, match=words) as caught:
        checkpoints.find_checkpoint(tmp_path, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_run_cannot_start_from_another_network_or_other_classes(tmp_path: Path, weights: dict, tiny: Dataset) -> None:
    write(tmp_path / "a.safetensors", weights)
    for model, words in (("vgg16", "is a resnet50, but the run trains a vgg16"), ("resnet50", "knows other classes")):
        config = RunConfig(model=model, dataset="shapes", epochs=1, validation_pictures=0, batch_size=9)
        config = dataclasses.replace(config, start_from=str(tmp_path / "a.safetensors"))
        with pytest.raises(CheckpointError, match=words):
            folder.create(tmp_path / "runs", config)
    assert not (tmp_path / "runs").exists()


def test_errors_do_not_name_other_runs(tmp_path: Path, shipped: Path) -> None:
    for name in ("resnet50", "resnet50-of-someone"):
        shutil.copytree(shipped, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"Give a name \(resnet50\)") as caught:
        checkpoints.find_checkpoint(tmp_path, "gone")
    assert "someone" not in str(caught.value)


def test_learned_images_are_not_held_out(tmp_path: Path, shipped: Path) -> None:
    """The shipped run of the tests held out 20 images."""
    shutil.copytree(shipped, tmp_path / "resnet50")
    config = RunConfig(model="resnet50", dataset="shapes", epochs=1, start_from="resnet50", validation_pictures=21)
    with pytest.raises(ConfigError, match="Give 20 or fewer") as caught:
        folder.create(tmp_path, config)
    assert caught.value.field == "validation_pictures"
    folder.create(tmp_path, dataclasses.replace(config, validation_pictures=20))


def test_a_written_checkpoint_is_read_as_it_was(tmp_path: Path, weights: dict) -> None:
    written = checkpoints.Checkpoint(
        name="x",
        model="resnet50",
        dataset="shapes",
        classes=tuple("abcdefghij"),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        step=7,
        validation_accuracy=0.25,
        limits=(-1.5, 0.4),
        temperature=1.25,
        held_out=20,
        weights=weights,
    )
    (tmp_path / "evaluation.json").write_text(json.dumps({"temperature": 3.0, "limits": None}))
    checkpoints.write_checkpoint(tmp_path / "model.safetensors", written)
    assert checkpoints.pack_checkpoint(written) == (tmp_path / "model.safetensors").read_bytes()  # the same each time
    read = checkpoints.read_checkpoint(tmp_path / "model.safetensors", "x")
    assert all(torch.equal(read.weights[name], value) for name, value in weights.items())
    fields = [field.name for field in dataclasses.fields(checkpoints.Checkpoint) if field.name != "weights"]
    assert [getattr(read, name) for name in fields] == [getattr(written, name) for name in fields]
    assert checkpoints.read_checkpoint(tmp_path / "model.safetensors", "x", with_weights=False).weights == {}
