"""The Train tab: the form of a RunConfig, made from its metadata, beside the view of a run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ..errors import CnnDemoError, ConfigError, InputError
from ..networks import stages
from ..runs import checkpoints
from ..runs import folder as runs
from ..runs import zero as gpu
from ..runs.service import Service
from ..training import config as configs
from ..training.config import LEARNING_RATES, MODELS, RunConfig
from . import live_chart
from . import save as hub
from .save import AT_ONCE, OWNER_FIRST

FIELDS = dataclasses.fields(RunConfig)
NAMES = [field.name for field in FIELDS]
TITLES = {"vgg16": "VGG16", "resnet50": "ResNet50, course layout", "resnet50_full": "ResNet50, all four stages"}
PRESETS = {"quick": "Quick: 60 seconds", "best": "Best: 20 epochs", "course": "Course: 500 steps more"}
NOTHING = "nothing: random weights"


def build(service: Service, page: gr.Blocks) -> gr.HTML:
    """Lay out the tab; return the view of the run."""
    with gr.Row(elem_classes="train"):
        with gr.Column(scale=4, min_width=320):
            controls: dict[str, Any] = {}
            controls["model"] = gr.Radio(
                [(model_line(name), name) for name in MODELS], value="resnet50", label="Network", elem_classes="stacked"
            )
            with gr.Row(elem_classes="presets"):
                presets = {name: gr.Button(title, size="sm", min_width=90) for name, title in PRESETS.items()}
            start = gr.Button("Start training", variant="primary", size="lg", elem_id="start")
            command = gr.HTML(
                {},
                html_template="<div class='recipe-line'></div>",
                js_on_load="cnnDemo.showCommand(element, props, watch)",
                apply_default_css=False,
                elem_id="command",
            )
            with gr.Accordion("Recipe: every setting", open=False, elem_id="recipe"):
                for field in FIELDS[1:]:
                    controls[field.name] = control(field)
        with gr.Column(scale=7, min_width=340):
            view = live_chart.build(service)
            hub.build_save(service, view)
    owner, memory = gr.Textbox(visible=False), gr.Textbox("{}", visible=False)
    inputs = [controls[name] for name in NAMES]

    def begin(owner: str, *values: Any) -> dict[str, Any]:
        """Start a run and return what the view shows from now on."""
        try:
            run = service.submit(read_form(values), owner)
        except CnnDemoError as error:
            return {"refused": f"Not started. {error}", "at": time.time()}  # a value that is the same would not be told
        return {"run": run, "started": True}

    def restore(remembered: str, request: gr.Request) -> list[Any]:
        """Return view, command and form as they were: by the page's address, or by what the browser remembers."""
        memory = {"run": "", "owner": ""} | json.loads(remembered)
        shown, config = first_view(service, dict(request.query_params), memory)
        usable = set(checkpoints.checkpoint_names(service.root))
        names = [line["run"] for line in service.listing(memory["owner"]) if line["run"] in usable]
        values = [value or "" if name == "start_from" else value for name, value in config.to_dict().items()]
        updates = [gr.update(value=value) for value in values]
        updates[-1] = gr.update(value=values[-1], choices=[(NOTHING, ""), *names])
        return [shown, show_command(values), *updates]

    def held_out(name: str, wanted: int | None) -> Any:
        """Return how many of the pictures wanted for validation a checkpoint never learned; the usual for none."""
        usual = RunConfig(model="resnet50", seconds=60).validation_pictures
        try:
            return min(usual if wanted is None else wanted, runs.find(service.root, name).config.validation_pictures)
        except CnnDemoError:
            return usual if name == "" else gr.skip()

    start.click(begin, [owner, *inputs], view, js=OWNER_FIRST, concurrency_limit=None, api_visibility="private")
    # Only what a person does is told (input, not change): form and command come together from all else.
    held = controls["validation_pictures"]
    adjust = {
        "epochs": (lambda: None, None, controls["seconds"]),
        "seconds": (lambda: None, None, controls["epochs"]),
        "optimizer": (LEARNING_RATES.get, controls["optimizer"], controls["learning_rate"]),
        "start_from": (held_out, [controls["start_from"], held], held),
    }
    describe = (lambda *values: show_command(values), inputs, command)
    gr.on([controls[name].input for name in NAMES if name not in adjust], *describe, **AT_ONCE)
    for name, change in adjust.items():
        controls[name].input(*change, **AT_ONCE).then(*describe, **AT_ONCE)
    for name, button in presets.items():
        button.click(partial(apply_preset, name), inputs[:2], [command, *inputs[1:]], **AT_ONCE)
    view.busy(set_start, None, start, **AT_ONCE)
    page.load(restore, memory, [view, command, *inputs], js="() => [cnnDemo.memory()]", **AT_ONCE)
    return view


def control(field: dataclasses.Field[Any]) -> Any:
    """Return the control of a setting, from its metadata."""
    kind, choices, label = field.metadata["kind"], field.metadata["choices"], field.name.replace("_", " ")
    info, usual = field.metadata["help"], None if field.default is dataclasses.MISSING else field.default
    place = f"set-{field.name}"  # where the page tells that the value is wrong
    if choices:
        return gr.Radio(list(choices), value=usual, label=label, info=info, elem_id=place)
    if kind is str:
        return gr.Dropdown([(NOTHING, "")], value="", label=label, info=info, elem_id=place, allow_custom_value=True)
    info += f" ({field.metadata['low']:,} to {field.metadata['high']:,})"
    return gr.Number(usual, label=label, info=info, precision=0 if kind is int else None, elem_id=place)


def model_line(name: str) -> str:
    """Return a network in one line: depth, parameters, MACs."""
    sizes = stages.measure(name)
    parameters, macs = sum(size.parameters for size in sizes), sum(size.macs for size in sizes)
    depth = sum(size.layers for size in sizes)
    return f"{TITLES[name]} · {depth} weight layers, {parameters / 1e6:.1f} M parameters, {macs / 1e6:,.0f} M MACs"


def read_form(values: Sequence[Any]) -> RunConfig:
    """Return the RunConfig of the form. Raises ConfigError where a value is not allowed."""
    fields = dict(zip(NAMES, values, strict=True))
    return configs.from_dict(fields | {"start_from": fields["start_from"] or None})


def show_command(values: Sequence[Any]) -> dict[str, str]:
    """Return the command line and the link of the form, or the sentence that says what is wrong in it."""
    try:
        config = read_form(values)
    except ConfigError as error:
        return {"error": str(error), "field": error.field}
    usual = {field.name: field.default for field in FIELDS} | {"learning_rate": LEARNING_RATES[config.optimizer]}
    changed = {name: value for name, value in config.to_dict().items() if value not in (usual[name], None)}
    return {"command": config.to_command(), "query": "?" + urlencode(changed), "cost": gpu.note(config)}


def apply_preset(name: str, model: str, dataset: str) -> list[Any]:
    """Return the command, and the values of all settings but the network; the data set stays."""
    values = configs.override({"dataset": dataset}, configs.preset(name, model)).to_dict()
    form = [values[field] or "" if field == "start_from" else values[field] for field in NAMES]
    return [show_command(form), *form[1:]]


def set_start(event: gr.EventData) -> dict[str, Any]:
    """Return whether a run can be started: one active run per person."""
    return gr.update(interactive=not event.busy, value="Your run is active" if event.busy else "Start training")


def first_view(service: Service, asked: dict[str, str], remembered: dict[str, str]) -> tuple[dict[str, Any], RunConfig]:
    """Return what the view shows first, and the form's values.

    In this order: the run or the recipe in the address, the visitor's active or latest run, a shipped checkpoint's.
    """
    shipped = next((name for name in ("resnet50", "vgg16") if (service.root / name / "events.jsonl").is_file()), None)
    view: dict[str, Any] = {"run": None, "shipped": shipped}
    usual = configs.override({}, configs.preset("quick", shipped or "resnet50"))
    if service.problem:
        usual = dataclasses.replace(usual, dataset="shapes")
        view["note"] = (
            "CIFAR-10 could not be downloaded, so the form is set to shapes: ten kinds of pictures that the program "
            "draws. The reason is in the server's log; choose cifar10 in the recipe to try again."
        )
    recipe = {name: value for name, value in asked.items() if name in NAMES}
    if recipe:
        try:
            view["run"] = service.active(remembered["owner"])
            config = configs.override(configs.preset("quick", recipe.get("model", "resnet50")), recipe)
            return view, config if "validation_pictures" in recipe else service.hold_out(config)
        except InputError as error:
            return view | {"note": f"The address holds a recipe that cannot be used. {error}"}, usual
    own = asked.get("run") or service.active(remembered["owner"]) or remembered["run"]
    if not own:
        return view, usual
    try:
        return view | {"run": own, "note": ""}, runs.find(service.root, own).config
    except CnnDemoError:
        gone = f"The run {own[:80]} is not here: it was discarded, or the server forgot it at a restart."
        return view | {"note": gone}, usual
