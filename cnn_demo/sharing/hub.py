"""Checkpoints on the Hugging Face Hub: push, pull and list. What is downloaded is checked before it is used.

Every client gets an explicit token, the visitor's or False: None would mean this machine's login, a Space's owner's.
"""

import errno
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import CheckpointError, DiskError, HubError, InputError
from ..pictures.dataset import Report
from ..runs.checkpoints import CHECKPOINT_BYTES, PREFIX, pulled_folders, read_checkpoint
from ..runs.files import CONFIG, EVALUATION, LOG, WEIGHTS, modified, writing
from ..runs.folder import Run
from .card import seal
from .export import CARD, files_of
from .pulled import find_pulled, read_recipe, save_pulled

Token = str | bool  # a token or False; never True or None, which mean this machine's login
Notify = Callable[[str], None]  # shows a sentence that is no error
Result = TypeVar("Result")
log = logging.getLogger(__name__).warning
CALL_SECONDS = 60.0  # for a request; the client by itself would retry for minutes
TRANSFER_SECONDS = 900.0  # for an upload or download
FILE_BYTES = {CARD: 1_000_000, CONFIG: 100_000, LOG: 20_000_000, WEIGHTS: CHECKPOINT_BYTES}  # larger is refused
ATTRIBUTES = ".gitattributes"  # the Hub puts it into every repository
UNCHANGED = "Nothing on this machine was changed."
AGAIN = f"{UNCHANGED} You can try again; nothing is saved twice."
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
PASSING = (401, 403, 408, 409, 412, 429)  # statuses below 500 that another sign-in, right or moment may change
SENTENCES: dict[object, str] = {  # by status or class; the client's own messages may contain addresses and headers
    None: "The Hub could not be reached, or the connection was lost.",
    RevisionNotFoundError: "This revision does not exist on the Hub.",
    RepositoryNotFoundError: "This repository does not exist on the Hub, or it is private and you may not read it.",
    401: "The Hub does not accept the sign-in; it may have expired. Sign in again.",
    402: "The Hub asks for a paid plan or credit for this.",
    403: "You may not write there. This app's sign-in allows writing only to repositories that it created.",
    "storage": "The account's storage on the Hub is full (status 403).",
    409: "Another change to this repository is in progress.",
    412: "Someone else changed the repository in the meantime.",
    413: "The Hub refuses the files as too large.",
    429: "Too many requests to the Hub; wait five minutes.",
}


def machine_login() -> Token:
    """Return the token of the person at the command line, from HF_TOKEN or `hf auth login`; False if there is none."""
    return get_token() or False


def parse(text: str) -> tuple[str, str]:
    """Return (owner/name, revision) of `owner/name[@revision]`, `hf:...` or a link; raise InputError otherwise."""
    rest = re.sub(r"^(hf:|https?://[^/]+/)", "", text.strip()).strip("/")
    repo, _, revision = re.sub("/(tree|commit)/", "@", rest, count=1).partition("@")
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1 or not re.fullmatch(r"(\w[\w./-]{0,100})?", revision) or ".." in revision:
            raise ValueError
    except ValueError as error:  # validate_repo_id raises one, too
        sentence = f"{text[:80]!r} is not a repository on the Hub; enter owner/name, owner/name@revision or its link."
        raise InputError(sentence) from error
    return repo, revision or "main"


def parse_target(text: str) -> str:
    """Return owner/name of a repository to write to, which `text` names without a revision; raise InputError."""
    repo, revision = parse(text)
    if revision != "main":
        raise InputError(f"{text[:80]!r} names the revision {revision}, but only main is written to; enter {repo}.")
    return repo


def writer(hub: str, token: Token) -> HfApi:
    """Return a client that may write. Raises HubError without a token."""
    if not token:
        raise HubError("Nobody is signed in on this machine: run `hf auth login` first, or set HF_TOKEN.")
    disable_progress_bars()
    return HfApi(hub, token=token)


def push(run: Run, hub: str, repo: str, token: Token, private: bool, report: Report, notify: Notify = log) -> str:
    """Save a run to the Hub as one commit with the tag run-<id>; return its address. Raises InputError, HubError.

    The repository is created if needed; one that exists must be empty, or hold a config.json of this program. A card
    without its seal was edited on the Hub and is kept. Unchanged files are not committed again.
    """
    repo = parse_target(repo)
    api, tag, tagging = writer(hub, token), f"run-{run.id}", f"tagging {repo}"
    report("creating the repository", 0.05)
    call_hub(lambda: api.create_repo(repo, private=private, exist_ok=True), f"creating {repo}")
    report("preparing the files", 0.1)
    files = files_of(run, repo)
    info = call_hub(lambda: api.model_info(repo, files_metadata=True), f"reading {repo}")
    if private and not info.private:
        raise InputError(f"{repo} exists already and is public; choose another name for a private one.")
    remote = {sibling.rfilename for sibling in info.siblings or [] if sibling.size} - {ATTRIBUTES}
    with tempfile.TemporaryDirectory() as folder:
        fetch = partial(_fetch, api, repo, info, folder)
        if remote:
            read_recipe(fetch(CONFIG), repo)
        if CARD in remote and (card := fetch(CARD).read_text("utf-8", "replace")) != seal(card):
            del files[CARD]
    tags = {ref.name: ref.target_commit for ref in call_hub(lambda: api.list_repo_refs(repo), f"reading {repo}").tags}
    report("uploading", 0.3)
    added = [CommitOperationAdd(name, content) for name, content in files.items()]
    deleted = [CommitOperationDelete(name) for name in remote & {EVALUATION} - set(files)]  # of other weights
    commit = partial(api.create_commit, repo, [*added, *deleted], parent_commit=info.sha, revision="main")
    oid = call_hub(lambda: commit(commit_message=f"Run {run.id}").oid, f"uploading to {repo}", is_transfer=True)
    if oid != tags.get(tag):
        report("tagging", 0.95)
        if tag in tags:  # an earlier state of the run
            call_hub(lambda: api.delete_tag(repo, tag=tag), tagging)
        call_hub(lambda: api.create_tag(repo, tag=tag, revision=oid), tagging)
    if CARD not in files:
        notify(f"The {CARD} of {repo} was edited, so it was kept as it is. To get a new one, delete it and save again.")
    return f"{hub}/{repo}/commit/{oid}"


def pull(root: Path, hub: str, text: str, token: Token, owner: str = "", notify: Notify = log) -> Run:
    """Return a checkpoint on the Hub as a run folder in `root`, of `owner` (a secret), downloaded if it is not there.

    Where the Hub fails, what is there by that name serves: `notify` is told. Raises InputError, HubError, DiskError.
    """
    repo, revision = parse(text)
    known = find_pulled(root, repo, revision, owner)
    if known and re.fullmatch("[0-9a-f]{40}", revision):
        return known
    try:
        with writing(root, "Name another folder with CNN_DEMO_CHECKPOINTS."):
            return _download(root, HfApi(hub, token=token), repo, revision, owner)
    except HubError as error:
        if error.answered or known is None:
            raise
        notify(f"{error} Used instead: {repo}@{known.source['commit'][:8]}, downloaded before.")
        return known


def _download(root: Path, api: HfApi, repo: str, revision: str, owner: str) -> Run:
    info = call_hub(lambda: api.model_info(repo, revision=revision, files_metadata=True), f"reading {repo}")
    if known := find_pulled(root, repo, str(info.sha), owner):
        known.add_revision(revision)
        return known
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(".pull-*"):
        if time.time() - modified(left) > 3 * TRANSFER_SECONDS:  # of a pull that was killed
            shutil.rmtree(left, ignore_errors=True)
    stored = [place for place in pulled_folders(root, repo, str(info.sha)) if (place / WEIGHTS).is_file()]
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=root, ignore_cleanup_errors=True) as folder:
        for name in (CONFIG, LOG, WEIGHTS):  # small ones first
            if stored:  # one copy serves all who may read it
                os.link(stored[0] / name, Path(folder) / name)
            else:
                _fetch(api, repo, info, folder, name)
        weights = Path(folder) / WEIGHTS
        try:
            checkpoint = read_checkpoint(weights, f"{PREFIX}{repo}")
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(weights), f"{WEIGHTS} of {repo}")) from error
        source = {"repo": repo, "commit": info.sha, "revisions": [revision], "private": bool(info.private)}
        return save_pulled(root, Path(folder), checkpoint, source, owner)


def _fetch(api: HfApi, repo: str, info: ModelInfo, folder: str, name: str) -> Path:
    """Download a file, checked against the SHA-256 that the Hub has (of small ones: git's SHA-1); return its path."""
    found = next((sibling for sibling in info.siblings or [] if sibling.rfilename == name), None)
    if found is None:
        raise CheckpointError(f"{repo} has no {name}, so it is not a checkpoint of this program.")
    if not 0 < (size := found.size or 0) <= FILE_BYTES[name]:
        raise CheckpointError(f"{name} of {repo} has {size:,} bytes; at most {FILE_BYTES[name]:,} are allowed.")
    download = partial(api.hf_hub_download, repo, name, revision=info.sha, local_dir=folder)
    path = Path(call_hub(download, f"downloading {name} of {repo}", is_transfer=True))
    with path.open("rb") as file:
        actual = sha_fileobj(file).hex() if found.lfs else git_hash(file.read())
    if actual != (found.lfs.sha256 if found.lfs else found.blob_id):
        raise HubError(f"{name} of {repo} arrived damaged: its checksum is not the Hub's. {AGAIN}", answered=True)
    return path


def list_repositories(hub: str, user: str, token: Token) -> list[str]:
    """Return the names of a user's repositories made by this program; private ones only with that user's token."""
    find = partial(HfApi(hub, token=token).list_models, author=user, filter="cnn-demo", limit=100)
    return call_hub(lambda: [model.id for model in find()], "listing your repositories")


def call_hub(call: Callable[[], Result], what: str, is_transfer: bool = False, otherwise: str = AGAIN) -> Result:
    """Return what a call of the client returns. Raises HubError, which ends with `otherwise` if it may have begun."""
    for name in ("huggingface_hub", "httpx2", "httpcore2"):  # they name presigned addresses with the signature
        logging.getLogger(name).setLevel(logging.CRITICAL)
    outcome: list[Result | Exception] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # the client raises httpx's, huggingface_hub's and builtin errors alike
            outcome.append(error)

    thread = threading.Thread(target=work, name="hub", daemon=True)  # the client by itself has no time limit
    thread.start()
    thread.join(seconds := TRANSFER_SECONDS if is_transfer else CALL_SECONDS)
    if not outcome:
        raise HubError(f"The Hub took more than {seconds:g} s ({what}). {otherwise}")
    if not isinstance(error := outcome[0], Exception):
        return error
    if any(number == getattr(error, "errno", None) or f"(os error {number})" in str(error) for number in DISK_ERRORS):
        raise DiskError(f"This machine's disk is full or cannot be written ({what}).") from None
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None  # None: it was not reached
    cause: object = status
    if isinstance(error, HfHubHTTPError) and status == 403:
        is_full = "storage" in (error.server_message or "").lower()
        cause = "storage" if is_full else 403 if error.response.request.method not in ("GET", "HEAD") else "reading"
    is_refused = status is not None and status < 500  # before it began
    is_final = is_refused and (status not in PASSING or isinstance(error, RepositoryNotFoundError))
    other = f"The Hub {'refused this' if is_refused else 'had an internal error'} (status {status})."
    sentence = next((SENTENCES[key] for key in (*type(error).__mro__, cause) if key in SENTENCES), other)
    last = UNCHANGED if is_final else AGAIN if is_refused else otherwise
    raise HubError(f"{sentence} ({what}) {last}", answered=is_final) from None
