"""Checkpoints on the Hugging Face Hub: push, pull and list. Only safetensors and JSON are downloaded, and checked.

Every client gets an explicit token, the visitor's or False: None would mean this machine's login, a Space's owner's.
"""

import re
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import disable_progress_bars

from ..errors import CheckpointError, HubError, InputError
from ..pictures.dataset import Report
from ..runs.checkpoints import CHECKPOINT_BYTES, PREFIX, read_checkpoint
from ..runs.files import CONFIG, EVALUATION, LOG, WEIGHTS
from ..runs.folder import Run
from .export import CARD, files_of
from .pulled import find_pulled, save_pulled

Token = str | bool  # a token or False; never True or None, which mean this machine's login
Result = TypeVar("Result")
CALL_SECONDS = 60.0  # for a request; the client by itself would retry for minutes
TRANSFER_SECONDS = 900.0  # for an upload or download
TEXT_BYTES = {CONFIG: 100_000, LOG: 20_000_000}
ATTRIBUTES = ".gitattributes"  # the Hub puts it into every repository
UNCHANGED = "Nothing on this machine was changed. You can try again; nothing is saved twice."
SENTENCES: dict[object, str] = {  # by status or class; the client's own messages may contain addresses and headers
    None: "The Hub could not be reached, or the connection was lost.",
    RevisionNotFoundError: "This revision does not exist on the Hub.",
    RepositoryNotFoundError: "This repository does not exist on the Hub, or it is private and you may not read it.",
    401: "The Hub does not accept the sign-in; it may have expired. Sign in again.",
    402: "The Hub asks for a paid plan or credit for this.",
    403: "You may not write there. This app's sign-in allows writing only to repositories that it created.",
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
    revision = revision or "main"
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1 or not re.fullmatch(r"\w[\w./-]{0,100}", revision) or ".." in revision:
            raise ValueError
    except ValueError as error:  # validate_repo_id raises one, too
        sentence = f"{text[:80]!r} is not a repository on the Hub; enter owner/name, owner/name@revision or its link."
        raise InputError(sentence) from error
    return repo, revision


def writer(hub: str, token: Token) -> HfApi:
    """Return a client that may write. Raises HubError without a token."""
    if not token:
        raise HubError("Nobody is signed in on this machine: run `hf auth login` first, or set HF_TOKEN.")
    disable_progress_bars()
    return HfApi(hub, token=token)


def push(run: Run, hub: str, repo: str, token: Token, private: bool, report: Report) -> str:
    """Save a run to the Hub as one commit with the tag run-<id>; return its address. Raises InputError, HubError.

    The repository is created if needed; unchanged files are not committed again.
    """
    repo, _ = parse(repo)
    api, tag, tagging = writer(hub, token), f"run-{run.id}", f"tagging {repo}"
    report("creating the repository", 0.05)
    call_hub(lambda: api.create_repo(repo, private=private, exist_ok=True), f"creating {repo}")
    report("preparing the files", 0.1)
    files = files_of(run, repo)
    info = call_hub(lambda: api.model_info(repo), f"reading {repo}")
    if private and not info.private:
        raise InputError(f"{repo} exists already and is public; choose another name for a private one.")
    remote = {sibling.rfilename for sibling in info.siblings or []} - {ATTRIBUTES, CARD}
    if remote and LOG not in remote:
        raise InputError(f"{repo} holds something other than a checkpoint of this program; choose another name.")
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
    return f"{hub}/{repo}/commit/{oid}"


def pull(root: Path, hub: str, text: str, token: Token, owner: str = "") -> Run:
    """Return a checkpoint on the Hub as a run folder in `root`, of `owner` (a secret), downloaded if it is not there.

    Without a network the latest one pulled by that name is used. Raises InputError, CheckpointError, HubError.
    """
    repo, revision = parse(text)
    api = HfApi(hub, token=token)
    try:
        info = call_hub(lambda: api.model_info(repo, revision=revision, files_metadata=True), f"reading {repo}")
    except HubError as error:
        if error.answered or (known := find_pulled(root, repo, revision, owner)) is None:
            raise
        return known
    if known := find_pulled(root, repo, str(info.sha), owner):
        known.add_revision(revision)
        return known
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    for name, limit in {WEIGHTS: CHECKPOINT_BYTES, **TEXT_BYTES}.items():
        if name not in sizes:
            raise CheckpointError(f"{repo} has no {name}, so it is not a checkpoint of this program.")
        if not 0 < (sizes[name] or 0) <= limit:
            raise CheckpointError(f"{name} of {repo} has {sizes[name]} bytes; at most {limit:,} are allowed.")
    with tempfile.TemporaryDirectory() as folder:
        for name in (WEIGHTS, *TEXT_BYTES):
            download = partial(api.hf_hub_download, repo, name, revision=info.sha, local_dir=folder)
            call_hub(download, f"downloading {name} of {repo}", is_transfer=True)
        weights = Path(folder) / WEIGHTS
        try:
            checkpoint = read_checkpoint(weights, f"{PREFIX}{repo}")
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(weights), f"{WEIGHTS} of {repo}")) from error
        return save_pulled(root, Path(folder), checkpoint, repo, revision, str(info.sha), owner)


def list_repositories(hub: str, user: str, token: Token) -> list[str]:
    """Return the names of a user's repositories made by this program; private ones only with that user's token."""
    find = partial(HfApi(hub, token=token).list_models, author=user, filter="cnn-demo", limit=100)
    return call_hub(lambda: [model.id for model in find()], "listing your repositories")


def call_hub(call: Callable[[], Result], what: str, is_transfer: bool = False, otherwise: str = UNCHANGED) -> Result:
    """Return what a call of the client returns. Raises HubError, its last sentence `otherwise` if it may have begun."""
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
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None  # None: it was not reached
    refused = status is not None and status < 500  # before it began
    other = f"The Hub {'refused this' if refused else 'had an internal error'} (status {status})."
    sentence = next((SENTENCES[cause] for cause in (*type(error).__mro__, status) if cause in SENTENCES), other)
    last = UNCHANGED if refused else otherwise
    raise HubError(f"{sentence} ({what}) {last}", answered=status is not None) from None
