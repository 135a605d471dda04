"""A run in the browser: it lives on the server, whatever happens to the page."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from cnn_demo.runs import folder
from cnn_demo.training import events
from cnn_demo.training.config import RunConfig
from tests.apps import App
from tests.browser.conftest import LONG_RUN, open_settings, open_tab, run_id, traces, wait_for_points

Visit = Callable[..., Page]


def test_first_view_is_a_finished_run_that_replays(visit: Visit) -> None:
    page = visit()
    expect(page.locator(".badge")).to_have_text("example")
    expect(page.locator(".run-card")).to_contain_text("test accuracy (40 images)")
    answers = page.get_by_role("img", name=re.compile(r": answered .*, (correct|wrong)\. Score of "))
    expect(answers).to_have_count(10)
    wait_for_points(page, 2)
    whole = len(traces(page)["loss, smoothed"])
    page.get_by_role("button", name="Replay").click()
    page.wait_for_function(f"() => document.querySelector('.run-chart')?.data?.[1].x.length < {whole}")
    page.get_by_role("button", name="Show the full run").click()
    page.wait_for_function(f"() => document.querySelector('.run-chart')?.data?.[1].x.length === {whole}")
    expect(page.get_by_role("button", name="Discard")).to_have_count(0)  # it has no owner


def test_an_update_is_less_than_a_kilobyte(training: Page) -> None:
    """Of two seconds (8 points), that is: a slow page asks less often, and then gets more at once."""
    bodies: list[bytes] = []
    training.on("response", lambda answer: bodies.append(answer.body()) if "component_server" in answer.url else None)
    for _ in range(3):
        wait_for_points(training, len(traces(training)["loss, smoothed"]) + 1)
    expect(training.locator(".run-status")).to_contain_text(
        re.compile(r"(Training|Validating).* epoch \d+ of 500, step")
    )
    expect(training.get_by_role("button", name="Your run is active")).to_be_disabled()
    updates = [(len(body), len(json.loads(body)["points"])) for body in bodies if b"points" in body]
    assert len(updates) >= 2 and all(size < 1000 + 45 * max(0, points - 8) for size, points in updates), updates


def test_reload_restores_run_and_form(training: Page) -> None:
    run = run_id(training)
    before = len(traces(training)["loss, smoothed"])
    begun = time.monotonic()
    training.goto(training.url.split("?")[0])  # without the run in the address: the browser remembers it
    wait_for_points(training, before)
    assert time.monotonic() - begun < 10  # under 2 s where the machine does nothing else; this one trains, too
    expect(training.locator(".run-head code")).to_have_text(run)
    expect(training.get_by_role("button", name="Stop and keep the best")).to_be_visible()
    open_settings(training)
    expect(training.get_by_label("Epochs")).to_have_value("500")
    expect(training.get_by_label("Shapes (drawn by the program)")).to_be_checked()


def test_other_visitors_see_a_run_only_by_link(training: Page, visit: Visit) -> None:
    run = run_id(training)
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


def test_stop_is_immediate_and_continue_resumes(training: Page) -> None:
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


def test_second_visitor_waits_in_the_queue_and_leaves_it(training: Page, visit: Visit) -> None:
    second = visit(LONG_RUN)
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


def test_overlay_two_runs(app: App, visit: Visit, shipped: Path) -> None:
    other = app.root / "from-the-command-line"
    shutil.copytree(shipped, other)
    description = json.loads((other / "config.json").read_text())
    description["recipe"] |= {"seed": 7, "augmentation": "flip"}
    (other / "config.json").write_text(json.dumps(description))
    page = visit("?__theme=light")
    page.get_by_text("Compare with other runs").click()
    page.get_by_label(re.compile("from-the-command-line")).check()
    table = page.locator(".run-table table")
    expect(page.get_by_label(re.compile("from-the-command-line"))).to_be_focused()  # the list was drawn again
    expect(table.get_by_role("row", name="Seed")).to_contain_text("7")
    row = table.get_by_role("row", name="Augmentation").locator("td")
    expect(row).to_have_text(["Flip and shift", "Flip"])  # as in the form
    expect(table).to_contain_text("test accuracy")
    page.wait_for_function("() => document.querySelector('.run-chart')?.data?.length === 18")
    assert {"1: loss, smoothed", "2: loss, smoothed"} <= set(traces(page))
    expect(page.locator(".run-samples h3")).to_have_count(2)  # whose images they are
    page.get_by_label(re.compile("from-the-command-line")).uncheck()
    page.wait_for_function("() => document.querySelector('.run-chart')?.data?.length === 9")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page).to_have_url(re.compile(r"\?run=from-the-command-line&__theme=light$"))  # Gradio's own stays
    shutil.rmtree(other)


def test_long_run_draws_few_points_and_every_extreme(app: App, visit: Visit) -> None:
    run = folder.create(app.root, RunConfig(model="vgg16", dataset="shapes", epochs=10))
    with run.locked():
        run.log.append(
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
            run.log.append(events.Progress(**fields, loss=loss, loss_low=loss, loss_high=loss, accuracy=0.5))
            if step % 1000 == 0:
                accuracy = 0.9 if step == 6000 else 0.5
                found = {"validation_loss": 1.0, "validation_accuracy": accuracy, "best": step in (1000, 6000)}
                run.log.append(events.EpochDone(epoch=step // 1000, step=step, train_loss=2.0, **found))
    page = visit(f"?run={run.id}")
    wait_for_points(page, 100)
    drawn = traces(page)
    assert sum(len(values) for values in drawn.values()) <= 2000
    assert max(drawn["loss, raw"]) == 9.25 and min(drawn["loss, raw"]) == 0.125
    assert drawn["best checkpoint"] == [0.9] and set(drawn["accuracy, raw"]) == {0.5}
    expect(page.locator(".badge")).to_have_text("interrupted")
    shutil.rmtree(run.folder)


def test_run_continues_after_a_killed_server(training: Page, app: App) -> None:
    run = run_id(training)
    app.end(signal.SIGKILL)
    app.start()
    training.goto(app.url)
    expect(training.locator(".run-head code")).to_have_text(run)
    expect(training.locator(".badge")).to_have_text("interrupted")
    training.get_by_role("button", name="Continue").click()
    expect(training.locator(".badge")).to_have_text("training")


def test_rename_a_run(training: Page, visit: Visit) -> None:
    run, title = run_id(training), training.locator(".run-head strong").inner_text()
    assert re.fullmatch(r"ResNet50-C4, 500 epochs, \d\d:\d\d", title)
    training.get_by_role("button", name="Rename").click()
    field = training.get_by_label("Title of this run")
    expect(field).to_be_focused()
    field.fill("draft")
    field.press("Escape")
    expect(training.locator(".run-head strong")).to_have_text(title)
    training.get_by_role("button", name="Rename").click()
    field.fill("x" * 100)
    assert len(field.input_value()) == 80
    field.fill("My <b>first</b> run")
    wait_for_points(training, len(traces(training)["loss, smoothed"]) + 4)  # updates leave the field alone
    expect(field).to_have_value("My <b>first</b> run")
    field.press("Enter")
    expect(training.locator(".run-head strong")).to_have_text("My <b>first</b> run")
    expect(training.get_by_role("button", name="Rename")).to_be_focused()
    expect(training.locator(".run-head code")).to_have_text(run)
    watching = visit(f"?run={run}")
    expect(watching.locator(".run-head strong")).to_have_text("My <b>first</b> run")
    expect(watching.get_by_role("button", name="Rename")).to_have_count(0)
    open_tab(training, "Classify")
    training.get_by_label("Checkpoint").click()
    expect(training.get_by_role("option", name="My <b>first</b> run")).to_have_count(1)
    open_tab(training, "Train")


def test_evaluation_opens_in_the_result(visit: Visit) -> None:
    page = visit()
    asked: list[str] = []
    page.on(
        "request", lambda request: asked.append(request.post_data or "") if "component_server" in request.url else 0
    )
    expect(page.locator(".run-card")).to_contain_text("test accuracy")
    for _ in range(3):  # opened, closed, opened: asked for once
        page.locator(".run-evaluation summary").click()
    expect(page.locator(".run-evaluation")).to_contain_text("on 40 images. Calibration error")
    expect(page.get_by_role("img", name=re.compile("^Confusion matrix"))).to_be_visible()
    assert sum('"evaluation"' in body for body in asked) == 1


def test_damaged_evaluation_shows_a_sentence(visit: Visit, app: App) -> None:
    file = app.root / "resnet50" / "evaluation.json"
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "confusion": [[1]]}))
    page = visit()
    page.locator(".run-evaluation summary").click()
    expect(page.locator(".run-evaluation")).to_contain_text("The evaluation of resnet50 is damaged")
    file.write_text(content)
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()


def test_unknown_run_shows_a_sentence(visit: Visit) -> None:
    page = visit("?run=resnet50-gone")
    expect(page.locator(".run-note")).to_contain_text("is not here")
    expect(page.locator(".badge")).to_have_text("example")
