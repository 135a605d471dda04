"""From any picture to the 32x32 the network sees, and honest text for scores."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cnn_demo.answers import inference
from cnn_demo.errors import DataError
from cnn_demo.networks.models import build
from cnn_demo.runs.checkpoints import Checkpoint


def seen(picture: Image.Image) -> torch.Tensor:
    return inference.to_input(inference.crop(inference.to_rgb(picture)))


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("RGB", (64, 64), (10, 200, 30)), (10, 200, 30)),
        (Image.new("RGBA", (64, 64), (255, 0, 255, 0)), (255, 255, 255)),
        (Image.new("LA", (64, 64), (0, 255)), (0, 0, 0)),
        (Image.new("L", (64, 64), 77), (77, 77, 77)),
        (Image.new("I;16", (64, 64), 128 * 256), (128, 128, 128)),
        (Image.new("CMYK", (64, 64), (255, 0, 0, 0)), (0, 255, 255)),
        (Image.new("1", (64, 64), 1), (255, 255, 255)),
        (Image.new("RGB", (32, 32), (1, 2, 3)).convert("P"), None),
    ],
)
def test_every_mode_becomes_rgb(picture: Image.Image, colour: tuple[int, int, int] | None) -> None:
    pixels = seen(picture)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    if colour:
        assert (pixels.view(3, -1).T - torch.tensor(colour, dtype=torch.int)).abs().max() <= 1


def test_the_middle_is_cropped_not_stretched() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    assert (seen(picture)[2] > 200).all() and (seen(picture)[0] < 50).all()


def test_exif_turns_the_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (0, 0, 64, 32))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white comes to the right
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = inference.to_input(inference.crop(inference.read_picture(tmp_path / "a.jpg"))).float().mean((0, 1))
    assert pixels[24:].mean() > 200 > 50 > pixels[:8].mean()


def test_shrinking_counts_every_pixel() -> None:
    """A fine checkerboard becomes grey, not black or white."""
    board = Image.new("L", (512, 512))
    board.putdata([255 * ((x + y) % 2) for y in range(512) for x in range(512)])
    assert (seen(board).float() - 127.5).abs().max() < 8


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.png", b"hello", "is not a picture"),
        ("cut.png", None, "cannot be read"),
        ("picture.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is None:
        Image.effect_noise((200, 200), 50).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:3000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {words}"):
        inference.read_picture(tmp_path / name)
    with pytest.raises(DataError, match=r"nowhere.png cannot be read \(No such file"):
        inference.read_picture(tmp_path / "nowhere.png")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (400, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(inference, "LARGEST_PX", 100_000)
    with pytest.raises(DataError, match="400 x 300 pixels; 100,000 are allowed"):
        inference.read_picture(tmp_path / "a.png")


def test_all_classes_are_scored_the_likeliest_first() -> None:
    network = build("resnet50", 4, 0)
    checkpoint = Checkpoint(
        name="x",
        model="resnet50",
        dataset="x",
        classes=("a", "b", "c", "d"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        step=0,
        validation_accuracy=None,
        limits=None,
        temperature=2.0,
        held_out=None,
        weights=network.state_dict(),
    )
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    answer = inference.classify(checkpoint.network(), checkpoint, black)
    scores = [p.score for p in answer.predictions]
    assert sorted(p.label for p in answer.predictions) == ["a", "b", "c", "d"]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert not answer.unusual and not answer.unsure  # without measured limits nothing is said
    sharper = inference.classify(checkpoint.network(), replace(checkpoint, temperature=1.0), black)
    assert sharper.predictions[0].score > scores[0]  # twice the temperature, more doubt
    strict = replace(checkpoint, limits=(-1e9, 1.0))
    answer = inference.classify(checkpoint.network(), strict, black)
    assert answer.unusual and answer.unsure


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (1.0, "100 %"),
        (0.9995, "100 %"),
        (0.99949, "99.9 %"),
        (0.9991, "99.9 %"),
        (0.5, "50.0 %"),
        (0.001, "0.1 %"),
        (0.0004, "<0.1 %"),
    ],
)
def test_percentages_are_honest(score: float, text: str) -> None:
    assert inference.percent(score) == text
