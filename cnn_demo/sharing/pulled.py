"""A stranger's run becomes a run folder here: nothing of it is trusted, only what was checked is written."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import CheckpointError, ConfigError
from ..pictures.catalog import DATASETS
from ..runs.checkpoints import Checkpoint, pulled_folders
from ..runs.files import CONFIG, LOG, OWNER, SOURCE, UNREADABLE, WEIGHTS, write_file
from ..runs.folder import Run, describe_config, hash_secret
from ..training import config as configs
from ..training import events
from ..training.config import RunConfig


def find_pulled(root: Path, repo: str, revision: str, owner: str) -> Run | None:
    """Return the run that was pulled from the Hub for `owner` (a secret) at a revision; None if there is none."""
    found = (Run(folder) for folder in pulled_folders(root, repo, revision) if (folder / WEIGHTS).is_file())
    return next((run for run in found if run.belongs_to(owner) or not (owner or run.owner)), None)


def read_recipe(file: Path, repo: str) -> RunConfig:
    """Return the recipe in a repository's config.json. Raises CheckpointError where this program did not write it."""
    try:
        return configs.from_dict(json.loads(file.read_text("utf-8"))["recipe"])
    except (*UNREADABLE, ConfigError) as error:
        raise CheckpointError(f"{CONFIG} of {repo} was not written by this program ({str(error)[:200]}).") from error


def save_pulled(root: Path, files: Path, weights: Checkpoint, source: dict[str, Any], owner: str) -> Run:
    """Return a new run folder of what is valid in downloaded files. Raises CheckpointError, OSError."""
    repo, commit = source["repo"], source["commit"]
    config = read_recipe(files / CONFIG, repo)
    if (weights.model, weights.classes) != (config.model, DATASETS[config.dataset].classes):
        found = f"The weights of {repo} are a {weights.model} for {len(weights.classes)} classes"
        raise CheckpointError(f"{found}, but its {CONFIG} describes a {config.model} for {config.dataset}.")
    log: list[events.Event] = []
    for line in (files / LOG).read_text("utf-8", "replace").splitlines()[:10_000]:  # an export has a few thousand
        with contextlib.suppress(*UNREADABLE):
            log.append(replace(events.from_dict(json.loads(line)), seq=len(log)))
    name = "private" if source["private"] else re.sub(r"[^a-z0-9]+", "-", repo.lower())[:40].strip("-")
    key = hash_secret(owner + repo + commit) if owner or source["private"] else commit
    run = Run(root / f"hf-{name}-{key[:8]}")  # who is shown the run sees its id, but no private name
    with FileLock(root / ".pull"):
        if known := find_pulled(root, repo, commit, owner):  # another tab or process was faster
            return known
        (part := files / run.id).mkdir()
        write_file(part / CONFIG, json.dumps(describe_config(config), indent=1).encode())
        write_file(part / SOURCE, json.dumps(source).encode())
        if owner:
            write_file(part / OWNER, hash_secret(owner).encode())
        (files / WEIGHTS).rename(part / WEIGHTS)
        write_file(part / LOG, "".join(json.dumps(events.to_dict(event)) + "\n" for event in log).encode())
        shutil.rmtree(run.folder, ignore_errors=True)  # pulled before, then damaged
        part.rename(run.folder)
    return run
