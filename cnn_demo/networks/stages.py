"""The size of every stage: shapes, parameters, MACs and receptive field, from a pass without weights or images."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .catalog import NETWORKS
from .models import Block, Network, construct

LARGEST_PX = 1024


@dataclass(frozen=True, slots=True)
class StageSize:
    """One stage at one input size."""

    name: str
    description: str
    layers: int  # without projections
    output: tuple[int, int, int]  # C,H,W
    stride: int  # input pixels per output pixel
    receptive_field: int  # input pixels that one output pixel can see, zero padding included
    parameters: int
    macs: int  # multiply-adds for one image, those of convolutions and linear layers without biases; FLOPs = 2 x MACs


def measure(model: str, input_size: int = 32) -> list[StageSize]:
    """Return the stages for images `3,input_size,input_size`. Raises InputError for an unknown network or bad size."""
    if model not in NETWORKS:
        raise InputError(f"Network: choose {', '.join(NETWORKS)}, not {model!r}.")
    smallest, title = NETWORKS[model].smallest_px, NETWORKS[model].title
    if not isinstance(input_size, int) or not smallest <= input_size <= LARGEST_PX:
        raise InputError(f"Input size: enter {smallest} to {LARGEST_PX:,} pixels for {title}, not {input_size!r}.")
    network = construct(model, classes=10).eval()
    known, layers, macs, field, stride = _fields(network), 0, 0, 1, 1

    def count(path: str, layer: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        nonlocal layers, macs
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layers += "projection" not in path
            macs += math.prod(result.shape[1:]) * layer.weight[0].numel()

    x, sizes = torch.empty(0, 3, input_size, input_size), []  # an empty batch: all shapes, no arithmetic
    for (name, part), description in zip(network.named_children(), network.descriptions, strict=True):
        layers, macs, side = 0, 0, x.shape[-1]
        for path, layer in part.named_modules():
            layer.register_forward_hook(partial(count, path))
        with torch.inference_mode():
            x = part(x)
        whole = (0, stride * side, field + (side - 1) * stride)  # the classifier averages the whole map
        _, stride, field = known.get(name, whole)
        output, parameters = (*x.shape[1:], 1, 1)[:3], count_parameters(part)
        sizes.append(StageSize(name, description, layers, output, stride, field, parameters, macs))
    return sizes


def walk(network: Network) -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield the layers in data-flow order, each with the names of the maps that it puts out, if any.

    Maps are a convolution's after BN and ReLU ("stage1.conv2"), a block's ("stage2.block1"), and a stage's ("stage2").
    """
    for stage, part in network.named_children():
        convolution, (*_, last) = "", part.children()
        for name, layer in part.named_children():
            convolution = name if isinstance(layer, nn.Conv2d) else convolution
            names = [f"{stage}.{name}"] if isinstance(layer, Block) else []
            if isinstance(layer, nn.ReLU) and convolution:
                names = [f"{stage}.{convolution}"]
            yield layer, names + [stage] * (layer is last and stage != "classifier")


def fields(model: str) -> dict[str, tuple[int, int, int]]:
    """Return for each map of `walk`: the first row that its row 0 can see, its stride, its receptive field, in px.

    Row i sees `field` rows of the image from first + i * stride on, as far as the image reaches; columns are alike.
    """
    return _fields(construct(model, classes=10))


def _fields(network: Network) -> dict[str, tuple[int, int, int]]:
    found, first, stride, field = dict[str, tuple[int, int, int]](), 0, 1, 1
    for layer, names in walk(network):
        for path, part in layer.named_modules():  # a projection sees no more than the rest of its block
            if isinstance(part, (nn.Conv2d, nn.MaxPool2d)) and "projection" not in path:
                window = (part.kernel_size, part.stride, part.padding)
                kernel, step, padding = (int(v[0] if isinstance(v, tuple) else v) for v in window)
                first, field, stride = first - padding * stride, field + (kernel - 1) * stride, stride * step
        found |= dict.fromkeys(names, (first, stride, field))
    return found


def to_dict(model: str, input_size: int, explained: bool = False) -> dict[str, Any]:
    """Return the stages, each output's bytes in float32 and the totals, JSON-ready. Raises what `measure` raises."""
    sizes = measure(model, input_size)
    rows = [asdict(size) | {"activation_bytes": 4 * math.prod(size.output)} for size in sizes]
    for index, row in enumerate(rows if explained else []):
        row["explanation"] = explain(model, sizes, index, input_size)
    totals = {name: sum(row[name] for row in rows) for name in ("parameters", "macs")}
    return {"model": model, "input": [3, input_size, input_size], **totals, "stages": rows}


def explain(model: str, sizes: list[StageSize], index: int, input_size: int) -> str:
    """Return a few sentences on a stage: what halves the map, why channels grow, parameters against computation."""
    size = sizes[index]
    inputs, before, _ = sizes[index - 1].output if index else (3, input_size, input_size)
    channels, side, _ = size.output
    parameters = size.parameters / sum(other.parameters for other in sizes)
    macs = size.macs / sum(other.macs for other in sizes)
    if size.name == "classifier":
        layers = f"{size.layers} linear layers turn" if size.layers > 1 else "one linear layer turns"
        first = f"Each channel of the {before}x{before} map is averaged to one value, and {layers} these {inputs:,} "
        first += "values into one score per class."
        why = "each weight is used once per image."
    else:
        first = f"The map stays {side}x{side}."
        if side < before:
            stem = "the convolution and the max-pool of the stem, each with stride 2"
            halving = stem if size.name == "stem" else NETWORKS[model].halving
            first = f"{before}x{before} becomes {side}x{side} by {halving}."
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
