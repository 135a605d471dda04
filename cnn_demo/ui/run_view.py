"""The view of a run: its state, buttons, live charts, log, evaluation and comparison, drawn in place by run_view.js.

The browser asks `watch` once a second while it is visible. These calls take no place in Gradio's queue and none of
its 40 slots, and a lost connection ends nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..pictures.catalog import DATASETS
from ..runs.service import Service
from ..training.config import RunConfig
from .evaluation import render
from .events import answer_or_error, text_field

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def build(service: Service) -> gr.HTML:
    """Return the view of a run: {"run": its id or None, "shipped": the run shown instead of none, "note": a sentence}.

    It triggers "busy" with {"busy": bool} when the visitor's run starts or ends, and "use" or "save" with {"run": id}
    when they want to classify with it, or to save it elsewhere.
    """

    def watch(asked: dict[str, Any]) -> dict[str, Any]:
        run, after, owner = text_field(asked, "run"), int(asked.get("after", -1)), text_field(asked, "owner")
        return answer_or_error(lambda: {**service.watch(run, after, owner), "active": service.active(owner)})

    def change(asked: dict[str, Any]) -> dict[str, Any]:
        run, owner, title = (text_field(asked, name) for name in ("run", "owner", "title"))
        actions = {
            "stop": lambda: service.stop(run, owner),
            "continue": lambda: service.resume(run, owner),
            "discard": lambda: service.discard(run, owner),
            "rename": lambda: service.rename(run, owner, title),
        }
        return answer_or_error(lambda: actions[asked["action"]]() or {})

    def listing(asked: dict[str, Any]) -> dict[str, Any]:
        owner = text_field(asked, "owner")
        return answer_or_error(lambda: {"runs": service.listing(owner), "active": service.active(owner)})

    def evaluation(asked: dict[str, Any]) -> dict[str, Any]:
        run = text_field(asked, "run")
        return answer_or_error(lambda: {"html": render(service.evaluation(run), run)})

    return gr.HTML(
        {},
        html_template="<div class='run-view'></div>",
        js_on_load="cnnDemo.showRun(element, props, server, trigger, watch) // triggers 'busy', 'use' and 'save'",
        server_functions=[watch, change, listing, evaluation],
        apply_default_css=False,
        elem_id="run",
        plotly=f"gradio_api/file={PLOTLY}",
        labels={field.name: field.metadata["label"] for field in dataclasses.fields(RunConfig)},
        datasets={name: info.title for name, info in DATASETS.items()},
    )
