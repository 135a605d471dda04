"""Save to the Hub, download, open from the Hub. A visitor's token is used where it arrives and stored nowhere.

The handlers that transfer are plain functions: unlike a generator, Gradio lets one finish when the page is closed.
"""

import contextlib
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import CnnDemoError
from ..runs.service import Service
from ..sharing import hub
from ..sharing.export import export_zip
from .events import ADD_OWNER, TRANSFER, UNQUEUED, failed, sentences
from .visitors import source_of

Profile = gr.OAuthProfile | None  # of who is signed in
Token = gr.OAuthToken | None
PROGRESS = gr.Progress()  # as a default; Gradio passes a new one to each call
TERMINAL = """<p>Sign-in works only on a Space. On this machine, save from a terminal after
<code>hf auth login</code>:</p><code class='command'>python -m cnn_demo push {run} YOU/NAME</code>"""


def build_save(service: Service, view: gr.HTML) -> None:
    """Lay out what the button "Save or download" of the view of a run opens."""
    owner, run = gr.Textbox(visible=False), gr.Textbox(visible=False)
    with gr.Column(visible=False, elem_id="save") as box:
        title = gr.HTML(apply_default_css=False)
        with gr.Column(visible=service.sign_in):
            if service.sign_in:
                gr.LoginButton(size="md")
            about = "Created under your account if it does not exist."
            name = gr.Textbox(label="Repository", info=about, elem_id="save-name")
            private = gr.Checkbox(False, label="Private: only you can see it")
            push = gr.Button("Save to the Hub", variant="primary", elem_id="save-push")
        pack = gr.Button("Download a zip", elem_id="save-zip")
        result = gr.HTML(apply_default_css=False, elem_id="save-result", min_height=64)
        file = gr.File(visible=False, label="The checkpoint", elem_id="save-file")

    def show(secret: str, event: gr.EventData) -> list[Any]:
        chosen = str(event.run)
        with sentences():
            found = service.exportable(chosen, secret)
            suggestion = "cnn-demo-" + found.config.model.replace("_", "-")
        heading = f"<h3>Save {escape(found.title)}</h3><p>Saves float16 weights, model card, log and curve.</p>"
        heading += "" if service.sign_in else TERMINAL.format(run=escape(chosen))
        return [gr.update(visible=True), chosen, heading, suggestion, "", gr.update(visible=False)]

    def save(
        secret: str, run: str, repo: str, hidden: bool, profile: Profile, token: Token, progress: gr.Progress = PROGRESS
    ) -> str:
        """Save the run under the visitor's name; return the link, or what went wrong."""
        if profile is None or token is None:
            return failed("Sign in first: the repository is created under your account, with your permissions.")
        target = f"{profile.username}/{repo.strip().removeprefix(profile.username + '/')}"
        try:
            found, report = service.exportable(run, secret), lambda text, share: progress(share, desc=text)
            link = escape(hub.push(found, service.hub, target, token.token, hidden, report, gr.Info))
        except Exception as error:
            return failed(error)
        return f"<p role='status'>Saved: <a href='{link}' target='_blank'>{link}</a></p>"

    def download(secret: str, run: str) -> list[Any]:
        try:
            found = service.exportable(run, secret)
            Path(file.GRADIO_CACHE).mkdir(parents=True, exist_ok=True)
            path = Path(tempfile.mkdtemp(dir=file.GRADIO_CACHE)) / f"{found.id}.zip"  # Gradio deletes it in time
            export_zip(found, path)
        except Exception as error:
            return [failed(error), gr.update(visible=False)]
        return ["", gr.update(value=str(path), visible=True)]

    scroll = "() => document.getElementById('save').scrollIntoView({ behavior: 'smooth', block: 'center' })"
    opened = view.save(show, owner, [box, run, title, name, result, file], js=ADD_OWNER, **UNQUEUED)
    opened.then(None, js=scroll)
    push.click(save, [owner, run, name, private], result, js=ADD_OWNER, **TRANSFER)
    pack.click(download, [owner, run], [result, file], js=ADD_OWNER, **TRANSFER)


def build_open(service: Service, page: gr.Blocks) -> gr.Textbox:
    """Lay out how a checkpoint is opened from the Hub; return the component that changes to its run id."""
    opened, owner = gr.Textbox(visible=False), gr.Textbox(visible=False)
    about = "owner/name, owner/name@revision or its link" + (", or one of your own" if service.sign_in else "")
    with gr.Accordion("Open from the Hub", open=False, elem_id="open"):
        if service.sign_in:
            gr.LoginButton(size="md")
        repo = gr.Dropdown([], label="Repository", info=about, allow_custom_value=True, elem_id="open-repo")
        fetch = gr.Button("Open", elem_id="open-fetch")
        result = gr.HTML(apply_default_css=False, elem_id="open-result", min_height=64)

    def pull(
        secret: str,
        text: str | None,
        request: gr.Request,
        profile: Profile,
        token: Token,
        progress: gr.Progress = PROGRESS,
    ) -> list[Any]:
        """Download a checkpoint; return the result and its run id."""
        if not text or not secret:  # without an owner everyone would see it
            return [failed("Enter a repository, for example owner/name."), gr.skip()]
        progress(0, desc=f"Downloading {text[:120]}")
        try:
            run = hub.pull(service.root, service.hub, text, token.token if token else False, secret, gr.Info)
            source = f"{run.source['repo']}@{run.source['commit'][:8]}"
            service.add_opened(run, source_of(request, profile, service.is_space))
        except Exception as error:
            return [failed(error), gr.skip()]
        return [f"<p role='status'>Opened {escape(source)}. It is now selected.</p>", run.id]

    def list_own(profile: Profile, token: Token) -> Any:
        with contextlib.suppress(CnnDemoError):  # a name can still be typed
            if profile and token:
                return gr.update(choices=hub.list_repositories(service.hub, profile.username, token.token))
        return gr.skip()

    fetch.click(pull, [owner, repo], [result, opened], js=ADD_OWNER, show_progress_on=result, **TRANSFER)
    if service.sign_in:
        page.load(list_own, None, repo, **(TRANSFER | {"show_progress": "hidden"}))
    return opened
