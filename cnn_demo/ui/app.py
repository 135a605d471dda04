"""Assembles the page: three tabs and the API."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..answers.inference import Classifier
from ..runs.service import Service
from . import api, classify, stages, train
from .events import sentence
from .run_view import PLOTLY
from .visitors import PICTURE_BYTES, UNUSABLE, CheckRequest

HERE = Path(__file__).parent
RUN_SCRIPTS = ("run_state.js", "run_chart.js", "run_samples.js", "run_text.js", "run_compare.js", "run_view.js")
SCRIPTS = ("page.js", "evaluation.js", *RUN_SCRIPTS, "maps.js", "heat.js", "stages.js")
TITLE = """<h1>CNN Demo</h1>
<p>Train VGG16 or ResNet50 live, see the feature maps at every stage, and classify your own pictures.</p>"""


class Page(gr.Blocks):
    """Gradio's page, except that it answers inputs it cannot take, such as too few values, in a sentence."""

    async def preprocess_data(self, *given: Any, **more: Any) -> Any:
        """Return the inputs of a handler. Raises gr.Error; only what is not the visitor's mistake is logged."""
        try:
            return await super().preprocess_data(*given, **more)
        except gr.Error:
            raise
        except UNUSABLE as error:
            raise gr.Error("The inputs cannot be used; see what is expected.", print_exception=False) from error
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from error


def build(service: Service) -> gr.Blocks:
    """Return the page over a service."""
    classifier = Classifier(service.root)
    page = Page(title="CNN Demo", analytics_enabled=False, delete_cache=(3600, 3600))
    with page:
        gr.HTML(TITLE, elem_classes="title", apply_default_css=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train"):
                view = train.build(service, page)
            with gr.Tab("Stages", id="stages"):
                picture, seen = stages.build(service, page, tabs, classifier)
            with gr.Tab("Classify", id="classify"):
                classify.build(service, page, view, tabs, classifier, picture, seen)
        if service.note:
            gr.HTML(f"<p class='quiet'>{escape(service.note)}</p>", apply_default_css=False, elem_id="note")
        api.build(service, classifier)
    page.queue(max_size=1000)  # otherwise 1 on ZeroGPU
    # By default the queue looks for work a thousand times a second, taking Python's lock from the training each time.
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = 0.02
    return page


def launch_options() -> dict[str, Any]:
    """Return the arguments of `launch`: look, scripts, and what Gradio serves."""
    gr.set_static_paths([PLOTLY, HERE / "examples"])
    scripts = [(HERE / name).read_text("utf-8") for name in SCRIPTS]
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Base(neutral_hue="slate", font=sans, font_mono=mono)
    theme.set(body_background_fill="#f7f8fa", body_background_fill_dark="#0f141b")  # all other colours are in page.css
    return {
        "theme": theme,
        "css_paths": [HERE / "page.css"],
        "head": "".join(f"<script>{script}</script>" for script in scripts),
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": True,
        "max_file_size": PICTURE_BYTES,
        "state_session_capacity": 500,  # of what Gradio keeps for each page, 0.1 MB
        "app_kwargs": {"middleware": [(CheckRequest, (), {})]},
    }
