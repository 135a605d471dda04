"""Sign in, save to the Hub, open from it, download: the page against a local Hub server."""

import re
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from cnn_demo.runs.folder import Run
from cnn_demo.sharing import export
from tests.apps import App
from tests.hub_server import MOCK_TOKEN, Fault, HubServer, hub_server

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with hub_server(tmp_path_factory.mktemp("xet")) as running:
        yield running


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, shipped: Path, server: HubServer) -> Iterator[App]:
    """The app as on a Space with sign-in: Gradio's stand-in signs everyone in as the user of HF_TOKEN."""
    root = tmp_path_factory.mktemp("app") / "checkpoints"
    shutil.copytree(shipped, root / "resnet50")
    home = str(root.parent / "home")
    app = App(root, HF_ENDPOINT=server.url, HF_TOKEN="ada-token", HF_HOME=home, CNN_DEMO_SIGN_IN="1")
    yield app
    app.end(signal.SIGINT)


def open_save(page: Page) -> None:
    page.get_by_role("button", name="Save or download").click()
    expect(page.locator("#save")).to_contain_text("Save ResNet50-C4, 3 epochs")


def sign_in(page: Page) -> None:
    with page.expect_navigation():
        page.locator("#save").get_by_role("button", name="Sign in with Hugging Face").click()
    page.locator(".run-head strong").wait_for(timeout=30_000)
    open_save(page)
    expect(page.locator("#save").get_by_role("button", name="Logout (ada)")).to_be_visible()


def test_sign_in_save_list_and_open(visit: Visit, server: HubServer, app: App) -> None:
    page = visit()
    open_save(page)
    page.locator("#save-push").click()
    expect(page.locator("#save-result")).to_contain_text("Sign in first")
    sign_in(page)
    page.locator("#save-name textarea, #save-name input").fill("my net")
    page.locator("#save-push").click()
    expect(page.locator("#save-result")).to_contain_text("is not a repository on the Hub")

    page.locator("#save-name textarea, #save-name input").fill("my-net")
    server.faults.append(Fault("POST .*/commit/", 412))
    page.locator("#save-push").click()
    expect(page.locator("#save-result")).to_contain_text("Someone else changed the repository")
    page.locator("#save-push").click()
    link = page.locator("#save-result a")
    expect(link).to_have_attribute("href", re.compile("/ada/my-net/commit/[0-9a-f]{40}"))
    repo = server.repos["models", "ada/my-net"]
    assert len(repo.commits) == 2 and len(repo.tags) == 1 and set(export.FILES) <= set(repo.files)
    written = {r["token"] for r in server.requests if r["method"] != "GET" and r["path"].startswith("/api")}
    assert written == {MOCK_TOKEN}  # the token of the visitor, never of the machine

    page.reload()
    page.get_by_role("tab", name="Classify").click()
    page.get_by_role("button", name="Open from the Hub").click()
    page.locator("#open-repo input").click()
    page.get_by_role("option", name="ada/my-net").click()
    page.locator("#open-fetch").click()
    expect(page.locator("#open-result")).to_contain_text("Opened ada/my-net@")
    expect(page.locator("#checkpoint input")).to_have_value(re.compile("ResNet50-C4 from ada/my-net"))
    page.locator(".examples button").first.click()
    expect(page.locator("#answer")).to_contain_text("weights of step", timeout=30_000)
    page.get_by_role("button", name="Evaluation of this checkpoint").click()
    expect(page.locator("#evaluation")).to_contain_text("Not evaluated on this machine")
    expect(page.locator("#evaluation code")).to_contain_text("evaluate hf-ada-my-net-")
    assert MOCK_TOKEN not in Path(app.log.name).read_text()

    stranger = visit()
    stranger.get_by_role("tab", name="Classify").click()
    stranger.locator("#checkpoint input").click()
    expect(stranger.get_by_role("option")).to_have_count(1)  # only the visitor who opened it sees it


def test_upload_shows_progress_and_continues_without_the_page(visit: Visit, server: HubServer) -> None:
    page = visit()
    open_save(page)
    sign_in(page)
    page.locator("#save-name textarea, #save-name input").fill("slow-net")
    commit = Fault("POST .*/slow-net/commit/", how="wait", seconds=4)
    server.faults.append(commit)
    page.locator("#save-push").click()
    expect(page.locator("#save-result")).to_contain_text(re.compile("uploading"))
    expect(page.locator("#save-result .progress-bar")).to_be_visible()
    other = visit()  # nobody waits for it
    other.get_by_role("button", name="Best: 20 epochs").click()
    expect(other.locator(".command")).to_contain_text("--epochs 20", timeout=3000)
    page.close()
    deadline = time.monotonic() + 30
    while not server.repos["models", "ada/slow-net"].tags:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_unusable_repositories_show_a_sentence(visit: Visit, server: HubServer) -> None:
    server.add_repo("eve/evil", {"model.safetensors": b"\x80\x04.", "config.json": b"{}", "events.jsonl": b"{}"})
    page = visit()
    page.get_by_role("tab", name="Classify").click()
    page.get_by_role("button", name="Open from the Hub").click()
    for text, sentence in [
        ("eve/evil", "looks like a pickle, which is never opened"),
        ("eve/nothing", "does not exist on the Hub"),
        ("<b>x</b>", "is not a repository on the Hub"),
    ]:
        page.locator("#open-repo input").fill(text)
        page.locator("#open-repo input").press("Enter")
        page.locator("#open-fetch").click()
        expect(page.locator("#open-result [role=alert]")).to_contain_text(sentence)
    assert page.locator("#open-result b").count() == 0


def test_download_zip_without_sign_in(visit: Visit, app: App, tmp_path: Path) -> None:
    page = visit()
    open_save(page)
    page.locator("#save-zip").click()
    with page.expect_download() as download:
        page.locator("#save-file a").first.click()
    download.value.save_as(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {Path(name).name for name in archive.namelist()} == {*export.FILES, "evaluation.json"}
    export.export(Run(app.root / "resnet50"), tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("resnet50/model.safetensors") == (tmp_path / "out" / "model.safetensors").read_bytes()
