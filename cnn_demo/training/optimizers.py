"""SGD, AdamW and Muon over a network's parameters, their learning-rate schedules, and their state by name."""

import math

import torch
from torch import Tensor, nn

from ..training.config import RunConfig

MOMENTUM = 0.9
MUON_MOMENTUM = 0.6
MUON_REST = 0.5  # the learning rate of what Muon leaves to SGD (biases, BN, linear layers), in Muon's


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For convolution kernels `K,C,h,w`, seen as matrices `K,h*w*C`; each is kept at norm sqrt(K), so its scale needs no
    weight decay. torch.optim.Muon takes no kernels. `dtype` is the format of the matrix products.
    """

    def __init__(self, kernels: list[nn.Parameter], lr: float, dtype: torch.dtype) -> None:
        super().__init__(kernels, {"lr": lr})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step. Kernels of one shape are orthogonalised together, as a batch."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for kernel in group["params"]:
                if kernel.grad is not None:
                    by_shape.setdefault(kernel.shape, []).append(kernel)
            for kernels in by_shape.values():
                gradients = []
                for kernel in kernels:
                    assert kernel.grad is not None
                    state = self.state[kernel]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(kernel)
                    momentum = state["momentum_buffer"].mul_(MUON_MOMENTUM).add_(kernel.grad)
                    gradient = kernel.grad.add(momentum, alpha=MUON_MOMENTUM)  # Nesterov
                    gradients.append(gradient.permute(0, 2, 3, 1))  # as it lies in channels-last memory
                updates = orthogonal(torch.stack(gradients).flatten(2), self.dtype)
                for kernel, update in zip(kernels, updates, strict=True):
                    pixels = kernel.permute(0, 2, 3, 1)
                    pixels.mul_(math.sqrt(len(kernel)) / kernel.norm())
                    pixels.sub_(update.view_as(pixels), alpha=group["lr"])


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return for each of `B,m,n` the nearest matrix with singular values of 1, nearly (0.7 to 1.2).

    Three Newton-Schulz iterations with the quintic of Jordan et al. (as above), in products of `dtype`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)).to(dtype)  # scaled before it is shortened
    for _ in range(3):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


def build(network: nn.Module, config: RunConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all parameters; each group keeps its peak rate under "peak". Only matrices decay."""
    parameters, rate = list(network.parameters()), config.learning_rate
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(Muon([p for p in parameters if p.dim() == 4], rate, dtype))
        parameters = [p for p in parameters if p.dim() != 4]
        rate *= MUON_REST
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        optimizers.append(torch.optim.AdamW(groups, lr=rate, foreach=True))
    else:
        optimizers.append(torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True, foreach=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


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
        parameter = parameters[parameter_name]
        # AdamW's step counter is a scalar that torch keeps on the CPU
        memory = value.clone() if value.dim() == 0 else torch.empty_like(parameter).copy_(value)
        owners[id(parameter)].state[parameter][key] = memory
