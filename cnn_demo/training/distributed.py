"""Several processes that train one run together (`torchrun -m cnn_demo train ...`): each takes its part of a batch.

All make the same random choices; what depends on time or on a person is decided by rank 0, which alone writes.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..settings import Rank

PATIENCE = timedelta(minutes=5)  # for a process that lags behind, while one writes a checkpoint for example


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run; alone where it is one. Every method must be called by all of them at the same point."""

    rank: int = 0
    size: int = 1

    def part(self, count: int) -> slice:
        """Return this process's part of a batch of `count` pictures. Raises ConfigError."""
        if count % self.size:
            raise ConfigError("batch_size", f"Batch size: for {self.size} processes give a multiple, not {count}.")
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def agree(self, asked: bool, seconds: float) -> tuple[bool, float]:
        """Return whether any process was asked to stop, and the seconds of rank 0."""
        if self.size == 1:
            return asked, seconds
        told = torch.tensor([float(asked), seconds if self.rank == 0 else 0.0], dtype=torch.float64)
        dist.all_reduce(told)
        return bool(told[0]), float(told[1])

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        means = (flat / self.size).split([tensor.numel() for tensor in tensors])
        shaped = [mean.view(tensor.shape) for mean, tensor in zip(means, tensors, strict=True)]
        torch._foreach_copy_([tensor.detach() for tensor in tensors], shaped)

    def average_statistics(self, network: nn.Module) -> None:
        """Average BN's running statistics. While training, each process normalises by its own part of the batch."""
        self.average([buffer for buffer in network.buffers() if buffer.is_floating_point()])


@contextlib.contextmanager
def joined(rank: Rank) -> Iterator[Group]:
    """Join the processes that torchrun started, while the block lasts; alone, do nothing. Raises InputError."""
    if rank.size == 1:
        yield Group()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank.local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except ValueError as error:
        raise InputError(f"WORLD_SIZE is {rank.size}: start the program by torchrun, or unset it.") from error
    try:
        yield Group(rank.number, rank.size)
    finally:
        dist.destroy_process_group()
