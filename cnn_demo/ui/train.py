"""The Train tab: the form of a RunConfig, made from its metadata, above the view of a run."""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ..errors import CnnDemoError, ConfigError, InputError
from ..networks import stages
from ..networks.catalog import NETWORKS
from ..runs import folder, zero
from ..runs.service import Service
from ..training import config as configs
from ..training.config import LEARNING_RATES, RunConfig
from . import run_view, save
from .events import ADD_OWNER, UNQUEUED, checkpoint_choices
from .run_view import FIELDS
from .visitors import source_of

NO_START = ("none (random initialization)", "")


def build(service: Service, page: gr.Blocks) -> gr.HTML:
    """Lay out the tab; return the view of the run."""
    # Gradio passes a set of inputs in the order in which they were made: the owner comes first, as ADD_OWNER needs.
    owner, memory = gr.Textbox(visible=False), gr.Textbox("{}", visible=False)
    controls: dict[str, Any] = {}
    networks = [(model_line(name), name) for name in NETWORKS]
    controls["model"] = gr.Radio(networks, value="resnet50", label="Network", elem_id="network")
    with gr.Row(elem_classes="start-row"):
        presets = {name: gr.Button(title, size="sm", min_width=90) for name, (title, _) in configs.PRESETS.items()}
        start = gr.Button("Start training", variant="primary", elem_id="start")
    with gr.Accordion("All settings", open=False, elem_id="settings"), gr.Row(elem_classes="groups"):
        for group, title in configs.GROUPS.items():
            with gr.Column(elem_classes="group", min_width=0):
                gr.HTML(f"<h3>{title}</h3>", apply_default_css=False)
                fields = [field for field in FIELDS.values() if field.metadata["group"] == group]
                for field in sorted(fields, key=lambda field: not field.metadata["choices"]):  # numbers stand in pairs
                    controls[field.name] = control(field)
    command = gr.HTML(
        {},
        html_template="<div class='recipe-line'></div>",
        js_on_load="cnnDemo.showCommand(element, props, watch)",
        apply_default_css=False,
        elem_id="command",
    )
    view = run_view.build(service)
    save.build_save(service, view)

    def read(values: dict[Any, Any]) -> RunConfig:
        """Return the RunConfig of the form. Raises ConfigError where a value is not allowed."""
        fields = {name: values[control] for name, control in controls.items()}
        return configs.from_dict(fields | {"start_from": fields["start_from"] or None})

    def fill(config: RunConfig) -> dict[Any, Any]:
        """Return the updates that put a RunConfig, and the command that belongs to it, into the form."""
        values = config.to_dict() | {"start_from": config.start_from or ""}  # what its menu has for nothing
        return {command: show_command(config)} | {controls[name]: gr.update(value=values[name]) for name in values}

    def describe(values: dict[Any, Any]) -> dict[str, str]:
        """Return what `show_command` does of the form, or the sentence that says what is wrong in it."""
        try:
            return show_command(read(values))
        except ConfigError as error:
            return {"error": str(error), "field": error.field}

    # What may take a GPU is an event of the queue: only these carry the headers by which ZeroGPU knows the visitor.
    def begin(values: dict[Any, Any], request: gr.Request, profile: gr.OAuthProfile | None) -> dict[str, Any]:
        source = source_of(request, profile, service.is_space)
        return shown(lambda: service.submit(read(values), values[owner], source))

    def resume(secret: str, event: gr.EventData, request: gr.Request, profile: gr.OAuthProfile | None) -> Any:
        source = source_of(request, profile, service.is_space)
        return shown(lambda: service.resume(str(event.run), secret, source))

    def shown(start: Callable[[], str]) -> dict[str, Any]:
        """Start a run and return what the view shows from now on."""
        at = time.time()  # an equal value would not reach the page
        try:
            return {"run": start(), "started": True, "at": at}
        except CnnDemoError as error:
            return {"refused": f"Not started. {error}", "at": at}

    def restore(remembered: str, request: gr.Request) -> dict[Any, Any]:
        """Return view and form as they were: by the page's address, or by what the browser remembers."""
        known = {"run": "", "owner": ""} | json.loads(remembered)
        shown, config = first_view(service, dict(request.query_params), known)
        updates = fill(config)
        updates[controls["start_from"]]["choices"] = [NO_START, *checkpoint_choices(service, known["owner"])]
        return {view: shown, **updates}

    def apply_preset(name: str, values: dict[Any, Any]) -> dict[Any, Any]:
        """Return the form of a preset; network and data set stay."""
        model, dataset = values[controls["model"]], values[controls["dataset"]]
        return fill(configs.override({"dataset": dataset}, configs.preset(name, model, service.has_gpu)))

    def set_start(event: gr.EventData) -> Any:
        """Enable the button unless the visitor has an active run; each may have one."""
        return gr.update(interactive=not event.busy, value="Your run is active" if event.busy else "Start training")

    inputs, form = {owner, *controls.values()}, [command, *controls.values()]
    start.click(begin, inputs, view, js=ADD_OWNER, concurrency_limit=None, api_visibility="private")
    view.resume(resume, owner, view, js=ADD_OWNER, concurrency_limit=None, api_visibility="private")
    # Only what a person does is sent (input, not change): form and command come together from all else.
    linked = {
        "epochs": (lambda: None, None, controls["seconds"]),
        "seconds": (lambda: None, None, controls["epochs"]),
        "optimizer": (LEARNING_RATES.get, controls["optimizer"], controls["learning_rate"]),
    }
    gr.on([controls[name].input for name in controls if name not in linked], describe, inputs, command, **UNQUEUED)
    for name, change in linked.items():
        controls[name].input(*change, **UNQUEUED).then(describe, inputs, command, **UNQUEUED)
    for name, button in presets.items():
        button.click(partial(apply_preset, name), inputs, form, **UNQUEUED)
    view.busy(set_start, None, start, **UNQUEUED)
    page.load(restore, memory, [view, *form], js="() => [cnnDemo.memory()]", **UNQUEUED)
    return view


def control(field: dataclasses.Field[Any]) -> Any:
    """Return the control of a setting, from its metadata."""
    data = field.metadata
    usual = None if field.default is dataclasses.MISSING else field.default
    info = data["help"][0].upper() + data["help"][1:]
    shared = {"label": data["label"], "elem_id": f"set-{field.name}"}  # where the page shows that the value is wrong
    if data["choices"]:
        choices = [(title, value) for value, title in data["choices"].items()]
        return gr.Radio(choices, value=usual, info=info, **shared)
    if configs.kind_of(field) is str:
        return gr.Dropdown([NO_START], value="", info=info, allow_custom_value=True, **shared)
    limits = " to ".join(f"{data[end]:,.6f}".rstrip("0").rstrip(".") for end in ("low", "high"))
    precision = 0 if configs.kind_of(field) is int else None
    return gr.Number(usual, info=f"{info} ({limits})", precision=precision, placeholder="not set", **shared)


def model_line(name: str) -> str:
    """Return a network's title, and in a second line its depth, parameters and MACs."""
    sizes, title = stages.to_dict(name, 32), NETWORKS[name].title
    depth, parameters, macs = sum(row["layers"] for row in sizes["stages"]), sizes["parameters"], sizes["macs"]
    return f"{title}\n{depth} layers · {parameters / 1e6:.1f} M parameters · {macs / 1e6:,.0f} M MACs"


def show_command(config: RunConfig) -> dict[str, str]:
    """Return the command line of a run, the query of the link to its settings, and what it costs on a Space."""
    usual = {name: field.default for name, field in FIELDS.items()}
    usual["learning_rate"] = LEARNING_RATES[config.optimizer]
    changed = {name: value for name, value in config.to_dict().items() if value not in (usual[name], None)}
    return {"command": config.to_command(), "query": "?" + urlencode(changed), "cost": zero.note(config)}


def first_view(service: Service, asked: dict[str, str], remembered: dict[str, str]) -> tuple[dict[str, Any], RunConfig]:
    """Return what the view shows first, and the form's values.

    In this order: the run or the settings in the address, the visitor's active or latest run, a shipped checkpoint's.
    """
    shipped = next((name for name in ("resnet50", "vgg16") if folder.Run(service.root / name).log.size()), None)
    view: dict[str, Any] = {"run": None, "shipped": shipped}
    usual = configs.override({}, configs.preset("quick", shipped or "resnet50", service.has_gpu))
    if service.data.problem:
        usual = dataclasses.replace(usual, dataset="shapes")
        view["note"] = (
            "CIFAR-10 could not be downloaded, so the data set is set to shapes: ten kinds of images drawn by the "
            "program. The reason is in the server log; choose CIFAR-10 under All settings to try again."
        )
    settings = {name: value for name, value in asked.items() if name in FIELDS}
    if settings:
        try:
            view["run"] = service.active(remembered["owner"])
            return view, configs.override(configs.preset("quick", settings.get("model", "resnet50")), settings)
        except InputError as error:
            return view | {"note": f"The settings in the link cannot be used. {error}"}, usual
    own = asked.get("run") or service.active(remembered["owner"]) or remembered["run"]
    try:
        if own:
            return view | {"run": own, "note": ""}, folder.find(service.root, own).config
    except CnnDemoError:
        view["note"] = f"The run {own[:80]} is not here: it was discarded, or lost when the server restarted."
    return view, usual
