"""The clock, the budget and the stop flag of a run; of several processes, as all of them agreed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ConfigError
from .config import RunConfig
from .distributed import Group
from .events import SAMPLES

CHECK_SECONDS = 5.0  # at most, between two checks
CHECKS = 10  # in a run, at least
CHECK_SHARE = 0.03  # of the time
Stop = Callable[[], bool | str]  # tells whether a stop is requested; a text is the reason, to follow "At step 33"


class Stopped(Exception):
    """Raised inside a step or an evaluation when a stop is requested. That step has then not happened."""


@dataclass
class Budget:
    """How long a run has taken, pauses left out, and how much of its budget is left. Times in seconds."""

    config: RunConfig
    train_pictures: int
    test_pictures: int
    stop: Stop
    group: Group
    agreed_seconds: float  # at first those before a continuation
    evaluation_seconds: float = 0.0  # of one image
    timed_steps: int = 0
    training_seconds: float = 0.0  # of these steps, evaluation and saving left out
    steps_per_epoch: int = field(init=False)
    origin: float = field(init=False)

    def __post_init__(self) -> None:
        self.steps_per_epoch = count_steps(self.config, self.train_pictures)
        self.origin = time.monotonic() - self.agreed_seconds

    def seconds(self) -> float:
        """Return the seconds this run has taken, the same in all processes."""
        return time.monotonic() - self.origin if self.group.size == 1 else self.agreed_seconds

    def agree(self, requested: bool = False) -> bool:
        """Set the clock of all processes to that of rank 0; return whether a stop was requested in any of them."""
        stopped, self.agreed_seconds = self.group.agree(requested, time.monotonic() - self.origin)
        return stopped

    def check_stop(self) -> None:
        """Raise Stopped if a stop is requested."""
        if self.agree(bool(self.stop())):
            raise Stopped

    def step_seconds(self) -> float:
        """Return the mean seconds of a step."""
        return self.training_seconds / max(1, self.timed_steps)

    def reserve(self) -> float:
        """Return the seconds of a budget in seconds that are set aside for the last validation and the test."""
        pictures = self.config.held_out + self.test_pictures
        return min(1.1 * pictures * self.evaluation_seconds + 0.5, (self.config.seconds or 0.0) / 2)

    def training_limit(self) -> float:
        """Return when training ends, in seconds since the start; infinity for a budget in epochs."""
        return math.inf if self.config.seconds is None else self.config.seconds - self.reserve()

    def fraction(self, step: int) -> float:
        """Return the fraction of the training budget that is spent, 0 to 1."""
        if self.config.epochs is not None:
            return step / (self.config.epochs * self.steps_per_epoch)
        return min(1.0, self.seconds() / self.training_limit())

    def is_spent(self, step: int) -> bool:
        """Tell whether the last step was taken: of a budget in seconds, whether another half would not fit."""
        if self.config.seconds is None:
            return self.fraction(step) >= 1
        return step > 0 and self.seconds() + self.step_seconds() / 2 >= self.training_limit()

    def deadline(self, pictures: int) -> float:
        """Return when an evaluation of `pictures` that starts now must end: its part of the reserve."""
        if self.config.seconds is None:
            return math.inf
        return self.seconds() + self.reserve() * pictures / (self.config.held_out + self.test_pictures)

    def check_pictures(self) -> int:
        """Return on how many held-out images a check validates: checks take CHECK_SHARE of the time. 10 at least.

        The time of a budget in epochs is an estimate: a step takes about three times as long as its forward pass.
        """
        images = (self.config.epochs or 0) * self.steps_per_epoch * self.config.batch_size
        whole = self.config.seconds or 3 * images * self.evaluation_seconds
        seconds = CHECK_SHARE * min(CHECK_SECONDS, whole / CHECKS)
        return max(1, int(seconds / max(self.evaluation_seconds, 1e-6)) // SAMPLES) * SAMPLES

    def seconds_left(self, step: int) -> float | None:
        """Return the seconds until the run is finished; None before ten steps were timed."""
        if self.config.seconds is not None:
            return max(0.0, self.config.seconds - self.seconds())
        if self.timed_steps < 10:
            return None
        assert self.config.epochs is not None
        steps = self.config.epochs * self.steps_per_epoch - step
        validations = math.ceil(steps / self.steps_per_epoch)
        pictures = validations * self.config.held_out + self.test_pictures
        return steps * self.step_seconds() + pictures * self.evaluation_seconds


def count_steps(config: RunConfig, pictures: int) -> int:
    """Return the steps of an epoch over `pictures`. Raises ConfigError where these are too few for one."""
    left = max(0, pictures - config.held_out)
    if left < config.batch_size:
        raise ConfigError(
            "batch_size",
            f"Batch size: {config.dataset} has {pictures:,} training images; with {config.held_out:,} held out, "
            f"{left:,} are left, too few for a batch of {config.batch_size:,}.",
        )
    return left // config.batch_size
