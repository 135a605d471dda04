"""The Stages tab in the browser."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Page, expect

from cnn_demo.answers import explain
from cnn_demo.networks.stages import fields
from cnn_demo.pictures import photo
from cnn_demo.runs.checkpoints import read_checkpoint, write_checkpoint
from cnn_demo.runs.folder import Run
from cnn_demo.ui.classify import EXAMPLES
from tests.apps import App
from tests.browser.conftest import open_tab

Visit = Callable[..., Page]


@pytest.mark.parametrize("place", ["button.stage-row", "table button"])
def test_click_in_drawing_or_table_explains_a_stage(visit: Visit, place: str) -> None:
    page = visit()
    open_tab(page, "Stages")
    expect(page.locator(".network table").first).to_contain_text("15,253,578")
    page.locator(f".stages-view {place}", has_text="stage3").first.click()
    expect(page.locator(".explanation").first).to_contain_text("8x8 becomes 4x4 by a 2x2 max-pool")
    expect(page.locator(".explanation").first).to_contain_text("The number of channels grows from 128 to 256")
    page.locator(f".stages-view {place}", has_text="stage3").first.click()
    expect(page.locator(".explanation")).to_have_count(0)


def test_stages_at_photo_size(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Stages")
    page.get_by_label("224 px (a photo)").check()
    expect(page.locator(".stage-row").first).to_contain_text("224×224×3")
    expect(page.locator(".stage-row").nth(1)).to_contain_text("112×112×64")
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="none").click()
    expect(page.locator(".stage-rows")).to_have_count(1)


def look_at(visit: Visit, example: str) -> Page:
    """Return a page that shows the maps of the only checkpoint, a resnet50."""
    page = visit()
    open_tab(page, "Stages")
    page.get_by_role("button", name=f"example: {example}").click()
    expect(page.locator(".maps canvas")).to_have_count(4)
    return page


def lens(page: Page) -> npt.NDArray[np.uint8]:
    """Return what is drawn over the picture: 192,192,4, six px for each of the picture's."""
    content = page.evaluate(
        "() => [...document.querySelector('.lens canvas').getContext('2d').getImageData(0, 0, 192, 192).data]"
    )
    return np.array(content, dtype=np.uint8).reshape(192, 192, 4)


def test_maps_of_a_picture_place_by_place(visit: Visit, app: App) -> None:
    page = look_at(visit, "frog")
    pixels = photo.to_input(photo.read_picture(EXAMPLES["frog"]))
    checkpoint = read_checkpoint(app.root / "resnet50" / "model.safetensors", "resnet50")
    stem = explain.maps(checkpoint.network(), checkpoint, pixels, ["stem"])["stem"]
    about = explain.describe("stem", stem)
    text = f"stem, 8×8: 64 of 64 shown, strongest first; {about['dead']} "
    expect(page.locator(".maps p").first).to_contain_text(text)
    canvas, status = page.get_by_role("application", name=re.compile("^stem, ")), page.locator(".lens [role=status]")
    plain = lens(page)
    canvas.hover(position={"x": 34 + 22, "y": 10})  # the second map: row 3, column 6 of 8
    channel = explain.shown(stem)[1]
    value = float(f"{stem[channel, 2, 5]:.2g}")
    expect(status).to_contain_text(f"stem, channel {channel}, row 3, column 6 of 8×8: ")
    shown = float(re.search(r"8×8: (.+)\. It sees", status.inner_text())[1])
    assert abs(shown - value) <= about["largest"] / 100
    rows, columns = np.nonzero((lens(page) != plain).any(2))
    outline = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    first, stride, size = fields("resnet50")["stem"]
    top, left = first + 2 * stride, first + 5 * stride
    assert [round(end / 6) for end in outline] == [max(0, top), max(0, left), min(32, top + size), min(32, left + size)]
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight"):  # the last one leads into the third map
        canvas.press(key)
    expect(status).to_contain_text(f"channel {explain.shown(stem)[2]}, row 4, column 1 of 8×8: ")
    place = lens(page)
    canvas.press("Enter")
    assert (lens(page) != place).any(2).mean() > 0.9
    canvas.press("Escape")
    assert (lens(page) == place).all()
    page.locator("button.stage-row", has_text="stage1").last.click()
    page.get_by_role("button", name="block2").click()
    expect(page.locator(".maps p", has_text="stage1.block2, 8×8: 64 of 256 shown")).to_be_visible()
    after = canvas.screenshot()
    page.get_by_label("before training").check()
    expect(page.locator(".network", has_text="Random weights, before its training.")).to_be_visible()
    assert canvas.screenshot() != after
    open_tab(page, "Classify")  # the picture is there, too
    expect(page.locator(".answer")).to_have_count(1)


def test_maps_follow_a_run_that_trains_until_it_is_gone(visit: Visit, app: App) -> None:
    run = Run(app.root / "resnet50")
    file = run.folder / "model.safetensors"
    content, evaluation = file.read_bytes(), (run.folder / "evaluation.json").read_bytes()
    checkpoint = read_checkpoint(file, "resnet50")
    try:
        with run.locked():  # as its training does
            page = look_at(visit, "ship")
            expect(page.locator(".network", has_text=f"Weights of step {checkpoint.step}, renewed")).to_be_visible()
            write_checkpoint(file, replace(checkpoint, step=1234))
            expect(page.locator(".network", has_text="Weights of step 1,234, renewed")).to_be_visible()
            file.unlink()
            expect(page.locator(".network", has_text="There is no checkpoint 'resnet50' here.")).to_be_visible()
            expect(page.locator(".maps")).to_have_count(0)
    finally:
        file.write_bytes(content)
        (run.folder / "evaluation.json").write_bytes(evaluation)
