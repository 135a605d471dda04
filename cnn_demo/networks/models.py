"""The networks. They take `N,3,H,W` float pictures and return `N,classes` logits.

Each network is a sequence of named stages and declares, while it is built, what each stage puts out; a test holds
the declaration against a real forward pass. Nothing here knows of data, training or files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a stage is declared to be: blocks at one spatial size.

    stride: input pixels per output pixel; None where the whole picture becomes one.
    """

    name: str
    description: str
    channels: int
    stride: int | None


class Network(nn.Sequential):
    """Stages in data-flow order, each a child module of the stage's name."""

    def __init__(self, parts: list[tuple[Stage, nn.Module]]) -> None:
        super().__init__(OrderedDict((stage.name, module) for stage, module in parts))
        self.stages = tuple(stage for stage, _ in parts)


class Conv2d(nn.Conv2d):
    """nn.Conv2d (same weights, same result) that on the CPU runs as a matrix product where that is faster.

    oneDNN takes two to four times as long for a 1x1 convolution's backward pass, and for a 3x3 one on a map of 4x4 or
    less: a third of vgg16's step, most of the course ResNet50's. On a GPU cuDNN does it all.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`N,C,H,W` -> `N,K,H/stride,W/stride`."""
        shape = (self.kernel_size, self.stride, self.padding)
        pointwise = self.kernel_size == (1, 1)
        small = shape == ((3, 3), (1, 1), (1, 1)) and max(input.shape[-2:]) <= 4
        if input.device.type != "cpu" or not (pointwise or small):
            return super().forward(input)
        pixels = input.permute(0, 2, 3, 1)  # N,H,W,C: how channels-last memory lies, so nothing is copied
        if small:
            output: Tensor = Convolve3x3.apply(pixels, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return output.permute(0, 3, 1, 2)
        # contiguous: of a strided view, linear without gradients makes a slow batched product
        pixels = pixels[:, :: self.stride[0], :: self.stride[1]].contiguous()
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Convolve3x3(torch.autograd.Function):
    """A 3x3 convolution with padding 1: `N,H,W,C`, weight `K,C,3,3`, bias `K` or None -> `N,H,W,K`.

    Both gradients are products, too. The neighbours are laid out again for them rather than kept, and the one for the
    input is a convolution with the kernel turned round, so nothing is scattered.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution, in autocast's type where that is on."""
        ctx.save_for_backward(pixels, weight)
        return F.linear(neighbours(pixels), weight.permute(0, 2, 3, 1).flatten(1), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Return the gradients for pixels, weight and bias."""
        pixels, weight = (tensor.to(gradient.dtype) for tensor in ctx.saved_tensors)  # as autocast had them forward
        outputs, inputs = weight.shape[:2]
        rows = gradient.flatten(0, 2)  # N*H*W,K
        for_weight = (rows.T @ neighbours(pixels).flatten(0, 2)).view(outputs, 3, 3, inputs).permute(0, 3, 1, 2)
        for_pixels = None
        if ctx.needs_input_grad[0]:
            turned = weight.permute(2, 3, 0, 1).flip(0, 1).flatten(0, 2)  # 9*K,C
            for_pixels = neighbours(gradient) @ turned
        return for_pixels, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def neighbours(pixels: Tensor) -> Tensor:
    """Return `N,H,W,9*C`: for each of `N,H,W,C` its 3x3 surroundings, zero beyond the edge."""
    count, height, width, channels = pixels.shape
    padded = F.pad(pixels, (0, 0, 1, 1, 1, 1))
    picture, row, column, channel = padded.stride()
    windows = padded.as_strided((count, height, width, 3, 3, channels), (picture, row, column, row, column, channel))
    return windows.reshape(count, height, width, 9 * channels)


class Bottleneck(nn.Module):
    """Conv 1x1, 3x3, 1x1 with BN, plus the shortcut, then ReLU (He et al. 2015, arXiv 1512.03385, figure 5 right).

    The shortcut is projected (conv 1x1 + BN) only where the shape changes. `stride_in_first` puts the stride into
    the first 1x1 (the paper, the course); else into the 3x3 (torchvision's "V1.5").
    """

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, stride_in_first: bool, bias: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_first else (1, stride)
        self.conv1 = Conv2d(inputs, width, 1, first, bias=bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, second, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, outputs, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.projection: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.projection = nn.Sequential(
                OrderedDict(conv=Conv2d(inputs, outputs, 1, stride, bias=bias), bn=nn.BatchNorm2d(outputs))
            )

    def forward(self, x: Tensor) -> Tensor:
        """`N,inputs,H,W` -> `N,outputs,H/stride,W/stride`."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.projection(x), inplace=True)


def _head(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    """Return a classifier: global average pooling (the identity on a 1x1 map), then the layers."""
    return nn.Sequential(OrderedDict([("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), *layers]))


def vgg16(classes: int) -> Network:
    """VGG16 with batch normalisation (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1, D), head 512-512."""
    parts: list[tuple[Stage, nn.Module]] = []
    inputs, stride = 3, 1
    for number, (channels, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, depth + 1):
            layers[f"conv{i}"] = Conv2d(inputs, channels, 3, padding=1)
            layers[f"bn{i}"] = nn.BatchNorm2d(channels)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            inputs = channels
        layers["pool"] = nn.MaxPool2d(2)
        stride *= 2
        text = f"{depth} x conv3x3-BN-ReLU, max-pool/2"
        stage = Stage(name=f"stage{number}", description=text, channels=channels, stride=stride)
        parts.append((stage, nn.Sequential(layers)))
    head = _head(
        ("fc1", nn.Linear(512, 512)),
        ("relu1", nn.ReLU(inplace=True)),
        ("fc2", nn.Linear(512, 512)),
        ("relu2", nn.ReLU(inplace=True)),
        ("fc3", nn.Linear(512, classes)),
    )
    text = "average pool, 512-512-512-classes"
    parts.append((Stage(name="classifier", description=text, channels=classes, stride=None), head))
    return Network(parts)


def resnet50(classes: int) -> Network:
    """ResNet50 in its course layout: ImageNet stem, 3-4-6 bottlenecks, no last stage (41 weight layers).

    The last block of stages 1 and 2 halves the map, with the stride in its first 1x1; convolutions carry a bias.
    """
    stem = [Conv2d(3, 64, 7, 2, padding=3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
    return _resnet(stem, "conv7x7/2-BN-ReLU, max-pool3x3/2", 4, [(3, 3), (4, 4), (6, 0)], True, classes)


def resnet50_full(classes: int) -> Network:
    """ResNet50 with all four stages (3-4-6-3, stride in the 3x3) and a 3x3/1 stem for small pictures."""
    stem = [Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    return _resnet(stem, "conv3x3-BN-ReLU", 1, [(3, 0), (4, 1), (6, 1), (3, 1)], False, classes)


def _resnet(
    stem: list[nn.Module], stem_text: str, stride: int, layout: list[tuple[int, int]], course: bool, classes: int
) -> Network:
    """Build a bottleneck network; `layout` gives each stage's depth and which of its blocks halves the map (0: none).

    stride: of the stem. course: convolutions carry a bias, and a halving block strides in its first 1x1.
    """
    stem_module = nn.Sequential(OrderedDict(zip(("conv", "bn", "relu", "pool"), stem, strict=False)))
    parts: list[tuple[Stage, nn.Module]] = [
        (Stage(name="stem", description=stem_text, channels=64, stride=stride), stem_module)
    ]
    inputs = 64
    for number, (depth, halving) in enumerate(layout, start=1):
        width = 32 * 2**number
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, depth + 1):
            step = 2 if i == halving else 1
            blocks[f"block{i}"] = Bottleneck(inputs, width, 4 * width, step, stride_in_first=course, bias=course)
            inputs, stride = 4 * width, stride * step
        text = f"{depth} bottlenecks {width}-{width}-{4 * width}" + (f", block {halving} halves" if halving else "")
        stage = Stage(name=f"stage{number}", description=text, channels=4 * width, stride=stride)
        parts.append((stage, nn.Sequential(blocks)))
    head = Stage(name="classifier", description=f"average pool, {inputs}-classes", channels=classes, stride=None)
    parts.append((head, _head(("fc", nn.Linear(inputs, classes)))))
    return Network(parts)


def _initialise(network: Network) -> None:
    """Draw He-normal weights (He et al. 2015, arXiv 1502.01852); the last BN of each bottleneck starts at zero.

    With gamma = 0 a block starts as its shortcut alone (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
    last = next(module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear))
    nn.init.normal_(last.weight, std=0.01)  # near-equal scores at the start: a first loss of ln(classes)


BUILDERS: dict[str, Callable[[int], Network]] = {"vgg16": vgg16, "resnet50": resnet50, "resnet50_full": resnet50_full}


def build(name: str, classes: int, seed: int) -> Network:
    """Return a fresh network of that name; the same seed draws the same weights, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BUILDERS[name](classes)
        _initialise(network)
    return network
