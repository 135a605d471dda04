"""What the tabs share: who the visitor is, how Gradio runs a handler, errors as sentences, the list of checkpoints."""

import contextlib
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from html import escape
from types import UnionType
from typing import Any

import gradio as gr

from ..answers.inference import percent
from ..errors import CnnDemoError, InputError
from ..runs.checkpoints import checkpoint_names
from ..runs.folder import Run
from ..runs.service import Service

ADD_OWNER = "(...values) => [cnnDemo.owner(), ...values.slice(1)]"  # the first input becomes the visitor's secret
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# For short handlers: no place in the queue, and of several calls in a row the last one is never dropped.
UNQUEUED = PRIVATE | {"queue": False, "trigger_mode": "always_last"}
# For transfers, which may take minutes while a whole class saves; Gradio shows their progress.
TRANSFER: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 8}
# For what opens a picture, on the page and over the API: a large photo takes much memory for a moment.
CLASSIFY: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "classify"}


@contextlib.contextmanager
def sentences(file: str = "") -> Iterator[None]:
    """Turn errors into those that Gradio shows or sends as a sentence; `file` as for `sentence`."""
    try:
        yield
    except Exception as error:
        raise gr.Error(sentence(error, file), print_exception=False) from error


def checked(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return the function; it raises InputError where its arguments are not of the names and types it declares."""

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> dict[str, Any]:
        try:
            given = inspect.signature(function).bind(*values, **named).arguments
            json.dumps(given, ensure_ascii=False, default=repr).encode()  # no half of a character
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"The arguments of {function.__name__} cannot be used ({error!r:.100}).") from error
        for name, value in given.items():
            kind = function.__annotations__[name]
            parts = kind.__args__ if type(kind) is UnionType else (kind,)
            kinds = [getattr(part, "__origin__", part) for part in parts]
            if not isinstance(value, tuple(kinds)) or isinstance(value, bool):
                raise InputError(f"{name} has the wrong type: give {kinds[0].__name__}, not {type(value).__name__}.")
        return function(*values, **named)

    return call


def sentence(error: Exception, file: str = "") -> str:
    """Return the text of an error without the place of a visitor's `file` on this server, whole or cut off.

    What has no sentence of ours is only in the server's log.
    """
    if not isinstance(error, CnnDemoError):
        logging.getLogger(__name__).error("A handler failed", exc_info=error)
        return "Something failed on our side; the details are in the server log."
    text = str(error)
    return text.replace(file, "This file").replace(file[:200], "This file") if file else text


def failed(error: Exception | str) -> str:
    """Return what went wrong, as HTML."""
    text = sentence(error) if isinstance(error, Exception) else error
    return f"<p class='wrong' role='alert'>{escape(text)}</p>"


def checkpoint_choices(service: Service, owner: str, also: str = "") -> list[tuple[str, str]]:
    """Return (text, name) of the checkpoints that `owner` may use and of `also`, which may be a run watched by link."""
    lines, names = {line["run"]: line for line in service.listing(owner)}, checkpoint_names(service.root)
    found = []
    for line in (lines[name] for name in names if name in lines):
        measured = {kind: line[f"{kind}_accuracy"] for kind in ("test", "validation")}
        texts = [f"{percent(accuracy)} {kind}" for kind, accuracy in measured.items() if accuracy is not None]
        found.append((f"{[*texts, line['state']][0]} · {line['title']}", line["run"]))
    if also in names and also not in lines and not (run := Run(service.root / also)).is_private_to_others(owner):
        found.append((run.title, also))
    return found
