"""The form of a run in the browser: settings, presets, links, and values that are not allowed."""

import json
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from cnn_demo.runs.folder import Run
from tests.apps import App
from tests.browser.conftest import LONG_RUN, open_settings, run_id, stop_and_discard

Visit = Callable[..., Page]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_wrong_value_shows_one_sentence_beside_its_control(visit: Visit) -> None:
    page = visit(LONG_RUN)
    open_settings(page)
    page.get_by_label("Batch size").fill("5000")
    page.get_by_label("Batch size").blur()
    sentence = "Batch size: enter a whole number from 2 to 4,096, not 5000."
    expect(page.locator("#set-batch_size [role=alert]")).to_have_text(sentence)
    expect(page.get_by_label("Batch size")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_text(sentence)).to_have_count(1)
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".run-note")).to_have_text(f"Not started. {sentence}")
    expect(page.locator(".badge")).to_have_text("example")
    page.get_by_label("Batch size").fill("64")
    page.get_by_label("Batch size").blur()
    expect(page.locator(".command")).to_contain_text("--batch-size 64")
    expect(page.locator("#settings [role=alert]")).to_have_count(0)


def test_wrong_value_shows_in_view_when_the_settings_are_closed(visit: Visit) -> None:
    page = visit(LONG_RUN)
    open_settings(page)
    page.get_by_label("Epochs").fill("")
    page.get_by_role("button", name="All settings").click()
    page.get_by_label("VGG16").check()
    expect(page.locator(".recipe-line [role=alert]")).to_contain_text("give either epochs or seconds")


def test_form_makes_command_and_link(visit: Visit) -> None:
    page = visit()
    page.get_by_role("button", name="Best: 20 epochs").click()
    expect(page.locator(".command")).to_contain_text("--epochs 20")
    open_settings(page)
    page.get_by_label("SGD with momentum").check()
    page.get_by_label("Seconds").fill("90")
    page.get_by_label("Seconds").blur()
    expect(page.locator(".command")).to_contain_text("--seconds 90")
    expect(page.locator(".command")).to_contain_text("--optimizer sgd")
    expect(page.locator(".command")).not_to_contain_text("--epochs")
    expect(page.locator(".command")).not_to_contain_text("--learning-rate")  # the usual one of SGD
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link to these settings").click()
    page.goto(page.evaluate("() => navigator.clipboard.readText()"))
    expect(page.locator(".command")).to_contain_text("--seconds 90")
    expect(page.locator(".command")).to_contain_text("--optimizer sgd")


def test_start_from_keeps_holdout(visit: Visit, app: App) -> None:
    page = visit(LONG_RUN)
    open_settings(page)
    expect(page.get_by_label("Validation images")).to_have_value("")
    page.get_by_label("Start from").click()
    page.get_by_role("option", name="ResNet50-C4").click()
    expect(page.locator("#command")).to_contain_text("--start-from resnet50")
    expect(page.locator("#command")).not_to_contain_text("--validation-pictures")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".badge")).to_have_text("training")
    started = Run(app.root / run_id(page)).history().started
    assert started.validation_pictures == 20  # as many as the checkpoint never trained on
    stop_and_discard(page)


def test_last_of_fast_keystrokes_reaches_the_command(visit: Visit) -> None:
    page = visit("?model=resnet50&dataset=shapes")
    open_settings(page)
    page.route("**/*", lambda route: (time.sleep(0.1), route.continue_()))  # a slow connection
    page.get_by_label("Batch size").fill("")
    page.get_by_label("Batch size").press_sequentially("128", delay=30)
    expect(page.locator("#command")).to_contain_text("--batch-size 128")


@pytest.mark.parametrize(("options", "columns"), [({}, 2), (PHONE, 1)], ids=["1280 px", "390 px"])
def test_settings_stand_in_columns(visit: Visit, options: dict[str, object], columns: int) -> None:
    page = visit(**options)
    page.locator(".run-chart .main-svg").first.wait_for()
    if columns == 2:
        assert page.locator(".run-chart").bounding_box()["y"] < 900  # seen without scrolling
    open_settings(page)
    groups = page.locator("#settings .group")
    expect(groups.locator("h3")).to_have_text(["Budget", "Optimizer", "Images", "More"])
    boxes = [group.bounding_box() for group in groups.all()]
    assert len({box["x"] for box in boxes}) == columns
    assert page.evaluate("() => document.documentElement.scrollWidth") <= page.viewport_size["width"]
    if columns == 2:  # both columns are filled
        bottoms = [max(b["y"] + b["height"] for b in boxes if b["x"] == x) for x in {b["x"] for b in boxes}]
        whole = page.locator("#settings .groups").bounding_box()["height"]
        assert max(bottoms) - min(bottoms) < whole / 4


def test_unusable_link_shows_a_sentence(visit: Visit) -> None:
    page = visit("?model=resnet50&batch_size=1")
    expect(page.locator(".run-note")).to_contain_text("The settings in the link cannot be used. Batch size: enter")
    expect(page.locator(".command")).to_contain_text("train resnet50")


def test_link_fills_the_form(visit: Visit) -> None:
    page = visit("?model=vgg16&dataset=shapes&epochs=7&schedule=cosine")
    open_settings(page)
    expect(page.get_by_label("Epochs")).to_have_value("7")
    for label in ("Cosine", "Shapes (drawn by the program)"):
        expect(page.get_by_label(label)).to_be_checked()
    expect(page.locator("#network input[value=vgg16]")).to_be_checked()
    settings = json.dumps(page.locator("#settings label > span, #settings legend").all_inner_texts())
    assert "batch_size" not in settings and "one_cycle" not in settings
