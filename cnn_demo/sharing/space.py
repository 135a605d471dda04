"""Uploads this program to a Hugging Face Space, ready to run."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, SpaceHardware

from ..errors import InputError
from ..networks.catalog import NETWORKS
from ..pictures.dataset import Report
from .hub import ATTRIBUTES, Token, call_hub, parse_target, writer

REQUIREMENTS = ("requirements.txt", "requirements-preinstalled.txt")  # the second is in a Space alone
PREINSTALLED = ("gradio", "huggingface-hub", "spaces")  # in a Space, which another version in the first would break
PATHS = ("app.py", "LICENSE", "README.md", "pyproject.toml", *REQUIREMENTS, "cnn_demo")


def upload_space(hub: str, space: str, folder: Path, token: Token, report: Report, force: bool) -> str:
    """Make a Space the same as a git checkout, in one commit, and delete its other files; return its address.

    Raises InputError if there is no git checkout, or (without `force`) the Space holds another program; HubError.
    """
    space = parse_target(space)
    command = ["git", "-C", str(folder), "ls-files", "-z", "--", *PATHS, *(f"checkpoints/{name}" for name in NETWORKS)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.split("\0") if shutil.which("git") else []
    if "app.py" not in listed:
        raise InputError(f"A Space gets the files that git tracks: this needs git, and {folder} to be a git checkout.")
    files: dict[str, str | bytes] = {name: str(folder / name) for name in listed if name and (folder / name).is_file()}
    api = writer(hub, token)
    report("creating the Space", 0.1)
    create = partial(api.create_repo, space, repo_type="space", space_sdk="gradio", exist_ok=True)
    call_hub(lambda: create(space_hardware=SpaceHardware.ZERO_A10G), f"creating {space}")
    info = call_hub(lambda: api.space_info(space), f"reading {space}")
    remote = {sibling.rfilename for sibling in info.siblings or []} - {ATTRIBUTES, "README.md"}
    if remote and not force and not any(name.startswith("cnn_demo/") for name in remote):
        raise InputError(
            f"{space} holds another program, whose {len(remote)} files would be deleted "
            f"({', '.join(sorted(remote)[:5])}). Nothing was changed; choose another name, or add --force."
        )
    found = "".join((folder / name).read_text() for name in REQUIREMENTS if name in files).splitlines(keepends=True)
    for name, expected in zip(REQUIREMENTS, (False, True), strict=True):  # pip install of the Space reads both
        files[name] = "".join(line for line in found if line.startswith(PREINSTALLED) == expected).encode()
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    deleted = [CommitOperationDelete(name) for name in remote - set(files)]
    report(f"uploading {len(files)} files", 0.3)
    commit = partial(api.create_commit, space, [*added, *deleted], repo_type="space", parent_commit=info.sha)
    call_hub(lambda: commit(commit_message="CNN Demo"), f"uploading to {space}", is_transfer=True)
    return f"{hub}/spaces/{space}"
