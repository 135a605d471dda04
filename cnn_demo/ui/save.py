"""Save to the Hub, download, open from the Hub. A visitor's token is used where it arrives and kept nowhere."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import CnnDemoError
from ..pictures.dataset import Report
from ..runs.service import Service
from ..sharing import card, hub

OWNER_FIRST = "(...values) => [cnnDemo.owner(), ...values.slice(1)]"
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = PRIVATE | {"queue": False, "trigger_mode": "always_last"}  # by default what comes meanwhile is dropped
TRANSFER = PRIVATE | {"concurrency_limit": 8}  # it may take minutes, and a class saves at the same time
TERMINAL = """<p>Nobody can sign in to the Hub here: this page runs outside of a Space. From a terminal on its machine,
after <code>hf auth login</code>:</p><code class='command'>python -m cnn_demo push {run} YOU/NAME</code>"""


def build_save(service: Service, view: gr.HTML) -> None:
    """Lay out what opens by the button "Save or download" of the view of a run."""
    owner, run = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Column(visible=False, elem_id="save") as box:
        title = gr.HTML(apply_default_css=False)
        with gr.Column(visible=service.sign_in):
            if service.sign_in:
                gr.LoginButton(size="md")
            name = gr.Textbox(label="Repository", info="its name under yours; a new one is made", elem_id="save-name")
            private = gr.Checkbox(False, label="private: only you can see it")
            push = gr.Button("Save to the Hub", variant="primary", elem_id="save-push")
        pack = gr.Button("Download a zip", elem_id="save-zip")
        told = gr.HTML(apply_default_css=False, elem_id="save-told")
        file = gr.File(visible=False, label="The checkpoint", elem_id="save-file")

    def show(secret: str, event: gr.EventData) -> list[Any]:
        chosen = str(event.run)
        heading = f"<h3>Keep {escape(chosen)}</h3><p>Its weights in half size, with card, log and curve.</p>"
        heading += "" if service.sign_in else TERMINAL.format(run=escape(chosen))
        model = chosen.split("-")[0] if not chosen.startswith("hf-") else "checkpoint"
        return [gr.update(visible=True), chosen, heading, f"cnn-demo-{model}", "", gr.update(visible=False)]

    def save(
        secret: str, chosen: str, repo: str, hidden: bool, profile: gr.OAuthProfile | None, token: gr.OAuthToken | None
    ) -> Iterator[str]:
        """Save the run under the visitor's name; yield how far it is, then the link or what went wrong."""
        if profile is None or token is None:
            yield failed("Sign in first: the repository is made under your name, with your own rights.")
            return
        target = f"{profile.username}/{repo.strip()}"

        def work(report: Report) -> str:
            return hub.push(service.exportable(chosen, secret), service.hub, target, token.token, hidden, report)

        for item in working(work):
            if isinstance(item, tuple):
                yield f"<p role='status'>{escape(item[0])} …</p><progress value='{item[1]:.2f}'></progress>"
            elif isinstance(item, CnnDemoError):
                yield failed(str(item))
            else:
                yield f"<p role='status'>Saved: <a href='{escape(item)}' target='_blank'>{escape(item)}</a></p>"

    def download(secret: str, chosen: str) -> list[Any]:
        """Return the run as a zip."""
        try:
            found = service.exportable(chosen, secret)
            Path(file.GRADIO_CACHE).mkdir(parents=True, exist_ok=True)
            path = Path(tempfile.mkdtemp(dir=file.GRADIO_CACHE)) / f"{found.id}.zip"  # Gradio deletes it in time
            card.export_zip(found, path)
        except CnnDemoError as error:
            return [failed(str(error)), gr.update(visible=False)]
        return ["", gr.update(value=str(path), visible=True)]

    shown = view.save(show, owner, [box, run, title, name, told, file], **AT_ONCE)
    shown.then(None, js="() => document.getElementById('save').scrollIntoView({ behavior: 'smooth', block: 'center' })")
    push.click(save, [owner, run, name, private], told, js=OWNER_FIRST, **TRANSFER)
    pack.click(download, [owner, run], [told, file], js=OWNER_FIRST, **(TRANSFER | {"show_progress": "minimal"}))


def build_open(service: Service, page: gr.Blocks) -> gr.Textbox:
    """Lay out how a checkpoint of the Hub is opened; return the component that changes to its name here."""
    opened, owner = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Accordion("Open from the Hub", open=False, elem_id="open"):
        if service.sign_in:
            gr.LoginButton(size="md")
        repo = gr.Dropdown(
            [],
            label="Repository",
            info="owner/name, owner/name@revision or its link" + (", or one of your own" if service.sign_in else ""),
            allow_custom_value=True,
            elem_id="open-repo",
        )
        fetch = gr.Button("Open", elem_id="open-fetch")
        told = gr.HTML(apply_default_css=False, elem_id="open-told")

    def pull(secret: str, text: str | None, token: gr.OAuthToken | None) -> Iterator[list[Any]]:
        """Fetch a checkpoint; yield how far it is, then what came of it."""
        if not text or not secret:  # what nobody owns would be everybody's
            yield [failed("Give a repository, for example owner/name."), gr.skip()]
            return
        yield [f"<p role='status'>Looking at {escape(text[:120])} …</p>", gr.skip()]
        try:
            run = hub.pull(service.root, service.hub, text, token.token if token else False, secret)
        except CnnDemoError as error:
            yield [failed(str(error)), gr.skip()]
            return
        source = f"{run.source['repo']}@{run.source['commit'][:8]}"
        yield [f"<p role='status'>Opened {escape(source)}; it answers from now on.</p>", run.id]

    def own(profile: gr.OAuthProfile | None, token: gr.OAuthToken | None) -> Any:
        """Return the visitor's own repositories as choices."""
        if profile is None or token is None:
            return gr.skip()
        try:
            return gr.update(choices=hub.own(service.hub, profile.username, token.token))
        except CnnDemoError:
            return gr.skip()

    fetch.click(pull, [owner, repo], [told, opened], js=OWNER_FIRST, **TRANSFER)
    if service.sign_in:
        page.load(own, None, repo, **TRANSFER)
    return opened


def failed(sentence: str) -> str:
    """Return a sentence about what went wrong, as HTML."""
    return f"<p class='wrong' role='alert'>{escape(sentence)}</p>"


def working(work: Callable[[Report], str]) -> Iterator[tuple[str, float] | CnnDemoError | str]:
    """Yield what `work` reports while it goes on in a thread of its own, then its result or error.

    A closed page leaves it to its end: half an upload would have to be made again.
    """
    told: queue.Queue[tuple[str, float] | CnnDemoError | str] = queue.Queue()

    def run() -> None:
        try:
            told.put(work(lambda text, share: told.put((text, share))))
        except CnnDemoError as error:
            told.put(error)
        except Exception:
            told.put(CnnDemoError("That failed here, for a reason that stands in the server's log."))
            raise

    threading.Thread(target=run, name="save", daemon=True).start()
    while isinstance(item := told.get(), tuple):
        yield item
    yield item
