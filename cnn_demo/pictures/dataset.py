"""The pictures: CIFAR-10 from a folder, the cache, the Hub or Toronto, and `shapes`, which the program draws itself.

A data set is held whole, as uint8, so that it can live on the device. CIFAR-10's pictures are put in one order
(by their content), whatever they were read from: the same seed then makes the same run from every source.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pickletools
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import DataError, DiskError, DownloadError
from ..settings import Settings

Report = Callable[[str, float], None]  # what is being done, and how much of it is done (0 to 1)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE_CLASSES = ("disc", "ring", "square", "frame", "triangle", "diamond", "cross", "plus", "bars", "crescent")
SETS = {  # classes, mean and std of red, green and blue, training pictures
    "cifar10": (CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 50_000),
    "shapes": (SHAPE_CLASSES, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), 12_000),
}
TENSORS = ("train_pictures", "train_labels", "test_pictures", "test_labels")
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
PICTURES_PER_BATCH = 10_000
CIFAR10_PICTURES = (50_000, 10_000)  # training, test
PICTURE_BYTES = 3 * 32 * 32
CACHED = "cifar10.safetensors"

HUB_PATH = "datasets/uoft-cs/cifar10/resolve/0b2714987fa478483af9968de7c934580d0bb9a2/plain_text"
HUB_FILES = {
    "train-00000-of-00001.parquet": "sha256:8428b53a88a11ac374111006708df51469e315a22ac6d66470afd9c78d2ae883",
    "test-00000-of-00001.parquet": "sha256:841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
}
TORONTO_FILE = "cifar-10-binary.tar.gz"
TORONTO_SUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"  # as printed on https://www.cs.toronto.edu/~kriz/cifar.html


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """A labelled set. Pictures are uint8 `N,3,32,32`, labels int64 `N`; mean and std are of values 0 to 1.

    source: in words, where it was read from.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_pictures: Tensor
    train_labels: Tensor
    test_pictures: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> Dataset:
        """Return the same set on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})


def split(labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Return the indices (training, validation) of a fixed split that holds out equally many of each class.

    Pictures lie in an order that says nothing about them, so the first of each class are as good as drawn ones.
    """
    classes = int(labels.max()) + 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        share = held_out // classes + (label < held_out % classes)
        chosen[(labels.cpu() == label).nonzero()[:share, 0]] = True
    indices = torch.arange(len(labels))
    return indices[~chosen], indices[chosen]


def normalise(pictures: Tensor, mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...]) -> Tensor:
    """Return uint8 `N,3,H,W` as float32 with `mean` (of values 0 to 1) at 0 and one `std` at 1."""
    centre, scale = (torch.as_tensor(v, device=pictures.device).view(3, 1, 1) * 255 for v in (mean, std))
    return (pictures.float() - centre) / scale


def load(name: str, where: Settings, report: Report) -> Dataset:
    """Return a data set by name; for CIFAR-10 from a folder if one is named, else the cache, the Hub, Toronto.

    Raises:
        DataError: the named folder holds no whole CIFAR-10.
        DownloadError: nothing is cached and neither source could be reached, or both sent something else.
    """
    if name == "shapes":
        return draw_shapes()
    if where.data is not None:
        return read_folder(where.data, report)
    cache = where.cache
    if (found := read_cache(cache)) is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "lock").open("w")
    except OSError as error:
        raise DiskError(f"The cache folder {cache} cannot be used ({error.strerror}); set CNN_DEMO_CACHE.") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := read_cache(cache)) is not None:  # by another process, for which this one has waited
            return found
        found = fetch(cache, where.hub, where.toronto, report)
        part = cache / "cifar10.part"
        try:
            save_file({name: getattr(found, name) for name in TENSORS}, part)
            os.replace(part, cache / CACHED)
            for name in (*HUB_FILES, TORONTO_FILE):
                (cache / name).unlink(missing_ok=True)
        except (OSError, SafetensorError):  # a full disk costs the next start time, nothing else
            part.unlink(missing_ok=True)
        return found


def read_cache(cache: Path) -> Dataset | None:
    """Return CIFAR-10 as an earlier start has kept it; None where it has not, or not whole."""
    with suppress(SafetensorError, OSError, KeyError, ValueError, TypeError):
        tensors = load_file(cache / CACHED)
        if (len(tensors["train_pictures"]), len(tensors["test_pictures"])) == CIFAR10_PICTURES:
            return _dataset("cifar10", str(cache / CACHED), *(tensors[name] for name in TENSORS))
    return None


def fetch(cache: Path, hub: str, toronto: str, report: Report) -> Dataset:
    """Download CIFAR-10 from the Hub or, where that fails, from Toronto, into `cache`, and read it."""
    try:
        for file, checksum in HUB_FILES.items():
            download(f"{hub}/{HUB_PATH}/{file}", cache / file, checksum, report)
        return replace(read_folder(cache, report), source=hub)
    except DownloadError as error:
        from_hub = error
    try:
        download(f"{toronto}/{TORONTO_FILE}", cache / TORONTO_FILE, TORONTO_SUM, report)
    except DownloadError as error:
        raise DownloadError(
            f"CIFAR-10 could not be downloaded. {from_hub} {error} Name a folder that holds it with --data, "
            "or train on the pictures that the program draws with --dataset shapes."
        ) from error
    batches = []
    with tarfile.open(cache / TORONTO_FILE) as archive:  # read in memory: nothing is unpacked to a path from outside
        for name in BATCHES:
            member = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
            assert member is not None, name
            batches.append(_binary_batch(Path(name), member.read()))
    return _joined(toronto, batches)


def download(url: str, path: Path, checksum: str, report: Report) -> None:
    """Bring `url` to `path`, going on where an earlier try was cut; nothing stands at `path` until its sum is right.

    checksum: "algorithm:hexdigest". Raises DownloadError after three tries, or when the sum is wrong.
    """
    if path.is_file():
        return
    part = path.with_name(path.name + ".part")
    for attempt in range(3):
        try:
            _download_rest(url, part, report)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing is left to send: the part is whole, or is not of this file
                break
            if error.code < 500 or attempt == 2:
                raise DownloadError(f"{url} answered {error.code} {error.reason}.") from error
        except OSError as error:
            if getattr(error, "errno", None) in (28, 30, 13):  # no space, read-only, not allowed: not the network
                raise DiskError(f"{part} cannot be written ({os.strerror(error.errno or 0)}).") from error
            if attempt == 2:
                raise DownloadError(f"{url} could not be reached ({getattr(error, 'reason', error)}).") from error
        except ValueError as error:
            raise DownloadError(f"{url} is not an address ({error}).") from error
        except HTTPException as error:
            if attempt == 2:
                raise DownloadError(f"{url} broke off three times; the next try goes on there.") from error
    algorithm, _, expected = checksum.partition(":")
    with part.open("rb") as file:
        digest = hashlib.new(algorithm)
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        part.unlink()
        raise DownloadError(f"What {url} sent is not CIFAR-10 (wrong {algorithm} sum); it was thrown away.")
    os.replace(part, path)


def _download_rest(url: str, part: Path, report: Report) -> None:
    """Append to `part` what it still lacks; start over where the server cannot go on. 20 s of silence is an error."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=20) as response:
        if response.status != 206:
            start = 0
        total = start + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if start else "wb") as file:
            while block := response.read(1 << 18):
                file.write(block)
                start += len(block)
                report(f"downloading {url}", start / total if total > start else 1.0)
    if total and start < total:
        raise HTTPException(f"{start} of {total} bytes")


def read_folder(folder: Path, report: Report) -> Dataset:
    """Return CIFAR-10 from a folder in the official binary or Python layout, or with the Hub's parquet files.

    The layout's own folder name may be left out. Raises DataError, which names the file that is at fault.
    """
    if not folder.is_dir():
        raise DataError(f"The data folder {folder} does not exist.")
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py", folder / "plain_text"):
        for suffix, read in ((".bin", _binary_batch), ("", _python_batch)):
            if any((place / (name + suffix)).is_file() for name in BATCHES):
                paths = [place / (name + suffix) for name in BATCHES]
                try:
                    return _joined(str(place), [read(path, path.read_bytes()) for path in paths])
                except OSError as error:
                    raise DataError(f"{error.filename} cannot be read ({error.strerror}).") from error
        if any((place / name).is_file() for name in HUB_FILES):
            train, test = (_parquet(place / name, report) for name in HUB_FILES)
            return _ordered(str(place), train, test)
    raise DataError(
        f"The data folder {folder} holds no CIFAR-10: expected data_batch_1.bin to test_batch.bin (binary layout), "
        f"data_batch_1 to test_batch (Python layout), or {' and '.join(HUB_FILES)}."
    )


def _binary_batch(path: Path, content: bytes) -> tuple[Tensor, Tensor]:
    """Return uint8 `10000,3,32,32` and labels `10000` of a .bin file: 1 label byte, then 3,072 pixel bytes, each."""
    expected = PICTURES_PER_BATCH * (1 + PICTURE_BYTES)
    if len(content) != expected:
        raise DataError(f"{path} is not a whole CIFAR-10 batch: {len(content):,} bytes, expected {expected:,}.")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 1 + PICTURE_BYTES)
    return _checked(path, records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long())


def _python_batch(path: Path, content: bytes) -> tuple[Tensor, Tensor]:
    """Return the same of a file of the Python layout, which is a pickle, without ever unpickling it.

    Unpickling runs what the file says. Its opcodes can be read as plain data instead: the pixels are the one string
    of the right length, the labels the whole numbers that follow the key "labels".
    """
    pixels, labels, in_labels = b"", [], False
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if isinstance(argument, (str, bytes)):
                text = argument.encode("latin-1", "replace") if isinstance(argument, str) else argument
                in_labels = text == b"labels"
                if len(text) == PICTURES_PER_BATCH * PICTURE_BYTES:
                    pixels = text
            elif in_labels and opcode.name in ("BININT", "BININT1", "BININT2", "INT"):
                labels.append(int(str(argument)))
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path} is not a whole CIFAR-10 batch of the Python layout ({error}).") from error
    if not pixels or len(labels) != PICTURES_PER_BATCH:
        raise DataError(f"{path} is not a CIFAR-10 batch of the Python layout.")
    pictures = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 3, 32, 32)
    return _checked(path, pictures, torch.tensor(labels))


def _parquet(path: Path, report: Report) -> tuple[Tensor, Tensor]:
    """Return the same of one of the Hub's files: columns `img` (a PNG each) and `label`."""
    import pyarrow  # 0.3 s, and needed only once per machine
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["img", "label"])
        labels = torch.tensor(table["label"].to_pylist())
        pictures = torch.empty(len(labels), 3, 32, 32, dtype=torch.uint8)
        for i, cell in enumerate(table["img"]):
            with Image.open(io.BytesIO(cell["bytes"].as_py()), formats=["PNG"]) as picture:
                pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
            pictures[i] = pixels.view(32, 32, 3).permute(2, 0, 1)
            if i % 1000 == 0:
                report(f"decoding {path.name}", i / len(labels))
    except (pyarrow.ArrowException, OSError, LookupError, TypeError, RuntimeError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{path} is not one of the Hub's CIFAR-10 files ({reason}).") from error
    expected = PICTURES_PER_BATCH * (5 if "train" in path.name else 1)
    if len(labels) != expected:
        raise DataError(f"{path} is not one of the Hub's CIFAR-10 files: {len(labels):,} pictures, not {expected:,}.")
    return _checked(path, pictures, labels)


def _checked(path: Path, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} is not CIFAR-10: its labels are not 0 to 9.")
    return pictures, labels


def _joined(source: str, batches: list[tuple[Tensor, Tensor]]) -> Dataset:
    """Return the set of the official six batches; the last is the test set."""
    pictures, labels = zip(*batches[:-1], strict=True)
    return _ordered(source, (torch.cat(pictures), torch.cat(labels)), batches[-1])


def _ordered(source: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Dataset:
    """Return the set with each part sorted by the SHA-256 of its pictures (and label, where two are the same)."""

    def sort(pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        content = pictures.contiguous().numpy().tobytes()
        rows = range(0, len(content), PICTURE_BYTES)
        digests = [hashlib.sha256(content[i : i + PICTURE_BYTES]).digest() for i in rows]
        keys = list(zip(digests, labels.tolist(), strict=True))
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
        return pictures[order], labels[order]

    return _dataset("cifar10", source, *sort(*train), *sort(*test))


def _dataset(name: str, source: str, *tensors: Tensor) -> Dataset:
    """Return the set of the four TENSORS."""
    classes, mean, std, _ = SETS[name]
    parts = dict(zip(TENSORS, tensors, strict=True))
    return Dataset(name=name, source=source, classes=classes, mean=mean, std=std, **parts)


def draw_shapes() -> Dataset:
    """Return 12,000 training and 3,000 test pictures of ten shapes: place, size, turn, colours and noise vary.

    They are the same in every process: the generator's seed is fixed.
    """
    generator = torch.Generator().manual_seed(10)
    return _dataset(
        "shapes", "drawn by the program", *_shapes(SETS["shapes"][3], generator), *_shapes(3_000, generator)
    )


def _shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return pictures uint8 `count,3,32,32` and labels: each shape is where a function of x, y is below zero."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.randint(len(SHAPE_CLASSES), (count,), generator=generator)
    size, turn = uniform(6, 12, 1, 1), uniform(-0.4, 0.4, 1, 1)
    axis = torch.arange(32.0)
    y, x = axis.view(1, 32, 1) - uniform(11, 20, 1, 1), axis.view(1, 1, 32) - uniform(11, 20, 1, 1)
    u, v = (x * turn.cos() + y * turn.sin()) / size, (y * turn.cos() - x * turn.sin()) / size
    distance = torch.empty(count, 32, 32)
    for label, name in enumerate(SHAPE_CLASSES):
        chosen = labels == label
        distance[chosen] = _distance(name, u[chosen], v[chosen])
    inside = (0.5 - distance * size).clamp(0, 1).unsqueeze(1)  # one pixel of soft edge
    back, front = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    front = torch.where((front - back).abs().amax(1, keepdim=True) < 0.35, 1 - back.round(), front)  # never invisible
    pictures = (
        back
        + (front - back) * inside
        + uniform(0.02, 0.15, 1, 1, 1) * torch.randn(count, 3, 32, 32, generator=generator)
    )
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _distance(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Return how far outside the unit shape each point lies (negative: inside). u, v: `N,32,32`."""
    radius, box = u.hypot(v), torch.maximum(u.abs(), v.abs())
    match name:
        case "disc":
            return radius - 0.9
        case "ring":
            return (radius - 0.75).abs() - 0.2
        case "square":
            return box - 0.8
        case "frame":
            return (box - 0.7).abs() - 0.17
        case "triangle":
            return torch.maximum(v - 0.6, 1.7 * u.abs() - v - 0.9)
        case "diamond":
            return u.abs() * 1.2 + v.abs() - 0.95
        case "cross":
            return torch.maximum(torch.minimum((u - v).abs(), (u + v).abs()) - 0.3, radius - 1)
        case "plus":
            return torch.maximum(torch.minimum(u.abs(), v.abs()) - 0.22, box - 0.95)
        case "bars":
            return torch.maximum((torch.remainder(v + 1.0, 0.75) - 0.375).abs() - 0.18, box - 0.95)
        case "crescent":
            return torch.maximum(radius - 0.95, 0.75 - (u - 0.45).hypot(v))
    raise ValueError(name)
