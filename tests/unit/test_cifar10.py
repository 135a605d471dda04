"""Reading CIFAR-10 in each of its layouts, and downloading it from local servers that misbehave."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from filelock import FileLock
from PIL import Image

from cnn_demo.errors import DataError, DiskError, DownloadError
from cnn_demo.pictures import cifar10
from cnn_demo.pictures.dataset import TENSORS, Dataset
from cnn_demo.settings import Settings
from cnn_demo.training.budget import Stopped
from tests.apps import NOWHERE
from tests.hub_server import Fault, HubServer, hub_server

PER_BATCH = 20


def quiet(text: str, share: float) -> None:
    assert 0 <= share <= 1, text


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's layouts with 20 images per batch instead of 10,000."""
    monkeypatch.setattr(cifar10, "PICTURES_PER_BATCH", PER_BATCH)


@pytest.fixture(scope="module")
def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return {
        name: (generator.integers(0, 256, (PER_BATCH, 3072), np.uint8), np.arange(PER_BATCH, dtype=np.uint8) % 10)
        for name in cifar10.BATCHES
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
    for file, names in zip(cifar10.HUB_FILES, (cifar10.BATCHES[:0:-1], cifar10.BATCHES[-1:]), strict=True):
        names = cifar10.BATCHES[4::-1] if "train" in file else names  # the Hub's order is not Toronto's
        cells, labels = [], []
        for name in names:
            for row, label in zip(*batches[name], strict=True):
                buffer = io.BytesIO()
                Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
                labels.append(int(label))
        pyarrow.parquet.write_table(pyarrow.table({"img": cells, "label": labels}), folder / file)
    return folder


def same(a: Dataset, b: Dataset) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


def test_all_layouts_give_the_same_images_in_the_same_order(tmp_path: Path, batches: dict) -> None:
    binary = cifar10.read_folder(write_binary(tmp_path / "a", batches), quiet)
    assert binary.train_pictures.shape == (100, 3, 32, 32) and binary.test_pictures.shape == (20, 3, 32, 32)
    rows = {bytes(row): int(label) for name in cifar10.BATCHES[:5] for row, label in zip(*batches[name], strict=True)}
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
        assert same(binary, cifar10.read_folder(folder, quiet)), folder


def test_python_layout_is_never_unpickled(tmp_path: Path, batches: dict) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    folder = write_python(tmp_path / "py", batches)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"labels": Evil()}))
    with pytest.raises(DataError, match="data_batch_2 is not a CIFAR-10 batch"):
        cifar10.read_folder(folder, quiet)
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
        (write_parquet, lambda f: next(f.glob("train*")).unlink(), "train-00000-of-00001.parquet cannot be read"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, batches: dict, write: object, damage: object, words: str) -> None:
    folder = write(tmp_path / "data", batches)
    damage(folder)
    with pytest.raises(DataError, match=words) as caught:
        cifar10.read_folder(folder, quiet)
    assert "\n" not in str(caught.value)


def test_empty_or_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no readable CIFAR-10: expected data_batch_1.bin"):
        cifar10.read_folder(tmp_path, quiet)
    for missing in ("nowhere", "x" * 5000):
        with pytest.raises(DataError, match="does not exist"):
            cifar10.read_folder(tmp_path / missing, quiet)


class Toronto(http.server.ThreadingHTTPServer):
    """Serves one file; `wait` is an event without which it sends only the first half."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.wait: threading.Event | None = None
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Toronto

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if not self.server.content or self.path != f"/{cifar10.TORONTO_FILE}":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        half = len(self.server.content) // 2
        self.wfile.write(self.server.content[:half])
        if self.server.wait:
            self.server.wait.wait(timeout=60)
        with contextlib.suppress(ConnectionError):  # of a download that was stopped
            self.wfile.write(self.server.content[half:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def toronto(tmp_path: Path, batches: dict, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toronto]:
    """Toronto with the archive of the small batches."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        folder = write_binary(tmp_path / "toronto", batches)
        (folder / "readme.html").write_bytes(os.urandom(4_000_000))  # large enough for some progress
        archive.add(folder, "cifar-10-batches-bin")
    monkeypatch.setattr(cifar10, "TORONTO_SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    with Toronto() as server:
        server.content = buffer.getvalue()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, batches: dict, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub with parquet files of the small batches at the pinned commit."""
    folder = write_parquet(tmp_path / "parquet", batches)
    content = {name: (folder / name).read_bytes() for name in cifar10.HUB_FILES}
    monkeypatch.setattr(cifar10, "HUB_FILES", {name: hashlib.sha256(c).hexdigest() for name, c in content.items()})
    with hub_server(tmp_path / "xet") as server:
        files = {f"plain_text/{name}": c for name, c in content.items()}
        newest = server.add_repo("uoft-cs/cifar10", files, kind="datasets")
        server.repos["datasets", "uoft-cs/cifar10"].tags[cifar10.HUB_REVISION] = newest
        yield server


def settings(cache: Path, hub: str, toronto: str = NOWHERE) -> Settings:
    return Settings(checkpoints=cache, data=None, cache=cache, hub=hub, toronto=toronto)


def test_several_processes_download_once(hub: HubServer, tmp_path: Path) -> None:
    where = settings(tmp_path / "cache", hub.url)
    with ThreadPoolExecutor(4) as pool:  # their locks exclude each other as those of processes do
        found = list(pool.map(lambda _: cifar10.load(where, quiet), range(4)))
    assert all(same(found[0], other) for other in found)
    assert sum("/cdn/" in r["path"] for r in hub.requests) == len(cifar10.HUB_FILES)


def test_hub_is_asked_first_then_toronto(hub: HubServer, toronto: Toronto, tmp_path: Path) -> None:
    from_hub = cifar10.load(settings(tmp_path / "a", hub.url, toronto.url), quiet)
    assert from_hub.source == hub.url and not toronto.requests
    hub.repos.clear()
    from_toronto = cifar10.load(settings(tmp_path / "b", hub.url, toronto.url), quiet)
    assert from_toronto.source == toronto.url and same(from_hub, from_toronto)
    for cache in ("a", "b"):  # nothing else stays
        assert {path.name for path in (tmp_path / cache).iterdir()} == {"cifar10.safetensors", "lock"}


def test_hub_gets_no_token(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "ada-token")
    cifar10.load(settings(tmp_path / "cache", hub.url), quiet)
    assert {request["token"] for request in hub.requests} == {None}


def test_second_start_needs_no_network(hub: HubServer, tmp_path: Path) -> None:
    where = settings(tmp_path / "cache", hub.url)
    first = cifar10.load(where, quiet)
    assert same(first, cifar10.load(replace(where, hub=NOWHERE), quiet))
    cached = tmp_path / "cache" / "cifar10.safetensors"
    cached.write_bytes(cached.read_bytes()[:-5])
    with pytest.raises(DownloadError):
        cifar10.load(replace(where, hub=NOWHERE), quiet)
    assert same(first, cifar10.load(where, quiet))  # damaged: downloaded again


def test_cut_connection_is_resumed_and_progress_reported(
    hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append(Fault("GET /cdn/", how="cut"))
    seen: list[tuple[str, float]] = []
    found = cifar10.load(settings(tmp_path, hub.url), lambda *what: seen.append(what))
    assert len(found.train_labels) == 100
    name = next(iter(cifar10.HUB_FILES))
    shares = [share for text, share in seen if text == f"downloading {name} from {hub.url}" and share]
    assert any(0.4 < share < 0.6 for share in shares)
    assert shares == sorted(shares)  # continued where it was cut
    assert capfd.readouterr() == ("", "")  # no bars, no addresses


def test_progress_of_torontos_archive_is_reported(toronto: Toronto, tmp_path: Path) -> None:
    def report(text: str, share: float) -> None:
        if text == f"downloading {cifar10.TORONTO_FILE} from {toronto.url}" and 0.4 < share < 0.6:
            half.set()

    half = toronto.wait = threading.Event()
    cifar10.load(settings(tmp_path, NOWHERE, toronto.url), report)
    assert half.is_set()


def test_whole_file_of_a_failed_download_is_kept(hub: HubServer, tmp_path: Path) -> None:
    name = next(reversed(cifar10.HUB_FILES))
    hub.faults.append(Fault(f"GET .*{name}", status=503))
    where = settings(tmp_path, hub.url)
    with pytest.raises(DownloadError, match=f"{hub.url} answered with status 503; {NOWHERE} could not be reached"):
        cifar10.load(where, quiet)
    (tmp_path / "download" / "old.partial").touch()  # of a process that was killed
    hub.requests.clear()
    cifar10.load(where, quiet)
    assert sum("/cdn/" in request["path"] for request in hub.requests) == 1
    assert not (tmp_path / "download").exists()


def test_wrong_checksum_is_thrown_away(
    hub: HubServer, toronto: Toronto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = settings(tmp_path, hub.url, toronto.url)
    with monkeypatch.context() as changed:
        changed.setattr(cifar10, "HUB_FILES", dict.fromkeys(cifar10.HUB_FILES, "0" * 64))
        changed.setattr(cifar10, "TORONTO_SHA256", "0" * 64)
        with pytest.raises(DownloadError) as caught:
            cifar10.load(where, quiet)
    assert str(caught.value).count("sent something that is not CIFAR-10") == 2
    assert not list((tmp_path / "download").iterdir())
    assert cifar10.load(where, quiet).source == hub.url


def test_without_any_source_the_error_names_both_causes_and_a_way_out(hub: HubServer, tmp_path: Path) -> None:
    hub.repos.clear()
    with pytest.raises(DownloadError) as caught:
        cifar10.load(settings(tmp_path, hub.url), quiet)
    assert str(caught.value) == (
        f"CIFAR-10 could not be downloaded: {hub.url} answered with status 401; {NOWHERE} could not be reached, or "
        "broke off. Try again, set CNN_DEMO_DATA to a folder that holds it, or train on Shapes, which the program "
        "draws."
    )


def test_without_a_network_it_fails_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DownloadError, match=f"{NOWHERE} could not be reached"):
        cifar10.load(settings(tmp_path, NOWHERE), quiet)
    assert time.monotonic() - start < 10  # the libraries' own retries take 23 s


def test_silent_server_is_given_up(toronto: Toronto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SILENT_SECONDS", 0.5)
    toronto.wait = threading.Event()
    with pytest.raises(DownloadError, match=f"{toronto.url} sent nothing for"):
        cifar10.load(settings(tmp_path, NOWHERE, toronto.url), quiet)
    toronto.wait.set()


@pytest.mark.parametrize("source", ["hub", "toronto"])
def test_report_can_stop_a_download(hub: HubServer, toronto: Toronto, tmp_path: Path, source: str) -> None:
    def report(text: str, share: float) -> None:
        if text.startswith("downloading"):
            stopped.set()
        if stopped.is_set():
            raise Stopped

    stopped, toronto.wait = threading.Event(), threading.Event()
    hub.faults.append(Fault("GET /cdn/", how="wait", seconds=1))
    where = settings(tmp_path, hub.url if source == "hub" else NOWHERE, toronto.url)
    with pytest.raises(Stopped):
        cifar10.load(where, report)
    toronto.wait.set()


def test_report_can_stop_the_wait_for_another_process(tmp_path: Path) -> None:
    def report(text: str, share: float) -> None:
        raise Stopped(text)

    lock = FileLock(tmp_path / "lock", thread_local=False)
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.acquire).result()
        with pytest.raises(Stopped, match="waiting for another process"):
            cifar10.load(settings(tmp_path, NOWHERE), report)
        other.submit(lock.release).result()


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file/cache cannot be written \(Not a directory\)"):
        cifar10.load(settings(tmp_path / "file" / "cache", NOWHERE), quiet)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_full_disk_is_not_taken_for_a_bad_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("httpx2.Response.iter_raw", fail)
    with pytest.raises(DiskError, match=os.strerror(number)):
        cifar10.load(settings(tmp_path, hub.url), quiet)
