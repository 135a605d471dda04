"""Builds the networks of the catalog. They take float images `N,3,H,W` and return logits `N,classes`."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .catalog import NETWORKS, Resnet, Vgg
from .cpu_convolution import Conv2d

Stage = tuple[str, str, nn.Module]  # its name, what it does in words, its layers
DRAWING = threading.Lock()  # held while weights are drawn: all threads share one generator


class Network(nn.Sequential):
    """Stages in data-flow order, each a child module with the stage's name. descriptions: what each does, in words."""

    def __init__(self, stages: list[Stage]) -> None:
        super().__init__(OrderedDict((name, layers) for name, _, layers in stages))
        self.descriptions = [description for _, description, _ in stages]


def build(name: str, classes: int, seed: int) -> Network:
    """Return a fresh network; the same seed draws the same weights and leaves the global generator as it was."""
    with DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _assemble(name, classes)
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):  # He-normal: He et al. 2015, arXiv 1502.01852
                nn.init.kaiming_normal_(
                    layer.weight, mode="fan_out" if isinstance(layer, nn.Conv2d) else "fan_in", nonlinearity="relu"
                )
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, Block):  # starts as its shortcut alone: Goyal et al. 2017, arXiv 1706.02677, 5.1
                nn.init.zeros_(layer.get_parameter(f"bn{layer.depth}.weight"))
        *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
        nn.init.normal_(last.weight, std=0.01)  # near-equal scores at the start: a first loss of ln(classes)
    return network


def construct(name: str, classes: int) -> Network:
    """Return a network of the catalog whose weights are still to be loaded; none are drawn."""
    with torch.device("meta"):
        return _assemble(name, classes).to_empty(device="cpu")


@torch.no_grad()
def fold_biases(network: Network) -> None:
    """Move the convolutions' biases into the means that BN subtracts: in eval mode the same function.

    Training, which leaves these biases out (see Conv2d), can then go on from weights that have some.
    """
    convolutions = [layer for layer in network.modules() if isinstance(layer, Conv2d)]
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for convolution, norm in zip(convolutions, norms, strict=True):  # each is followed by its BN
        if convolution.bias is not None and norm.running_mean is not None:
            norm.running_mean.sub_(convolution.bias)
            convolution.bias.zero_()


def _assemble(name: str, classes: int) -> Network:
    layout = NETWORKS[name]
    return Network(list(_vgg(layout, classes) if isinstance(layout, Vgg) else _resnet(layout, classes)))


def _vgg(layout: Vgg, classes: int) -> Iterator[Stage]:
    """Yield the stages of a VGG with batch normalization (Simonyan and Zisserman 2014, arXiv 1409.1556)."""
    inputs = 3
    for number, (channels, depth) in enumerate(layout.stages, start=1):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, depth + 1):
            layers[f"conv{i}"] = Conv2d(inputs, channels, 3, padding=1)
            layers[f"bn{i}"] = nn.BatchNorm2d(channels)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            inputs = channels
        layers["pool"] = nn.MaxPool2d(2)
        yield f"stage{number}", f"{depth} x conv3x3-BN-ReLU, max-pool/2", nn.Sequential(layers)
    yield _classifier((inputs, *layout.hidden, classes))


def _resnet(layout: Resnet, classes: int) -> Iterator[Stage]:
    """Yield the stages of a residual network (He et al. 2015, arXiv 1512.03385)."""
    kernel, stride, pooled = layout.stem
    inputs = 64
    conv = Conv2d(3, inputs, kernel, stride, padding=kernel // 2, bias=layout.bias)
    layers = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(inputs), relu=nn.ReLU(inplace=True))
    text = f"conv{kernel}x{kernel}{f'/{stride}' if stride > 1 else ''}-BN-ReLU"
    if pooled:
        layers["pool"] = nn.MaxPool2d(3, 2, padding=1)
        text += ", max-pool3x3/2"
    yield "stem", text, nn.Sequential(layers)
    for number, (width, depth, halving) in enumerate(layout.stages, start=1):
        widths = [width] * (len(layout.kernels) - 1) + [width * layout.expansion]
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, depth + 1):
            blocks[f"block{i}"] = Block(layout, inputs, widths, stride=2 if i == halving else 1)
            inputs = widths[-1]
        kind = "bottlenecks" if layout.kernels == (1, 3, 1) else "basic blocks"
        text = f"{depth} {kind} {'-'.join(map(str, widths))}" + (f", block {halving} halves" if halving else "")
        yield f"stage{number}", text, nn.Sequential(blocks)
    yield _classifier((inputs, classes))


def _classifier(widths: tuple[int, ...]) -> Stage:
    """Return the last stage: global average pooling (the identity on a 1x1 map), then linear layers."""
    layers = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    last = len(widths) - 1
    for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"fc{i}" if last > 1 else "fc"] = nn.Linear(inputs, outputs)
        if i < last:
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
    return "classifier", f"average pool, {'-'.join(map(str, widths))}", nn.Sequential(layers)


class Block(nn.Module):
    """Convolutions with BN, plus the shortcut, then ReLU (He et al. 2015, figure 5: left basic, right bottleneck)."""

    def __init__(self, layout: Resnet, inputs: int, widths: list[int], stride: int) -> None:
        super().__init__()
        self.depth, outputs = len(widths), widths[-1]
        for i, (kernel, (given, width)) in enumerate(zip(layout.kernels, pairwise([inputs, *widths]), strict=True), 1):
            step = stride if i == layout.strided + 1 else 1
            self.add_module(f"conv{i}", Conv2d(given, width, kernel, step, padding=kernel // 2, bias=layout.bias))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
        self.projection: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:  # the shape changes
            shortcut = Conv2d(inputs, outputs, 1, stride, bias=layout.bias)
            self.projection = nn.Sequential(OrderedDict(conv=shortcut, bn=nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """`N,inputs,H,W` -> `N,outputs,H/stride,W/stride`."""
        y = x
        for i in range(1, self.depth + 1):
            y = F.relu(y, inplace=True) if i > 1 else y
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
        return F.relu(y + self.projection(x), inplace=True)
