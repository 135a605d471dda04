"""The Stages tab: how large the feature maps of each stage are, drawn to scale by stages.js."""

from typing import Any

import gradio as gr

from ..networks import stages
from ..networks.catalog import NETWORKS
from .events import UNQUEUED

INTRODUCTION = """<p>A network turns one large map of few channels (the image) into smaller and smaller maps of more
channels. Open a row to read what its stage does.</p>"""


def build() -> None:
    """Lay out the tab."""
    gr.HTML(INTRODUCTION, apply_default_css=False)
    names = [(network.title, name) for name, network in NETWORKS.items()]
    with gr.Row():
        first = gr.Radio(names, value="vgg16", label="Network", scale=3)
        second = gr.Radio([*names, ("none", "none")], value="resnet50", label="Compare with", scale=3)
        size = gr.Radio([("32 px (CIFAR-10)", 32), ("224 px (a photo)", 224)], value=32, label="Input", scale=2)
    view = gr.HTML(
        tables("vgg16", "resnet50", 32),
        html_template="<div class='stages-view'></div>",
        js_on_load="cnnDemo.showStages(element, props, watch)",
        apply_default_css=False,
        elem_id="stages",
    )
    gr.on([first.change, second.change, size.change], tables, [first, second, size], view, **UNQUEUED)


def tables(first: str, second: str, input_size: int) -> dict[str, Any]:
    """Return the tables of one or two networks, with the sentences that explain each stage."""
    names = [first] if second in ("none", first) else [first, second]
    about = {name: {"title": NETWORKS[name].title, "about": NETWORKS[name].about} for name in names}
    return {"networks": [about[name] | stages.to_dict(name, input_size, explained=True) for name in names]}
