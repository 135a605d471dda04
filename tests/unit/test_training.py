"""The loop: what it yields and when, exact resume, stopping, divergence, budgets, and the optimizers."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from cnn_demo.errors import ConfigError
from cnn_demo.networks import models
from cnn_demo.networks.models import build
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.training import loop as training
from cnn_demo.training import optimizers
from cnn_demo.training.config import RunConfig
from cnn_demo.training.events import EpochDone, Event, Progress, RunFinished, RunStarted
from cnn_demo.training.loop import Snapshot, keep_freed_memory, train


def never() -> bool:
    return False


def small(**changes: object) -> RunConfig:
    """A run of 2 epochs of 10 steps on the tiny set, in float32."""
    values = {"model": "resnet50", "dataset": "shapes", "epochs": 2, "batch_size": 10, "validation_pictures": 20}
    values |= {"precision": "float32", "optimizer": "sgd", "learning_rate": 0.05}
    return RunConfig(**values | changes)


def copied(snapshot: Snapshot) -> Snapshot:
    """A snapshot that outlives the next event."""

    def clone(tensors: dict | None) -> dict | None:
        return None if tensors is None else {name: value.clone() for name, value in tensors.items()}

    fields = {name: getattr(snapshot, name) for name in Snapshot.__slots__}
    return Snapshot(**fields | {name: clone(fields[name]) for name in ("weights", "optimizer", "best")})


def run(
    config: RunConfig, data: Dataset, stop: Callable[[], bool] = never, start: Snapshot | None = None
) -> tuple[list[Event], list[Snapshot]]:
    """Train to the end; return the events, and copies of the snapshots."""
    network = build(config.model, len(data.classes), config.seed)
    found: list = []
    for item in train(network, data, config, device=torch.device("cpu"), stop=stop, start=start):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        found.append(copied(item) if isinstance(item, Snapshot) else item)
    return [i for i in found if isinstance(i, Event)], [i for i in found if isinstance(i, Snapshot)]


def test_every_snapshot_has_told_its_losses(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed goes on at its last snapshot: what was not told before would be missing in the curve."""
    monkeypatch.setattr(training, "SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 1e9)
    network, told, snapshots = build("resnet50", 10, 0), 0, 0
    for item in train(network, tiny, small(), device=torch.device("cpu"), stop=never):
        if isinstance(item, Progress) and item.loss is not None:
            told = item.step
        if isinstance(item, Snapshot):
            assert item.step == told
            snapshots += 1
    assert snapshots > 20


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(asked: int) -> Callable[[], bool]:
    """Return a `stop` that answers True from the `asked`-th question on."""
    left = iter(range(asked))
    return lambda: next(left, None) is None


def test_the_order_of_events(tiny: Dataset) -> None:
    events, snapshots = run(small(), tiny)
    kinds = [type(e).__name__ for e in events if not isinstance(e, Progress)]
    assert kinds == ["RunStarted", "EpochDone", "EpochDone", "RunFinished"]
    assert [s.step for s in snapshots] == [0, 10, 20]
    started, finished = events[0], events[-1]
    assert isinstance(started, RunStarted) and isinstance(finished, RunFinished)
    assert (started.train_pictures, started.validation_pictures, started.steps_per_epoch) == (100, 20, 10)
    assert (finished.reason, finished.epochs, finished.step, finished.test_pictures) == ("finished", 2, 20, 40)
    assert finished.validation_accuracy == max(e.validation_accuracy for e in events if isinstance(e, EpochDone))
    told = [e for e in events if isinstance(e, Progress) and e.phase == "training" and e.step not in (10, 20)]
    assert all(b.seconds - a.seconds >= training.PROGRESS_SECONDS for a, b in itertools.pairwise(told))
    assert all(e.loss_low <= e.loss <= e.loss_high for e in told)


def test_every_hundredth_step_is_logged_once(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    events, _ = run(small(), tiny)
    logged = [step for e in events if isinstance(e, Progress) for step, _ in e.logged]
    assert logged == [5, 10, 15, 20]


def test_the_same_seed_is_the_same_run(tiny: Dataset) -> None:
    (events_a, a), (events_b, b) = run(small(seed=3), tiny), run(small(seed=3), tiny)
    assert equal(a[-1].weights, b[-1].weights) and equal(a[-1].optimizer, b[-1].optimizer)
    assert events_a[-1].test_loss == events_b[-1].test_loss
    _, other = run(small(seed=4), tiny)
    assert not equal(a[-1].weights, other[-1].weights)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_stopped_anywhere_and_continued_is_never_stopped(tiny: Dataset, optimizer: str) -> None:
    config = small(optimizer=optimizer, augmentation="flip_translate_cutout")
    events, snapshots = run(config, tiny)
    # Timing the evaluation asks 94 times, a step 93 times, an evaluation 47 times: these stops fall into the first
    # validation, into a step of the second epoch, and into the test.
    start, best, stopped_in = None, None, []
    all_events: list[Event] = []
    for asked in (94 + 930 + 20, 94 + 47 + 300, 94 + 7 * 93 + 47 + 20, 10**9):
        part, saved = run(config, tiny, stop_after(asked), start)
        all_events += part
        best = next((s.best for s in reversed(saved) if s.best is not None), best)
        if part[-1].reason == "stopped":
            start = dataclasses.replace(saved[-1], best=best)  # as a run folder keeps it
            stopped_in.append((start.step, start.validated_step))
    assert stopped_in == [(10, 0), (13, 10), (20, 20)] and part[-1].reason == "finished"
    assert equal(snapshots[-1].weights, saved[-1].weights if saved else start.weights)
    assert part[-1].test_loss == events[-1].test_loss
    told = [
        [(e.epoch, e.step, e.train_loss, e.validation_loss, e.best) for e in found if isinstance(e, EpochDone)]
        for found in (all_events, events)
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("asked", [120, 165])
def test_a_stop_in_the_middle_of_a_step_undoes_the_step(tiny: Dataset, asked: int) -> None:
    """Timing the evaluation asks 2 x 47 times, a step once, then 46 times forward and 46 times backward."""
    events, snapshots = run(small(), tiny, stop_after(asked))
    assert events[-1].reason == "stopped" and len(snapshots) == 2
    assert snapshots[1].step == 0 and not snapshots[1].optimizer
    assert equal(snapshots[1].weights, snapshots[0].weights)  # BN's statistics too


def test_stop_is_heard_within_a_quarter_of_a_second(shapes: Dataset) -> None:
    """With a step of VGG16 that takes several times as long; on a slow machine, within a part of that step."""
    keep_freed_memory()  # as whoever trains does
    config = RunConfig(model="vgg16", dataset="shapes", epochs=1, batch_size=128, validation_pictures=0)
    asked_at: list[float] = []

    def stop() -> bool:
        asked_at.append(time.monotonic())
        return len(asked_at) > 200

    for _ in train(build("vgg16", 10, 0), shapes, config, device=torch.device("cpu"), stop=stop):
        asked_at.append(time.monotonic())  # what a consumer takes is not the loop's
    gaps = sorted(b - a for a, b in itertools.pairwise(asked_at))
    steps = 200 / 34  # a step asks once, and at each of 16 layers twice; timing the evaluation at first, too
    assert gaps[-1] < max(0.25, 0.6 * (asked_at[-1] - asked_at[0]) / steps)


def test_divergence_ends_the_run_and_keeps_the_last_good_weights(tiny: Dataset) -> None:
    config = small(optimizer="sgd", learning_rate=10, schedule="constant", epochs=30, model="vgg16")
    events, snapshots = run(config, tiny)
    finished = events[-1]
    assert isinstance(finished, RunFinished) and finished.reason == "diverged"
    assert "learning rate of 10" in finished.message and "sgd" in finished.message
    assert finished.test_accuracy is None
    assert all(value.isfinite().all() for value in snapshots[-1].weights.values())


def test_the_best_weights_are_kept_and_tested_not_the_last(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.9, 0.4, 0.6])
    original = training.Loop.evaluate

    def evaluate(self: training.Loop, phase: str, *rest: object) -> Iterator[Event]:
        score = yield from original(self, phase, *rest)
        if phase == "validating":
            return training.Score(loss=1.0, accuracy=1 - next(losses), pictures=score.pictures, limits=(0, 1))
        return score

    monkeypatch.setattr(training.Loop, "evaluate", evaluate)
    network = build("resnet50", 10, 0)
    items = []
    for item in train(network, tiny, small(epochs=3), device=torch.device("cpu"), stop=never):
        items.append(copied(item) if isinstance(item, Snapshot) else item)
    saved = [item for item in items if isinstance(item, Snapshot)]
    assert [(s.step, s.best_step, s.best is not None) for s in saved[1:]] == [
        (10, 10, True),
        (20, 20, True),
        (30, 20, False),
    ]
    assert [e.best for e in items if isinstance(e, EpochDone)] == [True, True, False]
    assert (items[-1].best_step, items[-1].validation_accuracy) == (20, 0.6)
    assert equal({k: v.clone() for k, v in network.state_dict().items()}, saved[2].best)


def test_the_test_set_is_looked_at_once_at_the_end(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    original = training.Loop.evaluate

    def evaluate(self: training.Loop, phase: str, pictures: torch.Tensor, *rest: object) -> Iterator[Event]:
        looks.append((phase, self.step, pictures.data_ptr() == self.data.test_pictures.data_ptr()))
        return (yield from original(self, phase, pictures, *rest))

    monkeypatch.setattr(training.Loop, "evaluate", evaluate)
    run(small(), tiny)
    assert looks == [("validating", 10, False), ("validating", 20, False), ("testing", 20, True)]


def test_with_nothing_held_out_the_last_weights_are_kept(tiny: Dataset) -> None:
    events, snapshots = run(small(validation_pictures=0), tiny)
    assert events[-1].validation_accuracy is None and events[-1].best_step == events[-1].step == 24
    assert equal(snapshots[-1].best, snapshots[-1].weights)


@pytest.mark.parametrize("seconds", [4, 8])
def test_a_budget_in_seconds_ends_in_time_at_rate_zero(shapes: Dataset, seconds: float) -> None:
    config = small(epochs=None, seconds=seconds, precision="auto", validation_pictures=1000)
    begun = time.monotonic()
    events, _ = run(config, shapes)
    assert time.monotonic() - begun < seconds + 1.5
    finished = events[-1]
    assert finished.reason == "finished" and finished.test_accuracy is not None
    assert finished.seconds <= seconds + 0.5
    assert 0 < finished.test_pictures <= 3000 and finished.validation_accuracy is not None
    rates = [e.learning_rate for e in events if isinstance(e, Progress) and e.phase == "training"]
    assert rates[-1] < 0.25 * config.learning_rate


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adamw", 0.001), ("muon", 0.1)])
def test_it_learns(tiny: Dataset, optimizer: str, rate: float) -> None:
    config = small(epochs=20, batch_size=60, augmentation="none", validation_pictures=0, label_smoothing=0)
    config = dataclasses.replace(config, optimizer=optimizer, learning_rate=rate)
    losses = [e.train_loss for e in run(config, tiny)[0] if isinstance(e, EpochDone)]
    assert losses[0] > 1.5 and losses[-1] < (0.3 if optimizer == "muon" else 1)


def test_too_few_pictures_is_a_sentence(tiny: Dataset) -> None:
    with pytest.raises(ConfigError, match="100 held out, 20 are left, too few for a batch of 32"):
        run(small(batch_size=32, validation_pictures=100), tiny)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_short_formats_train(tiny: Dataset, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    config = small(precision=precision, epochs=1, batch_size=60, validation_pictures=0, optimizer="muon")
    original = models.Conv2d.forward

    def forward(self: models.Conv2d, input: torch.Tensor) -> torch.Tensor:
        output = original(self, input)
        seen.add(output.dtype)
        return output

    monkeypatch.setattr(models.Conv2d, "forward", forward)
    events, _ = run(config, tiny)
    assert events[0].precision == precision and events[-1].reason == "finished"
    assert seen == {training.DTYPES[precision]}
    assert math.isfinite(events[-1].test_loss)


def test_augmentation_moves_and_mirrors_whole_pictures(tiny: Dataset, cpu: torch.device) -> None:
    index = torch.arange(100)
    for augmentation in ("none", "flip", "flip_translate", "flip_translate_cutout"):
        choices = training.Choices(small(augmentation=augmentation), 0, 100, cpu)
        moved, chosen = choices.batch(tiny.train_pictures, index, 0, 100)
        assert sorted(chosen.tolist()) == index.tolist()
        original = tiny.train_pictures[chosen]
        reach = {"none": 0, "flip": 0, "flip_translate": 2, "flip_translate_cutout": 4}[augmentation]
        padded = torch.nn.functional.pad(original.float(), (reach,) * 4, mode="reflect") if reach else original.float()
        both = [padded] if augmentation == "none" else [padded, padded.flip(3)]
        matches = torch.zeros(100, dtype=torch.bool)
        for version in both:
            for dy in range(2 * reach + 1):
                for dx in range(2 * reach + 1):
                    window = version[:, :, dy : dy + 32, dx : dx + 32]
                    matches |= (window == moved).flatten(1).all(1)
        assert matches.all(), augmentation
        assert ((moved == original).flatten(1).all(1).sum() < 90) == (augmentation != "none")
        holes = (choices.cut_out(torch.ones(100, 3, 32, 32), 0) == 0)[:, 0].flatten(1).sum(1)
        assert (holes > 0).all() and (holes <= 64).all() if "cutout" in augmentation else not holes.any()


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(optimizers.orthogonal(torch.randn(shape), torch.float32))
        assert values.min() > 0.5 and values.max() < 1.3


def test_schedules_begin_and_end_where_they_should() -> None:
    shares = [i / 100 for i in range(101)]
    for name, first, last in (("constant", 1, 1), ("cosine", 1, 0), ("one_cycle", 0.1, 0)):
        rates = [optimizers.schedule(name, share) for share in shares]
        assert rates[0] == pytest.approx(first) and rates[-1] == pytest.approx(last, abs=1e-9)
        assert max(rates) == pytest.approx(1) and min(rates) >= 0


def test_biases_and_bn_are_not_decayed() -> None:
    network = build("vgg16", 10, 0)
    for name in ("sgd", "adamw", "muon"):
        built = optimizers.build(network, small(optimizer=name, model="vgg16"), torch.float32)
        groups = [group for optimizer in built for group in optimizer.param_groups]
        assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
        for group in groups:
            for parameter in group["params"]:
                assert parameter.dim() > 1 or group["weight_decay"] == 0
