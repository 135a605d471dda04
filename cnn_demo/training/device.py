"""Devices: which one trains, in which number format, and how the C library's memory is used."""

import contextlib
import ctypes

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(local_rank: int = 0) -> torch.device:
    """Return the GPU of that number on this machine if there is one, else the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


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
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


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
