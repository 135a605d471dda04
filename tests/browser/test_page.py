"""Stages and classification in the browser; the whole page by keyboard, on a phone, in the dark, for axe."""

import base64
import io
import time
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import traces, wait_for_points

Visit = Callable[..., Page]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def photo(colour: str = "teal", size: tuple[int, int] = (640, 400)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "JPEG")
    return content.getvalue()


def drop(page: Page, name: str, content: bytes) -> None:
    """Drop a file on the picture, as a mouse does."""
    transfer = page.evaluate_handle(
        """([name, content]) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [name, base64.b64encode(content).decode()],
    )
    target = page.locator("#picture button", has_text="Drop Image Here").first
    for event in ("dragenter", "dragover", "drop"):
        target.dispatch_event(event, {"dataTransfer": transfer})


def test_a_dropped_photo_is_classified(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Classify")
    expect(page.locator("#answer")).to_contain_text("Show it a picture")
    drop(page, "teal.jpg", photo())
    expect(page.locator(".scores tr")).to_have_count(10)
    expect(page.locator(".answer")).to_contain_text("resnet50 answers")
    expect(page.locator(".answer")).to_contain_text("knows only these 10 things")
    expect(page.locator(".seen figcaption")).to_have_text(
        ["your picture, 640×400", "its centre, 400×400", "what the network sees, 32×32"]
    )
    expect(page.locator(".seen")).to_contain_text("One pixel is kept of about 250")


def test_an_example_and_two_checkpoints(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Classify")
    page.locator("#examples button").first.click()
    expect(page.locator(".answer")).to_have_count(1)
    page.get_by_label("A second one beside it").click()
    page.get_by_role("option", name="resnet50").click()
    expect(page.locator(".answer")).to_have_count(1)  # the same one twice is one answer


def test_what_is_no_picture_is_told_in_a_sentence(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Classify")
    drop(page, "broken.jpg", photo()[:300])
    expect(page.locator("#answer")).to_contain_text("This file cannot be read")
    page = visit()
    open_tab(page, "Classify")
    page.locator("#examples button").first.click()
    expect(page.locator(".answer")).to_have_count(1)
    page.locator("#picture .icon-button-wrapper button").last.click()  # takes the example away
    drop(page, "text.jpg", b"no picture")
    expect(page.locator("#answer")).to_contain_text("This file is not a picture; give one of .bmp")


def test_a_running_run_classifies(training: Page) -> None:
    run = training.locator(".run-head code").inner_text()
    training.get_by_role("button", name="Classify a picture with it").click()
    drop(training, "teal.jpg", photo())
    expect(training.locator(".answer")).to_contain_text(f"{run} answers")
    training.wait_for_timeout(3000)  # longer than the time between two questions to the server
    open_tab(training, "Train")
    wait_for_points(training, len(traces(training)["loss, smoothed"]) + 5)


@pytest.mark.parametrize("place", ["button.stage-row", "table button"])
def test_a_stage_is_explained_by_a_click_on_drawing_or_table(visit: Visit, place: str) -> None:
    page = visit()
    open_tab(page, "Stages")
    expect(page.locator(".network table").first).to_contain_text("15,253,578")
    page.locator(f".stages-view {place}", has_text="stage3").first.click()
    expect(page.locator(".explanation").first).to_contain_text("8x8 becomes 4x4 by a 2x2 max-pool")
    expect(page.locator(".explanation").first).to_contain_text("Channels grow from 128 to 256")
    page.locator(f".stages-view {place}", has_text="stage3").first.click()
    expect(page.locator(".explanation")).to_have_count(0)


def test_stages_of_a_photo(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Stages")
    page.get_by_label("224 px, a photo").check()
    expect(page.locator(".stage-row").first).to_contain_text("224×224×3")
    expect(page.locator(".stage-row").nth(1)).to_contain_text("112×112×64")
    page.get_by_label("none").check()
    expect(page.locator(".stage-rows")).to_have_count(1)


@pytest.mark.parametrize("options", [{}, PHONE, {"color_scheme": "dark"}], ids=["desktop", "phone", "dark"])
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(visit: Visit, options: dict[str, object]) -> None:
    page = visit(**options)
    for tab in ("Train", "Stages", "Classify"):
        open_tab(page, tab)
        if tab == "Classify":
            page.locator("#examples button").first.click()
            page.locator(".answer").wait_for()
        page.wait_for_timeout(500)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= page.viewport_size["width"], tab
        for part in (".run-view", ".recipe-line", ".stages-view", "#answer"):
            if page.locator(part).count() and page.locator(part).first.is_visible():
                found = Axe().run(page, context=part, options={"runOnly": ["wcag2a", "wcag2aa"]})
                serious = [v for v in found.response["violations"] if v["impact"] in ("serious", "critical")]
                assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in serious]


def test_a_run_can_be_started_and_a_stage_opened_by_keyboard(visit: Visit) -> None:
    page = visit()
    page.keyboard.press("Tab")
    for _ in range(40):
        if page.evaluate("() => document.activeElement.id") == "start":
            break
        page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "start"
    open_tab(page, "Stages")
    page.locator("button.stage-row").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".explanation").first).to_be_visible()
    assert page.evaluate("() => document.activeElement.dataset.stage") == "vgg16 row stage1"


def test_a_run_from_a_checkpoint_validates_on_what_that_one_never_learned(visit: Visit) -> None:
    page = visit("?model=resnet50&dataset=shapes")
    page.get_by_role("button", name="Recipe: every setting").click()
    expect(page.get_by_label("validation pictures")).to_have_value("5000")
    page.get_by_label("start from").click()
    page.get_by_role("option", name="resnet50").click()
    expect(page.get_by_label("validation pictures")).to_have_value("20")
    expect(page.locator("#command")).to_contain_text("--validation-pictures 20 --start-from resnet50")


def test_what_is_typed_fast_is_what_the_command_says(visit: Visit) -> None:
    page = visit("?model=resnet50&dataset=shapes")
    page.get_by_role("button", name="Recipe: every setting").click()
    page.route("**/*", lambda route: (time.sleep(0.1), route.continue_()))  # a slow way to the server
    page.get_by_label("batch size").fill("")
    page.get_by_label("batch size").press_sequentially("128", delay=30)
    expect(page.locator("#command")).to_contain_text("--batch-size 128")
