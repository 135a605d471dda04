"""The view of a run, drawn in place by run_view.js, which asks `watch` once a second, outside of Gradio's queue."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..errors import CnnDemoError
from ..runs.service import Service
from ..training.config import RunConfig

FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def build(service: Service) -> gr.HTML:
    """Return the view of a run: {"run": its id or None, "shipped": the run shown instead of none, "note": a sentence}.

    It triggers "busy" with {"busy": bool} when the visitor's run starts or ends, and "use" or "save" with {"run": id}
    when they want to classify with it, or to save it elsewhere.
    """

    def watch(run: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        return {**service.watch(run, after, owner), "active": service.active(owner)}

    def change(action: str, run: str, owner: str, title: str = "") -> dict[str, Any]:
        if action == "rename":
            service.rename(run, owner, title)
        else:
            {"stop": service.stop, "continue": service.resume, "discard": service.discard}[action](run, owner)
        return {}

    def listing(owner: str) -> dict[str, Any]:
        return {"runs": service.listing(owner), "active": service.active(owner)}

    def evaluation(run: str, owner: str) -> dict[str, Any]:
        return {"found": service.evaluation(run)}

    return gr.HTML(
        {},
        html_template="<div class='run-view'></div>",
        js_on_load="cnnDemo.showRun(element, props, server, trigger, watch) // triggers 'busy', 'use' and 'save'",
        server_functions=[answering(handler) for handler in (watch, change, listing, evaluation)],
        apply_default_css=False,
        elem_id="run",
        plotly=f"gradio_api/file={PLOTLY}",
        fields={name: {key: field.metadata[key] for key in ("label", "choices")} for name, field in FIELDS.items()},
    )


def answering(handler: Callable[..., dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a handler that gets its arguments as one object, and answers an error of ours as {"error": sentence}."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        try:
            return handler(**asked)
        except CnnDemoError as error:
            return {"error": str(error)}

    answer.__name__ = handler.__name__  # by which the browser calls it
    return answer
