"""The size of every stage: shapes, parameters, MACs and receptive field, from a pass without weights or pictures.

The network is built anew on the meta device, so no live model is touched and nothing is initialised. One MAC is a
multiplication and an addition; FLOPs = 2 x MACs. Only convolutions and linear layers count (as in
torch.utils.flop_counter); biases, BN, ReLU and pooling do not.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks.models import BUILDERS


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSize:
    """One stage at one input size.

    layers: convolutions and linear layers, projections not counted. output: C,H,W. stride: input pixels per output
    pixel. receptive_field: input pixels one output pixel can see, zero padding included. macs: for one picture.
    activation_bytes: the output map in float32, for one picture.
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
    """Return the stages of a network for pictures of `3,input_size,input_size`.

    Raises InputError where there is no such network, or the picture is too small for its last stage or over 1024 px.
    """
    if model not in BUILDERS:
        raise InputError(f"There is no network {model!r}; choose {', '.join(BUILDERS)}.")
    smallest = 32 if model == "vgg16" else 1
    if not smallest <= input_size <= 1024:
        raise InputError(f"--input-size {input_size} is not allowed for {model}; give {smallest} to 1024 pixels.")
    with torch.device("meta"):
        network = BUILDERS[model](classes).eval()
    # On meta itself an addition would load torch's compiler, which takes a second. This memory is never touched.
    untouched = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in network.state_dict().items()}
    network.load_state_dict(untouched, assign=True)
    layers: list[tuple[str, nn.Module, torch.Size, torch.Size]] = []

    def note(name: str, module: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        layers.append((name, module, given[0].shape[1:], result.shape[1:]))

    for name, module in network.named_modules():
        module.register_forward_hook(partial(note, name))
    with torch.inference_mode():
        network(torch.empty(0, 3, input_size, input_size))  # an empty batch: all shapes, no arithmetic

    sizes = []
    field, jump = 1, 1
    for stage in network.stages:
        inside = [layer for layer in layers if layer[0].startswith(stage.name + ".")]
        for name, module, given, _ in inside:
            if "projection" not in name:  # the shortcut's field lies inside the main path's
                kernel, step = _window(module, given)
                field += (kernel - 1) * jump
                jump *= step
        output = next(tuple(result) for name, _, _, result in layers if name == stage.name)
        sizes.append(
            StageSize(
                name=stage.name,
                description=stage.description.replace("classes", str(classes)),
                layers=sum(
                    isinstance(module, (nn.Conv2d, nn.Linear)) and "projection" not in name
                    for name, module, _, _ in inside
                ),
                output=(*output, 1, 1)[:3],  # type: ignore[arg-type]
                stride=jump,
                receptive_field=field,
                parameters=count_parameters(network.get_submodule(stage.name)),
                macs=sum(_macs(module, result) for _, module, _, result in inside),
                activation_bytes=math.prod(output) * 4,
            )
        )
    return sizes


def to_dict(model: str, input_size: int, explained: bool = False) -> dict[str, Any]:
    """Return the table as JSON-ready values, with totals that are the sums. Raises what `measure` raises."""
    sizes = measure(model, input_size)
    rows = [dataclasses.asdict(size) for size in sizes]
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
    """Return two or three sentences on a stage: what halves, why channels grow, parameters against computation."""
    size = sizes[index]
    before = sizes[index - 1].output if index else (3, input_size, input_size)
    channels, side = size.output[0], size.output[1]
    if size.name == "classifier":
        first = (
            f"The {before[1]}x{before[2]} map becomes one value per channel, its mean, and {size.layers} linear "
            f"{'layers turn' if size.layers > 1 else 'layer turns'} these {before[0]:,} values into one per class."
        )
    else:
        halving = {
            "stem": "a convolution and a max-pool that each step over every second pixel",
            "vgg16": "a 2x2 max-pool at its end, which keeps the largest of four values",
            "resnet50": "the first 1x1 convolution of its last block, which takes every second pixel",
            "resnet50_full": "the 3x3 convolution of its first block, which takes every second pixel",
        }["stem" if size.name == "stem" else model]
        first = (
            f"The map stays {side}x{side}."
            if side == before[1]
            else f"{before[1]}x{before[2]} becomes {side}x{side} by {halving}."
        )
        if channels > before[0]:
            first += f" Channels grow from {before[0]} to {channels:,}: there are fewer places, so each may say more."
    parameters = size.parameters / sum(other.parameters for other in sizes)
    macs = size.macs / sum(other.macs for other in sizes)
    second = f"It holds {parameters:.1%} of the parameters and does {macs:.1%} of the computation: "
    if size.name == "classifier":
        second += "each weight is used once per picture."
    elif macs > parameters:
        second += "its kernels are small but are used again at every place of a large map."
    else:
        second += "its kernels reach over many channels, but there are few places left to use them."
    if size.receptive_field > input_size:
        second += f" Each output value could see {size.receptive_field} px, more than the whole picture."
    return f"{first} {second}"


def _window(layer: nn.Module, given: torch.Size) -> tuple[int, int]:
    """Return kernel and stride of a layer, in pixels of its own input `C,H,W`; 1, 1 where it looks at single pixels."""
    match layer:
        case nn.AdaptiveAvgPool2d():
            return given[-1], given[-1]
        case nn.Conv2d():
            return layer.kernel_size[0], layer.stride[0]
        case nn.MaxPool2d():
            return int(layer.kernel_size), int(layer.stride)  # type: ignore[arg-type]
    return 1, 1


def _macs(layer: nn.Module, result: torch.Size) -> int:
    """Return the multiply-adds of a layer for one picture: output values times the inputs of each."""
    return math.prod(result) * layer.weight[0].numel() if isinstance(layer, (nn.Conv2d, nn.Linear)) else 0


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable values; BN's running statistics are not among them."""
    return sum(p.numel() for p in network.parameters())
