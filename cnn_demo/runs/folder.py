"""Run folders: checkpoints/<run id>/ holds the files that files.py names, each written whole or not at all."""

import contextlib
import hashlib
import json
import os
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
MADE = re.compile(r"-\d{8}-(\d\d)(\d\d)\d\d-[0-9a-f]{8}$")  # ends the id of a run that was made here
UNMADE_SECONDS = 3600  # old is a run folder without a log that nobody is making any more
UNKNOWN_SOURCE = {"repo": "the Hub", "commit": "", "revisions": []}  # where the file is damaged


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
        try:
            return (self.folder / files.OWNER).read_text("ascii") or "damaged"
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            return "damaged"  # no secret's: the run is nobody's, and in nobody's list

    def belongs_to(self, secret: str) -> bool:
        """Tell whether `secret` is its owner's."""
        return bool(secret) and secrets.compare_digest(self.owner, hash_secret(secret))

    def is_private_to_others(self, secret: str) -> bool:
        """Tell whether it is from a private repository and not of `secret`: its weights and source are hidden."""
        return bool(self.source and self.owner and self.source.get("private", True) and not self.belongs_to(secret))

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where it was pulled from: repo, commit, revisions (names it was pulled by); {} where it was trained here."""
        found = read_json(self.folder / files.SOURCE)
        right = isinstance(found, dict) and all(type(found.get(n)) is type(v) for n, v in UNKNOWN_SOURCE.items())
        return found if right else dict(UNKNOWN_SOURCE) if self.has(files.SOURCE) else {}

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
            return f"{name} from {self.source['repo']}"
        budget = f"{config.epochs} epoch{'s' * (config.epochs > 1)}" if config.epochs else f"{config.seconds:g} s"
        started = MADE.search(self.id)
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
        if not self.has(files.LOCK):
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
        return os.path.exists(self.folder / files.STOP)

    def history(self) -> History:
        """Return the run's history; its state is `interrupted` where it never ended and no process works on it."""
        history = history_of(self.log.read())
        if history.finished is None and not self.is_locked():
            history.state = "interrupted"
        return history

    def summary(self) -> dict[str, Any]:
        """Return the run in a line of JSON-ready values; its network is "damaged" where config.json or the log is."""
        history, model, dataset = History(state="interrupted"), "damaged", "damaged"
        with contextlib.suppress(RunError):
            history = self.history()
            model, dataset = self.config.model, self.config.dataset
        latest, best, end = history.latest, history.best, history.finished
        if self.source:
            best, end = None, None  # what a stranger's log claims
        return {
            **{"title": self.title, "model": model, "dataset": dataset, "state": history.state},
            "step": latest.step if latest else 0,
            "validation_accuracy": best.validation_accuracy if best else None,
            "test_accuracy": end.test_accuracy if end else None,
        }

    def has(self, name: str) -> bool:
        """Tell whether it has a file: weights from the first snapshot on, an evaluation when it was tested."""
        return os.path.isfile(self.folder / name)

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
    _remove_unmade(root)
    with writing(root, "Name another folder with CNN_DEMO_CHECKPOINTS."):
        run.folder.mkdir(parents=True)
        if owner:
            write_file(run.folder / files.OWNER, hash_secret(owner).encode())
        write_file(run.folder / files.CONFIG, json.dumps(describe_config(config), indent=1).encode())
    run.log.append(RunQueued())
    return run


def _remove_unmade(root: Path) -> None:
    """Delete the folders of runs that were killed while they were being made: without a log no list shows them."""
    for folder in root.glob("*-*-*-*"):
        with contextlib.suppress(OSError):
            names = {path.name.removesuffix(files.PART) for path in folder.iterdir()}
            old = time.time() - modified(folder) > UNMADE_SECONDS
            unmade = MADE.search(folder.name) and old and names <= {files.CONFIG, files.OWNER, files.LOCK}
            if unmade and not Run(folder).is_locked():
                shutil.rmtree(folder)


def discard(run: Run) -> None:
    """Delete the run's folder. Raises RunError while another process trains it, DiskError where it cannot be."""
    with run.locked(), writing(run.folder):
        shutil.rmtree(run.folder)


def get(root: Path, run_id: str) -> Run | None:
    """Return the run of that id, None where there is none."""
    return Run(root / run_id) if NAME.fullmatch(run_id) and os.path.isfile(root / run_id / files.LOG) else None


def find(root: Path, run_id: str) -> Run:
    """Return the run of that id. Raises RunError where there is none."""
    if run := get(root, run_id):
        return run
    known = ", ".join(run.id for run in list_runs(root)[:5]) or "none yet"
    raise RunError(f"There is no run {run_id!r} in {root}. The latest are: {known}.")


def list_runs(root: Path) -> list[Run]:
    """Return all runs, the latest first."""
    found = [run for path in root.glob(f"*/{files.LOG}") if (run := get(root, path.parent.name))]
    return sorted(found, key=lambda run: modified(run.folder), reverse=True)


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
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
