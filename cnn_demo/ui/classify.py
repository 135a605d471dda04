"""The Classify tab: a picture, what the network sees of it, and a score for each class."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from ..answers.inference import Answer, Classifier, percent
from ..errors import CnnDemoError
from ..pictures import photo
from ..pictures.photo import INPUT_PX
from ..runs.checkpoints import Checkpoint
from ..runs.folder import Run
from ..runs.service import Service
from . import save
from .evaluation import bars, render
from .events import ADD_OWNER, PRIVATE, UNQUEUED, checkpoint_choices

EXAMPLES = {file.stem: file for file in sorted((Path(__file__).parent / "examples").glob("*.png"))}
EMPTY = """<div class='empty'><strong>Show it a picture</strong><p>Drop one on the left, paste it, use the camera, or
choose an example. Only this server gets it, and deletes it within two hours while it runs.</p></div>"""
NO_CHECKPOINT = """<div class='empty'><strong>There is no checkpoint yet</strong><p>Train a network first. Its first
weights are saved a few seconds after the start, and can classify from then on.</p></div>"""


def build(service: Service, page: gr.Blocks, view: gr.HTML, tabs: gr.Tabs, classifier: Classifier) -> None:
    """Lay out the tab."""
    with gr.Row(elem_classes="classify"):
        with gr.Column(scale=4, min_width=300):
            picture = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard", "webcam"],
                label="Your picture",
                height=300,
                elem_id="picture",
            )
            buttons = "".join(map(example_button, EXAMPLES))
            examples = gr.HTML(  # the buttons of gr.Dataset have no names
                f"<div class='examples'><p>Examples (CIFAR-10 test images)</p>{buttons}</div>",
                js_on_load="cnnDemo.showExamples(element, trigger) // triggers 'pick'",
                apply_default_css=False,
                elem_id="examples",
            )
            first = gr.Dropdown([], label="Checkpoint", elem_id="checkpoint")
            second = gr.Dropdown([], label="Compare with", elem_id="second-checkpoint")
            opened = save.build_open(service, page)
        with gr.Column(scale=7, min_width=320):
            answer = gr.HTML(EMPTY, apply_default_css=False, elem_id="answer")
            with gr.Accordion("Evaluation of this checkpoint", open=False, elem_id="evaluation"):
                evaluation = gr.HTML(apply_default_css=False)
    as_file(picture)
    owner = gr.Textbox(visible=False)

    def show(file: str | None, one: str | None, two: str | None) -> str:
        """Return the answers to a picture."""
        if not one:
            return NO_CHECKPOINT
        if not file:
            return EMPTY
        try:
            whole = photo.read_picture(Path(file))
            square = photo.crop(whole)
            pixels = photo.to_input(square)
            names = [one] if not two or two == one else [one, two]
            answers = [classifier.answer(name, pixels) for name in names]
            panels = "".join(panel(Run(service.root / found.name).title, found, scores) for found, scores in answers)
        except CnnDemoError as error:
            message = str(error).replace(file, "This file")
            return f"<div class='empty'><strong>No answer</strong><p role='alert'>{escape(message)}</p></div>"
        return f"<div class='answers'>{panels}</div>{steps(whole, square, pixels)}"

    def offer(secret: str, one: str | None, two: str | None) -> list[Any]:
        """Return the checkpoints that this visitor may choose; what is chosen stays so while it is there."""
        choices = checkpoint_choices(service, secret, one or "")
        names = [name for _, name in choices]
        chosen = one if one in names else next(iter(names), None)
        return [
            gr.update(choices=choices, value=chosen),
            gr.update(choices=[("none", ""), *choices], value=two if two in names else ""),
        ]

    def choose(secret: str, name: str) -> Any:
        """Classify with a checkpoint that was just opened."""
        return gr.update(choices=checkpoint_choices(service, secret, name), value=name)

    def use(secret: str, event: gr.EventData) -> list[Any]:
        """Go to this tab and classify with a run."""
        return [gr.update(selected="classify"), choose(secret, event.run)]

    def pick(event: gr.EventData) -> str:
        """Return the file of an example."""
        return str(EXAMPLES[event.name])

    def describe(name: str | None) -> str:
        """Return the evaluation of a checkpoint as HTML."""
        try:
            return render(service.evaluation(name), name) if name else ""
        except CnnDemoError as error:
            return escape(str(error))

    gr.on(
        [picture.change, first.change, second.change],
        show,
        [picture, first, second],
        answer,
        concurrency_limit=4,  # a large photo takes much memory for a moment
        concurrency_id="classify",
        trigger_mode="always_last",
        **PRIVATE,
    )
    first.change(describe, first, evaluation, **UNQUEUED)
    examples.pick(pick, None, picture, **UNQUEUED)
    gr.on([page.load, tabs.select], offer, [owner, first, second], [first, second], js=ADD_OWNER, **UNQUEUED)
    opened.change(choose, [owner, opened], first, js=ADD_OWNER, **UNQUEUED)
    view.use(use, owner, [tabs, first], js=ADD_OWNER, **UNQUEUED)


def example_button(name: str) -> str:
    """Return the button of an example."""
    source = f"gradio_api/file={EXAMPLES[name]}"
    return f"<button type='button' data-name='{name}' aria-label='example: {name}'><img alt='' src='{source}'></button>"


def as_file(picture: gr.Image) -> None:
    """Make an image component hand over the file unopened; with a damaged one Gradio itself only says "Error"."""
    usual = picture.preprocess

    def preprocess(payload: Any) -> Any:
        return payload.path if payload and payload.path else usual(payload)

    picture.preprocess = preprocess  # type: ignore[method-assign]


def panel(title: str, checkpoint: Checkpoint, answer: Answer) -> str:
    """Return one checkpoint's answer as HTML."""
    best = answer.predictions[0]
    hints = []
    if answer.unusual:
        hints.append("This picture is unlike most validation images, so the answer may mean little.")
    if answer.unsure:
        hints.append("The network is less confident than usual; look at the second answer, too.")
    if checkpoint.limits is None:
        hints.append("Not validated yet, so its confidence cannot be judged.")
    facts = f"weights of step {checkpoint.step:,}"
    if checkpoint.validation_accuracy is not None:
        facts += f", validation accuracy {percent(checkpoint.validation_accuracy)}"
    return f"""<section class='answer'>
<p class='quiet'><strong>{escape(title)}</strong> <code>{escape(checkpoint.name)}</code> answers ({facts})</p>
<p class='verdict' role='status'>{escape(best.label)} <span>{percent(best.score)}</span></p>
{"".join(f"<p class='hint'>{hint}</p>" for hint in hints)}
{bars(((p.label, p.score) for p in answer.predictions), "Score of each class")}
<p class='quiet'>It knows only these {len(checkpoint.classes)} classes and must choose one, whatever the picture shows.
A score is not the probability of being right.</p></section>"""


def steps(whole: Image.Image, square: Image.Image, pixels: Tensor) -> str:
    """Return the way from the photo to the tensor `3,32,32` that the network gets, as HTML."""
    preview, content = whole.copy(), io.BytesIO()
    preview.thumbnail((384, 384))
    preview.save(content, "PNG")
    pictures = [
        ("your picture", whole.size, content.getvalue(), ""),
        ("its center", square.size, content.getvalue(), "square"),
        ("what the network sees", (INPUT_PX, INPUT_PX), photo.to_png(pixels), "pixels"),
    ]
    figures = "".join(
        f"<figure><img class='{kind}' src='data:image/png;base64,{base64.b64encode(content).decode()}' alt='{title}'>"
        f"<figcaption>{title}, {width}×{height}</figcaption></figure>"
        for title, (width, height), content, kind in pictures
    )
    merged = (square.width / INPUT_PX) ** 2
    if merged > 1:
        note = f"Each pixel the network sees averages about {merged:,.0f} of yours." if merged >= 1.5 else ""
    else:
        note = "The network sees every pixel." if merged == 1 else f"Enlarged to {INPUT_PX}×{INPUT_PX}."
    return f"<section class='seen'>{figures}<p class='quiet'>{note}</p></section>"
