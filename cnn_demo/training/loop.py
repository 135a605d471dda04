"""The training loop: a generator of events. No disk, no environment, no printing.

The data lives on the device as uint8 and is augmented there, a batch at a time. Every random choice is a function
of (seed, epoch), so a run that was stopped at any step and continued is the run that was never stopped.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.models import Network, fold_biases
from ..networks.stages import count_parameters, measure
from ..pictures.augmentation import CUTOUT, Augmentation, cut_out, move
from ..pictures.dataset import Dataset, normalise, split
from . import optimizers, replay
from .budget import CHECK_SECONDS, CHECKS, Budget, Stop, Stopped
from .config import RunConfig
from .device import DTYPES, device_name, peak_flops, resolve_precision
from .distributed import Group
from .events import EpochDone, Event, Progress, RunFinished, RunStarted
from .scoring import Best, Diverged, Evaluation, Score, Scorer, encode

PROGRESS_SECONDS = 0.25
SAVE_SECONDS = 30.0  # between two snapshots, at most
EPOCH_SAVE_SECONDS = 10.0  # at least, between those after a validation
LOG_EVERY = 100  # steps, as in the course project's log
ALONE = Group()
Result = TypeVar("Result")


def train(
    network: Network,
    data: Dataset,
    config: RunConfig,
    *,
    device: torch.device,
    stop: Stop,
    start: Snapshot | None = None,
    group: Group = ALONE,
) -> Iterator[Event | Snapshot | Evaluation]:
    """Train `network` in place on `data` as `config` says; yield events, and a Snapshot whenever there is one to save.

    A new run begins with the Snapshot before its first step; every run ends with RunFinished, a finished one with its
    Evaluation before it and the best weights in the network. `stop` is read in every step, on a CPU at every layer, so
    that it takes effect within 0.25 s at usual batch sizes. `start` continues a run, bit for bit on a CPU. `group`: the
    processes that train it together; all get the same events. Raises ConfigError where the images are too few.
    """
    before = start.seconds if start else 0.0
    budget = Budget(config, len(data.train_labels), len(data.test_labels), stop, group, before)
    with replay.working_on(device, config.batch_size):
        loop = Loop(network, data, device, budget, start)
        yield loop.started()
        try:
            try:
                with interruptible(loop):
                    if start is None:
                        yield loop.snapshot()
                    loop.scorer.time_evaluation()
                    while True:
                        spent = loop.budget.is_spent(loop.step)
                        if loop.step > loop.validated_step and (spent or loop.step % loop.steps_per_epoch == 0):
                            yield from loop.unreported_losses()
                            yield from loop.validate(spent)
                            if spent or loop.budget.seconds() - loop.saved >= EPOCH_SAVE_SECONDS:
                                yield loop.snapshot()
                        if spent:
                            break
                        yield from loop.check()
                        loop.take_step()
                        if loop.budget.seconds() - loop.reported >= PROGRESS_SECONDS:
                            yield loop.progress("training")
                        if loop.budget.seconds() - loop.saved >= SAVE_SECONDS:
                            yield from loop.unreported_losses()
                            yield loop.snapshot()
                    test, evaluation = yield from loop.progress_during("testing", loop.scorer.test(loop.step))
                yield evaluation
                yield loop.finished("finished", "Finished: the budget is spent.", test)
            except Stopped:
                yield from loop.unreported_losses()
                yield loop.snapshot()
                yield loop.finished("stopped", f"Stopped after step {loop.step}; it can be continued.")
        except Diverged:
            yield loop.finished(
                "diverged",
                f"The loss was no longer a number by step {loop.step}. A learning rate of {config.learning_rate:g} is "
                f"probably too high for {config.optimizer} at batch size {config.batch_size}; try a tenth of it. "
                "The last weights saved before are still there.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All of a run between two steps. The tensors are the live ones: use them before asking for the next event."""

    step: int
    validated_step: int  # of the last validation
    losses: float  # the sum of the training losses since then
    check_pictures: int  # on how many held-out images a check validates; 0 before the first one
    seconds: float
    scaler: dict[str, float]  # of float16, else empty
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: Best
    best_is_new: bool  # since the last snapshot


class Loop:
    """The state between two steps, and what `train` does with it."""

    def __init__(
        self, network: Network, data: Dataset, device: torch.device, budget: Budget, start: Snapshot | None
    ) -> None:
        config, group = budget.config, budget.group
        self.config, self.device, self.group = config, device, group
        self.budget, self.steps_per_epoch = budget, budget.steps_per_epoch
        self.precision = resolve_precision(config.precision, device)
        lower = self.precision != "float32"  # nothing cached: a recorded step casts the weights as they are then
        self.autocast = torch.autocast(device.type, DTYPES[self.precision], enabled=lower, cache_enabled=False)
        self.network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.data = data.to(device)
        self.train_index, validation_index = (i.to(device) for i in split(data.train_labels, config.held_out))
        self.replays = replay.can_replay(device, self.precision)
        self.optimizers = optimizers.build(network, config, DTYPES[self.precision], padded=self.replays)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")  # type: ignore[attr-defined]
        best = start.best if start else Best(step=0, weights=network.state_dict())
        self.scorer = Scorer(self.network, self.data, validation_index, self.autocast, budget, best)
        self.saved_best = start.best if start else None
        self.step, self.validated_step, self.losses = 0, 0, 0.0
        self.check_pictures = start.check_pictures if start else 0
        if start:
            self.step, self.validated_step, self.losses = start.step, start.validated_step, start.losses
            network.load_state_dict(start.weights)
            optimizers.load_state_tensors(network, self.optimizers, start.optimizer)
            if start.scaler:
                self.scaler.load_state_dict(start.scaler)
        fold_biases(network)
        self.part = group.part(config.batch_size)
        self.augmentation: Augmentation | None = None
        count = self.part.stop - self.part.start  # what a step reads and writes has a fixed place
        self.order = torch.zeros(count, dtype=torch.int64, device=device)
        self.axes = torch.zeros(4, count, 32, dtype=torch.uint8, device=device)
        self.result = torch.zeros(2, device=device)  # loss, accuracy
        self.learn, self.update = self._learn, self._update
        if self.replays:
            self.learn, self.update = replay.Replayed(self._learn), replay.Replayed(self._update)
        self.pace, self.rate = replay.Pace(device), 0.0
        self.on_device: list[Tensor] = []  # losses and accuracies `2` that are not on the CPU yet
        self.unreported: list[list[float]] = []  # those that no Progress has carried yet
        self.unreported_seconds = 0.0  # what their steps took
        self.mark = self.reported = self.saved = self.budget.seconds()
        self.checked, self.checked_seconds = -1, 0.0  # in which part of the budget, and when

    def take_step(self) -> None:
        """Take one step; its loss and accuracy stay on the device."""
        self.budget.check_stop()
        if not self.on_device:
            self.mark = self.budget.seconds()
        self._choose()
        part = optimizers.schedule(self.config.schedule, self.budget.fraction(self.step))
        self.rate = optimizers.set_rate(self.optimizers, part)
        buffers = [buffer.clone() for buffer in self.network.buffers()] if self.device.type == "cpu" else []
        try:
            self.learn()
        except Stopped:  # undo what the forward pass did: BN's running statistics
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            raise
        self.group.average([p.grad for p in self.network.parameters() if p.grad is not None])
        self.update()
        self.pace.wait()
        self.step += 1
        self.on_device.append(self.result.clone())
        self.budget.agree()

    def _choose(self) -> None:
        """Choose the images of this process's part of the next batch, and how they are augmented."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self.augmentation is None or self.augmentation.epoch != epoch:
            self.augmentation = Augmentation(self.config.augmentation, self.config.seed, epoch, self.train_index)
        first = position * self.config.batch_size
        chosen = slice(first + self.part.start, first + self.part.stop)
        self.order.copy_(self.augmentation.order[chosen])
        self.axes.copy_(self.augmentation.axes[:, chosen])

    def _learn(self) -> None:
        """Compute the gradients, the loss and the accuracy of the chosen images."""
        for parameter in self.network.parameters():
            parameter.grad = None
        inputs = normalise(move(self.data.train_pictures, self.order, self.axes), self.scorer.mean, self.scorer.std)
        if self.config.augmentation == CUTOUT:
            inputs = cut_out(inputs, self.axes)
        labels = self.data.train_labels[self.order]
        with self.autocast:
            logits = self.network(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        self.scaler.scale(loss).backward()
        torch.stack([loss.detach(), (logits.argmax(1) == labels).float().mean()], out=self.result)

    def _update(self) -> None:
        """Take the optimizers' step by the gradients."""
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def collect_losses(self) -> None:
        """Copy the losses since the last time to the CPU. Raises Diverged if one is not a finite number."""
        if self.on_device:
            losses = torch.stack(self.on_device)
            self.group.average([losses])
            values: list[list[float]] = losses.tolist()
            seconds = self.budget.seconds() - self.mark
            self.budget.timed_steps += len(values)
            self.budget.training_seconds += seconds
            self.unreported_seconds += seconds
            self.on_device = []
            self.unreported += values
            for loss, _ in values:  # one by one, so that the sum does not depend on when it was collected
                self.losses += loss
        if not math.isfinite(self.losses):
            raise Diverged

    def started(self) -> RunStarted:
        """Return the first event."""
        peak = self.group.size * peak_flops(self.device, self.precision)
        macs = sum(stage.macs for stage in measure(self.config.model)) if peak else 0
        return RunStarted(
            seconds=self.budget.seconds(),
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            device=(f"{self.group.size} x " if self.group.size > 1 else "") + device_name(self.device),
            precision=self.precision,
            parameters=count_parameters(self.network),
            train_pictures=len(self.train_index),
            validation_pictures=len(self.scorer.validation_index),
            test_pictures=len(self.data.test_labels),
            flops_per_image=6.0 * macs,  # two per MAC; forward, and backward for inputs and for weights
            peak_flops=peak,
            samples=tuple(map(encode, self.data.train_pictures[self.scorer.samples])),
        )

    def epoch(self) -> int:
        """Return the number of the current epoch, from 1."""
        return max(1, math.ceil(self.step / self.steps_per_epoch))

    def progress(self, phase: str) -> Progress:
        """Return where the run is, with the losses and accuracy since the last time."""
        self.collect_losses()
        values, accuracies = [loss for loss, _ in self.unreported], [accuracy for _, accuracy in self.unreported]
        seconds = self.unreported_seconds
        self.unreported, self.unreported_seconds = [], 0.0
        self.reported = self.budget.seconds()
        first = self.step - len(values) + 1
        return Progress(
            seconds=self.reported,
            phase=phase,
            epoch=self.epoch(),
            step=self.step,
            share=self.budget.fraction(self.step),
            learning_rate=self.rate,
            images_per_second=len(values) * self.config.batch_size / seconds if values else 0.0,
            memory=torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0,
            seconds_left=self.budget.seconds_left(self.step),
            loss=sum(values) / len(values) if values else None,
            loss_low=min(values, default=None),
            loss_high=max(values, default=None),
            accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
            logged=tuple((step, loss) for step, loss in enumerate(values, first) if step % LOG_EVERY == 0),
        )

    def unreported_losses(self) -> Iterator[Progress]:
        """Yield the losses that no event has carried yet: before a snapshot, because a run continues without them."""
        if self.on_device or self.unreported:
            yield self.progress("training")

    def progress_during(self, phase: str, work: Generator[None, None, Result]) -> Generator[Event, None, Result]:
        """Yield progress while `work` goes on; return its result."""
        while True:
            try:
                next(work)
            except StopIteration as done:
                result: Result = done.value
                return result
            if self.budget.seconds() - self.reported >= PROGRESS_SECONDS:
                yield self.progress(phase)

    def check(self) -> Generator[Event, None, None]:
        """Validate on a part of the held-out images where that is due: first, each tenth of the budget, every 5 s."""
        tenth = int(CHECKS * self.budget.fraction(self.step))
        is_early = tenth == self.checked and self.budget.seconds() - self.checked_seconds < CHECK_SECONDS
        if is_early or not len(self.scorer.validation_index):
            return
        self.collect_losses()  # so that the check does not count as time of their steps
        self.check_pictures = self.check_pictures or self.budget.check_pictures()
        self.checked, self.checked_seconds = tenth, self.budget.seconds()
        with contextlib.suppress(Diverged):  # a loss that is no number in eval mode says nothing of the training yet
            score = yield from self.progress_during("validating", self.scorer.check(self.check_pictures))
            yield self.scorer.describe(score, self.step)

    def validate(self, last: bool) -> Generator[Event, None, None]:
        """Validate, keep the weights if they are the best so far, and yield EpochDone."""
        self.collect_losses()
        self.group.average_statistics(self.network)
        steps, before = self.step - self.validated_step, self.scorer.best
        score = yield from self.progress_during("validating", self.scorer.validate(self.step, last))
        if score:
            yield self.scorer.describe(score, self.step)
        yield EpochDone(
            seconds=self.budget.seconds(),
            epoch=self.epoch(),
            step=self.step,
            train_loss=self.losses / steps,
            validation_loss=score.loss if score else None,
            validation_accuracy=score.accuracy if score else None,
            best=self.scorer.best is not before,
        )
        self.validated_step, self.losses = self.step, 0.0

    def snapshot(self) -> Snapshot:
        """Return the run as it is now."""
        self.collect_losses()
        self.group.average_statistics(self.network)
        weights, before = self.network.state_dict(), self.saved_best
        if self.scorer.best.accuracy is None:
            self.scorer.best = Best(step=self.step, weights=weights)
        self.saved_best = best = self.scorer.best
        self.saved = self.budget.seconds()
        return Snapshot(
            step=self.step,
            validated_step=self.validated_step,
            losses=self.losses,
            check_pictures=self.check_pictures,
            seconds=self.saved,
            scaler=self.scaler.state_dict(),
            weights=weights,
            optimizer=optimizers.state_tensors(self.network, self.optimizers) if self.step else {},
            best=best,
            best_is_new=best is not before,
        )

    def finished(self, reason: str, message: str, test: Score | None = None) -> RunFinished:
        """Return the last event."""
        return RunFinished(
            seconds=self.budget.seconds(),
            reason=reason,
            message=message,
            epochs=self.step // self.steps_per_epoch,
            step=self.step,
            images_per_second=self.config.batch_size / rate if (rate := self.budget.step_seconds()) else 0.0,
            best_step=self.scorer.best.step,
            validation_accuracy=self.scorer.best.accuracy,
            test_loss=test.loss if test else None,
            test_accuracy=test.accuracy if test else None,
            test_pictures=len(test.logits) if test else 0,
        )


@contextlib.contextmanager
def interruptible(loop: Loop) -> Iterator[None]:
    """Read `stop` at every layer, forward and backward, where a step takes long: on a CPU."""

    def check(*_: object) -> None:
        if loop.budget.stop():
            raise Stopped

    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        check()
        if output.requires_grad:
            output.register_hook(check)

    layers = [m for m in loop.network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    alone_on_cpu = loop.device.type == "cpu" and loop.group.size == 1  # several processes stop between two steps
    handles = [layer.register_forward_hook(hook) for layer in layers if alone_on_cpu]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
