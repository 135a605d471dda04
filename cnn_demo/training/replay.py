"""A step's kernels recorded as a CUDA graph and launched as one: else a small network waits for its launches."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..errors import ConfigError
from .device import device_name

WARM_UP = 3  # calls before the recording: in them memory is laid out and algorithms are chosen
STEPS_AHEAD = 2  # of the device, that the CPU launches: a stop takes effect this much later
RECORDING = threading.Lock()  # a process records one graph at a time
Action = Callable[[], None]


def can_replay(device: torch.device, precision: str) -> bool:
    """Tell whether steps can be recorded there; scaling, which float16 needs, asks the device in each step."""
    return device.type == "cuda" and precision != "float16"


class Replayed:
    """A function that is called three times, then recorded, and from then on replayed.

    What it reads and writes between its calls must stay in place: tensors that are filled, never replaced; numbers are
    recorded as they were. It must not ask the device for a value. What a replay returns is overwritten by the next.
    """

    def __init__(self, function: Action) -> None:
        self.function, self.calls = function, 0

    def __call__(self) -> None:
        """Do once more what the function does."""
        if self.calls == WARM_UP:
            self.function = record(self.function)
        else:
            self.function()
        self.calls += 1


def record(function: Action) -> Action:
    """Record what `function` launches on the current stream, launch it once, and return what launches it again."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    with RECORDING, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    graph.replay()
    return graph.replay


@contextlib.contextmanager
def working_on(device: torch.device, batch_size: int) -> Iterator[None]:
    """Launch a GPU's work of the block on a stream of its own: the default one cannot be recorded. Raises ConfigError.

    That is, where a batch does not fit into the device's memory.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    try:
        if stream:
            torch.cuda.reset_peak_memory_stats(device)
        with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            yield
    except torch.OutOfMemoryError as error:
        name = device_name(device)
        raise ConfigError(
            "batch_size",
            f"Batch size: {name} has no memory for {batch_size:,} images at a time; try {max(2, batch_size // 2):,}.",
        ) from error


class Pace:
    """Keeps the CPU at most STEPS_AHEAD of a GPU: launched graphs would queue up without bound."""

    def __init__(self, device: torch.device) -> None:
        self.is_needed, self.launched = device.type == "cuda", deque[torch.cuda.Event]()

    def wait(self) -> None:
        """Mark the end of a step; wait for the one STEPS_AHEAD before it."""
        if self.is_needed:
            self.launched.append(torch.cuda.Event(blocking=True))
            self.launched[-1].record()
            if len(self.launched) > STEPS_AHEAD:
                self.launched.popleft().synchronize()
