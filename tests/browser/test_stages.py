"""The Stages tab in the browser."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

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
    page.get_by_label("none").check()
    expect(page.locator(".stage-rows")).to_have_count(1)
