"""Random flips, shifts and holes."""

import pytest
import torch

from cnn_demo.pictures.augmentation import SHIFTS, Augmentation, cut_out, move
from cnn_demo.pictures.dataset import Dataset


@pytest.mark.parametrize("name", SHIFTS)
def test_each_image_is_shifted_and_flipped_as_a_whole(name: str, tiny: Dataset) -> None:
    augmentation = Augmentation(name, 0, 0, torch.arange(100))
    moved = move(tiny.train_pictures, augmentation.order, augmentation.axes)
    assert sorted(augmentation.order.tolist()) == list(range(100))
    original = tiny.train_pictures[augmentation.order]
    reach = {"none": 0, "flip": 0, "flip_translate": 2, "flip_translate_cutout": 4}[name]
    padded = torch.nn.functional.pad(original.float(), (reach,) * 4, mode="reflect") if reach else original.float()
    matches = torch.zeros(100, dtype=torch.bool)
    for version in [padded] if name == "none" else [padded, padded.flip(3)]:
        for dy in range(2 * reach + 1):
            for dx in range(2 * reach + 1):
                matches |= (version[:, :, dy : dy + 32, dx : dx + 32] == moved).flatten(1).all(1)
    assert matches.all()
    assert ((moved == original).flatten(1).all(1).sum() < 90) == (name != "none")
    holes = (cut_out(torch.ones(100, 3, 32, 32), augmentation.axes) == 0)[:, 0].flatten(1).sum(1)
    assert (holes > 0).all() and (holes <= 64).all()


def test_draws_are_those_of_the_first_release() -> None:
    """A recorded run is repeated exactly by its seed, and a resumed one continues as if never stopped."""
    a = Augmentation("flip_translate_cutout", seed=3, epoch=2, images=torch.arange(5))
    assert a.order.tolist() == [4, 1, 2, 0, 3]
    rows, columns, kept_rows, _ = a.axes
    assert rows[:, 0].tolist() == [3, 1, 2, 1, 0] and columns[:, 0].tolist() == [0, 31, 4, 3, 31]
    assert kept_rows.sum(1).tolist() == [24, 24, 24, 25, 24]
    other = Augmentation("flip_translate_cutout", seed=3, epoch=3, images=torch.arange(5))
    assert not torch.equal(a.axes[1], other.axes[1])
