"""CIFAR-10 from a folder, the cache, the Hub or Toronto, in one order: a seed makes the same run from each of them."""

import hashlib
import io
import os
import pickletools
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import DataError, DiskError, DownloadError
from ..settings import Settings
from .catalog import DATASETS
from .dataset import TENSORS, Dataset, Report, make_dataset

BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
PICTURES_PER_BATCH = 10_000
PICTURE_BYTES = 3 * 32 * 32

HUB_REVISION = "0b2714987fa478483af9968de7c934580d0bb9a2"
HUB_FILES = {  # of its folder plain_text, with their SHA-256
    "train-00000-of-00001.parquet": "8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
    "test-00000-of-00001.parquet": "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
}
TORONTO_FILE = "cifar-10-binary.tar.gz"
TORONTO_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
Images = Iterable[tuple[bytes, int]]  # each 3,072 bytes, and its label
Rows = list[tuple[bytes, int, bytes]]  # SHA-256 of the image, label, image
SILENT_SECONDS = 10.0  # after which a server is asked again or given up


def load(where: Settings, report: Report) -> Dataset:
    """Return CIFAR-10 from the folder in the settings, if there is one, else from the cache, the Hub or Toronto.

    Raises DataError (that folder does not hold all of it), DownloadError (nothing whole from either), DiskError.
    """
    if where.data is not None:
        return read_folder(where.data, report)
    cached, part, folder = (where.cache / name for name in ("cifar10.safetensors", "cifar10.part", "download"))
    if found := _read_cache(cached):
        return found
    try:
        where.cache.mkdir(parents=True, exist_ok=True)
        wait = partial(report, "waiting for another process", 0.0)  # raises where the run was stopped
        with FileLock(where.cache / "lock").acquire(poll_interval=0.2, cancel_check=wait):  # type: ignore[arg-type]
            if found := _read_cache(cached):  # another process has loaded it meanwhile
                return found
            found = _download(where, folder, report)
            try:
                save_file({name: getattr(found, name) for name in TENSORS}, part)
                os.replace(part, cached)
                shutil.rmtree(folder)
            except (OSError, SafetensorError):  # on a full disk the next start takes longer, nothing else
                part.unlink(missing_ok=True)
            return found
    except OSError as error:
        problem = f"The folder {where.cache} cannot be written ({error.strerror})"
        raise DiskError(f"{problem}. Set CNN_DEMO_CACHE to another one.") from error


def _read_cache(file: Path) -> Dataset | None:
    """Return CIFAR-10 as saved at an earlier start; None where it is missing or damaged."""
    with suppress(SafetensorError, OSError, KeyError):
        tensors = load_file(file)
        return make_dataset("cifar10", str(file), *(tensors[name] for name in TENSORS))
    return None


def _download(where: Settings, folder: Path, report: Report) -> Dataset:
    """Return CIFAR-10 from the Hub or, where that fails, from Toronto, downloaded into `folder`."""
    hub = f"{where.hub}/datasets/{DATASETS['cifar10'].hub}/resolve/{HUB_REVISION}/plain_text"
    problems = []
    for source, address, files, unpacked in (
        (where.hub, hub, HUB_FILES, ""),
        (where.toronto, where.toronto, {TORONTO_FILE: TORONTO_SHA256}, "cifar-10-batches-bin"),
    ):
        try:
            folder.mkdir(exist_ok=True)
            for name, sha256 in files.items():
                _fetch(f"{address}/{name}", folder / name, sha256, partial(report, f"downloading {name} from {source}"))
            if unpacked:
                shutil.unpack_archive(folder / TORONTO_FILE, folder, filter="data")
            return replace(read_folder(folder / unpacked, report), source=source)
        except Exception as error:  # the client raises httpx2's and builtin errors alike
            if getattr(error, "errno", None):  # from the disk
                raise
            report(f"nothing from {source}", 0.0)  # raises where the run was stopped
            silent = "Timeout" in type(error).__name__  # its own words are not shown: they may hold signed addresses
            reason = f"sent nothing for {SILENT_SECONDS:.0f} s" if silent else "could not be reached, or broke off"
            problems.append(f"{source} {error if isinstance(error, DownloadError) else reason}")
    raise DownloadError(
        f"CIFAR-10 could not be downloaded: {'; '.join(problems)}. Try again, set CNN_DEMO_DATA to a folder that "
        "holds it, or train on Shapes, which the program draws."
    )


def _fetch(url: str, file: Path, sha256: str, note: Callable[[float], None]) -> None:
    """Download a file, unless it is there; continue where a connection broke off. Raises DownloadError, httpx2's."""
    from huggingface_hub import get_session  # it needs no token here, and sends none

    if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
        return
    file.write_bytes(b"")
    while True:
        start = file.stat().st_size
        headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
        try:
            with get_session().stream("GET", url, headers=headers, timeout=SILENT_SECONDS) as response:
                if response.is_error:
                    raise DownloadError(f"answered with status {response.status_code}")
                with file.open("ab" if response.status_code == 206 else "wb") as output:
                    size = output.tell() + int(response.headers.get("Content-Length", 170_000_000))
                    for part in response.iter_raw():
                        output.write(part)
                        note(min(output.tell() / size, 1.0))
            break
        except Exception:
            note(0.0)  # raises where the run was stopped
            if file.stat().st_size <= start:
                raise
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        file.unlink()
        raise DownloadError("sent something that is not CIFAR-10")


def read_folder(folder: Path, report: Report) -> Dataset:
    """Return CIFAR-10 (binary, Python or parquet files) from a folder or its layout's subfolder. Raises DataError."""
    if not os.path.isdir(folder):  # False, too, where it cannot be looked at
        raise DataError(f"The data folder {folder} does not exist.")
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py", folder / "plain_text"):
        for names, read, what in (
            (tuple(f"{name}.bin" for name in BATCHES), _binary_batch, "a whole CIFAR-10 batch"),
            (BATCHES, _python_batch, "a CIFAR-10 batch of the Python layout"),
            (tuple(HUB_FILES), _parquet, "one of the Hub's CIFAR-10 files"),
        ):
            if any(os.path.isfile(place / name) for name in names):
                *train, test = (_read_file(place / name, read, what, report) for name in names)
                return make_dataset("cifar10", str(place), *_ordered(*train), *_ordered(test))
    raise DataError(
        f"The data folder {folder} holds no readable CIFAR-10: expected data_batch_1.bin to test_batch.bin (binary "
        f"layout), data_batch_1 to test_batch (Python layout), or {' and '.join(HUB_FILES)}."
    )


def _read_file(path: Path, read: Callable[[bytes], Images], what: str, report: Report) -> Rows:
    """Return the images that `read` finds in a file. Raises DataError where these are not all of `what`."""
    expected, rows = PICTURES_PER_BATCH * (5 if path.name.startswith("train") else 1), Rows()
    try:
        for image, label in read(path.read_bytes()):
            if len(rows) % 1000 == 0:
                report(f"decoding {path.name}", min(len(rows) / expected, 1.0))
            rows.append((hashlib.sha256(image).digest(), label, image))
        if len(rows) != expected or any(len(image) != PICTURE_BYTES for _, _, image in rows):
            raise ValueError(f"{len(rows):,} images or parts of them, expected {expected:,}")
        if any(label not in range(10) for _, label, _ in rows):
            raise ValueError("its labels are not 0 to 9")
    except (OSError, LookupError, TypeError, RuntimeError, SyntaxError, ValueError) as error:
        problem = "cannot be read" if getattr(error, "errno", None) else f"is not {what}"
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        raise DataError(f"{path} {problem} ({reason}).") from error
    return rows


def _binary_batch(content: bytes) -> Images:
    """Yield the images and labels of a .bin file: for each 1 label byte and 3,072 pixel bytes."""
    for i in range(0, len(content), 1 + PICTURE_BYTES):
        yield content[i + 1 : i + 1 + PICTURE_BYTES], content[i]


def _python_batch(content: bytes) -> Images:
    """Return those of a file of the Python layout: a pickle, never unpickled, because that runs code from the file."""
    pixels, labels, in_labels = b"", [], False  # the longest string, and the numbers after the key "labels"
    for opcode, argument, _ in pickletools.genops(content):
        if isinstance(argument, (str, bytes)):
            text = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
            in_labels = text == b"labels"
            pixels = max(pixels, text, key=len)
        elif in_labels and opcode.name in ("BININT", "BININT1", "BININT2", "INT"):
            labels.append(int(str(argument)))
    return zip((pixels[i : i + PICTURE_BYTES] for i in range(0, len(pixels), PICTURE_BYTES)), labels, strict=False)


def _parquet(content: bytes) -> Images:
    """Yield those of one of the Hub's files: columns `img` (a PNG each) and `label`."""
    import pyarrow.parquet

    for row in pyarrow.parquet.read_table(io.BytesIO(content), columns=["img", "label"]).to_pylist():
        with Image.open(io.BytesIO(row["img"]["bytes"]), formats=["PNG"]) as picture:
            yield b"".join(channel.tobytes() for channel in picture.convert("RGB").split()), row["label"]


def _ordered(*parts: Rows) -> tuple[Tensor, Tensor]:
    """Return uint8 `N,3,32,32` and labels `N`, sorted by the SHA-256 of an image (then its label, where two agree)."""
    rows = sorted(row for part in parts for row in part)
    pictures = torch.frombuffer(bytearray().join(image for _, _, image in rows), dtype=torch.uint8)
    return pictures.view(-1, 3, 32, 32), torch.tensor([label for _, label, _ in rows])
