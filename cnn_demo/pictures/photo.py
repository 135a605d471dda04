"""From a visitor's file to the pixels a network sees: centre square, 32x32. The page and the command line share it."""

import io
import logging
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError

INPUT_PX = 32
LARGEST_PX = 25_000_000  # width x height; in memory a picture takes up to 16 bytes for each
LARGEST_JPEG_PX = 100_000_000  # those of a phone's largest photos are decoded at half the size or less
LARGE = threading.Lock()  # one large photo at a time
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows more, some of which start other programs


def read_picture(path: Path) -> Image.Image:
    """Return the picture in a file as RGB, upright. Raises DataError where there is none, damaged or too large.

    A large JPEG is decoded smaller; its own size is then in `info["size"]`.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on slight damage; with paths of its source code
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # likewise
    try:
        if path.is_dir():
            raise DataError(f"The folder {path} holds no pictures ({', '.join(SUFFIXES)}).")
        if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise DataError(f"{path} is not a file.")
        with Image.open(path, formats=FORMATS) as picture:
            size, largest = picture.size, LARGEST_JPEG_PX if picture.format == "JPEG" else LARGEST_PX
            if size[0] * size[1] > largest:
                raise DataError(f"{path} has {size[0]} x {size[1]} pixels; {largest:,} are allowed ({picture.format}).")
            if size[0] * size[1] <= LARGEST_PX:
                return to_rgb(picture)
            with LARGE:
                picture.draft("RGB", (2048, 2048))  # not smaller than this
                small = to_rgb(picture)
            is_turned = (small.width < small.height) != (size[0] < size[1])
            small.info["size"] = size[::-1] if is_turned else size
            return small
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture; give one of {', '.join(SUFFIXES)}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large; {LARGEST_JPEG_PX:,} pixels are allowed.") from error
    except Exception as error:  # on a damaged file Pillow raises OSError, SyntaxError, struct.error and many more
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or "it is damaged"
        raise DataError(f"{str(path)[:200]} cannot be read ({reason[:100]}).") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture of any mode as RGB, rotated in place as its EXIF says, transparency on white, 16 bit as 8."""
    picture.load()
    with suppress(Exception):  # many kinds, where a tag has the wrong type; the rotation comes before these
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = picture.convert("F").point(lambda value: value / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def crop(picture: Image.Image) -> Image.Image:
    """Return the largest centred square of a picture."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def to_input(square: Image.Image) -> Tensor:
    """Return what the network sees of a square picture: uint8 `3,32,32`, each an average over its source pixels."""
    small = square.resize((INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    # torchvision does the same, but takes a second to import
    return pixels.view(INPUT_PX, INPUT_PX, 3).permute(2, 0, 1)


def to_picture(pixels: Tensor) -> Image.Image:
    """Return uint8 `3,H,W` as a picture."""
    return Image.fromarray(pixels.cpu().permute(1, 2, 0).numpy())


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def to_png(pixels: Tensor) -> bytes:
    """Return uint8 `3,H,W` as a PNG file."""
    return png(to_picture(pixels))
