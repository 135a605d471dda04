"""The terminal: a live line, tables, and Ctrl-C. Standard library only."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .runs.history import History, course_log, on_gpu
from .settings import Rank
from .training.config import RunConfig
from .training.events import EpochDone, Event, Progress, RunFinished, RunStarted


@contextlib.contextmanager
def stop_on_interrupt(rank: Rank) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed (or SIGTERM came); the second time exits at once."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and rank.size == 1:  # torchrun sends SIGTERM after a Ctrl-C that its processes received as well
            raise KeyboardInterrupt
        asked.append(number)
        if len(asked) == 1 and rank.number == 0:
            say("stopping and saving" + "; press again to exit at once" * (rank.size == 1))

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """Print lines to stderr, in place of the live one; a stranger's text cannot steer the terminal."""
    clear_line()
    print("".join(c if c.isprintable() or c == "\n" else "?" for c in text), file=sys.stderr)


def line_reporter() -> Callable[[str, float], None]:
    """Return a function that shows a text and a share: on a terminal one live line, else a line every 10 s."""
    last, live = 0.0, sys.stderr.isatty()

    def report(text: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= (0.1 if live else 10.0):
            last = time.monotonic()
            clear_line()
            print(f"{share:4.0%}  {text}", end="" if live else "\n", file=sys.stderr, flush=True)

    return report


def clear_line() -> None:
    """Remove the live line."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return minutes and seconds, or hours too: 1:05, 2:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_event(event: Event, history: History, config: RunConfig, show: Callable[[str, float], None]) -> None:
    """Print an event to stderr; progress goes to the live line."""
    match event:
        case RunStarted():
            images = f"{event.train_pictures:,} images ({event.validation_pictures:,} held out)"
            say(f"training  {images} on {event.device}, {event.precision}, from step {event.step}")
        case Progress():
            for line in course_log(event, history, config.epochs):
                say(line)
            reached = history.epochs[-1].validation_accuracy if history.epochs else None
            accuracy = "" if reached is None else f"  accuracy {reached:.2%}"
            loss = "" if event.loss is None else f"  loss {event.loss:.3f}"
            rate = f"  {event.images_per_second:,.0f} images/s" if event.images_per_second else ""
            rate += on_gpu(event, history.started).replace(" · ", "  ") if history.started else ""
            left = "" if event.seconds_left is None else f"  {clock(event.seconds_left)} left"
            show(f"{event.phase:<10} epoch {event.epoch}  step {event.step}{loss}{accuracy}{rate}{left}", event.share)
        case EpochDone():
            text = f"epoch {event.epoch}  train loss {event.train_loss:.3f}"
            if event.validation_accuracy is not None:
                text += f"  validation loss {event.validation_loss:.3f}  accuracy {event.validation_accuracy:.2%}"
            say(text + "  best so far" * event.best)
        case RunFinished():
            clear_line()


def print_table(heads: tuple[str, ...], lines: Sequence[Sequence[object]], left: int) -> None:
    """Print columns, the first `left` of them aligned left. A float is shown in percent, None as nothing."""
    texts = (["" if c is None else f"{c:.2%}" if isinstance(c, float) else str(c) for c in line] for line in lines)
    table = [list(heads), *texts]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = enumerate(zip(row, widths, strict=True))
        print("  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in cells).rstrip())
