"""Devices: which one trains, in which number format, and how the C library's memory is used."""

import contextlib
import ctypes
import time
from pathlib import Path

import torch

from ..errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of 16-bit numbers, per multiprocessor and clock, by compute capability: T4, A100, A10, L4, H100, B200, RTX PRO 6000.
TENSOR_FLOPS = {(7, 5): 1024, (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024}


def find_devices() -> list[torch.device]:
    """Return the GPUs that PyTorch can use, else the CPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", i) for i in range(gpus)] or [torch.device("cpu")]


def pick_device(name: str | None = None, local_rank: int = 0) -> torch.device:
    """Return the device of a name, by default the GPU of that number if PyTorch can use one, else the CPU.

    Raises InputError where it cannot be used, or where torchrun started more processes than there are GPUs.
    """
    gpus = [str(device) for device in find_devices() if device.type == "cuda"]
    if name is None:
        if local_rank >= len(gpus) > 0:
            raise InputError(f"torchrun: give --nproc-per-node {len(gpus)}, one process for each GPU of this machine.")
        return torch.device(gpus[local_rank] if gpus else "cpu")
    name = "cuda:0" if name == "cuda" else name
    usable = [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name not in usable:
        problem = f" {unusable_gpu()}" if name.startswith("cuda") else ""
        raise InputError(f"Device: here choose {' or '.join(usable)}, not {name[:40]!r}.{problem}")
    return torch.device(name)


def unusable_gpu() -> str:
    """Return in words that PyTorch cannot use this machine's GPU; "" where it can, or where there is none."""
    if torch.cuda.is_available() or not torch.cuda.device_count():  # the driver counts, the CUDA library may refuse
        return ""
    return (
        f"The GPU of this machine cannot be used: its driver is too old for the CUDA "
        f"{torch.version.cuda} of PyTorch {torch.__version__}. Update the driver, or install torch==2.11.0+cu126."
    )


def device_name(device: torch.device) -> str:
    """Return the device in words: "NVIDIA H200" or "CPU, 2 threads"."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{device.type.upper()}, {threads} thread{'s' * (threads > 1)}"


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return float32, bfloat16 or float16; `auto` takes the shortest format that is fast on the device."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


def peak_flops(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a GPU's tensor cores at their highest clock, dense; 0.0 where that is not known.

    By the rates per multiprocessor and clock in NVIDIA's data sheets; float32 runs as TF32 in convolutions, at half.
    """
    if device.type != "cuda":
        return 0.0
    card = torch.cuda.get_device_properties(device)
    per_clock = TENSOR_FLOPS.get((card.major, card.minor), 0) / (2 if precision == "float32" else 1)
    return float(per_clock * card.multi_processor_count * card.clock_rate * 1000)


def keep_freed_memory(keep: bool = True) -> None:
    """Make glibc keep the memory it frees, for the whole process; with other C libraries do nothing.

    By default each large activation is mapped afresh and the kernel zeroes its pages: on a 2-core CPU that takes half
    the time of an evaluation and a tenth of a training step. `keep=False` sets the limits that glibc itself grows to.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no CDLL(None)
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1)  # M_ARENA_MAX, see mallopt(3): a thread must find what another one freed
        libc.mallopt(-4, 0 if keep else 65_536)  # M_MMAP_MAX
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1 if keep else 64 << 20)  # M_TRIM_THRESHOLD


class Threads:
    """How many threads a server's run computes with on the CPU: fewer while other work takes a core of theirs.

    Each layer waits for its slowest thread, so beside one busy process two threads on two cores are slower than one.
    Linux counts how long a thread was ready but had no core (proc(5), schedstat); elsewhere the number stays. It also
    stays where nothing else computes, and from the command line: it changes the last bits of a sum, so of a run.
    """

    LOOK_SECONDS = 1.0
    LONGEST_WAIT = 0.25  # of the time: 0.01 to 0.02 were measured alone, 0.4 beside one busy process
    RETRY_SECONDS = 10.0  # until all threads are tried again, doubled each time that this was too early

    def __init__(self) -> None:
        self.all, self.retry_seconds = torch.get_num_threads(), self.RETRY_SECONDS
        self._mark()

    def _mark(self) -> None:
        self.since, self.cpu_seconds, self.waits = time.monotonic(), time.process_time(), _read_waits()

    def adapt(self) -> None:
        """Choose the number for the next steps of the thread that calls; costs a millisecond a second."""
        used, seconds = torch.get_num_threads(), time.monotonic() - self.since
        if self.all == 1 or seconds < (self.LOOK_SECONDS if used == self.all else self.retry_seconds):
            return
        if used < self.all:
            torch.set_num_threads(self.all)
            self.retry_seconds *= 2
        else:
            waits = _read_waits()
            if max((waits[k] - self.waits.get(k, waits[k]) for k in waits), default=0.0) > self.LONGEST_WAIT * seconds:
                cores = round((time.process_time() - self.cpu_seconds) / seconds)  # that it got
                torch.set_num_threads(max(1, min(used - 1, cores)))
            else:
                self.retry_seconds = self.RETRY_SECONDS
        self._mark()

    def restore(self) -> None:
        """Compute with all threads again."""
        torch.set_num_threads(self.all)


def _read_waits() -> dict[str, float]:
    """Return for each thread of this process the seconds that it was ready to run and had no core."""
    waits = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # the thread has ended
            waits[file.parent.name] = int(file.read_text().split()[1]) / 1e9
    return waits
