"""The Classify tab in the browser."""

import base64
import io
import json
import re
from collections.abc import Callable

from PIL import Image
from playwright.sync_api import Page, expect

from cnn_demo.pictures import photo
from tests.apps import App
from tests.browser.conftest import open_tab, run_id, traces, wait_for_points

Visit = Callable[..., Page]


def jpeg(colour: str = "teal", size: tuple[int, int] = (640, 400)) -> bytes:
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


def test_classify_a_dropped_photo(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Classify")
    expect(page.locator("#answer")).to_contain_text("Show it a picture")
    drop(page, "teal.jpg", jpeg())
    expect(page.locator(".scores tr").first).to_be_visible()
    expect(page.locator("#answer .scores tr")).to_have_count(10)
    expect(page.locator(".answer")).to_contain_text("ResNet50-C4, 3 epochs resnet50 answers")
    expect(page.locator(".answer")).to_contain_text("knows only these 10 classes")
    expect(page.locator(".seen figcaption")).to_have_text(
        ["your picture, 640×400", "its center, 400×400", "what the network sees, 32×32"]
    )
    expect(page.locator(".seen")).to_contain_text("Each pixel the network sees averages about 156 of yours.")


def test_shown_pixels_are_the_input_of_the_network(visit: Visit) -> None:
    gradient = Image.merge("RGB", [Image.linear_gradient("L").resize((300, 200))] * 3)
    content = io.BytesIO()
    gradient.save(content, "PNG")
    page = visit()
    open_tab(page, "Classify")
    drop(page, "gradient.png", content.getvalue())
    address = page.locator(".seen img.pixels").get_attribute("src")
    shown = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    expected = photo.to_input(photo.crop(gradient))
    assert shown.size == (32, 32) and photo.to_input(shown).equal(expected)


def test_examples_have_names_and_two_checkpoints_compare(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Classify")
    page.get_by_role("button", name="example: cat").click()
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.get_by_role("button", name=re.compile("^example: "))).to_have_count(10)
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="ResNet50-C4").click()
    expect(page.locator(".answer")).to_have_count(1)  # the same checkpoint twice gives one answer


def test_unreadable_files_show_a_sentence(visit: Visit) -> None:
    page = visit()
    open_tab(page, "Classify")
    drop(page, "broken.jpg", jpeg()[:300])
    expect(page.locator("#answer")).to_contain_text("This file cannot be read")
    page = visit()
    open_tab(page, "Classify")
    page.get_by_role("button", name="example: cat").click()
    expect(page.locator(".answer")).to_have_count(1)
    page.locator("#picture .icon-button-wrapper button").last.click()  # removes the example
    drop(page, "text.jpg", b"no picture")
    expect(page.locator("#answer")).to_contain_text("This file is not a picture; give one of .bmp")
    open_tab(page, "Stages")
    expect(page.locator("#stages [role=alert]")).to_contain_text("This file is not a picture; give one of .bmp")
    expect(page.locator(".stage-rows")).to_have_count(2)


def test_heat_for_a_class_is_asked_for_only_where_wanted(visit: Visit, app: App) -> None:
    page, asked = visit(), []
    page.on("request", lambda request: asked.append(request) if '"heat"' in (request.post_data or "") else None)
    open_tab(page, "Classify")
    page.get_by_role("button", name="example: cat").click()
    expect(page.locator(".answer")).to_have_count(1)
    assert asked == []
    page.get_by_label("Grad-CAM").check()
    first = page.locator(".scores button").first.inner_text()
    text = re.compile(f"(Bright: what speaks for {first}. Grad-CAM, computed on the 4×4 grid of|No positive evidence)")
    expect(page.locator(".heat")).to_contain_text(text)
    assert len(asked) == 1
    page.get_by_label("occlusion").check()
    page.get_by_role("button", name="ring").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".heat")).to_contain_text(
        re.compile("lowers the score of ring|evidence for ring: no gray patch")
    )
    expect(page.get_by_role("button", name="ring")).to_have_attribute("aria-pressed", "true")
    page.reload()
    page.locator(".run-head strong").wait_for()
    open_tab(page, "Classify")
    page.get_by_role("button", name="example: cat").click()
    expect(page.locator(".heat img")).to_be_visible()  # the choice was remembered
    (app.root / "resnet50").rename(app.root / "away")
    try:
        page.get_by_role("button", name="ring").click()
        expect(page.locator(".heat")).to_have_text("There is no checkpoint 'resnet50' here.")
    finally:
        (app.root / "away").rename(app.root / "resnet50")


def test_classify_with_an_active_run(training: Page) -> None:
    run = run_id(training)
    training.get_by_role("button", name="Classify a picture").click()
    drop(training, "teal.jpg", jpeg())
    expect(training.locator(".answer")).to_contain_text(f"{run} answers")
    training.wait_for_timeout(3000)  # longer than the time between two questions to the server
    open_tab(training, "Train")
    wait_for_points(training, len(traces(training)["loss, smoothed"]) + 5)


def test_evaluation_of_a_checkpoint(visit: Visit, app: App) -> None:
    found = json.loads((app.root / "resnet50" / "evaluation.json").read_text())
    page = visit()
    open_tab(page, "Classify")
    accuracy = f"{100 * found['accuracy']:.1f} %"
    expect(page.get_by_label("Checkpoint")).to_have_value(f"{accuracy} test · ResNet50-C4, 3 epochs")
    page.get_by_role("button", name="Evaluation of this checkpoint").click()
    expect(page.locator("#evaluation")).to_contain_text(f"Test accuracy {accuracy} on 40 images.")
    expect(page.get_by_role("img", name=re.compile("^Confusion matrix; the most frequent mistake: "))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Reliability diagram; scores differ"))).to_be_visible()
    open_tab(page, "Train")
    file = app.root / "resnet50" / "evaluation.json"
    file.unlink()
    open_tab(page, "Classify")  # what changed meanwhile is seen, as when a run has ended
    expect(page.locator("#evaluation")).to_contain_text("Not tested yet")
    open_tab(page, "Train")
    file.write_text(json.dumps(found))
    open_tab(page, "Classify")
    rows = page.locator("#evaluation table.visually-hidden").first.locator("tbody tr")
    expect(rows).to_have_count(10)
    cells = [[int(cell) for cell in row.locator("td").all_inner_texts()] for row in rows.all()]
    assert cells == found["confusion"]


def test_no_text_of_an_evaluation_becomes_markup(visit: Visit, app: App) -> None:
    file = app.root / "resnet50" / "evaluation.json"
    content = file.read_text()
    found = json.loads(content)
    found["classes"][0] = markup = "<img src=x onerror='window.hacked = 1'>"
    found["mistakes"] = [{"label": markup, "answer": markup, "score": 0.5, "png": ""}]
    file.write_text(json.dumps(found))
    try:
        page = visit()
        open_tab(page, "Classify")
        page.get_by_role("button", name="Evaluation of this checkpoint").click()
        expect(page.locator("#evaluation figcaption")).to_contain_text(f"{markup}, taken for {markup}")
        expect(page.locator("#evaluation th", has_text=markup).first).to_be_attached()
        assert page.evaluate("window.hacked") is None
    finally:
        file.write_text(content)
