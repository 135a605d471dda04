"""The Classify tab: a picture, what the network sees of it, and a score for each class."""

import base64
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from ..answers import explain
from ..answers.inference import Answer, Classifier, percent
from ..errors import CnnDemoError, InputError
from ..pictures import photo
from ..runs.checkpoints import Checkpoint
from ..runs.folder import Run
from ..runs.service import Service
from . import save
from .events import ADD_OWNER, CLASSIFY, PRIVATE, UNQUEUED, checkpoint_choices, sentence
from .run_view import answering

EXAMPLES = {file.stem: file for file in sorted((Path(__file__).parent / "examples").glob("*.png"))}
SOURCES = ["upload", "clipboard", "webcam"]
# The first picture, or nothing new: setting the same one is a change, too, which would go to and fro.
UNLESS_SAME = "(here, there) => here?.path === there?.path ? { __type__: 'update' } : here"
EXAMPLE = """<button type='button' data-name='{0}' aria-label='example: {0}'>
<img alt='' src='gradio_api/file={1}'></button>"""
BAR = """<tr><th scope='row'><button type='button'>{}</button></th>
<td class='meter'><div style='width:{:.2f}%'></div></td><td>{}</td></tr>"""
EMPTY = """<div class='empty'><strong>Show it a picture</strong><p>Drop one on the left, paste it, use the camera, or
choose an example. Only this server gets it, and deletes it within two hours while it runs.</p></div>"""
NO_CHECKPOINT = """<div class='empty'><strong>There is no checkpoint yet</strong><p>Train a network first. Its first
weights are saved a few seconds after the start, and can classify from then on.</p></div>"""


def build(
    service: Service,
    page: gr.Blocks,
    view: gr.HTML,
    tabs: gr.Tabs,
    classifier: Classifier,
    other: gr.Image,
    seen: gr.JSON,
) -> None:
    """Lay out the tab. `other` and its picture are one; `seen` gets what the network sees: {"pixels", "error"}."""

    def heat(name: str, picture: str, label: str, method: str, owner: str) -> dict[str, Any]:
        """Return where in the picture a class's score comes from: heat as a PNG, and a sentence on it."""
        pixels = from_text(picture)
        checkpoint, network = classifier.load(name, owner)
        layer = "" if method == "occlusion" else explain.cam_layers(checkpoint.model)[-1]
        given = network, checkpoint, pixels, label
        found = explain.grad_cam(*given, layer) if layer else explain.occlusion(*given)
        png = base64.b64encode(photo.png(explain.overlay(pixels, found))).decode()
        return {"png": png, "text": describe_heat(found, label, layer)}

    with gr.Row(elem_classes="classify"):
        with gr.Column(scale=4, min_width=300):
            picture = picture_file(sources=SOURCES, label="Your picture", height=300, elem_id="picture")
            build_examples(picture)
            first = gr.Dropdown([], label="Checkpoint", elem_id="checkpoint")
            second = gr.Dropdown([], label="Compare with", elem_id="second-checkpoint")
            opened = save.build_open(service, page)
        with gr.Column(scale=7, min_width=320):
            answer = gr.HTML(
                EMPTY,
                js_on_load="cnnDemo.showHeat(element, server, watch)",
                server_functions=[answering(heat)],
                apply_default_css=False,
                elem_id="answer",
            )
            with gr.Accordion("Evaluation of this checkpoint", open=False, elem_id="evaluation"):
                evaluation = gr.HTML(
                    {},
                    html_template="<div class='evaluation-view'></div>",
                    js_on_load="cnnDemo.showEvaluation(element, props, watch)",
                    apply_default_css=False,
                )
    owner = gr.Textbox(visible=False)
    offer_checkpoints(service, page, tabs, first, second)

    def show(secret: str, file: str | None, one: str | None, two: str | None) -> tuple[str, dict[str, str]]:
        """Return the answers as HTML; and what the network sees (see `to_text`), or what is wrong with the picture."""
        if not file:
            return EMPTY if one else NO_CHECKPOINT, {"pixels": "", "error": ""}
        text = ""
        try:
            whole = photo.read_picture(Path(file))
            pixels = photo.to_input(photo.crop(whole))
            text = to_text(pixels)
            if not one:
                return NO_CHECKPOINT, {"pixels": text, "error": ""}
            answers = [classifier.answer(name, pixels, secret) for name in dict.fromkeys((one, two or one))]
            panels = "".join(panel(Run(service.root / found.name).title, found, scores) for found, scores in answers)
        except CnnDemoError as error:
            message = sentence(error, file)
            shown = f"<div class='empty'><strong>No answer</strong><p role='alert'>{escape(message)}</p></div>"
            return shown, {"pixels": text, "error": "" if text else message}
        choice = f"<div class='heat-choice' data-pixels='{text}'></div>"
        shown = f"<div class='answers'>{panels}</div>{choice}{steps(whole, pixels)}"
        return shown, {"pixels": text, "error": ""}

    def choose(secret: str, name: str) -> Any:
        return gr.update(choices=checkpoint_choices(service, secret, name), value=name)

    def use(secret: str, event: gr.EventData) -> list[Any]:
        return [gr.update(selected="classify"), choose(secret, event.run)]

    def describe(name: str | None) -> dict[str, Any]:
        try:
            return {"run": name, "found": service.evaluation(name)} if name else {}
        except CnnDemoError as error:
            return {"error": str(error)}

    changed, chosen = [picture.change, first.change, second.change], [owner, picture, first, second]
    gr.on(changed, show, chosen, [answer, seen], js=ADD_OWNER, trigger_mode="always_last", **CLASSIFY, **PRIVATE)
    for here, there in ((picture, other), (other, picture)):
        here.change(None, [here, there], there, js=UNLESS_SAME, **UNQUEUED)
    # Also when the tab is opened: a run may have ended since.
    gr.on([first.change, tabs.select], describe, first, evaluation, **UNQUEUED)
    opened.change(choose, [owner, opened], first, js=ADD_OWNER, **UNQUEUED)
    view.use(use, owner, [tabs, first], js=ADD_OWNER, **UNQUEUED)


def build_examples(picture: gr.Image) -> None:
    """Lay out the buttons that put an example into a picture; those of gr.Dataset have no names."""
    buttons = "".join(EXAMPLE.format(*example) for example in EXAMPLES.items())
    examples = gr.HTML(
        f"<div class='examples'><p>Examples (CIFAR-10 test images)</p>{buttons}</div>",
        js_on_load="cnnDemo.showExamples(element, trigger) // triggers 'pick'",
        apply_default_css=False,
        elem_classes="example-pictures",
    )

    def pick(event: gr.EventData) -> str:
        return str(EXAMPLES[event.name])

    examples.pick(pick, None, picture, **UNQUEUED)


def offer_checkpoints(
    service: Service, page: gr.Blocks, tabs: gr.Tabs, first: gr.Dropdown, second: gr.Dropdown, networks: Any = ()
) -> None:
    """Fill two menus with the checkpoints that a visitor may choose and the `networks` (text, name) without one."""
    owner = gr.Textbox(visible=False)

    def offer(secret: str, one: str | None, two: str | None) -> list[Any]:
        """Return both menus; what is chosen stays so while it is there."""
        choices = checkpoint_choices(service, secret, one or "")
        names = [name for _, name in choices]
        choices += [(text, name) for text, name in networks if name not in names]
        names = [name for _, name in choices]
        chosen = one if one in names else next(iter(names), None)
        return [
            gr.update(choices=choices, value=chosen),
            gr.update(choices=[("none", ""), *choices], value=two if two in names else ""),
        ]

    for menu in (first, second):  # a name is checked where it is used; after a restart Gradio knows no choices
        menu.preprocess = lambda name: name  # type: ignore[method-assign,assignment]
    gr.on([page.load, tabs.select], offer, [owner, first, second], [first, second], js=ADD_OWNER, **UNQUEUED)


def to_text(pixels: Tensor) -> str:
    """Return uint8 `3,32,32` as base64, in which the page sends it back: a path could be anybody's."""
    return base64.b64encode(bytes(pixels.flatten().tolist())).decode()


def from_text(text: str) -> Tensor:
    """Return the uint8 `3,32,32` of `to_text`. Raises InputError where the text is something else."""
    try:
        content = base64.b64decode(text, validate=True)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(3, photo.INPUT_PX, photo.INPUT_PX)
    except (ValueError, RuntimeError) as error:
        raise InputError("Picture: give the 3,072 bytes of 3x32x32 pixels in base64.") from error


def picture_file(**look: Any) -> gr.Image:
    """Return an image component that hands over the file unopened; of a damaged one Gradio itself only says "Error"."""
    picture = gr.Image(type="filepath", image_mode=None, **look)
    usual = picture.preprocess

    def preprocess(payload: Any) -> Any:
        return payload.path if payload and payload.path else usual(payload)

    picture.preprocess = preprocess  # type: ignore[method-assign]
    return picture


def describe_heat(found: Tensor, label: str, layer: str) -> str:
    """Return what heat `h,w` shows: Grad-CAM of a layer, or without one occlusion."""
    height, width = found.shape
    if found.max() <= 0:
        return f"No positive evidence for {label}{f' in {layer}' if layer else ': no gray patch lowers its score'}."
    if layer:
        return f"Bright: what speaks for {label}. Grad-CAM, computed on the {height}×{width} grid of {layer}."
    most = percent(float(found.max()))
    return f"Bright: where a gray patch of 8×8 pixels lowers the score of {label}, at most by {most}."


def panel(title: str, checkpoint: Checkpoint, answer: Answer) -> str:
    """Return one checkpoint's answer as HTML; heat.js draws into its `.heat`."""
    best = answer.predictions[0]
    hints = {
        "This picture is unlike most validation images, so the answer may mean little.": answer.unusual,
        "The network is less confident than usual; look at its second choice, too.": answer.unsure,
        "Not validated yet, so its confidence cannot be judged.": checkpoint.limits is None,
    }
    bars = "".join(BAR.format(escape(p.label), 100 * p.score, percent(p.score)) for p in answer.predictions)
    facts = f"weights of step {checkpoint.step:,}"
    if checkpoint.validation_accuracy is not None:
        facts += f", validation accuracy {percent(checkpoint.validation_accuracy)}"
    return f"""<section class='answer' data-name='{escape(checkpoint.name)}'>
<p class='quiet'><strong>{escape(title)}</strong> <code>{escape(checkpoint.name)}</code> answers ({facts})</p>
<p class='verdict' role='status'>{escape(best.label)} <span>{percent(best.score)}</span></p>
{"".join(f"<p class='hint'>{hint}</p>" for hint, applies in hints.items() if applies)}
<div class='heat'></div>
<table class='scores'><caption>Score of each class</caption><tbody>{bars}</tbody></table>
<p class='quiet'>It knows only these {len(checkpoint.classes)} classes and must choose one, whatever the picture shows.
A score is not the probability of being right.</p></section>"""


def steps(whole: Image.Image, pixels: Tensor) -> str:
    """Return the way from the photo to the tensor `3,32,32` that the network gets, as HTML."""
    size: tuple[int, int] = whole.info.get("size", whole.size)
    side, preview = min(size), whole.copy()
    preview.thumbnail((384, 384))
    small = photo.png(preview)
    pictures = [
        ("your picture", size, small, ""),
        ("its center", (side, side), small, "square"),
        ("what the network sees", (photo.INPUT_PX, photo.INPUT_PX), photo.to_png(pixels), "pixels"),
    ]
    figures = "".join(
        f"<figure><img class='{kind}' src='data:image/png;base64,{base64.b64encode(content).decode()}' alt='{title}'>"
        f"<figcaption>{title}, {width}×{height}</figcaption></figure>"
        for title, (width, height), content, kind in pictures
    )
    merged = (side / photo.INPUT_PX) ** 2
    if merged > 1:
        note = f"Each pixel the network sees averages about {merged:,.0f} of yours." if merged >= 1.5 else ""
    else:
        note = "The network sees every pixel." if merged == 1 else f"Enlarged to {photo.INPUT_PX}×{photo.INPUT_PX}."
    return f"<section class='seen'>{figures}<p class='quiet'>{note}</p></section>"
