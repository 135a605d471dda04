"""Steps recorded and replayed, with a stand-in for CUDA graphs: every dispatched call, repeated with the same tensors.

As on a GPU, a replay runs no Python: it knows only the tensors of the recording, and numbers as they were then.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cnn_demo.networks.cpu_convolution import Conv2d
from cnn_demo.pictures.dataset import Dataset, make_dataset
from cnn_demo.training import loop, optimizers, replay
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import Progress
from cnn_demo.training.loop import Loop
from tests.training import run, small

ASKING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique"}  # wait for the device


class Recorder(TorchDispatchMode):
    """Keeps the calls that reach a device, with their very tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ASKING:
            raise AssertionError(f"{function} asks the device for a value")
        result = function(*args, **(kwargs or {}))
        infos = [value.alias_info for value in function._schema.returns]
        if function.namespace == "aten" and not any(info and not info.is_write for info in infos):  # not a view
            in_place = any(infos)
            self.calls.append((function, args, kwargs or {}, [] if in_place else _tensors(result)))
        return result

    def replay(self) -> None:
        for function, args, kwargs, results in self.calls:
            for kept, value in zip(results, _tensors(function(*args, **kwargs)), strict=False):
                kept.copy_(value)


class Kernels(TorchDispatchMode):
    """Counts what a GPU would launch: a call on lists is one where their tensors lie alike, else one for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        is_view = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        if function.namespace == "aten" and not is_view and "empty" not in name and name != "_unsafe_view":
            self.count += max(1, _slow(args)) if "foreach" in name else 1
        return function(*args, **(kwargs or {}))


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


def _slow(args: Any) -> int:
    """Return how many tensors a call on lists takes one by one: those of other types, shapes or strides."""
    lists = [value for value in args if isinstance(value, (list, tuple)) and isinstance(value[0], torch.Tensor)]
    kinds = [[(v.dtype, v.shape, v.stride(), v.is_contiguous()) for v in values] for values in lists]
    return 0 if all(kind == kinds[0] for kind in kinds) and all(v[3] for v in kinds[0]) else len(lists[0])


@pytest.fixture
def few(tiny: Dataset) -> Dataset:
    """80 images to train on, 10 to test on."""
    parts = (tiny.train_pictures[:80], tiny.train_labels[:80], tiny.test_pictures[:10], tiny.test_labels[:10])
    return make_dataset("shapes", "a test", *parts)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Replay steps on the CPU by the stand-in; the recordings, two of each run."""
    recorders: list[Recorder] = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        with Recorder() as recorder:
            function()
        recorders.append(recorder)
        return torch.no_grad()(recorder.replay)

    monkeypatch.setattr(replay, "WARM_UP", 1)
    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr(replay, "can_replay", lambda device, precision: precision != "float16")
    monkeypatch.setattr(loop, "interruptible", lambda loop: contextlib.nullcontext())  # no layer runs Python
    return recorders


def trained(data: Dataset, config: RunConfig, stop_at: int = 99) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Return the last weights and the optimizer's memory of a run that was stopped and continued, and its events."""
    steps: list[int] = []
    usual = Loop.take_step

    def take_step(self: Loop) -> None:
        usual(self)
        steps.append(self.step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "take_step", take_step)
        patch.setattr(loop, "PROGRESS_SECONDS", 0.0)  # an event of each step
        events, snapshots = run(config, data, lambda: len(steps) == stop_at)
        if stop_at < 99:
            steps.append(0)
            more, snapshots = run(config, data, start=snapshots[-1])
            events += more
    timed = {"seconds": 0.0, "images_per_second": 0.0, "seconds_left": None}
    without = [{**dataclasses.asdict(event), **timed} for event in events]
    return snapshots[-1].weights | snapshots[-1].optimizer, without


AUGMENTED = {  # each kind with either network
    ("vgg16", "sgd"): "none",
    ("vgg16", "adamw"): "flip",
    ("vgg16", "muon"): "flip_translate_cutout",
    ("resnet50", "sgd"): "flip_translate_cutout",
    ("resnet50", "adamw"): "none",
    ("resnet50", "muon"): "flip_translate",
}
RATES = {"sgd": 0.01, "adamw": 0.001, "muon": 0.02}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("model", "optimizer"), AUGMENTED)
def test_replayed_steps_are_those_taken_one_by_one(
    model: str, optimizer: str, precision: str, few: Dataset, replayed: list[Recorder]
) -> None:
    """Weights, memory, losses and events, bit for bit, over a stop in mid-epoch."""
    config = small(model=model, optimizer=optimizer, precision=precision, learning_rate=RATES[optimizer], epochs=1)
    config = dataclasses.replace(config, validation_pictures=0 if model == "vgg16" else 20)  # a check before each step
    config = dataclasses.replace(config, augmentation=AUGMENTED[model, optimizer], schedule="one_cycle")
    again, events = trained(few, config, stop_at=3)
    assert len(replayed) == 4  # learn and update, before the stop and after it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Replayed", lambda function: function)
        expected, expected_events = trained(few, config, stop_at=3)
    assert again.keys() == expected.keys() and all(torch.equal(again[name], expected[name]) for name in again)
    assert events == expected_events
    losses = [event["loss"] for event in events if event.get("loss") is not None]
    assert len(set(losses)) == len(losses) >= 6


def test_a_rate_that_is_a_number_is_noticed(
    few: Dataset, replayed: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_rate(built: list[torch.optim.Optimizer], part: float) -> float:
        for group in (group for optimizer in built for group in optimizer.param_groups):
            group["lr"] = group["peak"] * part
        return 0.0

    config = small(epochs=1, schedule="one_cycle")
    expected, _ = trained(few, config)
    monkeypatch.setattr(optimizers, "set_rate", set_rate)
    again, _ = trained(few, config)
    assert not torch.equal(again["stem.conv.weight"], expected["stem.conv.weight"])


def test_losses_are_copied_before_the_next_step_overwrites_them(
    few: Dataset, replayed: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 1e9)  # one event of ten steps

    def reported() -> Progress:
        events, _ = run(small(epochs=1, validation_pictures=0), few)
        return next(event for event in events if isinstance(event, Progress) and event.loss is not None)

    whole = reported()
    assert whole.loss_low < whole.loss_high
    usual = Loop.take_step

    def take_step(self: Loop) -> None:
        usual(self)
        self.on_device[-1] = self.result

    monkeypatch.setattr(Loop, "take_step", take_step)
    last = reported()
    assert last.loss_low == last.loss_high != whole.loss


def test_a_step_that_asks_the_device_is_noticed(
    few: Dataset, replayed: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Loop._update

    def update(self: Loop) -> None:
        usual(self)
        float(self.result[0])

    monkeypatch.setattr(Loop, "_update", update)
    with pytest.raises(AssertionError, match="asks the device"):
        run(small(epochs=1), few)


@pytest.mark.parametrize(("model", "most"), [("vgg16", 420), ("resnet50", 1000)])
def test_a_step_launches_few_kernels(
    model: str, most: int, few: Dataset, replayed: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on the CPU, with the convolutions that a GPU has."""
    kernels = Kernels()

    def plain(self: Conv2d, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._conv_forward(input, self.weight, None if self.training else self.bias)
        return output

    def record(function: Callable[[], None]) -> Callable[[], None]:
        with kernels:
            function()
        return function

    monkeypatch.setattr(Conv2d, "forward", plain)
    monkeypatch.setattr(replay, "record", record)
    run(small(model=model, optimizer="muon", precision="bfloat16", epochs=1), few)
    assert most / 2 < kernels.count <= most, kernels.count
