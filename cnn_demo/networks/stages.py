"""The size of every stage: shapes, parameters, MACs and receptive field, from a pass without weights or images.

One MAC is a multiplication and an addition; FLOPs = 2 x MACs. Only convolutions and linear layers count (as in
torch.utils.flop_counter); biases, BN, ReLU and pooling do not.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .catalog import NETWORKS
from .models import construct

LARGEST_PX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSize:
    """One stage at one input size.

    layers: without projections. output: C,H,W. stride: input pixels per output pixel. receptive_field: input pixels
    that one output pixel can see, zero padding included. For one image: macs, activation_bytes (the output in float32).
    """

    name: str
    description: str
    layers: int
    output: tuple[int, int, int]
    stride: int
    receptive_field: int
    parameters: int
    macs: int
    activation_bytes: int


def measure(model: str, input_size: int = 32, classes: int = 10) -> list[StageSize]:
    """Return the stages of a network for images of `3,input_size,input_size`.

    Raises InputError for an unknown network, and for an image too small for the last stage or too large.
    """
    if model not in NETWORKS:
        raise InputError(f"Network: choose {', '.join(NETWORKS)}, not {model!r}.")
    known = NETWORKS[model]
    if not known.smallest_px <= input_size <= LARGEST_PX:
        allowed = f"{known.smallest_px} to {LARGEST_PX:,} pixels"
        raise InputError(f"Input size: enter {allowed} for {known.title}, not {input_size}.")
    with torch.device("meta"):
        network = construct(model, classes)
    network.to_empty(device="cpu").eval()  # on meta an addition would load torch's compiler, which takes a second

    field, jump, layers, macs = 1, 1, 0, 0

    def count(name: str, layer: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        nonlocal layers, macs, field, jump
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layers += "projection" not in name
            macs += math.prod(result.shape[1:]) * layer.weight[0].numel()
        if "projection" in name:  # a shortcut's field lies inside the main path's
            return
        kernel = step = 1
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            kernel = step = given[0].shape[-1]
        elif isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            kernel, step = (v[0] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.stride))
        field += (kernel - 1) * jump
        jump *= step

    x, sizes = torch.empty(0, 3, input_size, input_size), []  # an empty batch: all shapes, no arithmetic
    for stage, part in zip(network.stages, network, strict=True):
        layers = macs = 0
        for name, layer in part.named_modules():
            layer.register_forward_hook(partial(count, name))
        with torch.inference_mode():
            x = part(x)
        sizes.append(
            StageSize(
                name=stage.name,
                description=stage.description,
                layers=layers,
                output=(*x.shape[1:], 1, 1)[:3],
                stride=jump,
                receptive_field=field,
                parameters=count_parameters(part),
                macs=macs,
                activation_bytes=math.prod(x.shape[1:]) * 4,
            )
        )
    return sizes


def to_dict(model: str, input_size: int, explained: bool = False) -> dict[str, Any]:
    """Return the table as JSON-ready values, with the totals. Raises what `measure` raises."""
    sizes = measure(model, input_size)
    rows = [asdict(size) for size in sizes]
    for index, row in enumerate(rows if explained else []):
        row["explanation"] = explain(model, sizes, index, input_size)
    return {
        "model": model,
        "input": [3, input_size, input_size],
        "parameters": sum(size.parameters for size in sizes),
        "macs": sum(size.macs for size in sizes),
        "stages": rows,
    }


def explain(model: str, sizes: list[StageSize], index: int, input_size: int) -> str:
    """Return a few sentences on a stage: what halves the map, why channels grow, parameters against computation."""
    size = sizes[index]
    inputs, before, _ = sizes[index - 1].output if index else (3, input_size, input_size)
    channels, side, _ = size.output
    parameters = size.parameters / sum(other.parameters for other in sizes)
    macs = size.macs / sum(other.macs for other in sizes)
    if size.name == "classifier":
        layers = f"{size.layers} linear layers turn" if size.layers > 1 else "one linear layer turns"
        first = f"Each channel of the {before}x{before} map is averaged to one value, and {layers} these "
        first += f"{inputs:,} values into one score per class."
        why = "each weight is used once per image."
    else:
        stem = "the convolution and the max-pool of the stem, each with stride 2"
        halving = stem if size.name == "stem" else NETWORKS[model].halving
        becomes = f"{before}x{before} becomes {side}x{side} by {halving}."
        first = becomes if side < before else f"The map stays {side}x{side}."
        if channels > inputs:
            reason = ": there are fewer positions, so each can hold more features" if side < before else ""
            first += f" The number of channels grows from {inputs} to {channels:,}{reason}."
        why = "its kernels are small, but each is applied at every position of a large map."
        if macs <= parameters:
            why = "its kernels span many channels, but each is applied at few positions."
    if size.receptive_field > input_size:
        why += f" Its receptive field of {size.receptive_field} px is larger than the whole image."
    return f"{first} The stage has {parameters:.1%} of the parameters and does {macs:.1%} of the computation: {why}"


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable values, without BN's running statistics."""
    return sum(p.numel() for p in network.parameters())
