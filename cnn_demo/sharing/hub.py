"""Checkpoints on the Hugging Face Hub: the only module that knows huggingface_hub.

Every call gets an explicit token, the visitor's or False: None would mean the machine's own login, which on a Space is
the owner's. What comes from the Hub is weights as safetensors and JSON, looked at before it is used.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceHardware, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import CheckpointError, HubError, InputError
from ..pictures.dataset import Report
from ..runs import folder as runs
from ..runs.checkpoints import CHECKPOINT_BYTES, EVALUATION, PREFIX, read_checkpoint
from ..runs.folder import Run
from ..sharing import card
from ..training.config import MODELS

Token = str | bool  # a token, or False: never True or None, which mean this machine's login
Operations = list[CommitOperationAdd | CommitOperationDelete]
Result = TypeVar("Result")

TAG = "cnn-demo"
CALL_SECONDS = 60.0  # for a question or a small answer; the client itself would wait and try again for minutes
TRANSFER_SECONDS = 900.0
TEXT_BYTES = {"config.json": 100_000, "events.jsonl": 20_000_000}
REVISION = re.compile(r"\w[\w./-]{0,100}")
IMAGE = "python:3.12"
PREINSTALLED = ("gradio", "huggingface-hub", "spaces")  # on a Space
UNCHANGED = "Nothing on this machine was changed; try again, nothing is saved twice."
SIGN_IN = "Nobody is signed in on this machine: run `hf auth login` first, or set HF_TOKEN."


def machine_login() -> Token:
    """Return the token of who runs the command line, from HF_TOKEN or `hf auth login`; False where there is none."""
    return get_token() or False


def parse(text: str) -> tuple[str, str]:
    """Return (owner/name, revision) of `owner/name`, `owner/name@revision`, `hf:...` or a link to a repository.

    Raises InputError where it is none of these.
    """
    rest = re.sub(r"^(hf:|https?://[^/]+/)", "", text.strip()).strip("/")
    rest, _, revision = rest.partition("@")
    repo, _, tree = rest.partition("/tree/")
    revision = revision or tree or "main"
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1 or not REVISION.fullmatch(revision) or ".." in revision:
            raise ValueError
    except (HFValidationError, ValueError) as error:
        raise InputError(
            f"{text[:80]!r} is no repository of the Hub; give owner/name, owner/name@revision or its link."
        ) from error
    return repo, revision


def push(run: Run, hub: str, repo: str, token: Token, private: bool, report: Report) -> str:
    """Save a run to the Hub as one commit with the tag run-<id>; return the address of the commit.

    The repository is made where it does not exist. What is there already, unchanged, is not committed again.
    Raises InputError where the name cannot be used, HubError where the Hub could not do it; the run is untouched.
    """
    repo, _ = parse(repo)
    if not token:
        raise HubError(SIGN_IN)
    api, tag = HfApi(hub, token=token), f"run-{run.id}"
    disable_progress_bars()
    report("making the repository", 0.05)
    _asked(lambda: api.create_repo(repo, private=private, exist_ok=True, token=token), f"making {repo}")
    report("packing the weights", 0.1)
    with tempfile.TemporaryDirectory() as folder:
        card.export(run, Path(folder), repo)
        info = _asked(lambda: api.model_info(repo, files_metadata=True, token=token), f"reading {repo}")
        if private and not info.private:
            raise InputError(f"{repo} is there already, and public; choose another name for a private one.")
        there = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes", "README.md"}
        if there and "events.jsonl" not in there:
            raise InputError(f"{repo} holds something else than a checkpoint of this program; choose another name.")
        refs = _asked(lambda: api.list_repo_refs(repo, token=token), f"reading {repo}")
        tagged = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
        files = [CommitOperationAdd(path.name, str(path)) for path in sorted(Path(folder).iterdir())]
        if tagged and _holds(api, repo, tagged, files, token):
            return f"{hub}/{repo}/commit/{tagged}"
        report("uploading", 0.3)
        left = there & {EVALUATION} - {file.path_in_repo for file in files}  # of another run's weights
        operations: Operations = [*files]
        operations += [CommitOperationDelete(name) for name in left]
        commit = _asked(
            lambda: api.create_commit(
                repo, operations, commit_message=f"Run {run.id}", parent_commit=info.sha, revision="main", token=token
            ),
            f"uploading to {repo}",
            TRANSFER_SECONDS,
        )
        report("tagging", 0.95)
        if tagged:  # the run has gone on since
            _asked(lambda: api.delete_tag(repo, tag=tag, token=token), f"tagging {repo}")
        _asked(lambda: api.create_tag(repo, tag=tag, revision=commit.oid, token=token), f"tagging {repo}")
    return f"{hub}/{repo}/commit/{commit.oid}"


def _holds(api: HfApi, repo: str, commit: str, files: list[CommitOperationAdd], token: Token) -> bool:
    """Tell whether a commit has the same weights and log as `files`."""
    names = [card.WEIGHTS, "events.jsonl"]
    found = _asked(lambda: api.get_paths_info(repo, names, revision=commit, token=token), f"reading {repo}")
    there = {e.path: (e.size, e.lfs and e.lfs.sha256) for e in found if isinstance(e, RepoFile)}
    for file in files:
        if file.path_in_repo in names:
            size, sha256 = there.get(file.path_in_repo, (None, None))
            if size != file.upload_info.size or (sha256 and sha256 != file.upload_info.sha256.hex()):
                return False
    return True


def pull(root: Path, hub: str, text: str, token: Token, owner: str = "") -> Run:
    """Return a checkpoint of the Hub as a run folder in `root`; one that is there already is not fetched again.

    Without a network the latest one pulled by that name and revision is taken. `owner` is the secret of whom it is for.
    Raises InputError where the name is wrong, CheckpointError where the repository holds nothing that may be used,
    HubError where the Hub could not be asked.
    """
    repo, revision = parse(text)
    api, what = HfApi(hub, token=token), f"reading {repo}"
    try:
        info = _asked(lambda: api.model_info(repo, revision=revision, files_metadata=True, token=token), what)
    except HubError as error:
        known = None if error.answered else runs.find_pulled(root, repo, revision, owner)
        if known is None:
            raise
        return known
    known = runs.find_pulled(root, repo, str(info.sha), owner)
    if known is not None:
        known.add_revision(revision)
        return known
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    for name, limit in {card.WEIGHTS: CHECKPOINT_BYTES, **TEXT_BYTES}.items():
        if name not in sizes:
            raise CheckpointError(f"{repo} has no {name}: it holds no checkpoint of this program. Nothing was read.")
        if not 0 < (sizes[name] or 0) <= limit:
            raise CheckpointError(f"{name} of {repo} has {sizes[name]} bytes; {limit:,} are allowed. Nothing was read.")
    with tempfile.TemporaryDirectory() as folder:
        for name in (card.WEIGHTS, *TEXT_BYTES):
            fetch = partial(api.hf_hub_download, repo, name, revision=info.sha, local_dir=folder, token=token)
            _asked(fetch, f"fetching {name} of {repo}", TRANSFER_SECONDS)
        weights = Path(folder) / card.WEIGHTS
        try:
            checkpoint = read_checkpoint(weights, f"{PREFIX}{repo}")
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(weights), f"{card.WEIGHTS} of {repo}")) from error
        return runs.adopt(root, Path(folder), checkpoint, repo, revision, str(info.sha), owner)


def own(hub: str, name: str, token: Token) -> list[str]:
    """Return the names of a user's repositories with our tag; the private ones, too, where the token is theirs."""
    api = HfApi(hub, token=token)
    models = _asked(lambda: list(api.list_models(author=name, filter=TAG, limit=100, token=token)), "your list")
    return [model.id for model in models]


def publish(hub: str, space: str, folder: Path, token: Token, report: Report) -> str:
    """Upload this program as a Space, in one commit; return its address. What else is in the Space is removed.

    Only what it needs goes up, with a requirements.txt that leaves out what a Space brings along.
    """
    space, _ = parse(space)
    api, what = HfApi(hub, token=token), f"making the Space {space}"
    make = partial(api.create_repo, space, repo_type="space", space_sdk="gradio", exist_ok=True, token=token)
    report("making the Space", 0.1)
    _asked(lambda: make(space_hardware=SpaceHardware.ZERO_A10G), what)
    files = [folder / name for name in ("app.py", "LICENSE", "README.md")]
    for place in ("cnn_demo", *(f"checkpoints/{model}" for model in MODELS)):
        files += [path for path in (folder / place).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files = [path for path in files if path.name not in ("lock", "owner")]
    names = {str(path.relative_to(folder)): path for path in sorted(files)}
    lines = (folder / "requirements.txt").read_text().splitlines(keepends=True)
    info = _asked(lambda: api.space_info(space, token=token), what)
    with tempfile.TemporaryDirectory() as scratch:
        names["requirements.txt"] = Path(scratch) / "requirements.txt"
        names["requirements.txt"].write_text("".join(s for s in lines if not s.startswith(PREINSTALLED)))
        there = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
        operations: Operations = [CommitOperationAdd(name, str(path)) for name, path in names.items()]
        operations += [CommitOperationDelete(name) for name in sorted(there - set(names))]
        report(f"uploading {len(names)} files", 0.3)
        commit = partial(api.create_commit, space, operations, repo_type="space", parent_commit=info.sha, token=token)
        _asked(lambda: commit(commit_message="CNN Demo"), f"uploading to {space}", TRANSFER_SECONDS)
    return f"{hub}/spaces/{space}"


def launch(hub: str, command: str, flavor: str, space: str, repo: str, token: Token) -> str:
    """Start a training command as a Hugging Face Job that pushes its run to `repo`; return the job's address.

    The program is taken from the Space `space`. The job gets the token as a secret, for its push alone.
    """
    space, _ = parse(space)
    repo, _ = parse(repo)
    steps = [
        "apt-get update -qq && apt-get install -qq -y git >/dev/null",
        f"git clone -q --depth 1 {hub}/spaces/{space} app",
        "cd app",
        "pip install -q -r requirements.txt huggingface_hub",
        f"{command} --json | tee ../result",
        f'python -m cnn_demo push $(tail -n1 ../result | grep -o \'"run_id": "[^"]*\' | cut -d\'"\' -f4) {repo}',
    ]
    if not token:
        raise HubError(SIGN_IN)
    api = HfApi(hub, token=token)
    job = _asked(
        lambda: api.run_job(
            image=IMAGE,
            command=["bash", "-eo", "pipefail", "-c", "\n".join(steps)],
            flavor=flavor,
            timeout="4h",
            secrets={"HF_TOKEN": token},
            token=token,
        ),
        "starting the job",
        closing="It may have started all the same: look at your jobs on the Hub before you try again.",
    )
    return str(job.url)


def _asked(call: Callable[[], Result], what: str, limit: float = CALL_SECONDS, closing: str = UNCHANGED) -> Result:
    """Return what a call of the client returns; after `limit` seconds, or where it fails, raise HubError in words.

    closing: the last sentence of an error, which says what is safe to do.

    The call is made in a thread of its own, because the client waits without an end and tries again by itself.
    """
    answer: list[Any] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            answer.append(call())
        except Exception as error:  # the client raises httpx's, huggingface_hub's and builtin errors alike
            failure.append(error)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(limit)
    if answer:
        result: Result = answer[0]
        return result
    if not failure:
        raise HubError(f"The Hub took more than {limit:.0f} s for {what}. {closing}")
    status = _status(failure[0])
    if status is not None and status < 500:  # it has not begun
        closing = UNCHANGED
    raise HubError(f"{_sentence(failure[0], what)} {closing}", answered=status is not None) from None


def _status(error: Exception) -> int | None:
    """Return the HTTP status that the Hub answered with; None where it could not be reached."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _sentence(error: Exception, what: str) -> str:
    """Return what happened, in words. The client's own words may hold addresses and headers and are not shown."""
    status = _status(error)
    if isinstance(error, RevisionNotFoundError):
        return f"The Hub does not know that revision ({what})."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub knows no such repository, or it is private and you may not read it ({what})."
    words = {
        401: "The Hub does not accept the sign-in; it may have expired. Sign in again.",
        402: "The Hub asks for a paid plan or credit for this.",
        403: "You may not write there. With this app's sign-in only repositories made by it can be written.",
        404: "The Hub does not have it.",
        409: "Another change is just being made to this repository.",
        412: "The repository was changed by someone else in the meantime.",
        413: "The Hub says the files are too large.",
        429: "The Hub has had too many questions from here; wait five minutes.",
    }
    if status is None:
        return f"The Hub could not be reached, or the connection broke off ({what})."
    return f"{words.get(status, 'The Hub has a fault of its own.')} ({status}, {what})"
