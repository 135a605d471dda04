"""Random flips, shifts and holes: drawn for a whole epoch at once, applied to a batch on the device."""

import torch
from torch import Tensor

SHIFTS = {"none": 0, "flip": 0, "flip_translate": 2, "flip_translate_cutout": 4}  # the largest shift, in pixels
HOLE_PX = 8
CUTOUT = "flip_translate_cutout"


class Augmentation:
    """The random choices of one epoch over images `N` (their indices, on the device), from (seed, epoch).

    order: the indices in random order, `N`. axes: which row and column of an image each pixel shows, and which rows
    and columns lie outside its hole (1, else 0), uint8 `4,N,32`.
    """

    def __init__(self, augmentation: str, seed: int, epoch: int, images: Tensor) -> None:
        generator, device, count = torch.Generator().manual_seed(seed * 1_000_003 + epoch), images.device, len(images)
        self.epoch, reach = epoch, SHIFTS[augmentation]
        self.order = images[torch.randperm(count, generator=generator).to(device)]
        flipped = (torch.rand(count, 1, generator=generator) < 0.5).to(device)
        shift = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator).to(device)
        hole = torch.randint(0, 32, (2, count, 1), generator=generator).to(device)  # its centre
        axis = torch.arange(32, device=device)
        rows, columns = 31 - (31 - (axis + shift).abs()).abs()  # reflected at the edges; each N,32
        if augmentation != "none":
            columns = torch.where(flipped, 31 - columns, columns)
        covered = ((axis - hole) >= -HOLE_PX // 2) & ((axis - hole) < HOLE_PX // 2)  # 2,N,32
        self.axes = torch.stack([rows, columns, *~covered]).to(torch.uint8)


def move(pictures: Tensor, order: Tensor, axes: Tensor) -> Tensor:
    """Return of uint8 images the `N` of `order` by `axes` `4,N,32`, shifted and flipped in one gather: `N,3,32,32`."""
    rows, columns = axes[:2].long()
    return pictures[order[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(inputs: Tensor, axes: Tensor) -> Tensor:
    """Return `N,3,32,32` with a hole of HOLE_PX squared (less at the edge) at the mean colour, 0."""
    return inputs.mul(axes[2, :, None, :, None] | axes[3, :, None, None, :])
