"""From a visitor's file to the pixels a network sees: centre square, 32x32. The page and the command line share it."""

import io
import warnings
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..errors import DataError

INPUT_PX = 32
LARGEST_PX = 100_000_000  # width x height; a phone's largest photos have 50 to 200 million
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows more, some of which start other programs


def read_picture(path: Path) -> Image.Image:
    """Return the picture in a file as RGB, upright. Raises DataError where there is none, damaged or too large."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on slight damage; with paths of its source code
    try:
        if path.is_dir():
            raise DataError(f"The folder {path} holds no pictures ({', '.join(SUFFIXES)}).")
        if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise DataError(f"{path} is not a file.")
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PX:
                raise DataError(f"{path} has {picture.width} x {picture.height} pixels; {LARGEST_PX:,} are allowed.")
            return to_rgb(picture)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture; give one of {', '.join(SUFFIXES)}.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large; {LARGEST_PX:,} pixels are allowed.") from error
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
    pixels: Tensor = pil_to_tensor(square.resize((INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC, reducing_gap=3.0))
    return pixels


def to_png(pixels: Tensor) -> bytes:
    """Return uint8 `3,H,W` as a PNG file."""
    to_pil_image(pixels.cpu()).save(file := io.BytesIO(), "PNG")
    return file.getvalue()
