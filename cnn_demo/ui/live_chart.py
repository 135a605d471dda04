"""The view of a run: its state, buttons, live charts, log and comparison, drawn in place by live_chart.js.

The browser asks `watch` once a second while it is visible. These calls take no place in Gradio's queue and none of
its 40 slots, and a lost connection ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..errors import CnnDemoError
from ..runs.service import Service

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def build(service: Service) -> gr.HTML:
    """Return the view of a run: {"run": its id or None, "shipped": the run shown instead of none, "note": a sentence}.

    It triggers "busy" with {"busy": bool} when the visitor's run begins or ends to be active, and "use" or "save" with
    {"run": id} when they want to classify with it, or to keep it elsewhere.
    """

    def watch(asked: dict[str, Any]) -> dict[str, Any]:
        run, after, owner = text(asked, "run"), int(asked.get("after", -1)), text(asked, "owner")
        return told(lambda: {**service.watch(run, after, owner), "active": service.active(owner)})

    def change(asked: dict[str, Any]) -> dict[str, Any]:
        actions = {"stop": service.stop, "continue": service.resume, "discard": service.discard}
        return told(lambda: actions[asked["action"]](text(asked, "run"), text(asked, "owner")) or {})

    def listing(asked: dict[str, Any]) -> dict[str, Any]:
        owner = text(asked, "owner")
        return told(lambda: {"runs": service.listing(owner), "active": service.active(owner)})

    return gr.HTML(
        {},
        html_template="<div class='run-view'></div>",
        js_on_load="cnnDemo.showRun(element, props, server, trigger, watch) // triggers 'busy', 'use' and 'save'",
        server_functions=[watch, change, listing],
        apply_default_css=False,
        elem_id="run",
        plotly=f"gradio_api/file={PLOTLY}",
    )


def text(asked: dict[str, Any], name: str) -> str:
    """Return a field of what a browser sent, as text."""
    return str(asked.get(name) or "")


def told(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `ask` returns, or the sentence of its error."""
    try:
        return ask()
    except CnnDemoError as error:
        return {"error": str(error)}
