"""What all tabs share: who the visitor is, how Gradio runs a handler, and errors as sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from ..answers.inference import percent
from ..errors import CnnDemoError
from ..runs import checkpoints
from ..runs import folder as runs
from ..runs.files import WEIGHTS
from ..runs.service import Service

ADD_OWNER = "(...values) => [cnnDemo.owner(), ...values.slice(1)]"  # the first input becomes the visitor's secret
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# For short handlers: no place in the queue, and of several calls in a row the last one is never dropped.
UNQUEUED = PRIVATE | {"queue": False, "trigger_mode": "always_last"}
# For transfers, which may take minutes while a whole class saves; Gradio shows their progress.
TRANSFER: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 8}


@contextlib.contextmanager
def sentences(path: str = "") -> Iterator[None]:
    """Turn our errors into those that Gradio shows or sends as a sentence; a server's `path` is left out of it."""
    try:
        yield
    except CnnDemoError as error:
        text = str(error).replace(path, "This file") if path else str(error)
        raise gr.Error(text, print_exception=False) from error


def failed(sentence: str) -> str:
    """Return what went wrong, as HTML."""
    return f"<p class='wrong' role='alert'>{escape(sentence)}</p>"


def answer_or_error(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `ask` returns, or the sentence of its error under "error"."""
    try:
        return ask()
    except CnnDemoError as error:
        return {"error": str(error)}


def text_field(asked: dict[str, Any], name: str) -> str:
    """Return a field of what a browser sent, as text."""
    return str(asked.get(name) or "")


def checkpoint_choices(service: Service, owner: str, also: str = "") -> list[tuple[str, str]]:
    """Return (text, name) of the checkpoints that `owner` may use, accuracy first, and of `also`.

    `also` may be someone else's run that is watched by link.
    """
    lines = {line["run"]: line for line in service.listing(owner)}
    found = []
    for name in checkpoints.checkpoint_names(service.root):
        if line := lines.get(name):
            measured = [(line[f"{kind}_accuracy"], kind) for kind in ("test", "validation")]
            best = next((f"{percent(accuracy)} {kind}" for accuracy, kind in measured if accuracy), line["state"])
            found.append((f"{best} · {line['title']}", name))
    if also and also not in lines and checkpoints.NAME.fullmatch(also):
        run = runs.Run(service.root / also)
        found += [(run.title, also)] if run.has(WEIGHTS) else []
    return found
