"""From any file to the 32x32 pixels the network sees."""

import io
import os
import random
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from cnn_demo.errors import DataError
from cnn_demo.pictures import photo
from cnn_demo.ui.classify import steps

ORIENTATION, GPS = 0x0112, 0x8825


def seen(picture: Image.Image) -> torch.Tensor:
    return photo.to_input(photo.crop(photo.to_rgb(picture)))


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


def test_centre_is_cropped_not_stretched() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    assert (seen(picture)[2] > 200).all() and (seen(picture)[0] < 50).all()


def save_rotated(path: Path, exif: Image.Exif) -> None:
    """Write a picture that is white above, and to be rotated a quarter clockwise: white is then on the right."""
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (0, 0, 64, 32))
    exif[ORIENTATION] = 6
    picture.save(path, exif=exif, quality=95)


def assert_white_right(path: Path) -> None:
    columns = photo.to_input(photo.crop(photo.read_picture(path))).float().mean((0, 1))
    assert columns[24:].mean() > 200 > 50 > columns[:8].mean()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_rotates_the_picture(tmp_path: Path, suffix: str) -> None:
    save_rotated(tmp_path / f"a{suffix}", Image.Exif())
    assert_white_right(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("tag", "wrong"),
    [
        (b"\x01\x1a\x00\x05\x00\x00\x00\x01", b"\x01\x1a\x00\x02\x00\x00\x00\x01"),  # XResolution: text, not a ratio
        (b"\x01\x1a\x00\x05\x00\x00\x00\x01", b"\x01\x1a\x00\x0c\x00\x00\x00\x01"),  # a double
        (b"\x01\x1a\x00\x05\x00\x00\x00\x01", b"\x88\x25\x00\x02\x00\x00\x00\x04"),  # the GPS folder: text
    ],
)
def test_picture_with_an_ill_typed_exif_tag_is_still_rotated(tmp_path: Path, tag: bytes, wrong: bytes) -> None:
    exif = Image.Exif()
    exif[0x011A] = 72.0
    save_rotated(tmp_path / "a.jpg", exif)
    content = (tmp_path / "a.jpg").read_bytes()
    assert content.count(tag) == 1
    (tmp_path / "a.jpg").write_bytes(content.replace(tag, wrong))
    assert_white_right(tmp_path / "a.jpg")


def test_shrinking_averages_over_all_pixels() -> None:
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
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is None:
        Image.effect_noise((200, 200), 50).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:3000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {words}"):
        photo.read_picture(tmp_path / name)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, words in (
        (tmp_path, "holds no pictures"),
        (tmp_path / "nowhere.png", r"nowhere.png cannot be read \(No such file"),
        (tmp_path / "pipe.png", "is not a file"),
        (tmp_path / ("x" * 5000), "name too long"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            photo.read_picture(path)
        assert len(str(caught.value)) < 500


def test_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (400, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(photo, "LARGEST_PX", 100_000)
    with pytest.raises(DataError, match="400 x 300 pixels; 100,000 are allowed"):
        photo.read_picture(tmp_path / "a.png")


def test_a_large_jpeg_is_decoded_small_and_seen_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Image.effect_noise((30, 24), 90).resize((6000, 4800), Image.Resampling.BICUBIC).convert("RGB")
    small.save(tmp_path / "a.jpg", quality=95)
    small.save(tmp_path / "a.bmp")
    with pytest.raises(DataError, match=r"6000 x 4800 pixels; 25,000,000 are allowed \(BMP\)"):
        photo.read_picture(tmp_path / "a.bmp")
    found = photo.read_picture(tmp_path / "a.jpg")
    assert found.size == (3000, 2400)
    difference = photo.to_input(photo.crop(found)).float() - photo.to_input(photo.crop(small)).float()
    assert difference.abs().max() <= 3
    shown = steps(found, photo.to_input(photo.crop(found)))
    assert "your picture, 6000×4800" in shown and "its center, 4800×4800" in shown and "22,500 of yours" in shown
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    small.save(tmp_path / "b.jpg", exif=exif)
    turned = photo.read_picture(tmp_path / "b.jpg")
    assert turned.size == (2400, 3000) and "your picture, 4800×6000" in steps(turned, photo.to_input(turned))


@pytest.mark.parametrize("name", photo.FORMATS)
def test_damaged_bytes_give_an_image_or_a_data_error(name: str, tmp_path: Path) -> None:
    """400 files of each format with a few bytes changed, half of them in the EXIF where there is one."""
    generator = random.Random(name)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F], exif[0x011A], exif[0x0132] = 6, "maker", 72.0, "2026:01:02 03:04:05"
    if name != "TIFF":  # Pillow cannot write it there
        exif[GPS] = {1: "N", 2: (1.0, 2.0, 3.0)}
    buffer = io.BytesIO()
    Image.effect_noise((16, 12), 80).convert("P" if name == "GIF" else "RGB").save(buffer, name, exif=exif)
    good = buffer.getvalue()
    start, path, read = max(good.find(b"MM\0*"), 0), tmp_path / "a", 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for turn in range(400):
            content = bytearray(good)
            for _ in range(generator.randint(1, 3)):
                place = start + generator.randrange(120) if turn % 2 else generator.randrange(len(content))
                content[min(place, len(content) - 1)] = generator.choice((0, 1, 2, 5, 12, 127, 255))
            path.write_bytes(content)
            try:
                assert photo.to_input(photo.crop(photo.read_picture(path))).shape == (3, 32, 32)
                read += 1
            except DataError as error:
                assert "\n" not in str(error)
    assert 0 < read < 400
    assert not warned  # they would reach stderr


def test_png_holds_the_very_pixels() -> None:
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.open(io.BytesIO(photo.to_png(pixels)))
    assert (picture.format, picture.mode) == ("PNG", "RGB") and torch.equal(seen(picture), pixels)
