"""On ZeroGPU whatever may take a GPU carries the visitor's quota, though only events of Gradio's queue name them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from playwright.sync_api import Page, expect

from tests.apps import App
from tests.zero_platform import REFUSED, VISITOR, Proxy, platform, serving, tokens


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Iterator[App]:
    """The app on a platform that lends nothing for six seconds of training, behind a Space's proxy."""
    root = tmp_path_factory.mktemp("zero") / "checkpoints"
    shutil.copytree(shipped, root / "resnet50")
    with platform(root.parent) as (environ, asked):
        app = App(root, **environ)
        app.asked = asked
        with serving(type("Handler", (Proxy,), {"port": app.port})) as app.url:
            yield app
        app.process.kill()
        app.process.wait()
        app.log.close()


@pytest.mark.slow
def test_start_and_continue_take_the_visitors_quota(app: App, visit: Callable[..., Page]) -> None:
    page = visit("?model=resnet50&dataset=shapes&seconds=6")
    expect(page.locator("#command")).to_contain_text(f"Asks for {REFUSED} s of this Space's GPU")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".run-status")).to_contain_text("GPU of this Space was refused: You have exceeded your ")
    expect(page.locator(".run-status")).to_contain_text(f"({REFUSED}s requested vs. 5s left)")
    assert tokens(app.asked) == [VISITOR]
    page.get_by_role("button", name="Continue").click()
    while len(tokens(app.asked)) < 2:
        page.wait_for_timeout(50)
    client = Client(app.url, verbose=False)
    client.predict("resnet50", {"dataset": "shapes", "seconds": 6}, "a program's secret", api_name="/start_run")
    while len(tokens(app.asked)) < 3:
        page.wait_for_timeout(50)
    assert tokens(app.asked) == [VISITOR] * 3
