"""The size of every stage: shapes, parameters, MACs and receptive field, from one pass on the meta device.

No weights are allocated and no live model is touched: the network is built anew, without memory. One MAC is a
multiplication and an addition; FLOPs = 2 x MACs. Only convolutions and linear layers count (as in
torch.utils.flop_counter); biases, BN, ReLU and pooling do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .models import BUILDERS, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSize:
    """One stage at one input size.

    output: C,H,W. stride: input pixels per output pixel. receptive_field: input pixels one output pixel can see,
    zero padding included. macs: for one picture. activation_bytes: the output map in float32, for one picture.
    """

    name: str
    description: str
    output: tuple[int, int, int]
    stride: int
    receptive_field: int
    parameters: int
    macs: int
    activation_bytes: int


def measure(model: str, input_size: int = 32, classes: int = 10) -> list[StageSize]:
    """Return the stages of a network for pictures of `3,input_size,input_size`.

    Raises InputError where the picture is too small to reach the last stage, or over 1024 px.
    """
    with torch.device("meta"):
        network = BUILDERS[model](classes).eval()
        smallest = 32 if model == "vgg16" else 1
        if not smallest <= input_size <= 1024:
            raise InputError(f"--input-size {input_size} is not allowed for {model}; give {smallest} to 1024 pixels.")
        x = torch.empty(1, 3, input_size, input_size)
    sizes = []
    field, jump = 1, 1
    for stage, module in zip(network.stages, network, strict=True):
        calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

        def note(leaf: nn.Module, given: tuple[Tensor], result: Tensor, *, name: str, calls: list[Any] = calls) -> None:
            calls.append((name, leaf, given[0], result))

        handles = [
            leaf.register_forward_hook(partial(note, name=name))
            for name, leaf in module.named_modules()
            if not list(leaf.children())
        ]
        x = module(x)
        for handle in handles:
            handle.remove()
        for name, leaf, given, _ in calls:
            if "projection" not in name:  # the shortcut's field lies inside the main path's
                kernel, step = _window(leaf, given)
                field += (kernel - 1) * jump
                jump *= step
        output = tuple(x.shape[1:]) + (1,) * (4 - x.dim())
        sizes.append(
            StageSize(
                name=stage.name,
                description=stage.description.replace("classes", str(classes)),
                output=output,
                stride=jump,
                receptive_field=field,
                parameters=sum(p.numel() for p in module.parameters()),
                macs=sum(_macs(leaf, result) for _, leaf, _, result in calls),
                activation_bytes=x.numel() * 4,
            )
        )
    return sizes


def to_dict(model: str, input_size: int, sizes: list[StageSize]) -> dict[str, Any]:
    """Return the table as JSON-ready values, with totals that are the sums."""
    return {
        "model": model,
        "input": [3, input_size, input_size],
        "parameters": sum(size.parameters for size in sizes),
        "macs": sum(size.macs for size in sizes),
        "stages": [{key: getattr(size, key) for key in StageSize.__slots__} for size in sizes],
    }


def _window(leaf: nn.Module, given: Tensor) -> tuple[int, int]:
    """Return kernel and stride of a layer, in pixels of its own input; 1, 1 where it looks at single pixels."""
    if isinstance(leaf, nn.AdaptiveAvgPool2d):
        return given.shape[-1], given.shape[-1]
    if isinstance(leaf, nn.Conv2d):
        return leaf.kernel_size[0], leaf.stride[0]
    if isinstance(leaf, nn.MaxPool2d):
        return int(leaf.kernel_size), int(leaf.stride)  # type: ignore[arg-type]
    return 1, 1


def _macs(leaf: nn.Module, result: Tensor) -> int:
    """Return the multiply-adds of a layer for one picture: output values times the inputs of each."""
    if isinstance(leaf, (nn.Conv2d, nn.Linear)):
        return result.numel() * leaf.weight[0].numel()
    return 0


def count_parameters(network: Network) -> int:
    """Return the number of trainable values; BN's running statistics are not among them."""
    return sum(p.numel() for p in network.parameters())
