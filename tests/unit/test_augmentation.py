"""Random flips, shifts and holes."""

import pytest
import torch

from cnn_demo.pictures.augmentation import SHIFTS, Augmentation
from cnn_demo.pictures.dataset import Dataset


@pytest.mark.parametrize("name", SHIFTS)
def test_each_image_is_shifted_and_flipped_as_a_whole(name: str, tiny: Dataset, cpu: torch.device) -> None:
    augmentation = Augmentation(name, 0, 0, 100, cpu)
    moved, chosen = augmentation.batch(tiny.train_pictures, torch.arange(100), 0, 100)
    assert sorted(chosen.tolist()) == list(range(100))
    original = tiny.train_pictures[chosen]
    reach = {"none": 0, "flip": 0, "flip_translate": 2, "flip_translate_cutout": 4}[name]
    padded = torch.nn.functional.pad(original.float(), (reach,) * 4, mode="reflect") if reach else original.float()
    matches = torch.zeros(100, dtype=torch.bool)
    for version in [padded] if name == "none" else [padded, padded.flip(3)]:
        for dy in range(2 * reach + 1):
            for dx in range(2 * reach + 1):
                matches |= (version[:, :, dy : dy + 32, dx : dx + 32] == moved).flatten(1).all(1)
    assert matches.all()
    assert ((moved == original).flatten(1).all(1).sum() < 90) == (name != "none")
    holes = (augmentation.cut_out(torch.ones(100, 3, 32, 32), 0) == 0)[:, 0].flatten(1).sum(1)
    assert (holes > 0).all() and (holes <= 64).all() if "cutout" in name else not holes.any()


def test_draws_are_those_of_the_first_release(cpu: torch.device) -> None:
    """A recorded run is repeated exactly by its seed, and a resumed one continues as if never stopped."""
    a = Augmentation("flip_translate_cutout", seed=3, epoch=2, count=5, device=cpu)
    assert a.order.tolist() == [4, 1, 2, 0, 3]
    assert a.rows[:, 0].tolist() == [3, 1, 2, 1, 0] and a.columns[:, 0].tolist() == [0, 31, 4, 3, 31]
    assert a.kept_rows.sum(1).tolist() == [24, 24, 24, 25, 24]
    other = Augmentation("flip_translate_cutout", seed=3, epoch=3, count=5, device=cpu)
    assert not torch.equal(a.columns, other.columns)
