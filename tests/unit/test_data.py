"""Reading CIFAR-10 in each of its layouts, downloading it from a local server that misbehaves, and `shapes`."""

import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from cnn_demo.errors import DataError, DiskError, DownloadError
from cnn_demo.pictures import dataset as data
from cnn_demo.settings import Settings
from tests.hub_server import hub_server

PER_BATCH = 20


def quiet(text: str, share: float) -> None:
    assert 0 <= share <= 1, text


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's layouts with 20 pictures a batch instead of 10,000."""
    monkeypatch.setattr(data, "PICTURES_PER_BATCH", PER_BATCH)


@pytest.fixture(scope="module")
def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return {
        name: (generator.integers(0, 256, (PER_BATCH, 3072), np.uint8), np.arange(PER_BATCH, dtype=np.uint8) % 10)
        for name in data.BATCHES
    }


def write_binary(folder: Path, batches: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pictures, labels) in batches.items():
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pictures]).tobytes())
    return folder


def write_python(folder: Path, batches: dict, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pictures, labels) in batches.items():
        content = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": pictures, b"filenames": [b"a.png"] * 20}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def write_python2(folder: Path, batches: dict) -> Path:
    """Write what Python 2's cPickle wrote for the official files, opcode by opcode."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pictures, labels) in batches.items():
        pixels = pictures.tobytes()
        (folder / name).write_bytes(
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
            + b"".join(b"K" + bytes([label]) for label in labels)
            + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\n"
            + b"q\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
            + b"(K\x01K\x14M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
            + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + len(pixels).to_bytes(4, "little")
            + pixels
            + b"tbU\x09filenamesq\x0b]q\x0c(U\x05a.pngU\x05b.pngeu."
        )
    return folder


def write_parquet(folder: Path, batches: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in zip(data.HUB_FILES, (data.BATCHES[:0:-1], data.BATCHES[-1:]), strict=True):
        names = data.BATCHES[4::-1] if "train" in file else names  # the Hub's order is not Toronto's
        cells, labels = [], []
        for name in names:
            for row, label in zip(*batches[name], strict=True):
                buffer = io.BytesIO()
                Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
                labels.append(int(label))
        pyarrow.parquet.write_table(pyarrow.table({"img": cells, "label": labels}), folder / file)
    return folder


def same(a: data.Dataset, b: data.Dataset) -> bool:
    names = ("train_pictures", "train_labels", "test_pictures", "test_labels")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_every_layout_gives_the_same_pictures_in_the_same_order(tmp_path: Path, batches: dict) -> None:
    binary = data.read_folder(write_binary(tmp_path / "a", batches), quiet)
    assert binary.train_pictures.shape == (100, 3, 32, 32) and binary.test_pictures.shape == (20, 3, 32, 32)
    rows = {bytes(row): int(label) for name in data.BATCHES[:5] for row, label in zip(*batches[name], strict=True)}
    found = {
        bytes(p.flatten().numpy()): int(n) for p, n in zip(binary.train_pictures, binary.train_labels, strict=True)
    }
    assert found == rows
    write_python(tmp_path / "b" / "cifar-10-batches-py", batches)  # inside its own folder
    for folder in (
        tmp_path / "b",
        write_python(tmp_path / "c", batches, protocol=4),
        write_python2(tmp_path / "d", batches),
        write_parquet(tmp_path / "e", batches),
    ):
        assert same(binary, data.read_folder(folder, quiet)), folder


def test_the_python_layout_is_never_unpickled(tmp_path: Path, batches: dict) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    folder = write_python(tmp_path / "py", batches)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"labels": Evil()}))
    with pytest.raises(DataError, match="data_batch_2 is not a CIFAR-10 batch"):
        data.read_folder(folder, quiet)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("write", "damage", "words"),
    [
        (write_binary, lambda f: (f / "data_batch_3.bin").write_bytes(b"x" * 999), "data_batch_3.bin is not a whole"),
        (write_binary, lambda f: (f / "data_batch_3.bin").unlink(), "data_batch_3.bin cannot be read"),
        (
            write_binary,
            lambda f: (f / "test_batch.bin").write_bytes(b"\xff" * PER_BATCH * 3073),
            "labels are not 0 to 9",
        ),
        (
            write_python,
            lambda f: (f / "test_batch").write_bytes((f / "test_batch").read_bytes()[:-900]),
            "test_batch is",
        ),
        (write_python, lambda f: (f / "data_batch_1").write_bytes(b"hello"), "data_batch_1 is not"),
        (write_parquet, lambda f: next(f.glob("test*")).write_bytes(b"PAR1 no"), "test-00000-of-00001.parquet is not"),
        (write_parquet, lambda f: next(f.glob("train*")).unlink(), "train-00000-of-00001.parquet is not"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, batches: dict, write: object, damage: object, words: str) -> None:
    folder = write(tmp_path / "data", batches)
    damage(folder)
    with pytest.raises(DataError, match=words) as caught:
        data.read_folder(folder, quiet)
    assert "\n" not in str(caught.value)


def test_an_empty_or_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no CIFAR-10: expected data_batch_1.bin"):
        data.read_folder(tmp_path, quiet)
    with pytest.raises(DataError, match="does not exist"):
        data.read_folder(tmp_path / "nowhere", quiet)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cut` breaks off that many answers half-way, `ranges` is whether it can go on in the middle."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut, self.ranges, self.requests = 0, True, []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if self.server.cut:
            self.server.cut -= 1
            end = start + (len(content) - start) // 2
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def both_sources(server: Server, tmp_path: Path, batches: dict, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server holds what the Hub and Toronto hold; the known sums are those of the small files."""
    folder = write_parquet(tmp_path / "hub", batches)
    sums = {}
    for file in data.HUB_FILES:
        content = (folder / file).read_bytes()
        server.files[f"/{data.HUB_PATH}/{file}"] = content
        sums[file] = "sha256:" + hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "HUB_FILES", sums)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(write_binary(tmp_path / "toronto", batches), "cifar-10-batches-bin")
    server.files[f"/{data.TORONTO_FILE}"] = buffer.getvalue()
    monkeypatch.setattr(data, "TORONTO_SUM", "md5:" + hashlib.md5(buffer.getvalue()).hexdigest())
    return server


def load(server: Server, cache: Path) -> data.Dataset:
    return load_from(server.address, server.address, cache)


def load_from(hub: str, toronto: str, cache: Path) -> data.Dataset:
    return data.load("cifar10", Settings(checkpoints=cache, data=None, cache=cache, hub=hub, toronto=toronto), quiet)


def test_several_processes_bring_it_once(both_sources: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CIFAR10_PICTURES", (100, 20))
    with ThreadPoolExecutor(4) as pool:  # their locks are as strange to each other as those of processes
        found = list(pool.map(lambda _: load(both_sources, tmp_path / "cache"), range(4)))
    assert all(same(found[0], other) for other in found)
    assert len(both_sources.requests) == len(data.HUB_FILES)


def test_the_hub_is_asked_first_then_toronto(both_sources: Server, tmp_path: Path) -> None:
    from_hub = load(both_sources, tmp_path / "cache1")
    assert all(data.HUB_PATH in path for path, _ in both_sources.requests)
    for file in data.HUB_FILES:
        del both_sources.files[f"/{data.HUB_PATH}/{file}"]
    from_toronto = load(both_sources, tmp_path / "cache2")
    assert same(from_hub, from_toronto)
    assert {f.name for f in (tmp_path / "cache2").iterdir()} == {"cifar10.safetensors", "lock"}


def test_the_hub_serves_it_as_it_does_its_large_files(
    both_sources: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a redirect to another host, at the pinned commit, and without anybody's token."""
    revision = data.HUB_PATH.split("/resolve/")[1].split("/")[0]
    with hub_server(tmp_path / "xet") as hub:
        files = {f"plain_text/{file}": both_sources.files[f"/{data.HUB_PATH}/{file}"] for file in data.HUB_FILES}
        newest = hub.add_repo("uoft-cs/cifar10", files, kind="datasets")
        hub.repos["datasets", "uoft-cs/cifar10"].tags[revision] = newest
        monkeypatch.setenv("HF_TOKEN", "ada-token")
        found = load_from(hub.url, "http://127.0.0.1:9", tmp_path / "a")
        assert same(found, load(both_sources, tmp_path / "b"))
        assert {request["token"] for request in hub.requests} == {None}
        assert sum("/cdn/" in request["path"] for request in hub.requests) == 2


def test_a_second_start_needs_no_network(both_sources: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(both_sources, tmp_path / "cache")
    both_sources.requests.clear()
    monkeypatch.setattr(data, "CIFAR10_PICTURES", (100, 20))
    assert same(first, load(both_sources, tmp_path / "cache"))
    assert not both_sources.requests
    cached = tmp_path / "cache" / "cifar10.safetensors"
    cached.write_bytes(cached.read_bytes()[:-5])
    assert same(first, load(both_sources, tmp_path / "cache"))  # damaged: brought anew
    assert both_sources.requests


def test_a_cut_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    server.files["/x"], server.cut = content, 2
    data.download(server.address + "/x", tmp_path / "x", "sha256:" + hashlib.sha256(content).hexdigest(), quiet)
    assert (tmp_path / "x").read_bytes() == content
    assert [wanted for _, wanted in server.requests] == [None, "bytes=500000-", "bytes=750000-"]


def test_a_cut_download_leaves_nothing_half_used_and_the_next_try_resumes(server: Server, tmp_path: Path) -> None:
    content = os.urandom(800_000)
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    server.files["/x"], server.cut = content, 3
    with pytest.raises(DownloadError, match="broke off three times"):
        data.download(server.address + "/x", tmp_path / "x", checksum, quiet)
    assert not (tmp_path / "x").exists()
    data.download(server.address + "/x", tmp_path / "x", checksum, quiet)
    assert server.requests[-1][1] == "bytes=700000-"
    assert (tmp_path / "x").read_bytes() == content


def test_a_server_that_cannot_resume_is_asked_for_all_of_it(server: Server, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    server.files["/x"], server.cut, server.ranges = content, 1, False
    data.download(server.address + "/x", tmp_path / "x", "sha256:" + hashlib.sha256(content).hexdigest(), quiet)
    assert (tmp_path / "x").read_bytes() == content


def test_a_wrong_sum_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = b"something else"
    with pytest.raises(DownloadError, match="wrong sha256 sum"):
        data.download(server.address + "/x", tmp_path / "x", "sha256:" + "0" * 64, quiet)
    assert list(tmp_path.iterdir()) == []


def test_without_any_source_the_sentence_says_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="404 Not Found") as caught:
        load(server, tmp_path / "cache")
    assert "--data" in str(caught.value) and "--dataset shapes" in str(caught.value)
    with pytest.raises(DownloadError, match="could not be reached"):
        load_from("http://127.0.0.1:9", "http://127.0.0.1:9", tmp_path)


def test_a_cache_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="CNN_DEMO_CACHE"):
        load(server, tmp_path / "file" / "cache")


def test_the_split_is_fixed_and_stratified(shapes: data.Dataset) -> None:
    training, validation = data.split(shapes.train_labels, 1003)
    counts = shapes.train_labels[validation].bincount()
    assert len(validation) == 1003 and counts.max() - counts.min() <= 1
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(len(shapes.train_labels)))
    assert torch.equal(data.split(shapes.train_labels, 1003)[1], validation)
    assert len(data.split(shapes.train_labels, 0)[1]) == 0


def test_shapes_are_the_same_each_time_and_vary(shapes: data.Dataset) -> None:
    assert same(shapes, data.draw_shapes())
    assert shapes.train_labels.bincount().min() > 1000
    assert shapes.train_pictures.flatten(1).unique(dim=0).shape[0] == len(shapes.train_pictures)


def test_normalise_centres_and_scales() -> None:
    pictures = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    values = data.normalise(pictures, (0.2, 0.2, 0.2), (0.4, 0.4, 0.4))[:, 0, 0, 0]
    torch.testing.assert_close(values, torch.tensor([-0.5, 0.0, 2.0]))
