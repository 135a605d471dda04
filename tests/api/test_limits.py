"""What one visitor may send, and what a stopped server leaves behind."""

import http.client
import json
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from cnn_demo.runs.folder import Run, hash_secret
from tests.apps import App
from tests.visitor import EXAMPLE, Page, Visitor


@pytest.mark.parametrize(("path", "allowed"), [("/gradio_api/queue/join", 10), ("/gradio_api/upload", 25)])
def test_a_large_body_is_refused_before_it_is_read(app: App, path: str, allowed: int) -> None:
    with closing(http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=10)) as connection:
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(allowed * 1_000_000 + 1))
        connection.endheaders()  # and no body
        with closing(connection.getresponse()) as answer:
            assert answer.status == 413
            sentence = f"The request is too large: at most {allowed} MB are allowed."
            assert json.loads(answer.read())["detail"] == sentence


@pytest.mark.parametrize(
    ("path", "kind", "allowed"),
    [
        ("queue/join", "application/json", 10),
        ("component_server", "application/json", 10),
        ("upload", "multipart/form-data; boundary=x", 25),
    ],
)
def test_a_large_body_of_unknown_length_is_refused(app: App, path: str, kind: str, allowed: int) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    chunks = (head if i == 0 and path == "upload" else b"x" * 1_000_000 for i in range(allowed + 2))
    with closing(http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=10)) as connection:
        connection.request("POST", f"/gradio_api/{path}", chunks, {"Content-Type": kind}, encode_chunked=True)
        with closing(connection.getresponse()) as answer:
            assert answer.status == 413
            sentence = f"The request is too large: at most {allowed} MB are allowed."
            assert json.loads(answer.read())["detail"] == sentence


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("run/start_run", '{"data": NaN}'),
        ("run/start_run", '{"data": "\\ud800"}'),
        ("run/nothing", '{"data": []}'),
        ("queue/join", '{"data": [], "fn_index": 9999, "session_hash": "x"}'),
        ("component_server", '{"data": {}, "component_id": 9999, "fn_name": "watch", "session_hash": "x"}'),
        ("component_server", '{"data": {}, "component_id": VIEW, "fn_name": "launch", "session_hash": "x"}'),
        ("component_server", '{"data": {}, "component_id": "x", "fn_name": 5, "session_hash": [NaN]}'),
        ("component_server", "[5]"),
    ],
)
def test_what_gradio_cannot_use_is_refused_in_a_sentence(app: App, path: str, body: str) -> None:
    logged = Path(app.log.name).stat().st_size
    view = Page(app.url).ids["run"]
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{app.url}/gradio_api/{path}", content=body.replace("VIEW", str(view)), headers=headers)
    assert 400 <= answer.status_code < 500 and answer.json()["detail"].endswith("."), answer.text
    assert "Traceback" not in Path(app.log.name).read_text()[logged:]


def test_a_private_checkpoint_answers_only_who_opened_it(app: App, shipped: Path) -> None:
    run = Run(Path(shutil.copytree(shipped, app.root / "hf-private-1")))
    (run.folder / "owner").write_text(hash_secret("anna"))
    run.write_json("source.json", {"repo": "anna/secret", "commit": "a" * 40, "revisions": [], "private": True})
    try:
        page = Page(app.url)
        for owner, expected in (("anna", "class='verdict'"), ("bert", "from a private repository")):
            with Visitor(page, owner) as visitor:
                picture = visitor.upload(EXAMPLE)
                assert expected in str(visitor.trigger("picture", "change", picture, run.id, ""))
        with pytest.raises(AppError, match="from a private repository"):
            Client(app.url, verbose=False).predict(handle_file(EXAMPLE), run.id, api_name="/classify")
    finally:
        shutil.rmtree(run.folder)


def test_sigterm_saves_the_active_run(tmp_path: Path, shipped: Path) -> None:
    shutil.copytree(shipped, tmp_path / "checkpoints" / "resnet50")
    app = App(tmp_path / "checkpoints")
    client = Client(app.url, verbose=False)
    recipe = {"dataset": "shapes", "epochs": 50, "batch_size": 16, "optimizer": "sgd"}
    run = client.predict("resnet50", recipe, "anna", api_name="/start_run")["run"]
    while not client.predict(run, -1, "anna", api_name="/run_status")["points"]:
        time.sleep(0.1)
    app.end(signal.SIGTERM)
    assert Run(app.root / run).history().state == "stopped"
