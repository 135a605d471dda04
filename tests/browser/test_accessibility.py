"""The whole page for axe, by keyboard, on a phone and in the dark."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import open_settings, open_tab

Visit = Callable[..., Page]
ENDLESS = "one.effect.getTiming().iterations === Infinity"  # a spinner
SETTLED = f"() => document.getAnimations().every((one) => one.playState !== 'running' || {ENDLESS})"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def show_everything(page: Page, tab: str) -> list[str]:
    """Open what a tab hides; return what must then be in view."""
    open_tab(page, tab)
    if tab == "Train":
        open_settings(page)
        page.locator(".run-evaluation summary").click()
        page.locator(".run-compare summary").click()
        return [".run-view", ".recipe-line", ".run-chart .main-svg", "#settings", ".evaluation svg", ".run-list"]
    if tab == "Classify":
        page.get_by_label("occlusion").check()
        page.get_by_role("button", name="Evaluation of this checkpoint").click()
        page.get_by_role("button", name="Open from the Hub").click()
        return [".answer", ".seen", ".heat img", "#picture", "#evaluation svg", "#open-repo", "#checkpoint"]
    page.get_by_role("button", name="example: bird").click()
    page.locator("button.stage-row").last.click()
    return [".stages-view", ".network table", ".share-bar", ".lens canvas", ".maps canvas"]


@pytest.mark.parametrize("options", [{}, PHONE, {"color_scheme": "dark"}], ids=["desktop", "phone", "dark"])
def test_axe_finds_nothing_and_nothing_is_cut_off(visit: Visit, options: dict[str, object]) -> None:
    page = visit(**options)
    for tab in ("Train", "Stages", "Classify"):
        for part in show_everything(page, tab):
            page.locator(part).first.wait_for()
        page.wait_for_function(SETTLED)  # a fading text has no contrast
        assert page.evaluate("() => document.documentElement.scrollWidth") <= page.viewport_size["width"], tab
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]}).response
        assert len(found["passes"]) > 10, tab
        wrong = [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]]
        assert wrong == [], tab


def test_start_button_and_stages_by_keyboard(visit: Visit) -> None:
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
