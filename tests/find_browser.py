"""Find Chromium or Chrome for the browser tests; `python -m tests.find_browser` installs it where there is none.

Standard library only. Searched in this order: the environment variable CHROMIUM, PATH, the usual places of Linux, macOS
and Windows, and what Playwright has installed. Installing tries Playwright's download first, then, as root where there
is apt-get, the package of Debian.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

INSTALL_SECONDS = 300  # for each command that downloads
START_SECONDS = 30
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "usr/bin/chromium",  # Debian, Arch, Fedora
    "usr/bin/chromium-browser",
    "usr/lib64/chromium-browser/chromium-browser",
    "usr/bin/google-chrome",
    "opt/google/chrome/chrome",
    "snap/bin/chromium",
    "Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "Applications/Chromium.app/Contents/MacOS/Chromium",
)
WINDOWS_FOLDERS = ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")
WINDOWS_PLACES = ("Google/Chrome/Application/chrome.exe", "Chromium/Application/chrome.exe")
PLAYWRIGHT_CACHES = (".cache/ms-playwright", "Library/Caches/ms-playwright", "AppData/Local/ms-playwright")
PLAYWRIGHT_FILES = ("chrome-linux*/chrome", "chrome-mac*/*.app/Contents/MacOS/*", "chrome-win*/chrome.exe")
MISSING = (
    "The browser tests do not run: no Chromium or Chrome was found that starts. Install one, or name one with "
    "CHROMIUM=/path/to/chromium; or run `python -m playwright install chromium`; or, as root on Debian, `apt-get "
    "install chromium`."
)


def candidates(environ: Mapping[str, str], root: Path, home: Path) -> Iterator[Path]:
    """Yield where a browser may be, the first choice first. CHROMIUM, where it is set, is the only choice."""
    if environ.get("CHROMIUM"):
        yield Path(environ["CHROMIUM"])
        return
    for name in NAMES:
        if found := shutil.which(name, path=environ.get("PATH", "")):
            yield Path(found)
    for place in PLACES:
        yield root / place
    yield from (home / place for place in PLACES if place.startswith("Applications"))
    for folder in (environ[name] for name in WINDOWS_FOLDERS if environ.get(name)):
        yield from (Path(folder) / place for place in WINDOWS_PLACES)
    named = environ.get("PLAYWRIGHT_BROWSERS_PATH")
    for cache in [Path(named)] if named else [home / place for place in PLAYWRIGHT_CACHES]:
        for file in PLAYWRIGHT_FILES:
            yield from sorted(cache.glob(f"chromium-*/{file}"), reverse=True)


def starts(path: Path) -> bool:
    """Return whether a browser starts: Ubuntu's is a note about a snap, a downloaded one may lack system libraries."""
    if not os.path.isfile(path):  # Path.is_file raises where a folder may not be read
        return False
    if path.suffix == ".exe":
        return True  # there `--version` would open a window
    return run([str(path), "--version"], START_SECONDS)


def find(environ: Mapping[str, str] = os.environ, root: Path = Path("/"), home: Path | None = None) -> str | None:
    """Return the path of a browser that starts; None where there is none."""
    places = candidates(environ, root, home or Path.home())
    return next((str(path) for path in places if starts(path)), None)


def install_commands() -> list[list[list[str]]]:
    """Return the ways to install a browser, the first choice first; each is a list of commands."""
    ways = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        apt = ["apt-get", "-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]
        ways.append([[*apt, "update"], [*apt, "install", "-y", "chromium"]])
    return ways


def run(command: list[str], seconds: int) -> bool:
    """Run a command without showing its output; return whether it ended well and in time."""
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=environ, timeout=seconds, capture_output=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main() -> int:
    """Print the path of a browser, installing one where there is none, or how to get one. The exit code is 0."""
    browser = find()
    for way in [] if browser or os.environ.get("CHROMIUM") else install_commands():
        print(f"Installing a browser for the tests: {' '.join(way[-1])}", flush=True)
        if all(run(command, INSTALL_SECONDS) for command in way) and (browser := find()):
            break
    print(f"browser: {browser}" if browser else MISSING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
