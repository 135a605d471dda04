"""Disk space: which runs go when there is too little. What ships, runs or is watched never goes."""

import os
import shutil
from collections.abc import Container
from pathlib import Path

from ..networks.catalog import NETWORKS
from ..settings import Limits
from . import folder
from .folder import Run

NEW_RUN_BYTES = 300_000_000  # the largest network's weights and their state, twice while they are being replaced
FREE_BYTES = 1_000_000_000  # of the disk, never used
OWN_SHARE = 0.75  # the rest is for others


def find_surplus(
    root: Path, limits: Limits, sources: dict[str, str], kept: Container[str], source: str = ""
) -> tuple[list[Run], bool]:
    """Return the runs to delete before a new one of `source` fits, and whether it then does. sources: by id. kept: ids.

    The oldest of the source that uses most goes first, so that who fills the disk loses their own runs. What stays of
    one source, by being watched for example, may take OWN_SHARE of the space.
    """
    counted: set[tuple[int, int]] = set()  # a file that several folders share takes its space once
    groups: dict[str, list[tuple[Run, int]]] = {}
    for run in folder.list_runs(root):  # the latest first
        if run.id not in NETWORKS:
            groups.setdefault(sources.get(run.id) or run.owner, []).append((run, _size(run.folder, counted)))
    if not groups:
        return [], True  # the folder may not be there yet
    used = sum(size for runs in groups.values() for _, size in runs)
    available = min(1e9 * limits.disk_gb, used + shutil.disk_usage(root).free - FREE_BYTES) - NEW_RUN_BYTES
    staying = {run.id for runs in groups.values() for run, _ in runs if run.id in kept or run.is_locked()}
    own = sum(size for run, size in groups.get(source, []) if run.id in staying)
    surplus: list[Run] = []
    for runs in sorted(groups.values(), key=lambda runs: sum(size for _, size in runs), reverse=True):
        ended = [(run, size) for run, size in runs if run.id not in staying]
        remaining = len(runs)
        while ended and (used > available or remaining >= limits.runs):
            run, size = ended.pop()
            surplus.append(run)
            used, remaining = used - size, remaining - 1
    return surplus, used <= available and own <= OWN_SHARE * available


def _size(path: Path, counted: set[tuple[int, int]]) -> int:
    size = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                file = os.stat(os.path.join(place, name))
            except OSError:  # just replaced
                continue
            size += 0 if (file.st_dev, file.st_ino) in counted else file.st_size
            counted.add((file.st_dev, file.st_ino))
    return size
