"""The environment, read once at the start: the only place that looks at os.environ."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

RANK_NAMES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # as torchrun sets them
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are.

    checkpoints: shipped checkpoints and run folders. data: a folder with CIFAR-10, if one is named. cache: where a
    downloaded CIFAR-10 is kept. hub: the Hugging Face Hub. sign_in: whether visitors can sign in to it. is_space:
    whether this runs there. toronto: the page that CIFAR-10 comes from.
    """

    checkpoints: Path
    data: Path | None
    cache: Path
    hub: str
    sign_in: bool = False
    is_space: bool = False
    toronto: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Which process this is of those that torchrun started: its number of `size`, and its number on this machine."""

    number: int
    local: int
    size: int


def read_rank() -> Rank:
    """Return the place of this process; it is alone where torchrun did not start it."""
    environ = os.environ
    number, local, size = (int(environ.get(name, usual)) for name, usual in RANK_NAMES.items())
    return Rank(number=number, local=local, size=size)


def share_cores() -> None:
    """Tell OpenMP, before torch loads it, how long its threads wait busily for each other.

    In a server the thread that trains is not the first one that computes. OpenMP then counts more threads than cores
    and waits asleep: measured on two cores, training was a sixth slower. Waiting long, on the other hand, takes the
    core from the server whenever one of the two threads is held up.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "active")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # huggingface_hub, too, reads its environment once: no call of a page's may use the machine's own login
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")


def read() -> Settings:
    """Return the settings of this process.

    CNN_DEMO_CHECKPOINTS, CNN_DEMO_DATA, CNN_DEMO_CACHE (folders), HF_ENDPOINT, CNN_DEMO_TORONTO (addresses).
    Visitors can sign in where a Space gives an OAUTH_CLIENT_ID; CNN_DEMO_SIGN_IN shows it elsewhere, as the user of
    HF_TOKEN but with a token that the real Hub does not take.
    """
    environ = os.environ
    home_cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Settings(
        checkpoints=Path(environ.get("CNN_DEMO_CHECKPOINTS") or ROOT / "checkpoints"),
        data=Path(environ["CNN_DEMO_DATA"]) if environ.get("CNN_DEMO_DATA") else None,
        cache=Path(environ.get("CNN_DEMO_CACHE") or home_cache / "cnn-demo"),
        hub=(environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        sign_in=bool(environ.get("OAUTH_CLIENT_ID") or environ.get("CNN_DEMO_SIGN_IN")),
        is_space=bool(environ.get("SPACE_ID")),
        toronto=(environ.get("CNN_DEMO_TORONTO") or "https://www.cs.toronto.edu/~kriz").rstrip("/"),
    )
