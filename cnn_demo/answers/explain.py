"""What a network makes of a picture, and what its answer rests on: feature maps, Grad-CAM, occlusion.

It only reads the network: no hooks, no gradients kept. `network`: the checkpoint's or an untrained one of its kind, in
eval mode. `pixels`: the uint8 `3,32,32` that is classified.
"""

from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError
from ..networks.models import Network
from ..networks.stages import fields, walk
from ..pictures.dataset import normalise
from ..pictures.photo import INPUT_PX, png, to_picture
from ..runs.checkpoints import Checkpoint
from .inference import classify, finite

PATCH_PX = 8  # of occlusion
PANEL_PX = 288  # 9 for each pixel
TINY = 1e-30  # where all is zero, instead of a division by zero


def layers(network: Network) -> list[str]:
    """Return the names of all maps in data-flow order (see stages.walk): a stage's after those within it."""
    return [name for _, names in walk(network) for name in names]


@torch.no_grad()
def maps(network: Network, checkpoint: Checkpoint, pixels: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return what stages, or convolutions or blocks in them, put out, from one forward pass.

    By name: values after ReLU, float32 `C,H,W` on the CPU. Raises InputError (unknown name), CheckpointError.
    """
    x, found = normalise(pixels[None], checkpoint.mean, checkpoint.std), dict[str, Tensor]()
    for layer, given in walk(network):
        x = layer(x)
        found |= dict.fromkeys(given, x)
    if unknown := [name for name in names if name not in found]:
        raise InputError(f"Stage: choose {', '.join(found)}, not {unknown[0][:80]!r}.")
    return {name: finite(found[name][0], checkpoint).contiguous() for name in names}


def describe(name: str, values: Tensor) -> dict[str, Any]:
    """Return statistics of maps `C,H,W`, JSON-ready; zeros: the fraction of values, dead: channels zero everywhere."""
    zero = values == 0
    numbers = {"mean": float(values.mean()), "largest": float(values.max()), "zeros": float(zero.float().mean())}
    return {"name": name, **numbers, "dead": int(zero.all(2).all(1).sum()), "size": [*values.shape]}


def cam_layers(model: str) -> list[str]:
    """Return the names of the maps of 4x4 or more, in data-flow order; Grad-CAM of smaller ones hardly says where."""
    return [name for name, (_, stride, _) in fields(model).items() if INPUT_PX // stride >= 4]


def grad_cam(network: Network, checkpoint: Checkpoint, pixels: Tensor, label: str, name: str) -> Tensor:
    """Return where the maps of a name speak for a class: float32 `H,W` of the maps' size, 0 or more.

    The maps' sum, each weighted with the mean of its gradient of the class's score before softmax, where it is positive
    (Selvaraju et al. 2017, arXiv 1610.02391). Zero everywhere: no positive evidence. Raises InputError for an unknown
    class or name, or maps below 4x4; CheckpointError.
    """
    target = class_index(checkpoint, label)
    if name not in (usable := cam_layers(checkpoint.model)):
        known = f"{name[:80]!r} is too small, below 4x4" if name in layers(network) else f"there is no {name[:80]!r}"
        raise InputError(f"Stage for Grad-CAM: {known}; choose {', '.join(usable)}.")
    x = normalise(pixels[None], checkpoint.mean, checkpoint.std)
    for layer, names in walk(network):
        with torch.set_grad_enabled(x.requires_grad):  # from the chosen maps on
            x = layer(x)
        if name in names:
            chosen = x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(x[0, target], chosen)
    return finite((gradient.mean((2, 3), keepdim=True) * chosen.detach()).sum(1).relu()[0], checkpoint)


@torch.no_grad()
def occlusion(network: Network, checkpoint: Checkpoint, pixels: Tensor, label: str) -> Tensor:
    """Return how much a class's score (0 to 1) falls when a part of the picture is grey; negative where it rises.

    float32 `4,4`: each of these parts of 8x8 px in its turn (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2).
    Raises InputError for an unknown class; CheckpointError.
    """
    target, parts = class_index(checkpoint, label), INPUT_PX // PATCH_PX
    pictures = pixels.repeat(parts**2 + 1, 1, 1, 1)  # the last one stays whole
    for number in range(parts**2):
        top, left = PATCH_PX * (number // parts), PATCH_PX * (number % parts)
        pictures[number, :, top : top + PATCH_PX, left : left + PATCH_PX] = 128
    logits = network(normalise(pictures, checkpoint.mean, checkpoint.std)) / checkpoint.temperature
    scores = finite(logits.softmax(1)[:, target], checkpoint)
    return (scores[-1] - scores[:-1]).view(parts, parts)


def class_index(checkpoint: Checkpoint, label: str) -> int:
    """Return the number of a class. Raises InputError where the checkpoint does not know it."""
    if label not in checkpoint.classes:
        raise InputError(f"Class: choose {', '.join(checkpoint.classes)}, not {label[:80]!r}.")
    return checkpoint.classes.index(label)


def kernels(network: Network) -> Tensor:
    """Return the kernels of the first convolution as colours, uint8 `N,k,k,3`: 128 is a weight of 0."""
    weight = next(layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)).detach()
    return (128 + 127 * weight / weight.abs().max().clamp(min=TINY)).round().byte().permute(0, 2, 3, 1)


def shown(values: Tensor) -> list[int]:
    """Return the numbers of the channels of maps to show: 64 at most, the one with the highest mean first."""
    return list(map(int, values.mean((1, 2)).argsort(descending=True, stable=True)[:64]))


def sprite(values: Tensor, channels: list[int]) -> bytes:
    """Return channels as one grey PNG at natural size, eight in a row; 255 is the largest value of all channels."""
    return png(grid(scaled(values, 255)[channels]))


def explain(
    network: Network, checkpoint: Checkpoint, pixels: Tensor, label: str, name: str
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Return all of it JSON-ready, and as pictures by name: the first kernels, the maps of each stage, an overview.

    label: a class, "" for the network's answer. name: of the maps for Grad-CAM, "" for the last that are large enough;
    what is within that stage is drawn, too. Raises InputError, CheckpointError.
    """
    answer = classify(network, checkpoint, pixels)
    label, name = label or answer.predictions[0].label, name or cam_layers(checkpoint.model)[-1]
    cam, falls = grad_cam(network, checkpoint, pixels, label, name), occlusion(network, checkpoint, pixels, label)
    names = [each for each in layers(network) if "." not in each or each.split(".")[0] == name.split(".")[0]]
    report = {"checkpoint": checkpoint.name, "model": checkpoint.model, **asdict(answer), "class": label, "stage": name}
    report |= {"grad_cam": cam.tolist(), "occlusion": falls.tolist(), "maps": []}
    pictures = {"overview": Image.new("RGB", (4 * PANEL_PX, PANEL_PX), "white"), "kernels": sheet(kernels(network))}
    for each, values in maps(network, checkpoint, pixels, names).items():
        report["maps"].append(describe(each, values))
        pictures[each] = coloured(sheet(scaled(values, 254)[shown(values)]))
    for number, panel in enumerate((enlarged(pixels), overlay(pixels, cam), overlay(pixels, falls), pictures[name])):
        pictures["overview"].paste(panel, (number * PANEL_PX, 0))
    return report, pictures


def overlay(pixels: Tensor, heat: Tensor) -> Image.Image:
    """Return the picture in grey under a heat map `h,w` in colours; what is negative counts as zero."""
    small = Image.fromarray(scaled(heat, 254).numpy())
    colours = coloured(small.resize((PANEL_PX, PANEL_PX), Image.Resampling.BILINEAR))
    return Image.blend(enlarged(pixels).convert("L").convert("RGB"), colours.convert("RGB"), 0.5)


def enlarged(pixels: Tensor) -> Image.Image:
    """Return the picture, each pixel a square."""
    return to_picture(pixels).resize((PANEL_PX, PANEL_PX), Image.Resampling.NEAREST)


def scaled(values: Tensor, top: int) -> Tensor:
    """Return values from 0 to the largest as uint8 from 0 to `top`; what is negative counts as zero."""
    return (values.clamp(min=0) * (top / max(float(values.max()), TINY))).round().byte()


def sheet(tiles: Tensor) -> Image.Image:
    """Return tiles `N,H,W` (or `N,H,W,3`) enlarged to about 32 px, eight in a row, in white frames."""
    scale = max(1, INPUT_PX // tiles.shape[1])
    large = tiles.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    framed = tiles.new_full((len(tiles), large.shape[1] + 2, large.shape[2] + 2, *tiles.shape[3:]), 255)
    framed[:, 1:-1, 1:-1] = large
    return grid(framed)


def grid(tiles: Tensor) -> Image.Image:
    """Return uint8 tiles `N,H,W` (or `N,H,W,3`) as one picture, eight in a row; the last row ends with black ones."""
    rows = torch.cat([tiles, tiles.new_zeros(-len(tiles) % 8, *tiles.shape[1:])]).unflatten(0, (-1, 8))
    return Image.fromarray(rows.transpose(1, 2).flatten(2, 3).flatten(0, 1).numpy())


def coloured(grey: Image.Image) -> Image.Image:
    """Return a grey picture in the colours of viridis, from dark violet to yellow at 254; 255 is white."""
    colours = Image.frombytes("RGB", (5, 1), bytes.fromhex("4401543b528b21918c5ec962fde725"))
    grey.putpalette(colours.resize((255, 1), Image.Resampling.BILINEAR).tobytes() + b"\xff\xff\xff")
    return grey
