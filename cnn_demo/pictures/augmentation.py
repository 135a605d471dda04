"""Random flips, shifts and holes for a whole epoch, drawn at once and applied to a batch on the device."""

import torch
from torch import Tensor

SHIFTS = {"none": 0, "flip": 0, "flip_translate": 2, "flip_translate_cutout": 4}  # the largest shift, in pixels
HOLE_PX = 8


class Augmentation:
    """The random draws of one epoch, from (seed, epoch): order of the images, flips, shifts and holes."""

    def __init__(self, augmentation: str, seed: int, epoch: int, count: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        self.epoch, self.cutout = epoch, augmentation == "flip_translate_cutout"
        reach = SHIFTS[augmentation]
        self.order = torch.randperm(count, generator=generator).to(device)
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        shift = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
        hole = torch.randint(0, 32, (2, count, 1), generator=generator)  # its centre
        axis = torch.arange(32)
        rows, columns = 31 - (31 - (axis + shift).abs()).abs()  # reflected at the edges; each N,32
        if augmentation != "none":
            columns = torch.where(flipped, 31 - columns, columns)
        self.rows, self.columns = rows.to(torch.uint8).to(device), columns.to(torch.uint8).to(device)
        covered = ((axis - hole) >= -HOLE_PX // 2) & ((axis - hole) < HOLE_PX // 2)  # 2,N,32
        self.kept_rows, self.kept_columns = (~covered).to(device)

    def batch(self, pictures: Tensor, index: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Return uint8 `size,3,32,32` (channels last), shifted and flipped in one gather, and their indices."""
        chosen = index[self.order[first : first + size]]
        rows, columns = (axis[first : first + size].long() for axis in (self.rows, self.columns))
        moved = pictures[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # size,32,32,3
        return moved.permute(0, 3, 1, 2), chosen

    def cut_out(self, inputs: Tensor, first: int) -> Tensor:
        """Return `size,3,32,32` with a hole of HOLE_PX squared (less at the edge) at the mean colour, 0."""
        if not self.cutout:
            return inputs
        rows, columns = (axis[first : first + len(inputs)] for axis in (self.kept_rows, self.kept_columns))
        return inputs.mul(rows[:, None, :, None] | columns[:, None, None, :])
