"""RunConfig: its limits in words, and the round trip through the command line and JSON."""

import dataclasses
import json
import pickle
import shlex

import pytest

from cnn_demo.cli import build_parser
from cnn_demo.errors import ConfigError
from cnn_demo.training import config
from cnn_demo.training.config import RunConfig, from_dict, override, preset


def parse(command: str) -> RunConfig:
    """Return the configuration that a command line means."""
    arguments = build_parser().parse_args(shlex.split(command)[3:])
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(RunConfig)[1:]}
    changes = {name: value for name, value in given.items() if value is not None}
    return override(preset(arguments.preset or "quick", arguments.model), changes)


@pytest.mark.parametrize(
    "made",
    [
        RunConfig(model="vgg16", seconds=60),
        RunConfig(model="resnet50", epochs=3, batch_size=64, optimizer="sgd", learning_rate=0.05, seed=7),
        RunConfig(model="vgg16", seconds=12.5, optimizer="adamw", learning_rate=0.001, precision="float32"),
        RunConfig(model="vgg16", epochs=1, optimizer="adamw"),  # with Muon's rate, which is not its usual one
        RunConfig(model="vgg16", epochs=1, start_from="vgg16", validation_pictures=5000),
        RunConfig(model="vgg16", epochs=1, validation_pictures=0),
        RunConfig(model="resnet50_full", epochs=1, start_from="a b'c", label_smoothing=0, augmentation="none"),
        override(preset("best", "vgg16"), {}),
        override(preset("course", "resnet50"), {}),
    ],
)
def test_a_configuration_survives_command_line_json_and_pickle(made: RunConfig) -> None:
    assert parse(made.to_command()) == made
    assert from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model", "vgg19", "vgg16, resnet50"),
        ("dataset", "mnist", "cifar10, shapes"),
        ("optimizer", "lion", "sgd, adamw, muon"),
        ("schedule", "step", "one_cycle"),
        ("epochs", 0, "from 1 to 1,000"),
        ("epochs", "2.5", "a whole number"),
        ("epochs", True, "a whole number"),
        ("seconds", -3, "from 1 to 86,400"),
        ("seconds", "soon", "a number"),
        ("seconds", float("nan"), "a number"),
        ("batch_size", 1e9, "from 2 to 4,096"),
        ("batch_size", "1" * 400, "from 2 to 4,096"),
        ("learning_rate", 0, "from 1e-06 to 10"),
        ("learning_rate", float("inf"), "from 1e-06 to 10"),
        ("start_from", "", "leave it out"),
        ("start_from", 3, "leave it out"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(field: str, value: object, words: str) -> None:
    values = {"model": "vgg16", "epochs": 1, field: value}
    if field == "seconds":
        del values["epochs"]
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert words in str(caught.value)
    assert caught.value.field == field and "--" not in str(caught.value)
    label = next(f.metadata["label"] for f in dataclasses.fields(RunConfig) if f.name == field)
    assert str(caught.value).startswith(f"{label}: ")


@pytest.mark.parametrize("values", [{"epochs": 1, "seconds": 1.0}, {}])
def test_a_run_has_exactly_one_budget(values: dict) -> None:
    with pytest.raises(ConfigError, match="either epochs or seconds"):
        RunConfig(model="vgg16", **values)


@pytest.mark.parametrize("values", [[], {"seconds": 1}, {"model": "vgg16", "seconds": 1, "__class__": "x"}])
def test_foreign_json_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="JSON object with 'model'"):
        from_dict(values)


def test_a_new_budget_replaces_the_old_one_and_an_optimizer_brings_its_rate() -> None:
    quick = preset("quick", "vgg16")
    assert override(quick, {"epochs": 2}).seconds is None
    assert override(quick, {"optimizer": "adamw"}).learning_rate == config.LEARNING_RATES["adamw"]
    assert override(quick, {"optimizer": "adamw", "learning_rate": 0.5}).learning_rate == 0.5
    assert override({"model": "vgg16"}, {}).seconds == 60


def test_the_course_preset_is_what_the_course_did() -> None:
    course = override(preset("course", "vgg16"), {})
    assert (course.epochs, course.batch_size, 50_000 // course.batch_size) == (1, 100, 500)
    assert (course.optimizer, course.weight_decay, course.schedule) == ("adamw", 0, "constant")
    assert (course.augmentation, course.validation_pictures, course.start_from) == ("none", 0, "vgg16")


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match="quick, best, course"):
        preset("fast", "vgg16")


def test_5000_images_are_held_out_where_nothing_else_is_given() -> None:
    config = RunConfig(model="vgg16", epochs=1)
    assert config.held_out == 5000 and config.validation_pictures is None
    assert dataclasses.replace(config, validation_pictures=5000).to_command() == config.to_command()
    assert dataclasses.replace(config, validation_pictures=7).held_out == 7


def test_every_field_has_what_a_form_needs() -> None:
    for field in dataclasses.fields(RunConfig):
        assert field.metadata["label"] and field.metadata["help"], field.name
        assert field.metadata["group"] in ("", *config.GROUPS), field.name
        if field.name != "model":
            assert field.metadata["group"], field.name
    assert set(config.PRESETS) == {"quick", "best", "course"}
    assert all(preset(name, "vgg16")["model"] == "vgg16" for name in config.PRESETS)


def test_the_quick_preset_is_another_one_on_a_gpu() -> None:
    on_cpu, on_gpu = (override({}, preset("quick", "vgg16", gpu)) for gpu in (False, True))
    assert on_cpu == RunConfig(model="vgg16", seconds=60.0) and on_gpu.seconds == 60 and on_gpu.batch_size == 512
    assert "--batch-size 512 --learning-rate 0.07" in on_gpu.to_command()
    assert preset("best", "vgg16", True) == preset("best", "vgg16")
