"""One browser for all tests, a fresh context for each; a test fails on any error in the console."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import find_browser
from tests.apps import App

expect.set_options(timeout=20_000)
LONG_RUN = "?model=resnet50&dataset=shapes&epochs=500&batch_size=64"  # lasts longer than any test


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return {"executable_path": find_browser.find(), "args": options}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the browser tests if there is no browser; the others still run."""
    if find_browser.find() is None:
        without = [item for item in items if item.path.parent == Path(__file__).parent]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if find_browser.find() is None:
        terminalreporter.write_line(find_browser.MISSING)


@pytest.fixture
def visit(browser: Browser, app: App) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the app as a new visitor, in a browser context of their own."""
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
    page = visit(LONG_RUN)
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".badge")).to_have_text("training")
    wait_for_points(page, 3)
    yield page
    stop_and_discard(page)


def stop_and_discard(page: Page) -> None:
    """Leave the app as it was before the page's visitor started a run."""
    if page.get_by_role("button", name="Stop and keep the best").count():
        page.get_by_role("button", name="Stop and keep the best").click()
    expect(page.get_by_role("button", name="Discard")).to_be_visible()
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Yes, delete").click()
    expect(page.locator(".badge")).to_have_text("example")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def open_settings(page: Page) -> None:
    page.get_by_role("button", name="All settings").click()
    expect(page.locator("#set-seed")).to_be_visible()


def run_id(page: Page) -> str:
    return page.locator(".run-head code").inner_text()


def traces(page: Page) -> dict[str, list[float]]:
    """Return the y values of each curve in the chart."""
    return dict(
        page.evaluate(
            "() => (document.querySelector('.run-chart')?.data || []).map(t => [t.name, t.y.map(y => y ?? null)])"
        )
    )


def wait_for_points(page: Page, count: int) -> None:
    page.wait_for_function(
        f"() => (document.querySelector('.run-chart')?.data?.[1].x.length || 0) >= {count}", timeout=30_000
    )
