"""The view of a run, drawn in place by run_view.js, which asks `watch` once a second, outside of Gradio's queue."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..errors import InputError
from ..runs.service import Service
from ..training.config import RunConfig
from .events import checked, sentence

FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def build(service: Service) -> gr.HTML:
    """Return the view of a run: {"run": its id or None, "shipped": the run shown instead of none, "note": a sentence}.

    It triggers "busy" with {"busy": bool} when the visitor's run starts or ends, and "resume", "use" or "save" with
    {"run": id} when they want to continue it, to classify with it, or to save it elsewhere.
    """

    def watch(run: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        return {**service.watch(run, after, owner), "active": service.active(owner)}

    def change(action: str, run: str, owner: str, title: str = "") -> dict[str, Any]:
        actions = {"stop": service.stop, "discard": service.discard}
        if action == "rename":
            service.rename(run, owner, title)
        elif action in actions:
            actions[action](run, owner)
        else:
            raise InputError(f"Choose rename, {', '.join(actions)}, not {action[:40]!r}.")
        return {}

    def listing(owner: str) -> dict[str, Any]:
        return {"runs": service.listing(owner), "active": service.active(owner)}

    def evaluation(run: str, owner: str) -> dict[str, Any]:
        return {"found": service.evaluation(run)}

    return gr.HTML(
        {},
        html_template="<div class='run-view'></div>",
        js_on_load="cnnDemo.showRun(element, props, server, trigger, watch) // triggers 'busy' 'resume' 'use' 'save'",
        server_functions=[answering(handler) for handler in (watch, change, listing, evaluation)],
        apply_default_css=False,
        elem_id="run",
        plotly=f"gradio_api/file={PLOTLY}",
        fields={name: {key: field.metadata[key] for key in ("label", "choices")} for name, field in FIELDS.items()},
    )


def answering(handler: Callable[..., dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Return a handler that gets its arguments as one object, and answers an error as {"error": sentence}."""
    call = checked(handler)

    def answer(asked: Any) -> dict[str, Any]:
        try:
            return call(**asked) if isinstance(asked, dict) else call(asked)
        except Exception as error:
            return {"error": sentence(error)}

    answer.__name__ = handler.__name__  # by which the browser calls it
    return answer
