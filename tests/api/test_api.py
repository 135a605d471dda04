"""What a program may call, through gradio_client against the running app."""

import base64
import concurrent.futures
import io
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from cnn_demo.networks.catalog import NETWORKS
from tests import fuzz
from tests.apps import App

RECIPE = {"dataset": "shapes", "epochs": 300, "batch_size": 64}


@pytest.fixture(scope="module")
def client(app: App) -> Client:
    return Client(app.url, verbose=False)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (320, 200), "teal").save(tmp_path / "teal.jpg")
    return tmp_path / "teal.jpg"


def call(client: Client, name: str, **arguments: Any) -> Any:
    return client.predict(**arguments, api_name=f"/{name}")


@pytest.fixture
def run(client: Client) -> Iterator[str]:
    """A training run of "anna"."""
    run = call(client, "start_run", model="resnet50", recipe=RECIPE, owner="anna")["run"]
    deadline = time.monotonic() + 60
    while call(client, "run_status", run=run)["state"] != "training":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield run
    call(client, "stop_run", run=run, owner="anna")
    while "end" not in call(client, "run_status", run=run):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_the_six_documented_endpoints_are_public(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/start_run", "/run_status", "/stop_run", "/classify", "/explain", "/stages"}
    for name, endpoint in endpoints.items():
        assert all(parameter["type"] for parameter in endpoint["parameters"]), name


def test_endpoints_are_mcp_tools(app: App) -> None:
    with urllib.request.urlopen(f"{app.url}/gradio_api/mcp/schema", timeout=10) as answer:
        tools = {tool["name"]: tool for tool in json.load(answer)}
    assert set(tools) == {"start_run", "run_status", "stop_run", "classify", "explain", "stages"}
    assert all(len(tool["description"]) > 40 for tool in tools.values())
    for name in ("start_run", "stages"):
        assert all(network in json.dumps(tools[name]) for network in NETWORKS), name


def test_start_watch_and_stop_a_run(client: Client, run: str) -> None:
    first = call(client, "run_status", run=run, owner="anna")
    assert first["mine"] and first["config"]["epochs"] == 300
    assert re.fullmatch(r"ResNet50-C4, 300 epochs, \d\d:\d\d", first["title"])
    assert first["columns"]["points"][:2] == ["step", "loss"] and first["columns"]["epochs"][:2] == ["step", "epoch"]
    deadline = time.monotonic() + 30
    while (later := call(client, "run_status", run=run, after=first["seq"]))["seq"] == first["seq"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert later["seq"] > first["seq"] and not later["reset"] and not later["mine"] and "columns" not in later
    with pytest.raises(AppError, match="not started by you"):
        call(client, "stop_run", run=run, owner="bert")
    with pytest.raises(AppError, match="active run"):
        call(client, "start_run", model="vgg16", recipe=RECIPE, owner="anna")
    begun = time.monotonic()
    assert call(client, "stop_run", run=run, owner="anna")["state"] in ("stopping", "stopped")
    assert time.monotonic() - begun < 0.5


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("start_run", {"model": "vgg19", "recipe": {}, "owner": "x"}, "vgg19"),
        ("start_run", {"model": "vgg16", "recipe": {"epochs": -1}, "owner": "x"}, "from 1 to 1,000"),
        ("start_run", {"model": "vgg16", "recipe": {"colour": "red"}, "owner": "x"}, "JSON object"),
        ("start_run", {"model": "vgg16", "recipe": {"start_from": "/etc/passwd"}, "owner": "x"}, "no checkpoint"),
        ("run_status", {"run": "../../etc"}, "no run"),
        ("stages", {"model": "vgg16", "input_size": 8}, "32 to 1,024 pixels"),
        ("stages", {"model": "vgg19"}, "choose vgg16"),
        ("stages", {"model": "vgg16", "input_size": 32.5}, "wrong type: give int, not float"),
        ("run_status", {"run": None}, "wrong type"),
        ("run_status", {"run": "resnet50", "owner": 5}, "wrong type"),
        ("start_run", {"model": "vgg16", "recipe": "epochs"}, "wrong type"),
    ],
)
def test_errors_are_sentences(client: Client, name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AppError, match=sentence):
        call(client, name, **arguments)


def test_wrong_types_missing_and_unknown_arguments_are_answered_in_a_sentence(app: App) -> None:
    for kind, count in ((fuzz.api, 60), (fuzz.page, 60)):
        found = kind(count, app)
        assert found["answered"] == count == sum(found.values()), found


def test_start_run_needs_only_a_network(client: Client) -> None:
    answer = call(client, "start_run", model="resnet50")
    assert set(answer) == {"run", "owner"} and len(answer["owner"]) == 32
    assert call(client, "run_status", run=answer["run"])["config"]["seconds"] == 60
    with pytest.raises(AppError, match="not started by you"):
        call(client, "stop_run", run=answer["run"], owner="")
    call(client, "stop_run", run=answer["run"], owner=answer["owner"])
    deadline = time.monotonic() + 60
    while "end" not in call(client, "run_status", run=answer["run"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_stages_match_the_known_sizes(client: Client) -> None:
    table = call(client, "stages", model="vgg16")
    assert table["parameters"] == 15_253_578 and [row["output"][1] for row in table["stages"]] == [16, 8, 4, 2, 1, 1]
    assert all(row["explanation"] for row in table["stages"])


def test_classify_a_picture_and_refuse_other_files(client: Client, picture: Path, tmp_path: Path) -> None:
    answer = call(client, "classify", picture=handle_file(picture), checkpoint="resnet50")
    scores = [p["score"] for p in answer["predictions"]]
    assert len(scores) == 10 and sum(scores) == pytest.approx(1, abs=1e-4) and scores == sorted(scores, reverse=True)
    assert set(answer) == {"checkpoint", "model", "predictions", "unusual", "unsure"}
    for checkpoint in ("../resnet50", "/etc", "nothing", ""):
        with pytest.raises(AppError, match="checkpoint"):
            call(client, "classify", picture=handle_file(picture), checkpoint=checkpoint)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(picture.read_bytes()[:400])
    for name, sentence in [
        ("text.png", "^This file is not a picture; give one of"),
        ("cut.jpg", "^This file cannot be"),
    ]:
        with pytest.raises(AppError, match=sentence):
            call(client, "classify", picture=handle_file(tmp_path / name), checkpoint="resnet50")


def test_explain_answers_with_json_and_a_picture(client: Client, picture: Path, tmp_path: Path) -> None:
    given = {"picture": handle_file(picture), "checkpoint": "resnet50"}
    report, image = call(client, "explain", **given, label="ring", stage="stage1")
    assert (report["class"], report["stage"]) == ("ring", "stage1") and report["maps"][-1]["size"] == [1024, 2, 2]
    assert len(report["predictions"]) == 10 and len(report["grad_cam"]) == len(report["occlusion"]) == 4
    with Image.open(image) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (4 * 288, 288))
    for wrong, sentence in [
        ({"picture": None}, "Give a picture"),
        ({"checkpoint": "../resnet50"}, "There is no checkpoint"),
        ({"label": "cat"}, "Class: choose disc, ring"),
        ({"stage": "stage3"}, "'stage3' is too small, below 4x4; choose stem"),
        ({"label": None, "stage": 5}, "there is no '5'"),
    ]:
        with pytest.raises(AppError, match=sentence):
            call(client, "explain", **given | {"label": "ring", "stage": "stage1"} | wrong)


def test_explain_as_an_mcp_tool_answers_with_an_image(app: App, picture: Path) -> None:
    link = f"data:image/jpeg;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    arguments = {"picture": link, "checkpoint": "resnet50", "label": "", "stage": ""}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "explain", "arguments": arguments}}
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(f"{app.url}/gradio_api/mcp/", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        (line,) = (line for line in answer.read().decode().splitlines() if line.startswith("data: "))
    parts = json.loads(line.removeprefix("data: "))["result"]["content"]
    (image,) = (part for part in parts if part["type"] == "image")
    assert image["mimeType"] == "image/png" and "grad_cam" in parts[0]["text"]
    with Image.open(io.BytesIO(base64.b64decode(image["data"]))) as drawn:
        assert drawn.size == (4 * 288, 288)


def test_twenty_visitors_classify_while_a_run_trains(app: App, client: Client, run: str, tmp_path: Path) -> None:
    """Each shows a picture of one colour; each must get the answer that this colour gets alone."""
    files = []
    for i in range(20):
        files.append(tmp_path / f"{i}.png")
        Image.new("RGB", (64, 64), (12 * i, 255 - 12 * i, (i * 71) % 256)).save(files[-1])

    def ask(file: Path) -> Any:
        return call(Client(app.url, verbose=False), "classify", picture=handle_file(file), checkpoint="resnet50")

    with concurrent.futures.ThreadPoolExecutor(20) as visitors:
        together = list(visitors.map(ask, files))
    alone = [call(client, "classify", picture=handle_file(file), checkpoint="resnet50") for file in files]
    for one, other in zip(together, alone, strict=True):
        assert [p["label"] for p in one["predictions"]] == [p["label"] for p in other["predictions"]]
        assert one["predictions"][0]["score"] == pytest.approx(other["predictions"][0]["score"], abs=1e-4)
    assert len({tuple(p["score"] for p in answer["predictions"]) for answer in alone}) == 20
    assert call(client, "run_status", run=run)["state"] == "training"


def test_stop_is_immediate_while_many_watch(app: App, client: Client, run: str) -> None:
    config = json.load(urllib.request.urlopen(f"{app.url}/config", timeout=10))
    view = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "run")

    def ask(function: str, **asked: Any) -> Any:
        body = {"data": asked, "component_id": view, "fn_name": function, "session_hash": "x", "event_id": None}
        request = urllib.request.Request(
            f"{app.url}/gradio_api/component_server", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=30))

    with concurrent.futures.ThreadPoolExecutor(45) as tabs:
        ended = time.monotonic() + 6

        def watch(_: int) -> int:
            answers, seq = 0, -1
            while time.monotonic() < ended:
                seq = ask("watch", run=run, after=seq)["seq"]
                answers += 1
                time.sleep(1)
            return answers

        watching = [tabs.submit(watch, i) for i in range(45)]
        time.sleep(3)
        begun = time.monotonic()
        assert ask("change", action="stop", run=run, owner="anna") == {}
        assert ask("watch", run=run, after=0)["state"] in ("stopping", "stopped")
        assert time.monotonic() - begun < 0.5
        assert all(tab.result() >= 3 for tab in watching)
