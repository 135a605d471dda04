"""What one visitor may send, and what a stopped server leaves behind."""

import http.client
import json
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gradio_client import Client

from cnn_demo.runs.folder import Run
from tests.apps import App


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


def test_a_large_body_of_unknown_length_is_refused(app: App) -> None:
    chunks = (b"x" * 1_000_000 for _ in range(11))
    with closing(http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=10)) as connection:
        connection.request("POST", "/gradio_api/queue/join", chunks, encode_chunked=True)
        with closing(connection.getresponse()) as answer:
            assert answer.status == 400


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
