"""SGD, AdamW and Muon over a network's parameters, their learning-rate schedules, and their state by name."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..training.config import RunConfig

MOMENTUM = 0.9
MUON_MOMENTUM = 0.6
MUON_REST = 0.5  # the learning rate of what Muon leaves to SGD (biases, BN, linear layers), in Muon's


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For convolution kernels `K,C,h,w`, seen as matrices `K,h*w*C`; each is kept at norm sqrt(K), so its scale needs no
    weight decay. torch.optim.Muon takes no kernels. `dtype` is the format of the matrix products; `padded`: see below.
    """

    def __init__(self, kernels: list[nn.Parameter], lr: Tensor, dtype: torch.dtype, padded: bool) -> None:
        super().__init__(kernels, {"lr": lr})
        self.dtype, self.padded = dtype, padded

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            kernels: list[nn.Parameter] = [kernel for kernel in group["params"] if kernel.grad is not None]
            for kernel in kernels:
                if not self.state[kernel]:
                    self.state[kernel]["momentum_buffer"] = torch.zeros_like(kernel)
            momenta = _matrices(self.state[kernel]["momentum_buffer"] for kernel in kernels)
            gradients, weights = _matrices(k.grad for k in kernels if k.grad is not None), _matrices(kernels)
            torch._foreach_mul_(momenta, MUON_MOMENTUM)
            torch._foreach_add_(momenta, gradients)
            updates = self._orthogonal(torch._foreach_add(gradients, momenta, alpha=MUON_MOMENTUM))  # Nesterov
            norms = torch._foreach_norm(weights)
            torch._foreach_div_(norms, [math.sqrt(len(weight)) for weight in weights])
            torch._foreach_div_(weights, norms)
            torch._foreach_addcmul_(weights, updates, [group["lr"]] * len(weights), value=-1)

    def _orthogonal(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """Return `orthogonal` of each, in batches of one shape; if `padded`, of one shorter side.

        Zeros beyond a matrix stay zeros and change nothing. On a GPU a few large products take less time than many
        small ones, on a CPU more.
        """
        batches: dict[Any, list[int]] = {}
        for i, matrix in enumerate(matrices):
            batches.setdefault(max(64, min(matrix.shape)) if self.padded else matrix.shape, []).append(i)
        found: dict[int, Tensor] = {}
        for batch in batches.values():
            wide = [matrices[i].mT if len(matrices[i]) > matrices[i].shape[1] else matrices[i] for i in batch]
            rows, columns = (max(matrix.shape[side] for matrix in wide) for side in (0, 1))
            stacked = torch.zeros(len(wide), rows, columns, device=wide[0].device)
            parts = [stacked[i, : len(matrix), : matrix.shape[1]] for i, matrix in enumerate(wide)]
            torch._foreach_copy_(parts, wide)
            updates = orthogonal(stacked, self.dtype)
            for i, update, matrix in zip(batch, updates, wide, strict=True):
                part = update[: len(matrix), : matrix.shape[1]]
                found[i] = part if matrix is matrices[i] else part.mT
        return [found[i] for i in range(len(matrices))]


def _matrices(kernels: Iterable[Tensor]) -> list[Tensor]:
    """Return views `K,h*w*C` of kernels `K,C,h,w`: as they lie in channels-last memory."""
    return [kernel.permute(0, 2, 3, 1).view(len(kernel), -1) for kernel in kernels]


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return for each of `B,m,n`, m <= n, the nearest matrix with singular values of 1, nearly (0.7 to 1.2).

    Three Newton-Schulz iterations with the quintic of Jordan et al. (as above), in products of `dtype`.
    """
    scale = matrices.norm(dim=(1, 2), keepdim=True) + 1e-12
    x: Tensor = (matrices / scale).to(dtype)  # scaled before it is shortened
    for _ in range(3):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


def build(
    network: nn.Module, config: RunConfig, dtype: torch.dtype, padded: bool = False
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all parameters that are trained. Only matrices decay. padded: see Muon.

    The rate of a group is a tensor on the device, so that a recorded step reads it anew; its peak is under "peak".
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    rate, device = config.learning_rate, parameters[0].device
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            Muon([p for p in parameters if p.dim() == 4], torch.tensor(rate, device=device), dtype, padded)
        )
        parameters = [p for p in parameters if p.dim() != 4]
        rate *= MUON_REST
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    lr = torch.tensor(rate, device=device)
    if config.optimizer == "adamw":
        optimizers.append(torch.optim.AdamW(groups, lr=lr, fused=True, capturable=device.type == "cuda"))
    else:
        optimizers.append(torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, fused=True))
        for parameter in parameters:  # not left to a first step that float16 may skip
            optimizers[-1].state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = float(group["lr"])
    return optimizers


def set_rate(optimizers: list[torch.optim.Optimizer], part: float) -> float:
    """Set the learning rates to a part of their peaks; return that of the first group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"].fill_(group["peak"] * part)
    return float(optimizers[0].param_groups[0]["peak"] * part)


def schedule(name: str, share: float) -> float:
    """Return the learning rate as a part of its peak, when `share` (0 to 1) of the budget is spent."""
    if name == "constant":
        return 1.0
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    warm_up = 0.2  # one_cycle: linear, from 0.1 up and then to 0 (Smith and Topin 2017, arXiv 1708.07120)
    if share < warm_up:
        return 0.1 + 0.9 * share / warm_up
    return max(0.0, (1 - share) / (1 - warm_up))


def state_tensors(network: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' memory as "parameter name/what" -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(network: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put what `state_tensors` returned back."""
    owners = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    parameters = dict(network.named_parameters())
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is not None and parameter.requires_grad:  # older runs trained the biases before BN
            memory = torch.empty_like(parameter) if value.dim() else torch.empty((), device=parameter.device)
            owners[id(parameter)].state[parameter][key] = memory.copy_(value)
