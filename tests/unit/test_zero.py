"""ZeroGPU with the real `spaces` package; a stand-in on loopback lends the GPU, and the card itself is missing."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cnn_demo.runs import folder, zero
from cnn_demo.training.config import RunConfig

ROOT = Path(__file__).parents[2]
VISITOR = "header." + base64.urlsafe_b64encode(b'{"user": "ada"}').decode().rstrip("=") + ".signature"
SCRIPT = """
import json, os, sys, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from starlette.datastructures import Headers
import multiprocessing
import spaces.zero.torch
from gradio.context import LocalContext
from cnn_demo.pictures import dataset, shapes, sources
from cnn_demo.runs import zero
from cnn_demo import settings
from cnn_demo.training.config import RunConfig
from cnn_demo.runs.service import Service

spaces.zero.torch.init = spaces.zero.torch.move = lambda *_, **__: None  # what needs a card
images = shapes.draw()
parts = {name: getattr(images, name)[:600 if "train" in name else 100] for name in dataset.TENSORS}
images = replace(images, **parts)
sources.load = lambda *_: images
service = Service(settings.read())

def as_visitor(act, *arguments):
    LocalContext.request.set(SimpleNamespace(headers=Headers({"x-ip-token": sys.argv[1]})))
    try:
        return act(*arguments)
    finally:
        LocalContext.request.set(None)  # as Gradio does when the handler ends

def wait(run, *states):
    for _ in range(1200):
        seen = service.watch(run)
        if seen["state"] in states:
            return seen
        assert seen["state"] not in ("finished", "failed"), seen
        time.sleep(0.05)
    raise AssertionError(seen)

def start(**fields):
    fields |= {"dataset": "shapes", "batch_size": 50, "validation_pictures": 100, "optimizer": "sgd"}
    config = RunConfig(model="resnet50", learning_rate=0.05, **fields)
    return as_visitor(service.submit, config, "owner")

def report(name, run, seen):
    weights = (service.root / run / "model.safetensors").is_file()
    print(json.dumps([name, run, seen["state"], seen["text"], weights]), flush=True)

run = start(epochs=2)
report("finished", run, wait(run, "finished", "failed"))

run = start(epochs=1000)
while not (seen := wait(run, "training"))["points"]:
    time.sleep(0.05)
begun = time.monotonic()
service.stop(run, "owner")
report("stopped", run, wait(run, "stopped", "failed"))
print(json.dumps(["seconds", time.monotonic() - begun]), flush=True)

usual, zero.call_seconds = zero.call_seconds, lambda config: 7
as_visitor(service.resume, run, "owner")
report("limited", run, wait(run, "stopped", "failed"))
zero.call_seconds = usual

as_visitor(service.resume, run, "owner")
step = wait(run, "training")["seq"]
while wait(run, "training")["seq"] < step + 5:
    time.sleep(0.05)
for child in multiprocessing.active_children():
    child.kill()
report("killed", run, wait(run, "failed", "interrupted"))
as_visitor(service.resume, run, "owner")
wait(run, "training")
service.stop(run, "owner")
report("again", run, wait(run, "stopped", "failed"))

zero.call_seconds = lambda config: 22
as_visitor(service.resume, run, "owner")
report("refused again", run, wait(run, "failed", "stopped"))
zero.call_seconds = usual

run = start(seconds=7)
report("refused", run, wait(run, "failed", "finished"))
service.close()
"""


class Scheduler(http.server.BaseHTTPRequestHandler):
    asked: list[tuple[str, dict]]

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        fields = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append((url.path, fields))
        answer, status = {}, 200
        if url.path == "/schedule":
            answer = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "one call"}
            if fields["durationSeconds"] == "22":  # 7 and the time around them
                answer, status = {"left": 5, "wait": "PT1H"}, 429
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """What happened to a few runs of a process that believes it is on ZeroGPU."""
    root = tmp_path_factory.mktemp("zero")
    (root / "cgroup").write_text("0::/a/space\n")
    handler = type("Handler", (Scheduler,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = os.environ | {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_address[1]}",
            "ZEROGPU_PROC_SELF_CGROUP_PATH": str(root / "cgroup"),
            "CNN_DEMO_CHECKPOINTS": str(root / "checkpoints"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, VISITOR], env=environ, capture_output=True, text=True, timeout=200
        )
        server.shutdown()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    yield {line[0]: line[1:] for line in lines} | {"asked": handler.asked, "root": root / "checkpoints", "all": done}


def test_a_run_trains_in_the_process_that_has_the_gpu(outcome: dict) -> None:
    run, state, _, weights = outcome["finished"]
    assert state == "finished" and weights
    history = folder.find(outcome["root"], run).history()
    assert history.state == "finished" and history.finished.step == 20 and history.finished.test_pictures == 100
    assert [path for path, _ in outcome["asked"][:3]] == ["/schedule", "/allow", "/release"]


def test_the_visitors_quota_pays_for_the_seconds_of_the_recipe(outcome: dict) -> None:
    asked = [fields for path, fields in outcome["asked"] if path == "/schedule"]
    assert {fields["token"] for fields in asked} == {VISITOR}  # though the handler had long ended
    seconds = [int(fields["durationSeconds"]) for fields in asked]  # on a half card half as much again
    assert seconds[0] == zero.LONGEST_CALL_SECONDS and seconds[-1] == 22
    assert VISITOR not in "".join(path.read_text() for path in outcome["root"].glob("*/events.jsonl"))


def test_stop_is_prompt_and_saves_a_checkpoint(outcome: dict) -> None:
    assert outcome["stopped"][1] == "stopped" and outcome["stopped"][3]
    assert outcome["seconds"][0] < 3


def test_a_run_longer_than_the_call_stops_itself_and_can_be_continued(outcome: dict) -> None:
    assert outcome["limited"][1] == "stopped" and "can be continued" in outcome["limited"][2]


def test_a_killed_call_leaves_a_run_that_continues(outcome: dict) -> None:
    run, state, text, weights = outcome["killed"]
    assert state == "failed" and "GPU task aborted" in text and weights
    assert outcome["again"][1] == "stopped"
    steps = [e.step for e in folder.find(outcome["root"], run).log.read() if type(e).__name__ == "RunStarted"]
    assert len(steps) == 4 and steps[0] == 0 and steps == sorted(steps) and steps[-1] > 0


def test_without_quota_the_run_says_so(outcome: dict) -> None:
    assert outcome["refused"][1] == "failed" and "quota" in outcome["refused"][2]
    assert (
        outcome["refused again"][1] == "failed" and "quota" in outcome["refused again"][2]
    )  # a run that was continued


def test_a_call_lasts_as_long_as_the_recipe_up_to_the_limit() -> None:
    ask = {"model": "resnet50", "dataset": "shapes"}
    assert zero.call_seconds(RunConfig(**ask, seconds=30)) == 45
    assert zero.call_seconds(RunConfig(**ask, seconds=600)) == zero.call_seconds(RunConfig(**ask, epochs=3)) == 75
    assert zero.note(RunConfig(**ask, seconds=30)) == "" and not zero.is_zero()  # not on ZeroGPU here
