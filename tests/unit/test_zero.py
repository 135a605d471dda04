"""ZeroGPU with the real `spaces` package; a stand-in on loopback lends the GPU, and the card itself is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnn_demo.runs import folder, zero
from cnn_demo.training.config import RunConfig
from tests.zero_platform import QUEUED, REFUSED, VISITOR, platform, tokens

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, sys, threading, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from starlette.datastructures import Headers
import multiprocessing
import spaces.zero.config, spaces.zero.torch
from gradio.context import LocalContext
from cnn_demo.pictures import dataset, shapes, sources
from cnn_demo.runs import zero
from cnn_demo import settings
from cnn_demo.training.config import RunConfig
from cnn_demo.runs.service import Service

spaces.zero.torch.init = spaces.zero.torch.move = lambda *_, **__: None  # what needs a card
spaces.zero.config.get_config()["duration_factor"] = 1.5  # as of half an RTX Pro 6000
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

run = start(seconds=40)
while not (seen := wait(run, "training"))["points"]:
    time.sleep(0.05)
begun = time.monotonic()
service.stop(run, "owner")
report("stopped", run, wait(run, "stopped", "failed"))
print(json.dumps(["seconds", time.monotonic() - begun]), flush=True)

usual, zero.call_seconds = zero.call_seconds, lambda *_: 6
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

zero.call_seconds = lambda *_: int(sys.argv[2])
as_visitor(service.resume, run, "owner")
report("refused again", run, wait(run, "failed", "stopped"))
zero.call_seconds = usual

run = start(seconds=6)
report("refused", run, wait(run, "failed", "finished"))

run = start(seconds=9)
while (seen := wait(run, "preparing"))["text"] == "Preparing the network" or "shapes" in seen["text"]:
    time.sleep(0.01)
report("waiting", run, seen)
begun = time.monotonic()
service.stop(run, "owner")
report("given up", run, wait(run, "stopped", "failed"))
print(json.dumps(["given up after", time.monotonic() - begun]), flush=True)
for thread in threading.enumerate():
    if thread.name == "zero":
        thread.join(30)  # the platform lends the GPU after all
service.close()
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """What happened to a few runs of a process that believes it is on ZeroGPU."""
    root = tmp_path_factory.mktemp("zero")
    with platform(root) as (environ, asked):
        environ |= {"CNN_DEMO_CHECKPOINTS": str(root / "checkpoints"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, VISITOR, str(REFUSED)]
        done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    yield {line[0]: line[1:] for line in lines} | {"asked": asked, "root": root / "checkpoints", "all": done}


def test_a_run_trains_in_the_process_that_has_the_gpu(outcome: dict) -> None:
    run, state, _, weights = outcome["finished"]
    assert state == "finished" and weights
    history = folder.find(outcome["root"], run).history()
    assert history.state == "finished" and history.finished.step == 20 and history.finished.test_pictures == 100
    assert [path for path, _ in outcome["asked"][:3]] == ["/schedule", "/allow", "/release"]


def test_the_visitors_quota_pays_for_the_seconds_that_were_told(outcome: dict) -> None:
    assert set(tokens(outcome["asked"])) == {VISITOR}  # though the handler had long ended
    first, second, _, third, fourth, *last = (
        int(fields["durationSeconds"]) for path, fields in outcome["asked"] if path == "/schedule"
    )
    assert (first, second) == (60, 56)  # a part of a long run; 40 s and the time around them, in steps of 1.5 s
    assert 56 > third >= fourth > 45  # what was done already is not asked for again
    assert last == [REFUSED, REFUSED, QUEUED]
    assert VISITOR not in "".join(path.read_text() for path in outcome["root"].glob("*/events.jsonl"))


def test_stop_is_prompt_and_saves_a_checkpoint(outcome: dict) -> None:
    assert outcome["stopped"][1] == "stopped" and outcome["stopped"][3]
    assert outcome["seconds"][0] < 3


def test_a_run_that_ends_with_its_call_says_so_and_what_is_left(outcome: dict) -> None:
    run, state, text, _ = outcome["limited"]
    assert state == "stopped" and text.startswith("At step ")
    assert "this Space's GPU call ended after 1 s; the run can be continued" in text
    assert "at most this is left: 119 s signed out, 299 s signed in, 2,399 s with PRO" in text
    assert text in [e.message for e in folder.find(outcome["root"], run).log.read() if hasattr(e, "message")]


def test_a_killed_call_leaves_a_run_that_continues(outcome: dict) -> None:
    run, state, text, weights = outcome["killed"]
    assert state == "failed" and text.startswith("The GPU call ended: GPU task aborted") and weights
    assert outcome["again"][1] == "stopped"
    steps = [e.step for e in folder.find(outcome["root"], run).log.read() if type(e).__name__ == "RunStarted"]
    assert len(steps) == 4 and steps[0] == 0 and steps == sorted(steps) and steps[-1] > 0


def test_a_refusal_reads_as_one(outcome: dict) -> None:
    for name in ("refused", "refused again"):  # the second is of a run that was continued
        _, state, text, _ = outcome[name]
        assert state == "failed" and text.startswith("The GPU of this Space was refused: You have exceeded your")
        assert f"({REFUSED}s requested vs. 5s left). Try again in 1:00:00." in text


def test_a_run_that_waits_for_the_platform_says_so_and_stops_at_once(outcome: dict) -> None:
    run, state, text, _ = outcome["waiting"]
    assert (state, text) == ("preparing", "Preparing: waiting for this Space's GPU")
    _, state, text, weights = outcome["given up"]
    assert (state, text, weights) == ("stopped", "Stopped while it waited for this Space's GPU.", False)
    assert outcome["given up after"][0] < 1
    assert [path for path, _ in outcome["asked"][-3:]] == ["/schedule", "/allow", "/release"]  # it came, unused
    assert not [e for e in folder.find(outcome["root"], run).log.read() if type(e).__name__ == "RunStarted"]


def test_a_call_lasts_as_long_as_the_rest_of_the_recipe() -> None:
    ask = {"model": "resnet50", "dataset": "shapes"}
    minute = RunConfig(**ask, seconds=60)
    assert zero.call_seconds(RunConfig(**ask, seconds=30)) == 45 and zero.call_seconds(minute) == 75
    assert zero.call_seconds(minute, done=48) == 27 and zero.call_seconds(minute, done=61) == 15
    assert zero.call_seconds(RunConfig(**ask, seconds=600)) == zero.call_seconds(RunConfig(**ask, epochs=3)) == 60
    assert zero.call_seconds(RunConfig(**ask, seconds=600), done=560) == 55
    assert zero.note(RunConfig(**ask, seconds=30)) == "" and not zero.is_zero()  # not on ZeroGPU here
