"""The loop: what it yields and when, exact resume, stopping, divergence, budgets, and the optimizers."""

import base64
import dataclasses
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from cnn_demo.errors import ConfigError
from cnn_demo.networks import cpu_convolution
from cnn_demo.networks.models import build
from cnn_demo.pictures.dataset import Dataset, normalise, split
from cnn_demo.runs.recording import copied
from cnn_demo.training import loop, optimizers, scoring
from cnn_demo.training.budget import Budget
from cnn_demo.training.config import RunConfig
from cnn_demo.training.device import DTYPES, keep_freed_memory
from cnn_demo.training.events import EpochDone, Event, Progress, RunFinished, RunStarted, Validated
from cnn_demo.training.loop import Snapshot, train
from cnn_demo.training.scoring import Evaluation
from tests.training import never, run, small


@pytest.fixture(autouse=True)
def each_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EPOCH_SAVE_SECONDS", 0.0)


def test_losses_are_reported_before_each_snapshot(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run resumes at its last snapshot: what was not reported before would be missing in the curve."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 1e9)
    network, reported, snapshots = build("resnet50", 10, 0), 0, 0
    for item in train(network, tiny, small(), device=torch.device("cpu"), stop=never):
        if isinstance(item, Progress) and item.loss is not None:
            reported = item.step
        if isinstance(item, Snapshot):
            assert item.step == reported
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
    kinds = [type(e).__name__ for e in events if not isinstance(e, (Progress, Validated))]
    assert kinds == ["RunStarted", "EpochDone", "EpochDone", "RunFinished"]
    assert [s.step for s in snapshots] == [0, 10, 20]
    started, finished = events[0], events[-1]
    assert isinstance(started, RunStarted) and isinstance(finished, RunFinished)
    assert (started.train_pictures, started.validation_pictures, started.steps_per_epoch) == (100, 20, 10)
    assert (finished.reason, finished.epochs, finished.step, finished.test_pictures) == ("finished", 2, 20, 40)
    assert finished.validation_accuracy == max(e.validation_accuracy for e in events if isinstance(e, EpochDone))
    reported = [e for e in events if isinstance(e, Progress) and e.phase == "training" and e.step not in (10, 20)]
    assert all(b.seconds - a.seconds >= loop.PROGRESS_SECONDS for a, b in itertools.pairwise(reported))
    assert all(e.loss_low <= e.loss <= e.loss_high for e in reported)


def test_every_hundredth_step_is_logged_once(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 5)
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
def test_stopping_anywhere_and_continuing_changes_nothing(tiny: Dataset, optimizer: str) -> None:
    config = small(optimizer=optimizer, augmentation="flip_translate_cutout")
    events, snapshots = run(config, tiny)
    # Timing the evaluation asks 141 times, a step 93 times, an evaluation 47 times, and so does a check before every
    # other step: these stops fall into the first validation, into a step of the second epoch, and into the test.
    start, stopped_in = None, []
    all_events: list[Event] = []
    for asked in (141 + 930 + 5 * 47 + 20, 141 + 3 * 47 + 300, 141 + 7 * 93 + 4 * 47 + 47 + 20, 10**9):
        part, saved = run(config, tiny, stop_after(asked), start)
        all_events += part
        if part[-1].reason == "stopped":
            start = saved[-1]
            stopped_in.append((start.step, start.validated_step))
    assert stopped_in == [(10, 0), (13, 10), (20, 20)] and part[-1].reason == "finished"
    assert equal(snapshots[-1].weights, saved[-1].weights if saved else start.weights)
    assert part[-1].test_loss == events[-1].test_loss
    ended = [
        [(e.epoch, e.step, e.train_loss, e.validation_loss, e.best) for e in found if isinstance(e, EpochDone)]
        for found in (all_events, events)
    ]
    assert ended[0] == ended[1]


@pytest.mark.parametrize("asked", [214, 259])
def test_stop_within_a_step_undoes_the_step(tiny: Dataset, asked: int) -> None:
    """Timing and the first check ask 4 x 47 times, a step once, then 46 times forward and 46 times backward."""
    events, snapshots = run(small(), tiny, stop_after(asked))
    assert events[-1].reason == "stopped" and len(snapshots) == 2
    assert snapshots[1].step == 0 and not snapshots[1].optimizer
    assert equal(snapshots[1].weights, snapshots[0].weights)  # BN's statistics too


def test_stop_takes_effect_within_a_quarter_of_a_second(shapes: Dataset) -> None:
    """With a step of VGG16 that takes several times as long; on a slow machine, within a part of that step."""
    keep_freed_memory()  # as every command that trains does
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


def test_divergence_ends_the_run_and_saves_the_last_good_weights(tiny: Dataset) -> None:
    config = small(optimizer="sgd", learning_rate=10, schedule="constant", epochs=30, model="vgg16")
    events, snapshots = run(config, tiny)
    finished = events[-1]
    assert isinstance(finished, RunFinished) and finished.reason == "diverged"
    assert "learning rate of 10" in finished.message and "sgd" in finished.message
    assert finished.test_accuracy is None
    assert all(value.isfinite().all() for value in snapshots[-1].weights.values())


def test_the_best_weights_are_saved_and_tested_not_the_last(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.9, 0.4, 0.6])
    original = scoring.Scorer.evaluate

    def evaluate(self: scoring.Scorer, pictures: torch.Tensor, *rest: torch.Tensor) -> Iterator[None]:
        score = yield from original(self, pictures, *rest)
        if pictures is self.data.train_pictures and len(rest[1]) == 20:  # all of them: no check
            return dataclasses.replace(score, accuracy=1 - next(losses))
        return score

    monkeypatch.setattr(scoring.Scorer, "evaluate", evaluate)
    network = build("resnet50", 10, 0)
    items = []
    for item in train(network, tiny, small(epochs=3), device=torch.device("cpu"), stop=never):
        items.append(copied(item) if isinstance(item, Snapshot) else item)
    saved = [item for item in items if isinstance(item, Snapshot)]
    assert [(s.step, s.best.step, s.best_is_new) for s in saved[1:]] == [
        (10, 10, True),
        (20, 20, True),
        (30, 20, False),
    ]
    assert [e.best for e in items if isinstance(e, EpochDone)] == [True, True, False]
    assert (items[-1].best_step, items[-1].validation_accuracy) == (20, 0.6)
    assert equal({k: v.clone() for k, v in network.state_dict().items()}, saved[2].best.weights)


def test_the_test_set_is_used_once_at_the_end(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    original = scoring.Scorer.evaluate

    def evaluate(self: scoring.Scorer, pictures: torch.Tensor, *rest: torch.Tensor) -> Iterator[None]:
        looks.append("test" if pictures is self.data.test_pictures else len(rest[1]))
        return (yield from original(self, pictures, *rest))

    monkeypatch.setattr(scoring.Scorer, "evaluate", evaluate)
    run(small(), tiny)
    assert looks == [*[10] * 5, 20, *[10] * 5, 20, "test"]  # checks and validations


def test_checks_change_nothing(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(augmentation="flip_translate_cutout", precision="bfloat16")
    events, with_checks = run(config, tiny)
    checks = [e for e in events if isinstance(e, Validated)]
    assert [(e.step, e.pictures) for e in checks[3:8]] == [(6, 10), (8, 10), (10, 20), (10, 10), (12, 10)]
    monkeypatch.setattr(loop.Loop, "check", lambda self: iter(()))
    again, without = run(config, tiny)
    assert equal(with_checks[-1].weights, without[-1].weights)
    assert equal(with_checks[-1].optimizer, without[-1].optimizer)
    one, other = ([dataclasses.replace(e, seconds=0) for e in f if isinstance(e, EpochDone)] for f in (events, again))
    assert one == other and events[-1].test_loss == again[-1].test_loss


def test_samples_are_a_held_out_image_of_each_class_and_their_scores_those_of_the_network(tiny: Dataset) -> None:
    held_out = split(tiny.train_labels, 20)[1].tolist()
    chosen = {}
    for seed in (3, 3, 4):
        network = build("resnet50", 10, seed)
        items = train(network, tiny, small(seed=seed), device=torch.device("cpu"), stop=never)
        started, _, check = itertools.islice(items, 3)
        found = [pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(png)))) for png in started.samples]
        index = [next(i for i in held_out if torch.equal(tiny.train_pictures[i], pixels)) for pixels in found]
        assert tiny.train_labels[index].tolist() == list(range(10))
        assert chosen.setdefault(seed, index) == index
        fresh = build("resnet50", 10, seed).eval()
        with torch.inference_mode():
            scores = fresh(normalise(tiny.train_pictures[index], tiny.mean, tiny.std)).softmax(1)
        assert [answer for answer, _ in check.answers] == scores.argmax(1).tolist()
        assert [score for _, score in check.answers] == pytest.approx(scores.diagonal().tolist(), abs=6e-4)
    assert chosen[3] != chosen[4]


def test_accuracy_is_that_of_the_training_steps(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0.0)
    expected, original = [], torch.nn.functional.cross_entropy

    def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, **more: float) -> torch.Tensor:
        if logits.requires_grad:
            expected.append((logits.argmax(1) == labels).float().mean().item())
        return original(logits, labels, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    events, _ = run(small(learning_rate=0.01), tiny)
    assert len(set(expected)) > 3
    assert [e.accuracy for e in events if isinstance(e, Progress) and e.loss is not None] == pytest.approx(expected)


def test_a_check_takes_three_percent_of_the_time_and_stays_the_same(tiny: Dataset) -> None:
    def pictures(evaluation_seconds: float, **budget: float) -> int:
        config = RunConfig(model="resnet50", **budget)
        return Budget(config, 50_000, 10_000, never, loop.ALONE, 0.0, evaluation_seconds).check_pictures()

    assert [pictures(0.001, seconds=s) for s in (3, 60, 3600)] == [10, 150, 150]
    assert [pictures(s, epochs=1) for s in (0.0001, 0.0003)] == [400, 400]  # 3 % of 45,000 x 3, ten times
    assert pictures(0.001, epochs=1) == 150 and pictures(0.0, seconds=60) > 5000
    _, saved = run(small(), tiny, stop_after(141 + 47 + 3 * 93))
    assert saved[-1].check_pictures == 10
    events, _ = run(small(), tiny, start=dataclasses.replace(saved[-1], check_pictures=20))  # of a faster machine
    assert {e.pictures for e in events if isinstance(e, Validated)} == {20}


def test_without_validation_the_last_weights_are_saved(tiny: Dataset) -> None:
    events, snapshots = run(small(validation_pictures=0), tiny)
    assert not events[0].samples and not any(isinstance(e, Validated) for e in events)
    assert events[-1].validation_accuracy is None and events[-1].best_step == events[-1].step == 24
    assert equal(snapshots[-1].best.weights, snapshots[-1].weights)


@pytest.mark.parametrize("seconds", [3, 6])
def test_a_budget_in_seconds_ends_in_time_at_rate_zero(shapes: Dataset, seconds: float) -> None:
    config = small(epochs=None, seconds=seconds, precision="auto", validation_pictures=1000)
    begun = time.monotonic()
    events, _ = run(config, shapes)
    assert time.monotonic() - begun < seconds + 1.5
    assert len({e.step for e in events if isinstance(e, Validated)}) > 8
    finished = events[-1]
    assert finished.reason == "finished" and finished.test_accuracy is not None
    assert finished.seconds <= seconds + 0.5
    assert 0 < finished.test_pictures <= 3000 and finished.validation_accuracy is not None
    rates = [e.learning_rate for e in events if isinstance(e, Progress) and e.phase == "training"]
    assert rates[-1] < 0.25 * config.learning_rate


@pytest.mark.parametrize(("optimizer", "rate", "epochs"), [("sgd", 0.1, 10), ("adamw", 0.001, 8), ("muon", 0.1, 6)])
def test_it_learns(tiny: Dataset, optimizer: str, rate: float, epochs: int) -> None:
    config = small(epochs=epochs, batch_size=30, augmentation="none", validation_pictures=0, label_smoothing=0)
    config = dataclasses.replace(config, optimizer=optimizer, learning_rate=rate)
    events = train(build(config.model, 10, 0), tiny, config, device=torch.device("cpu"), stop=never)
    losses = [event.train_loss for event in events if isinstance(event, EpochDone)]
    assert losses[0] > 1.5 and losses[-1] < (0.3 if optimizer == "muon" else 1)


def test_too_few_images_are_refused(tiny: Dataset) -> None:
    with pytest.raises(ConfigError, match="100 held out, 20 are left, too few for a batch of 32"):
        run(small(batch_size=32, validation_pictures=100), tiny)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_short_formats_train(tiny: Dataset, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    config = small(precision=precision, epochs=1, batch_size=60, validation_pictures=0, optimizer="muon")
    original = cpu_convolution.Conv2d.forward

    def forward(self: cpu_convolution.Conv2d, input: torch.Tensor) -> torch.Tensor:
        output = original(self, input)
        seen.add(output.dtype)
        return output

    monkeypatch.setattr(cpu_convolution.Conv2d, "forward", forward)
    events, _ = run(config, tiny)
    assert events[0].precision == precision and events[-1].reason == "finished"
    assert seen == {DTYPES[precision]}
    assert math.isfinite(events[-1].test_loss)


def test_a_finished_run_ends_with_its_evaluation(tiny: Dataset) -> None:
    """Fitted on the validation images of the best weights; the same numbers as an evaluation of these weights."""
    network, items = build("resnet50", 10, 0), []
    for item in train(network, tiny, small(), device=torch.device("cpu"), stop=never):
        items.append(copied(item) if isinstance(item, Snapshot) else item)
    evaluation, finished = items[-2:]
    assert isinstance(evaluation, Evaluation) and isinstance(finished, RunFinished)
    found, best = evaluation, next(i.best.calibration for i in reversed(items) if isinstance(i, Snapshot))
    assert (found["accuracy"], found["pictures"]) == (finished.test_accuracy, 40)
    assert (found["temperature"], found["limits"], found["validation_pictures"]) == (
        best.temperature,
        list(best.limits),
        20,
    )
    network.eval()
    with torch.inference_mode():
        logits = network(normalise(tiny.test_pictures, tiny.mean, tiny.std))
    expected = scoring.evaluation_of(tiny, logits, best, 20)
    assert found["confusion"] == expected["confusion"] and found["accuracy_flip"] is None
    assert found["ece_after"] == pytest.approx(expected["ece_after"], abs=1e-4)
    assert [m["index"] for m in found["mistakes"]] == [m["index"] for m in expected["mistakes"]]


def test_a_continued_run_keeps_the_calibration_of_its_best_weights(tiny: Dataset) -> None:
    whole, _ = run(small(), tiny)
    _, saved = run(small(), tiny, stop_after(94 + 930 + 7 * 47 + 20))  # in a step after the first validation
    assert saved[-1].best.calibration is not None and saved[-1].best.step == 10
    events, _ = run(small(), tiny, start=saved[-1])
    assert events[-1].test_loss == whole[-1].test_loss


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
        assert sum(len(group["params"]) for group in groups) == 58 - 13  # all but the biases before BN
        for group in groups:
            for parameter in group["params"]:
                assert parameter.dim() > 1 or group["weight_decay"] == 0
