"""A stranger's run becomes a run folder here: nothing of it is trusted, only what was checked is written."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ..errors import CheckpointError, ConfigError
from ..pictures.catalog import DATASETS
from ..runs.checkpoints import Checkpoint, pulled_folders
from ..runs.files import CONFIG, LOG, OWNER, SOURCE, WEIGHTS, write_file, writing
from ..runs.folder import Run, describe_config, hash_secret
from ..training import config as configs
from ..training import events


def find_pulled(root: Path, repo: str, revision: str, owner: str) -> Run | None:
    """Return the run that was pulled from the Hub for `owner` (a secret) at a revision; None if there is none."""
    found = (Run(folder) for folder in pulled_folders(root, repo, revision))
    return next((run for run in found if run.belongs_to(owner) or not (owner or run.owner)), None)


def save_pulled(root: Path, files: Path, weights: Checkpoint, repo: str, revision: str, commit: str, owner: str) -> Run:
    """Return a new run folder of what is valid in downloaded files. Raises CheckpointError, RunError, DiskError."""
    try:
        config = configs.from_dict(json.loads((files / CONFIG).read_text())["recipe"])
        lines = (files / LOG).read_text().splitlines()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{CONFIG} of {repo} was not written by this program ({str(error)[:200]}).") from error
    if (weights.model, weights.classes) != (config.model, DATASETS[config.dataset].classes):
        found = f"The weights of {repo} are a {weights.model} for {len(weights.classes)} classes"
        raise CheckpointError(f"{found}, but its {CONFIG} describes a {config.model} for {config.dataset}.")
    log: list[events.Event] = []
    for line in lines[:10_000]:  # an export of this program has a few thousand at most
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
            log.append(replace(events.from_dict(json.loads(line)), seq=len(log)))
    name = re.sub(r"[^a-z0-9]+", "-", repo.lower())[:40].strip("-")
    run = Run(root / f"hf-{name}-{(hash_secret(owner + commit) if owner else commit)[:8]}")
    part = root / f".{run.id}"  # not a valid run id
    with writing(root, "Name another folder with CNN_DEMO_CHECKPOINTS."):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".pull"):
            if known := find_pulled(root, repo, commit, owner):  # another tab or process was faster
                return known
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_file(part / CONFIG, json.dumps(describe_config(config), indent=1).encode())
            write_file(part / SOURCE, json.dumps({"repo": repo, "commit": commit, "revisions": [revision]}).encode())
            if owner:
                write_file(part / OWNER, hash_secret(owner).encode())
            shutil.copyfile(files / WEIGHTS, part / WEIGHTS)
            write_file(part / LOG, "".join(json.dumps(events.to_dict(event)) + "\n" for event in log).encode())
            shutil.rmtree(run.folder, ignore_errors=True)  # pulled before, then damaged
            part.rename(run.folder)
    return run
