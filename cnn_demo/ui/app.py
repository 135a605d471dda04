"""Assembles the page: three tabs, a theme, and the API."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..answers.inference import Classifier
from ..runs.service import Service
from . import api, classify, stages, train
from .run_view import PLOTLY

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "run_state.js", "run_chart.js", "run_text.js", "run_compare.js", "run_view.js", "stages.js")
ACCENT = (  # from light to dark, around the blue of Okabe and Ito
    *("#eef6fc", "#d6e9f7", "#aed3ef", "#7db8e3", "#3f97d2", "#0072b2"),
    *("#00629a", "#00507f", "#003f64", "#002c47", "#001a2c"),
)
TITLE = """
<h1>CNN Demo</h1>
<p>Train VGG16 or ResNet50 live, see the feature maps at every stage, and classify your own pictures.</p>
"""


def build(service: Service) -> gr.Blocks:
    """Return the page over a service."""
    classifier = Classifier(service.root)
    page: gr.Blocks
    with gr.Blocks(title="CNN Demo", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(TITLE, elem_classes="title", apply_default_css=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train"):
                view = train.build(service, page)
            with gr.Tab("Stages", id="stages"):
                stages.build()
            with gr.Tab("Classify", id="classify"):
                classify.build(service, page, view, tabs, classifier)
        if service.space_note:
            gr.HTML(f"<p class='quiet'>{escape(service.space_note)}</p>", apply_default_css=False, elem_id="space-note")
        api.build(service, classifier)
    page.queue(max_size=1000)  # otherwise 1 on ZeroGPU
    # By default the queue looks for work a thousand times a second, taking Python's lock from the training each time.
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = 0.02
    return page


def launch_options() -> dict[str, Any]:
    """Return the arguments of `launch`: look, scripts, and what Gradio serves."""
    gr.set_static_paths([PLOTLY, HERE / "examples"])
    scripts = "".join(f"<script>{(HERE / name).read_text()}</script>" for name in SCRIPTS)
    return {
        "theme": theme(),
        "css_paths": [HERE / "page.css"],
        "head": scripts,
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": True,
    }


def theme() -> gr.themes.Base:
    """Return the page's theme: the system's own fonts, one accent, little decoration."""
    return gr.themes.Base(
        primary_hue=gr.themes.Color(*ACCENT),
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="#f7f8fa",
        body_background_fill_dark="#0f141b",
        block_background_fill="white",
        block_background_fill_dark="#161d27",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        button_large_radius="8px",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_text_color="white",
    )
