"""ZeroGPU without its card: what lends the GPU, and the proxy that says who the visitor is, both on loopback."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

VISITOR = "header." + base64.urlsafe_b64encode(b'{"user": "ada"}').decode().rstrip("=") + ".signature"
REFUSED, QUEUED = 21, 24  # who asks for so many seconds is refused, or waits for QUEUE_SECONDS
QUEUE_SECONDS = 2.0


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Scheduler(Handler):
    """The platform's device API, as far as `spaces` calls it."""

    asked: list[tuple[str, dict[str, str]]]  # path and fields of all that was asked

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        fields = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append((url.path, fields))
        lent = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "one call"}
        seconds = int(fields.get("durationSeconds", 0))
        if seconds == QUEUED:
            self.start("text/event-stream")
            for _ in range(int(QUEUE_SECONDS / 0.25)):
                self.wfile.write(b"event: ping\n\n")
                time.sleep(0.25)
            self.wfile.write(f"event: succeeded\ndata: {json.dumps(lent)}\n\n".encode())
        elif seconds == REFUSED:
            self.start("application/json", 429)
            self.wfile.write(b'{"left": 5, "wait": "PT1H"}')
        else:
            self.start("application/json")
            self.wfile.write(json.dumps(lent if url.path == "/schedule" else {}).encode())

    def start(self, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()


class Proxy(Handler):
    """What stands before a Space: it names the visitor in events of Gradio's queue, and in nothing else."""

    port: int  # of the app

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "x-ip-token"}
        if urlsplit(self.path).path.endswith("/queue/join"):
            headers["x-ip-token"] = VISITOR
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while part := answer.read1():
                    self.wfile.write(part)

    do_GET = do_POST = do_HEAD = forward


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """Serve while the block lasts; yield the address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextlib.contextmanager
def platform(folder: Path) -> Iterator[tuple[dict[str, str], list[tuple[str, dict[str, str]]]]]:
    """Yield the environment by which a process believes to be on ZeroGPU, and what it asks for."""
    (folder / "cgroup").write_text("0::/a/space\n")
    handler = type("Handler", (Scheduler,), {"asked": []})
    with serving(handler) as address:
        environ = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": address, "OMP_NUM_THREADS": "1"}
        yield environ | {"ZEROGPU_PROC_SELF_CGROUP_PATH": str(folder / "cgroup")}, handler.asked


def tokens(asked: list[tuple[str, dict[str, str]]]) -> list[str | None]:
    """Return whose quota each request for a GPU would take."""
    return [fields.get("token") for path, fields in asked if path == "/schedule"]
