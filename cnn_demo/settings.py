"""The environment: the only module that reads os.environ, and where the program finds its files."""

import dataclasses
import importlib.metadata
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import InputError

UPLOADS = "uploads"  # in the cache: what visitors send
ROOT = Path(__file__).resolve().parent.parent  # the checkout, or site-packages


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What visitors may use, so that all have their part. A source is a signed-in user, or a network address."""

    waiting: float = math.inf  # runs in the queue
    waiting_each: float = math.inf  # of one source, such as a class behind one address
    minutes: float = math.inf  # of training at a time, signed out
    minutes_signed_in: float = math.inf
    disk_gb: float = math.inf  # for runs and opened checkpoints; 1 GB of the disk stays free in any case
    runs: float = math.inf  # kept of one source


SPACE_LIMITS = Limits(waiting=100, waiting_each=30, minutes=10, minutes_signed_in=60, disk_gb=5, runs=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are, and how much of them visitors may use."""

    checkpoints: Path  # shipped checkpoints and runs
    data: Path | None  # a folder with CIFAR-10; None: download it
    cache: Path  # for the download
    hub: str  # address of the Hugging Face Hub
    sign_in: bool = False  # whether visitors can sign in to it
    is_space: bool = False  # whether this is a Hugging Face Space
    toronto: str  # address of the page that offers CIFAR-10
    limits: Limits = Limits()


class Rank(NamedTuple):
    """Which of the processes that torchrun started this is: its number of `size`, and its number on this machine."""

    number: int
    local: int
    size: int


def read_rank() -> Rank:
    """Return the rank of this process as torchrun set it, else 0 of 1."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    return Rank(*(int(os.environ.get(name, default)) for name, default in names.items()))


def read_code() -> str:
    """Return the address for `pip install git+...`: CNN_DEMO_CODE, else of this Space, else pip's source, else ""."""
    if code := os.environ.get("CNN_DEMO_CODE"):
        return code.removeprefix("git+").rstrip("/")
    if space := os.environ.get("SPACE_ID"):
        return f"{read().hub}/spaces/{space}"
    try:
        origin = json.loads(importlib.metadata.distribution("cnn-demo").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return re.sub("//[^/@]*@", "//", origin["url"]) if "vcs_info" in origin else ""  # without a password


def prepare_environment() -> None:
    """Set what libraries read once when they are imported; call it before torch and huggingface_hub are."""
    # In a server, where the thread that trains is not the first one that computes, OpenMP counts more threads than
    # cores, and they wait asleep for each other: measured on two cores, training was a sixth slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "active")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a longer wait takes the core from the server
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")  # the machine's login is never used unasked
    os.environ.setdefault("GRADIO_TEMP_DIR", str(read().cache / UPLOADS))


def read_limits(usual: Limits) -> Limits:
    """Return the limits as set by CNN_DEMO_WAITING, CNN_DEMO_MINUTES and so on, 0 for none. Raises InputError."""
    found = {}
    for field in dataclasses.fields(Limits):
        name = f"CNN_DEMO_{field.name.upper()}"
        value = os.environ.get(name) or getattr(usual, field.name)
        try:
            found[field.name] = float(value) or math.inf
        except ValueError:
            found[field.name] = math.nan
        if not found[field.name] > 0:
            raise InputError(f"{name}: enter a positive number, or 0 for no limit, not {value!r}.")
    return Limits(**found)


def read() -> Settings:
    """Return the settings of this process. An installed package keeps its checkpoints in the cache."""
    get = os.environ.get
    cache = Path(get("CNN_DEMO_CACHE") or Path(get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnn-demo")
    checkpoints = (ROOT if (ROOT / "app.py").is_file() else cache) / "checkpoints"
    return Settings(
        checkpoints=Path(get("CNN_DEMO_CHECKPOINTS") or checkpoints),
        data=Path(folder) if (folder := get("CNN_DEMO_DATA")) else None,
        cache=cache,
        hub=(get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        # on a Space; CNN_DEMO_SIGN_IN: elsewhere, as the user of HF_TOKEN but with a token that the real Hub refuses
        sign_in=bool(get("OAUTH_CLIENT_ID") or get("CNN_DEMO_SIGN_IN")),
        is_space=bool(get("SPACE_ID")),
        toronto=(get("CNN_DEMO_TORONTO") or "https://www.cs.toronto.edu/~kriz").rstrip("/"),
        limits=read_limits(SPACE_LIMITS if get("SPACE_ID") else Limits()),
    )
