"""Run folders: the only writer of them.

checkpoints/<run-id>/
    config.json          what was asked for, and what the weights need to be used
    events.jsonl         what happened, one event a line
    model.safetensors    the best weights so far; self-describing (see checkpoints.py)
    resume/              state.json names the weights and optimizer files that belong together
    evaluation.json      what evaluation.py found, where it was asked; source.json  where a pulled run is from
    stop                 there where another process asks the one that trains to stop
    lock                 held (flock) by the process that trains; the system frees it when that process dies

Every file is written under another name, synced and renamed, so a kill at any moment leaves whole files; state.json
is renamed last and is what makes a new resume point count.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import CheckpointError, CnnDemoError, ConfigError, DiskError, RunError
from ..networks.models import build
from ..pictures.dataset import SETS, Dataset
from ..runs.checkpoints import EVALUATION, NAME, Checkpoint, find_checkpoint, modified, pulled, read_checkpoint
from ..runs.history import History
from ..training import config as configs
from ..training import events
from ..training.config import RunConfig
from ..training.distributed import Group
from ..training.events import CheckpointSaved, Event, RunFinished, RunQueued
from ..training.loop import ALONE, Snapshot, count_steps, train

ENDED = ("finished", "diverged")  # cannot be continued
PULLED_EVENTS = 10_000  # of a log from the Hub; what this program exports has a few thousand at most


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self._log = folder / "events.jsonl"
        self._next_seq = 0

    @cached_property
    def config(self) -> RunConfig:
        """What was asked for. Raises RunError where config.json is damaged."""
        try:
            return configs.from_dict(json.loads((self.folder / "config.json").read_text())["recipe"])
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise RunError(f"The run {self.id} has no usable config.json ({error}).") from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run while working on it. Raises RunError if another process (or thread) holds it."""
        with _writing(self.folder):
            file = (self.folder / "lock").open("w")
        with file:
            for _ in range(20):  # whoever asks is_held holds the lock for a moment, too
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
            else:
                raise RunError(f"The run {self.id} is being trained by another process.")
            self._repair_log()
            yield

    @cached_property
    def owner(self) -> str:
        """The hash of its owner's secret; "" where nobody owns it: it was shipped, or made from the command line."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "owner").read_text()
        return ""

    def belongs_to(self, secret: str) -> bool:
        """Tell whether `secret` is its owner's."""
        return bool(secret) and secrets.compare_digest(self.owner, _hash(secret))

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where it was pulled from: repo, commit, revisions (names it was asked by); {} where it was trained here."""
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((self.folder / "source.json").read_text()))
        return {}

    def add_revision(self, revision: str) -> None:
        """Note another name that a pulled run was asked by. Raises DiskError where that fails."""
        if revision in self.source["revisions"]:
            return
        self.source["revisions"].append(revision)
        with _writing(self.folder):
            _write(self.folder / "source.json", json.dumps(self.source).encode())

    def save_evaluation(self, result: dict[str, Any]) -> None:
        """Write evaluation.json. Raises DiskError where that fails."""
        with _writing(self.folder):
            _write(self.folder / EVALUATION, json.dumps(result).encode())

    def ask_stop(self) -> None:
        """Ask the process that trains the run to stop, where it is another one."""
        with contextlib.suppress(OSError):
            (self.folder / "stop").touch()

    def is_stop_asked(self) -> bool:
        """Tell whether another process asked this one to stop."""
        return (self.folder / "stop").exists()

    def is_held(self) -> bool:
        """Tell whether a living process works on the run."""
        try:
            with (self.folder / "lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def events(self, after: int = -1) -> list[Event]:
        """Return the events with a `seq` above `after`. A last line that a crash cut off is passed over."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._log.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    event = events.from_dict(json.loads(line))
                    if event.seq > after:
                        found.append(event)
        return found

    def history(self) -> History:
        """Return the run's history; its state is `interrupted` where it never ended and nobody works on it."""
        history = History()
        for event in self.events():
            history = history.fold(event)
        if history.finished is None and not self.is_held():
            return replace(history, state="interrupted")
        return history

    def summary(self) -> dict[str, Any]:
        """Return the run in a line of JSON-ready values; its network is "damaged" where config.json is."""
        history, row = self.history(), {"model": "damaged", "dataset": "damaged"}
        with contextlib.suppress(RunError):
            row = {"model": self.config.model, "dataset": self.config.dataset}
        latest, best, end = history.latest, history.best, history.finished
        return {
            **row,
            "state": history.state,
            "step": latest.step if latest else 0,
            "validation_accuracy": best.validation_accuracy if best else None,
            "test_accuracy": end.test_accuracy if end else None,
        }

    def append(self, event: Event) -> Event:
        """Write an event to the log and return it with its `seq`. All but progress is synced to the disk."""
        event = replace(event, seq=self._next_seq)
        size = self.log_bytes()
        with _writing(self._log):
            try:
                with self._log.open("ab") as file:
                    file.write(json.dumps(events.to_dict(event)).encode() + b"\n")
                    if not isinstance(event, events.Progress):
                        file.flush()
                        os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self._log, size)  # no half line for the next one to be glued to
                raise
        self._next_seq += 1
        return event

    def _repair_log(self) -> None:
        """Cut off a half-written last line, and find the next `seq`."""
        with contextlib.suppress(FileNotFoundError):
            content = self._log.read_bytes()
            os.truncate(self._log, content.rfind(b"\n") + 1)
        self._next_seq = max((event.seq for event in self.events()), default=-1) + 1

    def save(self, snapshot: Snapshot, data: Dataset) -> None:
        """Write a snapshot. Raises DiskError where that fails; the one before is then still there, whole."""
        resume = self.folder / "resume"
        with _writing(self.folder, f"The checkpoint of {self.id} before step {snapshot.step} is kept."):
            resume.mkdir(exist_ok=True)
            if snapshot.best is not None:
                metadata = {
                    "format": "pt",
                    "model": self.config.model,
                    "dataset": data.name,
                    "classes": json.dumps(data.classes),
                    "mean": json.dumps(data.mean),
                    "std": json.dumps(data.std),
                    "step": str(snapshot.best_step),
                    "validation_accuracy": json.dumps(snapshot.best_accuracy),
                    "limits": json.dumps(snapshot.best_limits),
                }
                (self.folder / EVALUATION).unlink(missing_ok=True)  # of other weights
                _write(self.folder / "model.safetensors", _pack(snapshot.best, metadata))
            names = {kind: f"{kind}-{snapshot.step}.safetensors" for kind in ("weights", "optimizer")}
            _write(resume / names["weights"], _pack(snapshot.weights, {"format": "pt"}))
            _write(resume / names["optimizer"], _pack(snapshot.optimizer, {"format": "pt"}))
            fields = {"step", "validated_step", "losses", "seconds", "scaler"}
            state = {name: getattr(snapshot, name) for name in sorted(fields)} | names
            _write(resume / "state.json", json.dumps(state).encode())
            for file in resume.iterdir():
                if file.name not in ("state.json", *names.values()):
                    file.unlink()

    def load_snapshot(self) -> Snapshot | None:
        """Return where the run was last saved; None if it never was."""
        resume = self.folder / "resume"
        if not (resume / "state.json").is_file():
            return None
        try:
            state = json.loads((resume / "state.json").read_text())
            names = {key: str(state.pop(key)) for key in ("weights", "optimizer")}
            if not all(NAME.fullmatch(name) for name in names.values()):
                raise ValueError("file names")
            best = read_checkpoint(self.folder / "model.safetensors", self.id)
            return Snapshot(
                **state,
                weights=load_file(resume / names["weights"]),
                optimizer=load_file(resume / names["optimizer"]),
                best_step=best.step,
                best_accuracy=best.validation_accuracy,
                best_limits=best.limits,
                best=best.weights,
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, CheckpointError) as error:
            raise RunError(f"The saved state of {self.id} cannot be used ({error}).") from error

    def end(self, reason: str, message: str) -> None:
        """Log the end of a run that is not being trained."""
        with self.held():
            self._end(reason, message)

    def _end(self, reason: str, message: str) -> None:
        """Log an end that the training did not tell, with what is known from the log."""
        history = self.history()
        latest, best, started = history.latest, history.best, history.started
        step = latest.step if latest else 0
        end = RunFinished(
            reason=reason,
            message=message[: events.LONGEST],
            seconds=latest.seconds if latest else 0.0,
            epochs=step // started.steps_per_epoch if started else 0,
            step=step,
            best_step=best.step if best else 0,
            validation_accuracy=best.validation_accuracy if best else None,
        )
        self.append(end)

    def log_bytes(self) -> int:
        """Return the size of the log; it changes whenever something happens."""
        with contextlib.suppress(FileNotFoundError):
            return self._log.stat().st_size
        return 0

    def drop_resume(self) -> None:
        """Remove what only a continuation needs, about twice the size of the weights."""
        shutil.rmtree(self.folder / "resume", ignore_errors=True)


def create(root: Path, config: RunConfig, owner: str = "") -> Run:
    """Make the folder of a new run and log RunQueued. `owner` is a secret of whom it belongs to; "": of nobody.

    Raises:
        ConfigError: the data set has too few pictures for it.
        CheckpointError: `config.start_from` cannot be the start of this run.
        DiskError: the folder cannot be written.
    """
    count_steps(config, SETS[config.dataset][3])
    starting_weights(root, config)
    run = Run(root / f"{config.model}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}")
    with _writing(root, "Name another folder with CNN_DEMO_CHECKPOINTS."):
        run.folder.mkdir(parents=True)
        if owner:
            _write(run.folder / "owner", _hash(owner).encode())
        _write(run.folder / "config.json", json.dumps(_description(config), indent=1).encode())
    run.append(RunQueued())
    return run


def discard(run: Run) -> None:
    """Remove the run's folder. Raises RunError while someone works on it, DiskError where it cannot be removed."""
    with run.held(), _writing(run.folder):
        shutil.rmtree(run.folder)


def find(root: Path, run_id: str) -> Run:
    """Return the run of that id. Raises RunError where there is none."""
    if not NAME.fullmatch(run_id) or not (root / run_id / "events.jsonl").is_file():
        known = ", ".join(run.id for run in listing(root)[:5]) or "none yet"
        raise RunError(f"There is no run {run_id!r} in {root}. The latest are: {known}.")
    return Run(root / run_id)


def listing(root: Path) -> list[Run]:
    """Return all runs, the latest first."""
    folders = [path.parent for path in root.glob("*/events.jsonl") if NAME.fullmatch(path.parent.name)]
    return [Run(folder) for folder in sorted(folders, key=modified, reverse=True)]


def find_pulled(root: Path, repo: str, revision: str, owner: str) -> Run | None:
    """Return the run that was pulled from the Hub for `owner` at a revision; None where there is none."""
    found = (Run(folder) for folder in pulled(root, repo, revision))
    return next((run for run in found if run.belongs_to(owner) or not (owner or run.owner)), None)


def adopt(root: Path, folder: Path, checkpoint: Checkpoint, repo: str, revision: str, commit: str, owner: str) -> Run:
    """Return a new run folder of what was fetched from the Hub into `folder`, nothing of it taken on trust.

    config.json is written anew from what is allowed in one, of the log only our events. Raises CheckpointError where
    they and the weights do not belong together, DiskError where the folder cannot be written.
    """
    try:
        config = configs.from_dict(json.loads((folder / "config.json").read_text())["recipe"])
        lines = (folder / "events.jsonl").read_text().splitlines()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"config.json of {repo} is none of this program's ({str(error)[:200]}).") from error
    classes = SETS[config.dataset][0]
    if (checkpoint.model, checkpoint.classes) != (config.model, classes):
        raise CheckpointError(
            f"{repo} holds weights of a {checkpoint.model} for {len(checkpoint.classes)} classes; its config.json "
            f"speaks of a {config.model} for {config.dataset}."
        )
    name = re.sub(r"[^a-z0-9]+", "-", repo.lower())[:40].strip("-")
    mark = _hash(owner + commit)[:8] if owner else commit[:8]
    source = {"repo": repo, "commit": commit, "revisions": [revision]}
    run = Run(root / f"hf-{name}-{mark}")
    part = root / f".{run.id}"  # no name of a run
    with _writing(root, "Name another folder with CNN_DEMO_CHECKPOINTS."), contextlib.ExitStack() as stack:
        root.mkdir(parents=True, exist_ok=True)
        fcntl.flock(stack.enter_context((root / ".pull").open("w")), fcntl.LOCK_EX)
        if known := find_pulled(root, repo, commit, owner):  # by someone who was faster: another tab, another rank
            return known
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _write(part / "config.json", json.dumps(_description(config), indent=1).encode())
        _write(part / "source.json", json.dumps(source).encode())
        if owner:
            _write(part / "owner", _hash(owner).encode())
        shutil.copyfile(folder / "model.safetensors", part / "model.safetensors")
        taken: list[Event] = []
        for line in lines[:PULLED_EVENTS]:
            with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
                taken.append(replace(events.from_dict(json.loads(line)), seq=len(taken)))
        log = "".join(json.dumps(events.to_dict(event)) + "\n" for event in taken)
        _write(part / "events.jsonl", log.encode())
        shutil.rmtree(run.folder, ignore_errors=True)  # pulled before, then damaged
        part.rename(run.folder)
    return run


def assist(
    root: Path,
    run: Run | None,
    config: RunConfig,
    data: Dataset,
    device: torch.device,
    stop: Callable[[], bool],
    group: Group,
) -> None:
    """Train along with the process of rank 0, which drives the run: write and tell nothing.

    run: the one that is continued, None for a new one. Raises what `drive` raises.
    """
    start = run.load_snapshot() if run else None
    network = build(config.model, len(data.classes), config.seed)
    if start is None and (weights := starting_weights(root, config)) is not None:
        network.load_state_dict(weights)
    for _ in train(network, data, config, device=device, stop=stop, start=start, group=group):
        pass


def drive(
    run: Run, data: Dataset, device: torch.device, stop: Callable[[], bool], group: Group = ALONE
) -> Iterator[Event]:
    """Train a new run, or continue one, writing all that happens into its folder; yield each event once it is written.

    Whatever breaks off the training is logged as RunFinished(reason="failed") and raised. Raises RunError where the
    run has ended or another process works on it.
    """
    with run.held():
        state = run.history().state
        if state in ENDED or run.source:
            state = "come from the Hub" if run.source else state
            raise RunError(
                f"The run {run.id} has {state} and cannot be continued; start a new one from it: --start-from {run.id}."
            )
        (run.folder / "stop").unlink(missing_ok=True)
        config = run.config
        try:
            start = run.load_snapshot()
            network = build(config.model, len(data.classes), config.seed)
            if start is None and (weights := starting_weights(run.folder.parent, config)) is not None:
                network.load_state_dict(weights)
            for item in train(network, data, config, device=device, stop=stop, start=start, group=group):
                if isinstance(item, Snapshot):
                    run.save(item, data)
                    item = CheckpointSaved(seconds=item.seconds, step=item.step, best_step=item.best_step)
                yield run.append(item)
                if isinstance(item, RunFinished) and item.reason in ENDED:
                    run.drop_resume()
        except Exception as error:
            with contextlib.suppress(CnnDemoError):  # on a full disk the run shows as interrupted instead
                run._end("failed", str(error) or type(error).__name__)
            raise


def hold_out(root: Path, config: RunConfig) -> RunConfig:
    """Return the configuration with no picture held out that the checkpoint it starts from has learned.

    For whom did not say how many. Raises CheckpointError where there is no such checkpoint.
    """
    held_out = find_checkpoint(root, config.start_from).held_out if config.start_from else None
    if held_out is None or held_out >= config.validation_pictures:
        return config
    return replace(config, validation_pictures=held_out)


def starting_weights(root: Path, config: RunConfig) -> dict[str, Tensor] | None:
    """Return the weights that `config.start_from` names. Raises CheckpointError where they are for another network."""
    if config.start_from is None:
        return None
    checkpoint = find_checkpoint(root, config.start_from)
    if checkpoint.model != config.model:
        raise CheckpointError(
            f"--start-from {config.start_from} is a {checkpoint.model}, the run trains a {config.model}."
        )
    classes = SETS[config.dataset][0]
    if checkpoint.classes != classes:
        raise CheckpointError(
            f"--start-from {config.start_from} knows other classes ({', '.join(checkpoint.classes[:3])}, …) "
            f"than {config.dataset} ({', '.join(classes[:3])}, …)."
        )
    if checkpoint.held_out is not None and config.validation_pictures > checkpoint.held_out:
        raise ConfigError(
            "validation_pictures",
            f"--start-from {config.start_from} was trained on all pictures but {checkpoint.held_out:,}; to hold out "
            f"{config.validation_pictures:,} would validate on pictures that it has learned. Give "
            f"--validation-pictures {checkpoint.held_out} or fewer.",
        )
    return checkpoint.weights


def _description(config: RunConfig) -> dict[str, Any]:
    """Return what config.json holds."""
    classes, mean, std, _ = SETS[config.dataset]
    return {
        "model": config.model,
        "classes": classes,
        "input_size": 32,
        "mean": mean,
        "std": std,
        "recipe": config.to_dict(),
        "command": config.to_command(),
        "versions": {name: version(name) for name in ("torch", "torchvision")},
    }


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file; channels-last kernels are written in the usual order."""
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)


def _write(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new one stands at `path`, whole."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn what the disk says into one sentence: RunError where the place is wrong, DiskError where the disk is."""
    try:
        yield
    except OSError as error:
        wrong_place = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST)
        kind = RunError if wrong_place else DiskError
        raise kind(f"{path} cannot be written: {error.strerror}. {advice}".rstrip()) from error
