"""A run in the browser: it lives on the server, and the page shows it whatever happens to the page."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from cnn_demo.runs import folder as runs
from cnn_demo.training import events
from cnn_demo.training.config import RunConfig
from tests.apps import App
from tests.browser.conftest import QUIET, traces, wait_for_points

Visit = Callable[..., Page]


def test_the_first_sight_is_a_finished_run_that_can_be_replayed(visit: Visit) -> None:
    page = visit()
    expect(page.locator(".badge")).to_have_text("example")
    expect(page.locator(".run-card")).to_contain_text("test pictures are told right")
    wait_for_points(page, 2)
    whole = len(traces(page)["loss, smoothed"])
    page.get_by_role("button", name="Replay").click()
    page.wait_for_function(f"() => document.querySelector('.run-chart')?.data?.[1].x.length < {whole}")
    page.get_by_role("button", name="Show all of it").click()
    page.wait_for_function(f"() => document.querySelector('.run-chart')?.data?.[1].x.length === {whole}")
    expect(page.get_by_role("button", name="Discard")).to_have_count(0)  # it is nobody's


def test_the_curve_grows_by_less_than_a_kilobyte_a_time(training: Page) -> None:
    bodies: list[int] = []
    training.on(
        "response", lambda answer: bodies.append(len(answer.body())) if "component_server" in answer.url else None
    )
    for _ in range(3):
        wait_for_points(training, len(traces(training)["loss, smoothed"]) + 1)
    expect(training.locator(".run-status")).to_contain_text(
        re.compile(r"(Training|Validating).* epoch \d+ of 500, step")
    )
    expect(training.get_by_role("button", name="Your run is active")).to_be_disabled()
    assert len(bodies) >= 2 and max(bodies) < 1000, bodies


def test_a_reload_in_mid_run_brings_all_of_it_back(training: Page) -> None:
    run = training.locator(".run-head code").inner_text()
    before = len(traces(training)["loss, smoothed"])
    begun = time.monotonic()
    training.goto(training.url.split("?")[0])  # without the run in the address: the browser remembers it
    wait_for_points(training, before)
    assert time.monotonic() - begun < 10  # under 2 s where the machine does nothing else; this one trains, too
    expect(training.locator(".run-head code")).to_have_text(run)
    expect(training.get_by_role("button", name="Stop and keep the best")).to_be_visible()
    training.get_by_role("button", name="Recipe: every setting").click()
    expect(training.get_by_label("epochs")).to_have_value("500")
    expect(training.get_by_label("shapes")).to_be_checked()


def test_another_visitor_sees_nothing_of_it_but_by_link(training: Page, visit: Visit) -> None:
    run = training.locator(".run-head code").inner_text()
    other = visit()
    expect(other.locator(".badge")).to_have_text("example")
    other.get_by_text("Compare with other runs").click()
    expect(other.locator(".run-list")).to_contain_text("no other run")
    assert run not in other.content()
    watching = visit(f"?run={run}")
    expect(watching.locator(".run-head")).to_contain_text("you are watching")
    wait_for_points(watching, 3)
    expect(watching.get_by_role("button", name="Stop and keep the best")).to_have_count(0)
    expect(watching.get_by_role("button", name="Start training")).to_be_enabled()


def test_stop_is_heard_at_once_and_continue_goes_on(training: Page) -> None:
    begun = time.monotonic()
    training.get_by_role("button", name="Stop and keep the best").click()
    training.locator(".badge.stopping, .badge.stopped").wait_for()
    assert time.monotonic() - begun < 1  # the server answers within 0.5 s, see tests/api; here the browser draws, too
    expect(training.locator(".badge")).to_have_text("stopped")
    expect(training.locator(".run-card")).to_contain_text("model.safetensors")
    expect(training.get_by_role("button", name="Start training")).to_be_enabled()
    step = int(re.sub(r"\D", "", training.locator(".run-card dd").first.inner_text()))
    training.get_by_role("button", name="Continue").click()
    expect(training.locator(".badge")).to_have_text("training")
    training.wait_for_function(f"() => document.querySelector('.run-chart')?.data?.[1].x.at(-1) > {step}")
    steps = training.evaluate("() => document.querySelector('.run-chart')?.data?.[1].x")
    assert steps == sorted(set(steps))


def test_a_second_visitor_waits_in_line_and_may_leave_it(training: Page, visit: Visit) -> None:
    second = visit(QUIET)
    second.get_by_role("button", name="Start training").click()
    expect(second.locator(".badge")).to_have_text("queued")
    expect(second.locator(".run-status")).to_contain_text("Waiting: next in line")
    second.get_by_role("button", name="Leave the queue").click()
    expect(second.locator(".badge")).to_have_text("stopped")
    expect(second.get_by_role("button", name="Start training")).to_be_enabled()


def test_zoom_and_legend_survive_updates(training: Page) -> None:
    loss = training.locator(".run-chart .nsewdrag[data-subplot=xy]")
    loss.hover(position={"x": 40, "y": 60})
    training.mouse.down()
    loss.hover(position={"x": 140, "y": 60}, force=True)
    points = len(traces(training)["loss, smoothed"])
    training.wait_for_timeout(5000)  # the chart is not drawn in the middle of a drag, which would end it
    assert len(traces(training)["loss, smoothed"]) == points
    loss.hover(position={"x": 240, "y": 60}, force=True)
    training.mouse.up()
    training.wait_for_function("() => document.querySelector('.run-chart')._fullLayout.xaxis.autorange === false")
    training.locator(".legendtoggle").first.click()
    training.wait_for_function("() => document.querySelector('.run-chart')._fullData[0].visible === 'legendonly'")
    zoomed = training.evaluate("() => document.querySelector('.run-chart')._fullLayout.xaxis.range")
    wait_for_points(training, len(traces(training)["loss, smoothed"]) + 6)
    chart = "document.querySelector('.run-chart')._fullLayout"
    assert training.evaluate(f"() => {chart}.xaxis.range") == zoomed
    assert training.evaluate(f"() => {chart}.xaxis.autorange") is False
    assert training.evaluate("() => document.querySelector('.run-chart')._fullData[0].visible") == "legendonly"


def test_a_wrong_value_is_told_beside_its_control(visit: Visit) -> None:
    page = visit(QUIET)
    page.get_by_role("button", name="Recipe: every setting").click()
    page.get_by_label("batch size").fill("5000")
    page.get_by_label("batch size").blur()
    expect(page.locator(".recipe-line")).to_contain_text("give a whole number from 2 to 4,096")
    expect(page.locator("#set-batch_size")).to_contain_text("5000 is not allowed")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".run-note")).to_contain_text("Not started. --batch-size 5000 is not allowed")
    expect(page.locator(".badge")).to_have_text("example")


def test_the_form_makes_the_command_and_the_link(visit: Visit, app: App) -> None:
    page = visit()
    page.get_by_role("button", name="Best: 20 epochs").click()
    expect(page.locator(".command")).to_contain_text("--epochs 20")
    page.get_by_role("button", name="Recipe: every setting").click()
    page.get_by_label("sgd").check()
    page.get_by_label("seconds").fill("90")
    page.get_by_label("seconds").blur()
    expect(page.locator(".command")).to_contain_text("--seconds 90")
    expect(page.locator(".command")).to_contain_text("--optimizer sgd")
    expect(page.locator(".command")).not_to_contain_text("--epochs")
    expect(page.locator(".command")).not_to_contain_text("--learning-rate")  # the usual one of sgd
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link to this recipe").click()
    page.goto(page.evaluate("() => navigator.clipboard.readText()"))
    expect(page.locator(".command")).to_contain_text("--seconds 90")
    expect(page.locator(".command")).to_contain_text("--optimizer sgd")


def test_two_runs_are_laid_over_each_other(app: App, visit: Visit, shipped: Path) -> None:
    folder = app.root / "from-the-command-line"
    shutil.copytree(shipped, folder)
    description = json.loads((folder / "config.json").read_text())
    description["recipe"]["seed"] = 7
    (folder / "config.json").write_text(json.dumps(description))
    page = visit()
    page.get_by_text("Compare with other runs").click()
    page.get_by_label("from-the-command-line").check()
    table = page.locator(".run-table table")
    expect(table.get_by_role("row", name="seed")).to_contain_text("7")
    expect(table).to_contain_text("test accuracy")
    page.wait_for_function("() => document.querySelector('.run-chart')?.data?.length === 12")
    assert {"1: loss, smoothed", "2: loss, smoothed"} <= set(traces(page))
    page.get_by_label("from-the-command-line").uncheck()
    page.wait_for_function("() => document.querySelector('.run-chart')?.data?.length === 6")
    shutil.rmtree(folder)


def test_a_long_run_draws_few_points_and_every_extreme(app: App, visit: Visit) -> None:
    run = runs.create(app.root, RunConfig(model="vgg16", dataset="shapes", epochs=10))
    with run.held():
        run.append(
            events.RunStarted(
                step=0,
                steps_per_epoch=1000,
                device="a test",
                precision="float32",
                parameters=1,
                train_pictures=1,
                validation_pictures=1,
                test_pictures=1,
            )
        )
        for step in range(1, 10_001):
            loss = 9.25 if step == 4321 else 0.125 if step == 7777 else 2.0
            fields = {"phase": "training", "epoch": step // 1000 + 1, "step": step, "share": step / 10_000}
            run.append(events.Progress(**fields, loss=loss, loss_low=loss, loss_high=loss))
            if step % 1000 == 0:
                accuracy = 0.9 if step == 6000 else 0.5
                found = {"validation_loss": 1.0, "validation_accuracy": accuracy, "best": step in (1000, 6000)}
                run.append(events.EpochDone(epoch=step // 1000, step=step, train_loss=2.0, **found))
    page = visit(f"?run={run.id}")
    wait_for_points(page, 100)
    drawn = traces(page)
    assert sum(len(values) for values in drawn.values()) <= 2000
    assert max(drawn["loss, raw"]) == 9.25 and min(drawn["loss, raw"]) == 0.125
    assert drawn["best checkpoint"] == [0.9]
    expect(page.locator(".badge")).to_have_text("interrupted")
    shutil.rmtree(run.folder)


@pytest.mark.parametrize("how", [signal.SIGKILL])
def test_a_killed_server_leaves_a_run_that_continues(training: Page, app: App, how: signal.Signals) -> None:
    run = training.locator(".run-head code").inner_text()
    app.end(how)
    app.start()
    training.goto(app.url)
    expect(training.locator(".run-head code")).to_have_text(run)
    expect(training.locator(".badge")).to_have_text("interrupted")
    training.get_by_role("button", name="Continue").click()
    expect(training.locator(".badge")).to_have_text("training")


def test_an_unknown_run_is_told(visit: Visit) -> None:
    page = visit("?run=resnet50-gone")
    expect(page.locator(".run-note")).to_contain_text("is not here")
    expect(page.locator(".badge")).to_have_text("example")
