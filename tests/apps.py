"""Starts the real app as its user would, on folders of its own and without a network."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"  # nothing answers there


class App:
    """A server process; its runs are in `root`."""

    def __init__(self, root: Path, **environ: str) -> None:
        self.root, self.environ = root, environ
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        environ = os.environ | {
            "CNN_DEMO_CHECKPOINTS": str(self.root),
            "CNN_DEMO_CACHE": str(self.root.parent / "cache"),
            "CNN_DEMO_TORONTO": NOWHERE,
            "HF_ENDPOINT": NOWHERE,
            "GRADIO_SERVER_PORT": str(self.port),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        environ.pop("CNN_DEMO_DATA", None)
        environ |= self.environ
        self.log = (self.root.parent / "app.log").open("w")
        command = [sys.executable, str(ROOT / "app.py")]
        self.process = subprocess.Popen(command, env=environ, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, Path(self.log.name).read_text()
                time.sleep(0.1)

    def end(self, how: signal.Signals) -> None:
        """Send a signal, and wait until the process is gone."""
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        self.log.close()
