"""Run folders: checkpoints/<run id>/ holds the files that files.py names, each written whole or not at all."""

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ConfigError, InputError, RunError
from ..networks.catalog import NETWORKS
from ..pictures.catalog import DATASETS
from ..training import config as configs
from ..training.config import RunConfig
from ..training.events import RunQueued
from ..training.scoring import is_evaluation
from . import files
from .checkpoints import NAME
from .files import EventLog, modified, read_json, write_file, writing
from .history import History, history_of
from .start import resolve_start

TITLE_LENGTH = 80


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.log = EventLog(folder / files.LOG)

    @cached_property
    def config(self) -> RunConfig:
        """The recipe. Raises RunError where config.json is damaged."""
        try:
            return configs.from_dict(read_json(self.folder / files.CONFIG)["recipe"])
        except (KeyError, TypeError, ConfigError) as error:
            raise RunError(f"The run {self.id} has no usable {files.CONFIG} ({error}).") from error

    @cached_property
    def owner(self) -> str:
        """The hash of its owner's secret; "" if it has none: it was shipped, or made from the command line."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / files.OWNER).read_text()
        return ""

    def belongs_to(self, secret: str) -> bool:
        """Tell whether `secret` is its owner's."""
        return bool(secret) and secrets.compare_digest(self.owner, hash_secret(secret))

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where it was pulled from: repo, commit, revisions (names it was pulled by); {} where it was trained here."""
        found = read_json(self.folder / files.SOURCE)
        return found if isinstance(found, dict) else {}

    def add_revision(self, revision: str) -> None:
        """Record another name that it was pulled by. Raises DiskError where that fails."""
        if revision not in self.source["revisions"]:
            self.source["revisions"].append(revision)
            self.write_json(files.SOURCE, self.source)

    @property
    def title(self) -> str:
        """What people call it: "ResNet50-C4, 60 s, 10:58", or what its owner wrote."""
        with contextlib.suppress(OSError, ValueError):
            return (self.folder / files.TITLE).read_text()
        try:
            config = self.config
        except RunError:
            return self.id
        name = NETWORKS[config.model].title
        if self.source:
            return f"{name} from {self.source.get('repo', 'the Hub')}"
        budget = f"{config.epochs} epoch{'s' * (config.epochs > 1)}" if config.epochs else f"{config.seconds:g} s"
        started = re.search(r"-\d{8}-(\d\d)(\d\d)\d\d-", self.id)
        return ", ".join([name, budget, *([f"{started[1]}:{started[2]}"] if started else [])])

    def rename(self, title: str) -> None:
        """Give it a title. Raises InputError where that is empty, too long or not printable, DiskError."""
        title = " ".join(title.split())
        if not 0 < len(title) <= TITLE_LENGTH or not title.isprintable():
            raise InputError(f"Title: enter 1 to {TITLE_LENGTH} printable characters.")
        with writing(self.folder):
            write_file(self.folder / files.TITLE, title.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run while working on it. Raises RunError if another process (or thread) has locked it."""
        lock = FileLock(self.folder / files.LOCK, thread_local=False)
        with writing(self.folder):
            try:
                acquired = lock.acquire(timeout=0.4, poll_interval=0.02)  # is_locked takes it for a moment, too
            except Timeout as error:
                raise RunError(f"The run {self.id} is locked: another process trains it.") from error
        with acquired:
            self.log.repair()
            yield

    def is_locked(self) -> bool:
        """Tell whether a living process works on the run."""
        if not (self.folder / files.LOCK).is_file():
            return False
        try:
            with FileLock(self.folder / files.LOCK, timeout=0.02, poll_interval=0.002):
                return False
        except OSError as error:
            return isinstance(error, Timeout)

    def request_stop(self) -> None:
        """Ask the process that trains the run to stop, where it is another one."""
        with contextlib.suppress(OSError):
            (self.folder / files.STOP).touch()

    def is_stop_requested(self) -> bool:
        """Tell whether another process asked this one to stop."""
        return (self.folder / files.STOP).exists()

    def history(self) -> History:
        """Return the run's history; its state is `interrupted` where it never ended and no process works on it."""
        history = history_of(self.log.read())
        if history.finished is None and not self.is_locked():
            history.state = "interrupted"
        return history

    def summary(self) -> dict[str, Any]:
        """Return the run in a line of JSON-ready values; its network is "damaged" where config.json is."""
        history, model, dataset = self.history(), "damaged", "damaged"
        with contextlib.suppress(RunError):
            model, dataset = self.config.model, self.config.dataset
        latest, best, end = history.latest, history.best, history.finished
        return {
            **{"title": self.title, "model": model, "dataset": dataset, "state": history.state},
            "step": latest.step if latest else 0,
            "validation_accuracy": best.validation_accuracy if best else None,
            "test_accuracy": end.test_accuracy if end else None,
        }

    def has(self, name: str) -> bool:
        """Tell whether it has a file: weights from the first snapshot on, an evaluation when it was tested."""
        return (self.folder / name).is_file()

    def write_json(self, name: str, values: Any) -> None:
        """Write one of its files. Raises RunError or DiskError where that fails."""
        with writing(self.folder):
            write_file(self.folder / name, json.dumps(values).encode())

    def evaluation(self) -> dict[str, Any] | None:
        """Return what the test found, None before it: here, or it was shipped. Raises RunError where it is damaged."""
        if not self.has(files.EVALUATION):
            return None
        found: dict[str, Any] = read_json(self.folder / files.EVALUATION)
        if is_evaluation(found):
            return found
        raise RunError(f"The evaluation of {self.id} is damaged; make it again: python -m cnn_demo evaluate {self.id}")


def create(root: Path, config: RunConfig, owner: str = "") -> Run:
    """Make the folder of a new run and log RunQueued. `owner`: a secret of its owner, "" for none.

    Raises what `resolve_start` raises, RunError, DiskError.
    """
    config = resolve_start(root, config)
    run = Run(root / f"{config.model}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}")
    with writing(root, "Name another folder with CNN_DEMO_CHECKPOINTS."):
        run.folder.mkdir(parents=True)
        if owner:
            write_file(run.folder / files.OWNER, hash_secret(owner).encode())
        write_file(run.folder / files.CONFIG, json.dumps(describe_config(config), indent=1).encode())
    run.log.append(RunQueued())
    return run


def discard(run: Run) -> None:
    """Delete the run's folder. Raises RunError while another process trains it, DiskError where it cannot be."""
    with run.locked(), writing(run.folder):
        shutil.rmtree(run.folder)


def get(root: Path, run_id: str) -> Run | None:
    """Return the run of that id, None where there is none."""
    return Run(root / run_id) if NAME.fullmatch(run_id) and (root / run_id / files.LOG).is_file() else None


def find(root: Path, run_id: str) -> Run:
    """Return the run of that id. Raises RunError where there is none."""
    if run := get(root, run_id):
        return run
    known = ", ".join(run.id for run in list_runs(root)[:5]) or "none yet"
    raise RunError(f"There is no run {run_id!r} in {root}. The latest are: {known}.")


def list_runs(root: Path) -> list[Run]:
    """Return all runs, the latest first."""
    folders = [path.parent for path in root.glob(f"*/{files.LOG}") if NAME.fullmatch(path.parent.name)]
    return [Run(folder) for folder in sorted(folders, key=modified, reverse=True)]


def describe_config(config: RunConfig) -> dict[str, Any]:
    """Return what config.json holds."""
    info = DATASETS[config.dataset]
    return {
        "model": config.model,
        "classes": info.classes,
        "input_size": 32,
        "mean": info.mean,
        "std": info.std,
        "recipe": config.to_dict(),
        "command": config.to_command(),
        "versions": {name: version(name) for name in ("torch", "torchvision")},
    }


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a secret in hexadecimal: what the disk may hold of it."""
    return hashlib.sha256(secret.encode()).hexdigest()
