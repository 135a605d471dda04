"""The Classify tab: a picture, what the network sees of it, and ten scores."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..answers import inference
from ..answers.inference import INPUT_PX, Answer, Classifier, percent
from ..errors import CnnDemoError
from ..runs import checkpoints
from ..runs.folder import Run
from ..runs.service import Service
from ..sharing import card
from . import save as hub
from .save import AT_ONCE, OWNER_FIRST, PRIVATE

EXAMPLES = Path(__file__).parent / "examples"
EMPTY = """<div class='empty'><strong>Show it a picture</strong><p>Drop one on the left, paste it, use the camera, or
take an example. It is not kept: it is read once, on this server, and deleted within two hours.</p></div>"""
NOBODY = """<div class='empty'><strong>There is no checkpoint yet</strong><p>Train a network first; as soon as its first
weights are saved, a few seconds after the start, they can classify.</p></div>"""


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
            # not gr.Examples: it makes the image component anew, without as_file
            examples = gr.Dataset(
                components=[gr.Image(render=False)],
                samples=[[str(file)] for file in sorted(EXAMPLES.glob("*.png"))],
                label="Examples: CIFAR-10 test pictures",
                elem_id="examples",
            )
            first = gr.Dropdown([], label="Checkpoint", elem_id="checkpoint")
            second = gr.Dropdown([], label="A second one beside it", elem_id="second-checkpoint")
            opened = hub.build_open(service, page)
        with gr.Column(scale=7, min_width=320):
            answer = gr.HTML(EMPTY, apply_default_css=False, elem_id="answer")
            with gr.Accordion("How good this checkpoint is, and what it confuses", open=False):
                worth = gr.HTML(apply_default_css=False, elem_id="worth")
    as_file(picture)
    owner = gr.Textbox(visible=False)

    def show(file: str | None, one: str | None, two: str | None) -> str:
        """Return the answers to a picture."""
        if not one:
            return NOBODY
        if not file:
            return EMPTY
        try:
            whole = inference.read_picture(Path(file))
            square = inference.crop(whole)
            names = [one] if not two or two == one else [one, two]
            panels = "".join(panel(*classifier.answer(name, square)) for name in names)
        except CnnDemoError as error:
            message = str(error).replace(file, "This file")
            return f"<div class='empty'><strong>No answer</strong><p>{escape(message)}</p></div>"
        return f"<div class='answers'>{panels}</div>{steps(whole, square)}"

    def offer(secret: str, one: str | None, two: str | None) -> list[Any]:
        """Return the checkpoints that this visitor may choose."""
        choices = usable(service, secret, one)
        names = [name for _, name in choices]
        kept = one if one in names else next(iter(names), None)
        return [
            gr.update(choices=choices, value=kept),
            gr.update(choices=[("none", ""), *choices], value=two if two in names else ""),
        ]

    def choose(secret: str, name: str) -> Any:
        """Classify with a checkpoint that was just opened."""
        return gr.update(choices=usable(service, secret, name), value=name)

    def use(secret: str, event: gr.EventData) -> list[Any]:
        """Go to this tab and classify with a run."""
        return [gr.update(selected="classify"), choose(secret, event.run)]

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
    first.change(lambda name: describe(service.root, name), first, worth, **AT_ONCE)
    examples.click(lambda sample: sample[0], examples, picture, **AT_ONCE)
    gr.on([page.load, tabs.select], offer, [owner, first, second], [first, second], js=OWNER_FIRST, **AT_ONCE)
    opened.change(choose, [owner, opened], first, js=OWNER_FIRST, **AT_ONCE)
    view.use(use, owner, [tabs, first], js="() => [cnnDemo.owner()]", **AT_ONCE)


def as_file(picture: gr.Image) -> None:
    """Make an image component hand over the file as it is; Gradio would open it, and of a bad one only say "Error"."""
    usual = picture.preprocess

    def preprocess(payload: Any) -> Any:
        return payload.path if payload and payload.path else usual(payload)

    picture.preprocess = preprocess  # type: ignore[method-assign]


def usable(service: Service, owner: str, also: str | None) -> list[tuple[str, str]]:
    """Return (text, name) of the checkpoints that `owner` may choose, the shipped ones first, and of `also`.

    That may be someone else's, watched by link.
    """
    lines = {line["run"]: line for line in service.listing(owner)}
    found = []
    for name in checkpoints.checkpoint_names(service.root):
        if line := lines.get(name):
            measured = [(line[f"{kind}_accuracy"], kind) for kind in ("test", "validation")]
            best = next((f"{percent(accuracy)} {kind}" for accuracy, kind in measured if accuracy), line["state"])
            text = f"{name} · {line['dataset']} · {best}"
            found.append((text, name))
    if also and also not in lines and checkpoints.NAME.fullmatch(also):
        found += [(also, also)] if (service.root / also / "model.safetensors").is_file() else []
    return found


def describe(root: Path, name: str | None) -> str:
    """Return what the evaluation of a checkpoint found, as HTML: accuracy, calibration, confusion, worst mistakes."""
    found = card.read_evaluation(Run(root / name)) if name and checkpoints.NAME.fullmatch(name) else None
    if found is None:
        command = f"<code>python -m cnn_demo evaluate {escape(name or 'RUN')}</code>"
        return f"<p>Not evaluated. From a terminal: {command}</p>"
    classes, table = found["classes"], found["confusion"]
    highest = max(cell for i, row in enumerate(table) for j, cell in enumerate(row) if i != j) or 1
    rows = []
    for i, (label, row) in enumerate(zip(classes, table, strict=True)):
        shades = [0.0 if i == j else cell / highest for j, cell in enumerate(row)]
        cells = zip(row, shades, strict=True)
        marks = "".join(f"<td style='background:rgb(213 94 0 / {shade:.2f})'>{cell}</td>" for cell, shade in cells)
        rows.append(f"<tr><th scope='row'>{escape(label)}</th>{marks}</tr>")
    heads = "".join(f"<th scope='col'>{escape(label[:5])}</th>" for label in classes)
    figures = "".join(
        f"<figure><img alt='' src='data:image/png;base64,{escape(m['png'])}'>"
        f"<figcaption>{escape(m['label'])}, taken for {escape(m['answer'])}: {percent(m['score'])}</figcaption>"
        "</figure>"
        for m in found["mistakes"]
    )
    return f"""<p>Right on {percent(found["accuracy"])} of {found["pictures"]:,} test pictures, on
{percent(found["accuracy_flip"])} with each one's mirror image. Its scores are off by {percent(found["ece_after"])}
on average (by {percent(found["ece_before"])} before they were calibrated).</p>
<h4>Rows: what it is. Columns: what it was taken for.</h4>
<div class='confusion' tabindex='0'><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>
<h4>The mistakes it was surest of</h4><div class='mistakes'>{figures}</div>"""


def panel(checkpoint: checkpoints.Checkpoint, answer: Answer) -> str:
    """Return one checkpoint's answer as HTML."""
    best = answer.predictions[0]
    bars = "".join(
        f"<tr><th scope='row'>{escape(p.label)}</th>"
        f"<td class='meter'><div style='width:{100 * p.score:.2f}%'></div></td><td>{percent(p.score)}</td></tr>"
        for p in answer.predictions
    )
    hints = []
    if answer.unusual:
        hints.append("This picture is unlike most that the network was tried on, so its answer may mean little.")
    if answer.unsure:
        hints.append("The network is less sure than usual; look at the second answer, too.")
    if checkpoint.limits is None:
        hints.append("How sure these weights usually are is not known yet: nothing has been validated.")
    facts = f"{checkpoint.model}, weights of step {checkpoint.step:,}"
    if checkpoint.validation_accuracy is not None:
        facts += f", right on {percent(checkpoint.validation_accuracy)} of its validation pictures"
    return f"""<section class='answer'>
<p class='quiet'><strong>{escape(checkpoint.name)}</strong> answers ({facts})</p>
<p class='verdict' role='status'>{escape(best.label)} <span>{percent(best.score)}</span></p>
{"".join(f"<p class='hint'>{hint}</p>" for hint in hints)}
<table class='scores'><caption>Score of each class</caption><tbody>{bars}</tbody></table>
<p class='quiet'>It knows only these {len(checkpoint.classes)} things and must choose one of them, whatever the picture
shows. A score is the network's own weight for an answer, not the chance that it is right.</p></section>"""


def steps(whole: Image.Image, square: Image.Image) -> str:
    """Return the way from the photo to what the network sees, as HTML."""
    small = square.resize((INPUT_PX, INPUT_PX), Image.Resampling.BICUBIC, reducing_gap=3.0)
    preview = whole.copy()
    preview.thumbnail((384, 384))
    middle = square.resize((192, 192), Image.Resampling.BICUBIC)
    pictures = [
        ("your picture", whole, preview),
        ("its centre", square, middle),
        ("what the network sees", small, small),
    ]
    figures = "".join(
        f"<figure><img class='{'pixels' if shown.width <= INPUT_PX else ''}' src='{data_url(shown)}' alt='{title}'>"
        f"<figcaption>{title}, {real.width}×{real.height}</figcaption></figure>"
        for title, real, shown in pictures
    )
    dropped = whole.width * whole.height / INPUT_PX**2
    loss = f"One pixel is kept of about {dropped:,.0f}." if dropped >= 2 else "No pixel is lost."
    return f"<section class='seen'>{figures}<p class='quiet'>{loss}</p></section>"


def data_url(picture: Image.Image) -> str:
    """Return a picture as a PNG inside an address."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
