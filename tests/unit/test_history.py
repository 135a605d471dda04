"""Events to JSON and back, and a run's history from its events."""

import base64
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cnn_demo.runs.files import EventLog
from cnn_demo.runs.history import History, course_log, history_of, on_gpu
from cnn_demo.training import events
from cnn_demo.training.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    Progress,
    RunFinished,
    RunQueued,
    RunStarted,
    Validated,
)


def png(width: int, height: int) -> str:
    Image.effect_noise((width, height), 200).convert("RGB").save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


STARTED = RunStarted(
    step=0,
    steps_per_epoch=500,
    device="CPU",
    precision="float32",
    parameters=7,
    train_pictures=50_000,
    validation_pictures=0,
    test_pictures=10_000,
    samples=(png(32, 32),) * 10,
)
CHECK = Validated(step=90, pictures=200, accuracy=0.25, answers=((3, 0.125), (7, 1.0)))
RUN = [
    RunQueued(seq=0),
    STARTED,
    CheckpointSaved(step=0, best_step=0),
    Progress(phase="training", epoch=1, step=90, share=0.1, loss=2.0, loss_low=1.5, loss_high=2.5),
    Progress(phase="training", epoch=1, step=310, share=0.3, loss=1.0, logged=((100, 1.25), (200, 1.0), (300, 0.75))),
    Progress(phase="validating", epoch=1, step=500, share=0.5),
    EpochDone(epoch=1, step=500, train_loss=1.0, validation_loss=0.9, validation_accuracy=0.7, best=True),
    EpochDone(epoch=2, step=1000, train_loss=0.8, validation_loss=0.95, validation_accuracy=0.6, best=False),
    RunFinished(reason="finished", message="The budget is spent.", epochs=2, step=1000, test_accuracy=0.69),
]


@pytest.mark.parametrize("event", [*RUN, CHECK], ids=lambda event: type(event).__name__)
def test_an_event_survives_json(event: Event) -> None:
    assert events.from_dict(json.loads(json.dumps(events.to_dict(event)))) == event


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        (STARTED, "steps_per_epoch", 0),
        (STARTED, "device", "CPU\n# A heading"),
        (STARTED, "device", "x" * 3000),
        (STARTED, "precision", "[a link](http://a.b)"),
        (RUN[4], "share", 1.5),
        (RUN[4], "loss", float("nan")),
        (RUN[4], "logged", [[2**70, 1.0]]),
        (RUN[6], "validation_accuracy", -0.1),
        (RUN[8], "test_accuracy", 2**70),
        (RUN[8], "step", True),
        (RUN[8], "test_accuracy", 5),
        (RUN[8], "test_pictures", -1),
        (RUN[4], "share", 3),
        (RUN[4], "accuracy", 1.5),
        (CHECK, "answers", [[3, 1.5]]),
        (CHECK, "answers", [[-1, 0.5]]),
        (CHECK, "answers", [[3, 0.5]] * 11),
        (STARTED, "samples", [png(32, 32)] * 11),
        (STARTED, "samples", png(32, 32)),
        (STARTED, "samples", [png(33, 32)]),
        (STARTED, "samples", [png(32, 32) + "A" * 6000]),
        (STARTED, "samples", [base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()]),
        (STARTED, "samples", [None]),
    ],
)
def test_what_a_stranger_wrote_must_be_in_range(event: Event, field: str, value: object) -> None:
    with pytest.raises(TypeError, match=field):
        events.from_dict(events.to_dict(event) | {field: value})


def test_a_thumbnail_is_base64_and_nothing_else() -> None:
    for text in ('"><script>', png(32, 32)[:-4] + '">A=', " " + png(32, 32), "é"):
        with pytest.raises(ValueError):
            events.from_dict(events.to_dict(STARTED) | {"samples": [text]})


def test_a_loss_may_be_huge() -> None:
    huge = {**events.to_dict(RUN[4]), "loss": 1e30}
    assert events.from_dict(huge).loss == 1e30


def test_the_state_follows_the_events() -> None:
    history, states = History(), []
    for event in RUN:
        history.add(event)
        states.append(history.state)
    assert states[:2] == ["queued", "training"] and states[5] == "validating" and states[-1] == "finished"
    assert [p.step for p in history.curve] == [90, 310]
    assert history.best is RUN[6] and history.epochs == [RUN[6], RUN[7]] and history.finished is RUN[-1]


def test_a_continuation_replaces_what_was_lost() -> None:
    again = RunStarted(**{n: getattr(STARTED, n) for n in RunStarted.__slots__} | {"step": 200})
    history = history_of([*RUN[:5], CHECK, replace(CHECK, step=310), *RUN[5:8], again])
    assert [p.step for p in history.curve] == [90] and history.epochs == [] and history.best is None
    assert history.validations == [CHECK]


def test_something_else_is_no_event() -> None:
    with pytest.raises(TypeError, match="unknown event"):
        History().add(Event())
    with pytest.raises(KeyError):
        events.from_dict({"kind": "Exec", "command": "rm"})


def test_the_log_of_the_course_project() -> None:
    history = history_of([STARTED])
    assert course_log(RUN[4], history, 1) == [
        "Epoch [1/1], Step [100/500] Loss: 1.2500",
        "Epoch [1/1], Step [200/500] Loss: 1.0000",
        "Epoch [1/1], Step [300/500] Loss: 0.7500",
    ]
    second = Progress(phase="training", epoch=2, step=500, share=1, logged=((500, 0.5), (600, 0.25)))
    assert course_log(second, history, None) == [
        "Epoch [1], Step [500/500] Loss: 0.5000",
        "Epoch [2], Step [100/500] Loss: 0.2500",
    ]


def test_a_log_of_a_day_opens_in_seconds(tmp_path: Path) -> None:
    """345,000 events; the first and the last are never left out, nor what is no progress."""
    log = EventLog(tmp_path / "events.jsonl")
    line = json.dumps(events.to_dict(replace(RUN[4], seq=-7, step=77777)))
    lines = [line.replace("-7", str(seq)).replace("77777", str(seq + 1)) for seq in range(345_000)]
    for seq in range(0, 345_000, 20):
        lines[seq] = json.dumps(events.to_dict(replace(CHECK, seq=seq, step=seq + 1)))
    lines[1000] = json.dumps(events.to_dict(replace(RUN[6], seq=1000, step=1001)))
    log.path.write_text("\n".join(lines) + "\n")
    begun = time.monotonic()
    history = history_of(log.read())
    assert time.monotonic() - begun < 3
    assert 900 < len(history.validations) < 1000
    assert history.seq == 344_999 and len(history.epochs) == 1 and 15_000 < len(history.curve) < 25_000
    log.repair()
    assert log.append(RUN[-1]).seq == 345_000


def test_the_use_of_a_gpu_in_words() -> None:
    sizes = {"step": 0, "steps_per_epoch": 1, "parameters": 1, "train_pictures": 1, "validation_pictures": 1}
    started = RunStarted(**sizes, test_pictures=1, device="NVIDIA H200", precision="bfloat16")
    latest = Progress(phase="training", epoch=1, step=1, share=0.5, images_per_second=200_000.0, memory=3_100_000_000)
    assert on_gpu(latest, started) == " · 3.1 GB"
    started = replace(started, flops_per_image=2e9, peak_flops=1e15)
    assert on_gpu(latest, started) == " · 400 TFLOP/s, 40% of its peak · 3.1 GB"
    assert on_gpu(replace(latest, images_per_second=0.0, memory=0), started) == ""
