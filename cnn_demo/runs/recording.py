"""Trains a run and records it in its folder: events, snapshots, evaluation.

resume/state.json is written last and makes a new snapshot count; a kill at any moment leaves the one before.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, CnnDemoError, RunError
from ..networks.models import Network, build
from ..pictures.dataset import Dataset
from ..training import events
from ..training.budget import Stop
from ..training.config import RunConfig
from ..training.distributed import Group
from ..training.events import CheckpointSaved, Event, RunFinished
from ..training.loop import ALONE, Snapshot, train
from ..training.scoring import Best, Calibration, Evaluation
from .checkpoints import NAME, Checkpoint, pack_tensors, read_checkpoint, write_checkpoint
from .files import EVALUATION, RESUME, STATE, STOP, UNREADABLE, WEIGHTS, write_file, writing
from .folder import Run
from .start import find_start, resolve_start

ENDED = ("finished", "diverged")  # cannot be continued
STATE_FIELDS = ("check_pictures", "losses", "scaler", "seconds", "step", "validated_step")


def train_run(run: Run, data: Dataset, device: torch.device, stop: Stop, group: Group = ALONE) -> Iterator[Event]:
    """Train a new run, or continue one; yield each event once it is in the log. Raises what ends it early, RunError."""
    with run.locked(), ThreadPoolExecutor(1, "disk") as disk:
        state = run.history().state
        if state in ENDED or run.source:
            state = "come from the Hub" if run.source else state
            raise RunError(
                f"The run {run.id} has {state} and cannot be continued; start a new one from it: --start-from {run.id}."
            )
        with writing(run.folder):
            (run.folder / STOP).unlink(missing_ok=True)
        try:
            network, start = _prepare(run.folder.parent, run, run.config, data)
            saving: Future[CheckpointSaved | None] | None = None
            for item in train(network, data, run.config, device=device, stop=stop, start=start, group=group):
                is_end = isinstance(item, (Snapshot, Evaluation, RunFinished))  # of what was being saved meanwhile
                if saving and (is_end or saving.done()):
                    if saved := saving.result():
                        yield run.log.append(saved)
                    saving = None
                if isinstance(item, Evaluation):
                    run.write_json(EVALUATION, item)
                    continue
                if isinstance(item, Snapshot):
                    saving = disk.submit(save_snapshot, run.folder, copied(item), run.config, data)
                    continue
                if isinstance(item, RunFinished) and item.reason == "stopped" and isinstance(why := stop(), str):
                    item = replace(item, message=f"At step {item.step:,} {why}")
                yield run.log.append(item)
                if isinstance(item, RunFinished) and item.reason in ENDED:
                    shutil.rmtree(run.folder / RESUME, ignore_errors=True)  # twice the size of the weights
        except Exception as error:
            with contextlib.suppress(CnnDemoError):  # on a full disk the run shows as interrupted instead
                _log_end(run, "failed", str(error) or type(error).__name__)
            raise


def train_as_worker(
    root: Path, run: Run | None, config: RunConfig, data: Dataset, device: torch.device, stop: Stop, group: Group
) -> None:
    """Train along with the process of rank 0, which records the run (None: a new one); write and print nothing."""
    config = config if run else resolve_start(root, config)
    network, start = _prepare(root, run, config, data)
    for _ in train(network, data, config, device=device, stop=stop, start=start, group=group):
        pass


def end_run(run: Run, reason: str, message: str) -> None:
    """Log the end of a run that is not being trained."""
    with run.locked():
        _log_end(run, reason, message)


def _prepare(root: Path, run: Run | None, config: RunConfig, data: Dataset) -> tuple[Network, Snapshot | None]:
    """Return the network before its first step in this process, and what the loop continues from. Raises RunError."""
    start = load_snapshot(run.folder) if run else None
    network = build(config.model, len(data.classes), config.seed)
    if start and not _fits(start, network, config.optimizer):
        raise RunError("The saved state of this run cannot be used: it is of another network or optimizer.")
    if start is None and config.start_from:
        network.load_state_dict(find_start(root, config, config.start_from).weights)
    return network, start


def _fits(start: Snapshot, network: Network, optimizer: str) -> bool:
    """Tell whether a snapshot's tensors are those of a network and its optimizer."""
    keys = ("step", "exp_avg", "exp_avg_sq") if optimizer == "adamw" else ("momentum_buffer",)
    own = {name: value.shape for name, value in network.state_dict().items()}
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    memory = {f"{name}/{key}": own[name] if key != "step" else () for name in trained for key in keys}
    kinds = (start.weights, start.best.weights, start.optimizer)
    weights, best, state = ({name: value.shape for name, value in tensors.items()} for tensors in kinds)
    return weights == best == own and (not state or memory.items() <= state.items())  # older runs trained more


def _log_end(run: Run, reason: str, message: str) -> None:
    """Log an end that the training did not report, with what is known from the log."""
    history = run.history()
    latest, best, started = history.latest, history.best, history.started
    end = RunFinished(reason=reason, message=message[: events.LONGEST], epochs=0, step=0)
    if latest and started:
        epochs = latest.step // started.steps_per_epoch
        end = replace(end, seconds=latest.seconds, step=latest.step, epochs=epochs)
    if best:
        end = replace(end, best_step=best.step, validation_accuracy=best.validation_accuracy)
    run.log.append(end)


def copied(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot that stays as it is while the training goes on; on the CPU."""

    def copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}

    best = replace(snapshot.best, weights=copy(snapshot.best.weights)) if snapshot.best_is_new else snapshot.best
    return replace(snapshot, weights=copy(snapshot.weights), optimizer=copy(snapshot.optimizer), best=best)


def save_snapshot(folder: Path, snapshot: Snapshot, config: RunConfig, data: Dataset) -> CheckpointSaved | None:
    """Write a snapshot; None where its run diverges, which the next loss will tell.

    Raises DiskError where that fails; the one before is then still there, whole.
    """
    if not all(bool(value.isfinite().all()) for value in snapshot.weights.values()):
        return None
    resume, best, calibration = folder / RESUME, snapshot.best, snapshot.best.calibration
    saved = f"The last checkpoint saved of {folder.name} is still there." if (resume / STATE).is_file() else ""
    with writing(folder, saved):
        resume.mkdir(exist_ok=True)
        if snapshot.best_is_new:
            checkpoint = Checkpoint(
                name=folder.name,
                model=config.model,
                dataset=data.name,
                classes=data.classes,
                mean=data.mean,
                std=data.std,
                step=best.step,
                validation_accuracy=best.accuracy,
                limits=calibration.limits if calibration else None,
                temperature=calibration.temperature if calibration else 1.0,
                held_out=config.held_out,
                weights=best.weights,
            )
            write_checkpoint(folder / WEIGHTS, checkpoint)
        names = {kind: f"{kind}-{snapshot.step}.safetensors" for kind in ("weights", "optimizer")}
        write_file(resume / names["weights"], pack_tensors(snapshot.weights))
        write_file(resume / names["optimizer"], pack_tensors(snapshot.optimizer))
        state = {name: getattr(snapshot, name) for name in STATE_FIELDS} | names
        write_file(resume / STATE, json.dumps(state).encode())
        for file in resume.iterdir():
            if file.name not in (STATE, *names.values()):
                file.unlink()
    return CheckpointSaved(seconds=snapshot.seconds, step=snapshot.step, best_step=best.step)


def load_snapshot(folder: Path) -> Snapshot | None:
    """Return the last snapshot; None if there is none. Raises RunError where it is damaged."""
    resume = folder / RESUME
    if not (resume / STATE).is_file():
        return None
    try:
        state = json.loads((resume / STATE).read_text())
        names = {key: str(state.pop(key)) for key in ("weights", "optimizer")}
        if not all(NAME.fullmatch(name) for name in names.values()):
            raise ValueError("file names")
        state["check_pictures"] = int(state.get("check_pictures", 0))  # older runs had no checks
        numbers = [*(state.get(name) for name in STATE_FIELDS if name != "scaler"), *state["scaler"].values()]
        if not all(type(number) in (int, float) and 0 <= number <= events.LARGEST for number in numbers):
            raise ValueError("numbers")
        saved = read_checkpoint(folder / WEIGHTS, folder.name)
        calibration = Calibration(temperature=saved.temperature, limits=saved.limits) if saved.limits else None
        accuracy = saved.validation_accuracy
        return Snapshot(
            **state,
            weights=load_file(resume / names["weights"]),
            optimizer=load_file(resume / names["optimizer"]),
            best=Best(step=saved.step, weights=saved.weights, accuracy=accuracy, calibration=calibration),
            best_is_new=False,
        )
    except (OSError, AttributeError, SafetensorError, CheckpointError, *UNREADABLE) as error:
        raise RunError(f"The saved state of {folder.name} cannot be used ({str(error)[:200]}).") from error
