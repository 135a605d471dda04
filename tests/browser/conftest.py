"""One browser for all tests, a fresh context for each; a test fails on any error in the console."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.apps import App

expect.set_options(timeout=20_000)
QUIET = "?model=resnet50&dataset=shapes&epochs=500&batch_size=64"  # a run that lasts longer than any test


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return {"executable_path": "/usr/bin/chromium", "args": options}


@pytest.fixture
def visit(browser: Browser, app: App) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the app as another visitor, in a context of their own."""
    contexts, errors = [], []

    def open_page(address: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(app.url + "/" + address)
        page.locator(".run-head strong").wait_for(timeout=30_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    expected = (
        "ERR_CONNECTION_REFUSED",
        "ERR_CONNECTION_RESET",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_EMPTY_RESPONSE",
    )
    assert [error for error in errors if not any(text in error for text in expected)] == []


@pytest.fixture
def training(visit: Callable[..., Page]) -> Iterator[Page]:
    """A page whose visitor has started a run; it is stopped and discarded afterwards."""
    page = visit(QUIET)
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".badge")).to_have_text("training")
    wait_for_points(page, 3)
    yield page
    if page.get_by_role("button", name="Stop and keep the best").count():
        page.get_by_role("button", name="Stop and keep the best").click()
    expect(page.get_by_role("button", name="Discard")).to_be_visible()
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Yes, delete").click()
    expect(page.locator(".badge")).to_have_text("example")


def traces(page: Page) -> dict[str, list[float]]:
    """Return what the chart draws: the y values of each curve."""
    return dict(
        page.evaluate(
            "() => (document.querySelector('.run-chart')?.data || []).map(t => [t.name, t.y.map(y => y ?? null)])"
        )
    )


def wait_for_points(page: Page, count: int) -> None:
    page.wait_for_function(
        f"() => (document.querySelector('.run-chart')?.data?.[1].x.length || 0) >= {count}", timeout=30_000
    )
