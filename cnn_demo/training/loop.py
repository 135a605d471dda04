"""The training loop: a generator of events. No disk, no environment, no printing.

The data lives on the device as uint8 and is augmented there, a batch at a time. Every random choice is a function
of (seed, epoch), so a run that was stopped at any step and continued is the run that was never stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..networks.models import Network
from ..networks.stages import count_parameters
from ..pictures.dataset import Dataset, normalise, split
from ..training import optimizers
from ..training.config import RunConfig
from ..training.distributed import Group
from ..training.events import EpochDone, Event, Progress, RunFinished, RunStarted

PROGRESS_SECONDS = 0.25
SNAPSHOT_SECONDS = 30.0
EVALUATION_BATCH = 500
LOG_EVERY = 100  # steps, as in the course project's log
ALONE = Group()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train(
    network: Network,
    data: Dataset,
    config: RunConfig,
    *,
    device: torch.device,
    stop: Callable[[], bool],
    start: Snapshot | None = None,
    group: Group = ALONE,
) -> Iterator[Event | Snapshot]:
    """Train `network` on `data` as `config` says; yield what happens, and a Snapshot whenever there is one to keep.

    A new run begins with the Snapshot before its first step; every run ends with RunFinished. `stop` is asked in
    every step, on a CPU at every layer too, so that it is never more than 0.25 s away at usual batch sizes (what the
    consumer does between two events comes on top). `start` continues a run, exactly so on a CPU. The network is
    changed in place; a finished run leaves the best weights in it. Nothing is yielded inside no_grad or autocast.
    `group` is who trains it together; each of them gets the same events.

    Raises:
        ConfigError: the data set has too few pictures for the configuration.
    """
    loop = Loop(network, data, config, device, stop, start, group)
    yield loop.started()
    try:
        try:
            with loop.interruptible():
                if start is None:
                    yield loop.snapshot()
                loop.time_evaluation()
                while True:
                    spent = loop.budget_spent()
                    if loop.step > loop.validated_step and (spent or loop.step % loop.steps_per_epoch == 0):
                        yield from loop.tell_losses()
                        yield from loop.validate(spent)
                        yield loop.snapshot()
                    if spent:
                        break
                    loop.take_step()
                    if loop.seconds() - loop.told >= PROGRESS_SECONDS:
                        yield loop.progress("training")
                    if loop.seconds() - loop.saved >= SNAPSHOT_SECONDS:
                        yield from loop.tell_losses()
                        yield loop.snapshot()
                test = yield from loop.test()
            yield loop.finished("finished", "Finished: the budget is spent.", test)
        except Stopped:
            yield from loop.tell_losses()
            yield loop.snapshot()
            yield loop.finished("stopped", f"Stopped after step {loop.step}; it can be continued.")
    except Diverged:
        yield loop.finished(
            "diverged",
            f"The loss was no longer a number by step {loop.step}. A learning rate of {config.learning_rate:g} is "
            f"probably too high for {config.optimizer} at batch size {config.batch_size}; try a tenth of it. "
            "The last good weights are kept.",
        )


class Stopped(Exception):
    """Raised inside a step or an evaluation when `stop` answers True. That step has then not happened."""


class Diverged(Exception):
    """Raised when a loss is infinite or not a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All of a run between two steps. The tensors are the live ones: use them before asking for the next event.

    validated_step: the step of the last validation. losses: the sum of the training losses since then. best: the
    weights to keep, None where they have not changed since the last snapshot; best_accuracy: None before the first
    validation, when the best weights are the latest; best_limits: see Score. scaler: of float16, else empty.
    """

    step: int
    validated_step: int
    losses: float
    seconds: float
    scaler: dict[str, float]
    best_step: int
    best_accuracy: float | None
    best_limits: tuple[float, float] | None
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What an evaluation found: mean loss in nats, accuracy 0 to 1, and over how many pictures.

    limits: the energy (-logsumexp of the logits) that 95 % of the pictures stay below, and the top score that 95 %
    reach: beyond them a picture is unusual, an answer unsure, for these weights (energy: arXiv 2010.03759).
    """

    loss: float
    accuracy: float
    pictures: int
    limits: tuple[float, float]


class Loop:
    """The state between two steps, and what `train` does with it."""

    def __init__(
        self,
        network: Network,
        data: Dataset,
        config: RunConfig,
        device: torch.device,
        stop: Callable[[], bool],
        start: Snapshot | None,
        group: Group,
    ) -> None:
        self.config, self.device, self.stop, self.group = config, device, stop, group
        self.precision = resolve_precision(config.precision, device)
        self.autocast = torch.autocast(device.type, DTYPES[self.precision], enabled=self.precision != "float32")
        self.network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.data = data.to(device)
        self.mean, self.std = (torch.tensor(values, device=device) for values in (data.mean, data.std))
        self.train_index, self.validation_index = (
            index.to(device) for index in split(data.train_labels, config.validation_pictures)
        )
        self.steps_per_epoch = count_steps(config, len(data.train_labels))
        self.optimizers = optimizers.build(network, config, DTYPES[self.precision])
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")  # type: ignore[attr-defined]

        self.step = self.validated_step = self.best_step = 0
        self.losses, seconds_before = 0.0, 0.0
        self.best_accuracy: float | None = None
        self.best_limits: tuple[float, float] | None = None
        self.best: dict[str, Tensor] | None = None
        if start is not None:
            self.step, self.validated_step, self.losses = start.step, start.validated_step, start.losses
            self.best_step, self.best_accuracy, self.best = start.best_step, start.best_accuracy, start.best
            self.best_limits = start.best_limits
            seconds_before = start.seconds
            network.load_state_dict(start.weights)
            optimizers.load_state_tensors(network, self.optimizers, start.optimizer)
            if start.scaler:
                self.scaler.load_state_dict(start.scaler)
        self.best_is_new = False

        self.part = group.part(config.batch_size)
        self.agreed_seconds = seconds_before
        self.origin = time.monotonic() - seconds_before
        self.first_step = self.step
        self.choices: Choices | None = None
        self.recent: list[Tensor] = []  # losses still on the device
        self.untold: list[float] = []  # losses that no Progress has carried yet
        self.untold_seconds = 0.0  # what their steps took
        self.evaluation_seconds = 0.0  # for one picture
        self.training_seconds = 0.0  # in steps alone, since the start or the continuation
        self.mark = self.told = self.saved = self.seconds()

    # --- the clock and the budget ---

    def seconds(self) -> float:
        """Return the seconds this run has taken, pauses left out; of several processes as agreed, the same for all."""
        return time.monotonic() - self.origin if self.group.size == 1 else self.agreed_seconds

    def ask_stop(self) -> None:
        """Raise Stopped where someone wants the run to stop."""
        if self.agree(self.stop()):
            raise Stopped

    def agree(self, asked: bool = False) -> bool:
        """Set the clock that all processes go by; return whether any of them was asked to stop."""
        stopped, self.agreed_seconds = self.group.agree(asked, time.monotonic() - self.origin)
        return stopped

    def epoch(self) -> int:
        """Return the number of the current epoch, the first is 1."""
        return max(1, math.ceil(self.step / self.steps_per_epoch))

    def step_seconds(self) -> float:
        """Return the mean seconds of a step."""
        return self.training_seconds / max(1, self.step - len(self.recent) - self.first_step)

    def images_per_second(self) -> float:
        """Return the pictures trained on per second, evaluation and saving left out."""
        return self.config.batch_size / self.step_seconds() if self.training_seconds else 0.0

    def reserve(self) -> float:
        """Return the seconds of a budget in seconds that are kept for the last validation and the test."""
        pictures = len(self.validation_index) + len(self.data.test_labels)
        return min(1.1 * pictures * self.evaluation_seconds + 0.5, (self.config.seconds or 0.0) / 2)

    def share(self) -> float:
        """Return how much of the training budget is spent, 0 to 1."""
        if self.config.epochs is not None:
            return self.step / (self.config.epochs * self.steps_per_epoch)
        assert self.config.seconds is not None
        return min(1.0, self.seconds() / (self.config.seconds - self.reserve()))

    def budget_spent(self) -> bool:
        """Tell whether the last step has been taken: of a budget in seconds, whether another half would not fit."""
        if self.config.seconds is None:
            return self.share() >= 1
        return self.step > 0 and self.seconds() + self.step_seconds() / 2 >= self.config.seconds - self.reserve()

    def seconds_left(self) -> float | None:
        """Return the seconds until the run is finished; None until ten steps were timed."""
        if self.config.seconds is not None:
            return max(0.0, self.config.seconds - self.seconds())
        if self.step - len(self.recent) - self.first_step < 10:
            return None
        assert self.config.epochs is not None
        steps = self.config.epochs * self.steps_per_epoch - self.step
        validations = math.ceil(steps / self.steps_per_epoch)
        pictures = validations * len(self.validation_index) + len(self.data.test_labels)
        return steps * self.step_seconds() + pictures * self.evaluation_seconds

    # --- one step ---

    def take_step(self) -> None:
        """Take one step; its loss stays on the device."""
        self.ask_stop()
        if not self.recent:
            self.mark = self.seconds()
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self.choices is None or self.choices.epoch != epoch:
            self.choices = Choices(self.config, epoch, len(self.train_index), self.device)
        first, size = position * self.config.batch_size + self.part.start, self.part.stop - self.part.start
        pictures, chosen = self.choices.batch(self.data.train_pictures, self.train_index, first, size)
        inputs = self.choices.cut_out(normalise(pictures, self.mean, self.std), first)
        rate = optimizers.schedule(self.config.schedule, self.share())
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        buffers = [buffer.clone() for buffer in self.network.buffers()] if self.device.type == "cpu" else []
        try:
            with self.autocast:
                logits = self.network(inputs)
            loss = F.cross_entropy(
                logits.float(), self.data.train_labels[chosen], label_smoothing=self.config.label_smoothing
            )
            self.scaler.scale(loss).backward()
        except Stopped:  # undo what the forward pass did: BN's running statistics
            for buffer, kept in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            raise
        self.group.average_gradients(self.network)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()
        self.step += 1
        self.recent.append(loss.detach())
        self.agree()

    def collect(self) -> None:
        """Bring the losses since the last time to the CPU. Raises Diverged if one is not a number."""
        losses = torch.stack(self.recent) if self.recent else torch.empty(0)
        self.group.average([losses] if self.recent else [])
        values: list[float] = losses.tolist()
        now = self.seconds()
        if values:
            self.training_seconds += now - self.mark
            self.untold_seconds += now - self.mark
        self.recent = []
        self.untold += values
        for value in values:  # one by one, so that the sum does not depend on when it was collected
            self.losses += value
        if not math.isfinite(self.losses):
            raise Diverged

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ask `stop` at every convolution and linear layer, forward and backward, where a step takes long (CPU).

        Not with several processes: they must stop at the same point, between two steps.
        """

        def ask(*_: object) -> None:
            if self.stop():
                raise Stopped

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            ask()
            if output.requires_grad:
                output.register_hook(ask)

        layers = [m for m in self.network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        alone_on_cpu = self.device.type == "cpu" and self.group.size == 1
        handles = [layer.register_forward_hook(hook) for layer in layers if alone_on_cpu]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # --- what is told ---

    def started(self) -> RunStarted:
        """Return the first event."""
        return RunStarted(
            seconds=self.seconds(),
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            device=(f"{self.group.size} x " if self.group.size > 1 else "") + device_name(self.device),
            precision=self.precision,
            parameters=count_parameters(self.network),
            train_pictures=len(self.train_index),
            validation_pictures=len(self.validation_index),
            test_pictures=len(self.data.test_labels),
        )

    def progress(self, phase: str) -> Progress:
        """Return where the run is, with the losses of the steps since the last time."""
        self.collect()
        values, seconds = self.untold, self.untold_seconds
        self.untold, self.untold_seconds = [], 0.0
        self.told = self.seconds()
        first = self.step - len(values) + 1
        return Progress(
            seconds=self.told,
            phase=phase,
            epoch=self.epoch(),
            step=self.step,
            share=self.share(),
            learning_rate=self.optimizers[0].param_groups[0]["lr"],
            images_per_second=len(values) * self.config.batch_size / seconds if values else 0.0,
            seconds_left=self.seconds_left(),
            loss=sum(values) / len(values) if values else None,
            loss_low=min(values, default=None),
            loss_high=max(values, default=None),
            logged=tuple((step, loss) for step, loss in enumerate(values, first) if step % LOG_EVERY == 0),
        )

    def tell_losses(self) -> Iterator[Progress]:
        """Yield the losses that nobody was told yet: before a snapshot, because a run goes on without them."""
        if self.recent or self.untold:
            yield self.progress("training")

    def snapshot(self) -> Snapshot:
        """Return the run as it is now."""
        self.collect()
        self.group.average_statistics(self.network)
        weights = self.network.state_dict()
        best = self.best if self.best_is_new else None
        if self.best_accuracy is None:
            self.best_step, best = self.step, weights
        self.best_is_new = False
        self.saved = self.seconds()
        return Snapshot(
            step=self.step,
            validated_step=self.validated_step,
            losses=self.losses,
            seconds=self.seconds(),
            scaler=self.scaler.state_dict(),
            best_step=self.best_step,
            best_accuracy=self.best_accuracy,
            best_limits=self.best_limits,
            weights=weights,
            optimizer=optimizers.state_tensors(self.network, self.optimizers),
            best=best,
        )

    def finished(self, reason: str, message: str, test: Score | None = None) -> RunFinished:
        """Return the last event."""
        return RunFinished(
            seconds=self.seconds(),
            reason=reason,
            message=message,
            epochs=self.step // self.steps_per_epoch,
            step=self.step,
            images_per_second=self.images_per_second(),
            best_step=self.best_step,
            validation_accuracy=self.best_accuracy,
            test_loss=test.loss if test else None,
            test_accuracy=test.accuracy if test else None,
            test_pictures=test.pictures if test else 0,
        )

    # --- validation and test ---

    def time_evaluation(self) -> None:
        """Measure what the evaluation of one picture takes; a network in eval mode is not changed by it."""
        self.network.eval()
        for count in (20, 100):  # the first one warms up
            part = torch.arange(min(count, len(self.data.test_labels)), device=self.device)
            begun = time.monotonic()
            self.evaluate_batch(self.data.test_pictures, part).sum().item()
            self.evaluation_seconds = (time.monotonic() - begun) / len(part)
        _, self.evaluation_seconds = self.group.agree(False, self.evaluation_seconds)
        self.network.train()

    def validate(self, spent: bool) -> Iterator[Event]:
        """Validate, keep the weights if they are the best so far, and yield EpochDone.

        spent: this is the last time. Of a budget in seconds, an earlier one is left out where it would take a third of
        the rest.
        """
        self.collect()
        self.group.average_statistics(self.network)
        steps = self.step - self.validated_step
        count = len(self.validation_index)
        score, deadline = None, math.inf
        wanted = count > 0
        if self.config.seconds is not None:
            end = self.config.seconds - self.reserve()
            wanted = wanted and (spent or 3 * count * self.evaluation_seconds < end - self.seconds())
            if spent:
                deadline = self.seconds() + self.reserve() * count / (count + len(self.data.test_labels))
        if wanted:
            pictures, labels = self.data.train_pictures, self.data.train_labels
            score = yield from self.evaluate("validating", pictures, labels, self.validation_index, deadline)
            if not math.isfinite(score.loss):
                raise Diverged
            if self.best_accuracy is None or score.accuracy >= self.best_accuracy:
                self.best_step, self.best_accuracy, self.best_is_new = self.step, score.accuracy, True
                self.best_limits = score.limits
                self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        yield EpochDone(
            seconds=self.seconds(),
            epoch=self.epoch(),
            step=self.step,
            train_loss=self.losses / steps,
            validation_loss=score.loss if score else None,
            validation_accuracy=score.accuracy if score else None,
            best=self.best_is_new,
        )
        self.validated_step, self.losses = self.step, 0.0

    def test(self) -> Generator[Event, None, Score]:
        """Yield progress through the test set; return the Score of the best weights."""
        last = {name: value.clone() for name, value in self.network.state_dict().items()}
        if self.best is not None and self.best_step != self.step:
            self.network.load_state_dict(self.best)
        deadline = math.inf
        if self.config.seconds is not None:
            count, held_out = len(self.data.test_labels), len(self.validation_index)
            deadline = max(self.config.seconds, self.seconds() + self.reserve() * count / (count + held_out))
        index = torch.arange(len(self.data.test_labels), device=self.device)
        try:
            score = yield from self.evaluate("testing", self.data.test_pictures, self.data.test_labels, index, deadline)
        except Stopped:  # what is saved now must be the run, not its best weights
            self.network.load_state_dict(last)
            raise
        if not math.isfinite(score.loss):
            raise Diverged
        return score

    def evaluate(
        self, phase: str, pictures: Tensor, labels: Tensor, index: Tensor, deadline: float
    ) -> Generator[Event, None, Score]:
        """Yield progress through the pictures of `index`; return their Score, of those done by the deadline."""
        loss, correct, done = 0.0, 0, 0
        energies, tops = [], []
        self.network.eval()
        try:
            for part in index.split(EVALUATION_BATCH):
                logits, wanted = self.evaluate_batch(pictures, part), labels[part]
                loss += F.cross_entropy(logits, wanted, reduction="sum").item()
                correct += int((logits.argmax(1) == wanted).sum())
                energies.append(-logits.logsumexp(1))
                tops.append(logits.softmax(1).amax(1))
                done += len(part)
                if self.seconds() + EVALUATION_BATCH * self.evaluation_seconds >= deadline:
                    break
                if self.seconds() - self.told >= PROGRESS_SECONDS:
                    yield self.progress(phase)
        finally:
            self.network.train()
        limits = (torch.cat(energies).quantile(0.95).item(), torch.cat(tops).quantile(0.05).item())
        return Score(loss=loss / done, accuracy=correct / done, pictures=done, limits=limits)

    def evaluate_batch(self, pictures: Tensor, index: Tensor) -> Tensor:
        """Return the float32 logits `N,classes` of the pictures of `index`."""
        self.ask_stop()
        with torch.inference_mode(), self.autocast:
            logits: Tensor = self.network(normalise(pictures[index], self.mean, self.std))
        return logits.float()


class Choices:
    """The random choices of one epoch: order, mirroring, shifts and holes, drawn at once from (seed, epoch)."""

    def __init__(self, config: RunConfig, epoch: int, count: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        self.epoch, self.cutout = epoch, config.augmentation == "flip_translate_cutout"
        reach = {"none": 0, "flip": 0, "flip_translate": 2, "flip_translate_cutout": 4}[config.augmentation]
        self.order = torch.randperm(count, generator=generator).to(device)
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        shift = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
        hole = torch.randint(0, 32, (2, count, 1), generator=generator)
        axis = torch.arange(32)
        rows, columns = 31 - (31 - (axis + shift).abs()).abs()  # reflected at the edges; each N,32
        if config.augmentation != "none":
            columns = torch.where(mirrored, 31 - columns, columns)
        self.rows, self.columns = rows.to(torch.uint8).to(device), columns.to(torch.uint8).to(device)
        covered = ((axis - hole) >= -4) & ((axis - hole) < 4)  # 2,N,32
        self.kept_rows, self.kept_columns = (~covered).to(device)

    def batch(self, pictures: Tensor, index: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Return uint8 `size,3,32,32` (channels last), moved and mirrored in one gather, and their indices."""
        chosen = index[self.order[first : first + size]]
        rows, columns = (axis[first : first + size].long() for axis in (self.rows, self.columns))
        moved = pictures[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # size,32,32,3
        return moved.permute(0, 3, 1, 2), chosen

    def cut_out(self, inputs: Tensor, first: int) -> Tensor:
        """Return `size,3,32,32` with a hole of 8x8 px (less at the edge) at the mean colour, 0."""
        if not self.cutout:
            return inputs
        rows, columns = (axis[first : first + len(inputs)] for axis in (self.kept_rows, self.kept_columns))
        return inputs.mul(rows[:, None, :, None] | columns[:, None, None, :])


def count_steps(config: RunConfig, pictures: int) -> int:
    """Return the steps of an epoch over `pictures`. Raises ConfigError where these are too few for one."""
    left = max(0, pictures - config.validation_pictures)
    if left < config.batch_size:
        raise ConfigError(
            "batch_size",
            f"{config.dataset} has {pictures:,} training pictures; with {config.validation_pictures:,} held "
            f"out, {left:,} are left, too few for a batch of {config.batch_size:,}.",
        )
    return left // config.batch_size


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return float32, bfloat16 or float16; `auto` takes the shortest that the device is fast in."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


def keep_freed_memory(keep: bool = True) -> None:
    """Make the C library keep the memory it frees, for the whole process; elsewhere than on glibc do nothing.

    By default each large activation is mapped afresh and the kernel zeroes its pages: on a 2-core CPU that takes half
    the time of an evaluation and a tenth of a training step. `keep=False` sets the limits that glibc itself grows to.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1)  # M_ARENA_MAX, see mallopt(3): a thread of its own must find what it freed, too
        libc.mallopt(-4, 0 if keep else 65_536)  # M_MMAP_MAX
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1 if keep else 64 << 20)  # M_TRIM_THRESHOLD


def device_name(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type.upper()}, {torch.get_num_threads()} threads"
