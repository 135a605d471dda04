"""Which browser the tests use, and what happens where there is none; with folders and commands made for it."""

import sys
from pathlib import Path

import pytest

from tests import find_browser

WORKS = "#!/bin/sh\necho Chromium 150\n"
FAILS = "#!/bin/sh\necho please install the snap; exit 1\n"
CACHED = ".cache/ms-playwright/chromium-{}/chrome-linux/chrome"


def script(path: Path, text: str = WORKS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def found(tmp_path: Path):
    """Return a function that searches a machine that consists of `tmp_path` alone."""

    def search(**environ: str) -> str | None:
        browser = find_browser.find({"PATH": str(tmp_path / "bin"), **environ}, tmp_path, tmp_path / "home")
        return browser and str(Path(browser).relative_to(tmp_path))

    return search


def test_browsers_are_searched_in_the_documented_order(tmp_path: Path, found) -> None:
    assert found() is None
    for place in (
        "home/" + CACHED.format(1200),
        "home/" + CACHED.format(1300),  # a newer one
        "windows/Google/Chrome/Application/chrome.exe",
        "home/Applications/Chromium.app/Contents/MacOS/Chromium",
        "Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "usr/lib64/chromium-browser/chromium-browser",
        "usr/bin/chromium",
        "bin/google-chrome",
        "bin/chromium",
    ):
        script(tmp_path / place)
        assert found(PROGRAMFILES=str(tmp_path / "windows")) == place
    other = script(tmp_path / "other/browser")
    assert found(CHROMIUM=str(other)) == "other/browser"
    assert found(CHROMIUM=str(tmp_path / "missing")) is None  # what was named is not replaced by another


def test_playwrights_folder_can_be_named(tmp_path: Path, found) -> None:
    script(tmp_path / "browsers/chromium-1255/chrome-linux64/chrome")
    named = str(tmp_path / "browsers")
    assert found(PLAYWRIGHT_BROWSERS_PATH=named) == "browsers/chromium-1255/chrome-linux64/chrome"


def test_a_browser_that_does_not_start_is_passed_over(tmp_path: Path, found) -> None:
    script(tmp_path / "bin/chromium-browser", FAILS)
    (tmp_path / "usr/bin/chromium").mkdir(parents=True)
    assert found() is None
    script(tmp_path / "bin/google-chrome")
    assert found() == "bin/google-chrome"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a browser, where nothing can be installed; its commands are in the folder that is returned."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setattr(find_browser, "PLACES", ())
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CHROMIUM", "PLAYWRIGHT_BROWSERS_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", FAILS)))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return commands


def installs(path: Path) -> str:
    """Return a command that makes a browser at `path`."""
    return f'#!/bin/sh\n/bin/mkdir -p "{path.parent}"\nprintf "#!/bin/sh\\n" > "{path}"\n/bin/chmod 755 "{path}"\n'


def test_playwright_is_tried_first(machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    browser = tmp_path / "home" / CACHED.format(1255)
    script(tmp_path / "python", installs(browser))
    script(machine / "apt-get", installs(machine / "chromium"))
    assert find_browser.main() == 0
    out = capsys.readouterr().out
    assert f"browser: {browser}" in out and "apt-get" not in out


def test_apt_is_tried_where_playwright_fails(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(machine / "apt-get", installs(machine / "chromium"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    find_browser.main()
    assert capsys.readouterr().out.endswith(find_browser.MISSING + "\n")  # apt-get is for root alone
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert find_browser.main() == 0
    assert f"browser: {machine / 'chromium'}" in capsys.readouterr().out


def test_one_sentence_names_the_ways_where_nothing_can_be_installed(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(machine / "apt-get", FAILS)
    assert find_browser.main() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    for way in ("CHROMIUM=", "playwright install chromium", "apt-get install chromium"):
        assert way in last


def test_a_download_that_stalls_is_given_up(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(find_browser, "INSTALL_SECONDS", 0.2)
    script(tmp_path / "python", "#!/bin/sh\nexec /bin/sleep 60\n")
    assert find_browser.main() == 0
    assert find_browser.MISSING in capsys.readouterr().out
