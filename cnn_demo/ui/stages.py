"""The Stages tab: how large each stage's feature maps are and what they make of a picture, drawn by stages.js."""

import base64
from typing import Any

import gradio as gr

from ..answers import explain
from ..answers.inference import Classifier
from ..errors import CheckpointError, CnnDemoError
from ..networks import stages
from ..networks.catalog import NETWORKS
from ..runs import folder
from ..runs.files import WEIGHTS
from ..runs.folder import Run
from ..runs.service import Service
from .classify import SOURCES, build_examples, from_text, offer_checkpoints, picture_file
from .events import ADD_OWNER, UNQUEUED, sentence
from .run_view import answering

INTRODUCTION = """<p>A network turns one large map of few channels (the image) into smaller and smaller maps of more
channels. Open a row to read what its stage does; choose a picture to see its maps.</p>"""


def build(service: Service, page: gr.Blocks, tabs: gr.Tabs, classifier: Classifier) -> tuple[gr.Image, gr.JSON]:
    """Lay out the tab; return its picture, and the hidden component that takes what the network sees of it."""
    networks = [(f"{network.title}, sizes only", name) for name, network in NETWORKS.items()]
    gr.HTML(INTRODUCTION, apply_default_css=False)
    with gr.Row(elem_classes="tour-inputs"):
        picture = picture_file(sources=SOURCES, label="Your picture", height=220, elem_id="tour-picture", min_width=240)
        build_examples(picture)
        with gr.Column(min_width=300):
            first = gr.Dropdown(networks, value="vgg16", label="Network")
            second = gr.Dropdown([("none", ""), *networks], value="resnet50", label="Compare with")
            size = gr.Radio(
                [("32 px (CIFAR-10)", 32), ("224 px (a photo)", 224)], value=32, label="Sizes for an input of"
            )
    offer_checkpoints(service, page, tabs, first, second, networks)
    seen = gr.JSON({"pixels": ""}, visible=False)

    def describe(
        secret: str, picture: dict[str, str], one: str | None, two: str | None, input_size: int
    ) -> dict[str, Any]:
        """Return the picture and the sizes of one or two networks, with the sentences that explain each stage."""
        names = dict.fromkeys(name for name in (one, two) if name)
        try:
            return picture | {"networks": [sizes(service, name, input_size, secret) for name in names]}
        except CnnDemoError as error:
            return {"pixels": "", "networks": [], "error": sentence(error)}

    def maps(name: str, picture: str, weights: str, layers: list[Any], owner: str, step: int = -1) -> dict[str, Any]:
        """Return the maps of a checkpoint's stages, or of `layers` in them instead; {"same"} where `step` is its step.

        weights: "before" or "after" its training; both show the channels that are strongest after it.
        """
        pixels = from_text(picture)
        checkpoint, network = classifier.load(name, owner)
        training = Run(service.root / name).is_locked()
        if step == checkpoint.step:
            return {"same": True, "training": training}
        known = explain.layers(network)
        replaced = {layer.partition(".")[0] for layer in known if layer in layers}
        names = [layer for layer in known if layer in layers or ("." not in layer and layer not in replaced)]
        found = explain.maps(network, checkpoint, pixels, names)
        chosen = {layer: explain.shown(values) for layer, values in found.items()}
        about = f"Weights of step {checkpoint.step:,}" + (", renewed while it trains." if training else ".")
        if weights == "before":
            found = explain.maps(classifier.untrained(name, owner), checkpoint, pixels, names)
            about = "Random weights, before its training."
        rows = []
        for layer, values in found.items():
            png = base64.b64encode(explain.sprite(values, chosen[layer])).decode()
            rows.append(explain.describe(layer, values) | {"channels": chosen[layer], "png": png})
        return {"about": about, "step": checkpoint.step, "training": training, "layers": known, "maps": rows}

    view = gr.HTML(
        describe("", {"pixels": ""}, "vgg16", "resnet50", 32),
        html_template="<div class='stages-view'></div>",
        js_on_load="cnnDemo.showStages(element, props, server, watch)",
        server_functions=[answering(maps)],
        apply_default_css=False,
        elem_id="stages",
    )
    inputs = [gr.Textbox(visible=False), seen, first, second, size]
    gr.on([first.change, second.change, size.change], describe, inputs, view, js=ADD_OWNER, **UNQUEUED)
    seen.change(None, [view, seen], view, js="(shown, seen) => ({ ...shown, ...seen })", **UNQUEUED)
    return picture, seen


def sizes(service: Service, name: str, input_size: int, owner: str) -> dict[str, Any]:
    """Return a checkpoint's or a network's name, title, stages and `stages.fields`. Raises CnnDemoError."""
    run = folder.get(service.root, name)
    if run.is_private_to_others(owner) if run else name not in NETWORKS:
        raise CheckpointError(f"There is no checkpoint {name[:80]!r} here any more; choose another.")
    model = run.config.model if run else name
    about = {"name": name, "title": NETWORKS[model].title, "about": NETWORKS[model].about}
    about["checkpoint"] = run.title if run and run.has(WEIGHTS) else ""
    return about | {"fields": stages.fields(model)} | stages.to_dict(model, input_size, explained=True)
