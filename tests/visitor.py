"""A visitor of the page as the server knows them: what their browser asks, over HTTP."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx

from tests.apps import ROOT

EXAMPLE = ROOT / "cnn_demo" / "ui" / "examples" / "cat.png"


class Page:
    """What a browser reads of the page once: the numbers of its functions and of the view of a run."""

    def __init__(self, url: str) -> None:
        self.url = url
        config = httpx.get(f"{url}/config", timeout=30).json()
        self.ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        names = {number: name for name, number in self.ids.items()}
        self.functions: dict[tuple[str | None, str], int] = {}  # by element and event
        self.loads: list[tuple[int, int]] = []  # of a new page: number, how many inputs
        for function in config["dependencies"]:
            for part, event in function["targets"]:
                self.functions.setdefault((names.get(part), event), function["id"])
                if event == "load" and not function["queue"]:
                    self.loads.append((function["id"], len(function["inputs"])))


class Visitor:
    """A browser with a session of its own. address: the network address that a Space's proxy would report."""

    def __init__(self, page: Page, owner: str, address: str = "") -> None:
        self.page, self.owner, self.session = page, owner, secrets.token_hex(6)
        headers = {"x-forwarded-for": address} if address else {}
        # verify: certificates take longer to load than most answers
        self.http = httpx.Client(base_url=f"{page.url}/gradio_api/", headers=headers, timeout=60, verify=False)

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(self, function: str, **asked: Any) -> Any:
        """Return what a server function of the view of a run answers."""
        body = {"data": asked | {"owner": self.owner}, "component_id": self.page.ids["run"], "fn_name": function}
        return read(self.http.post("component_server", json=body | {"session_hash": self.session}))

    def call(self, name: str, *values: Any) -> Any:
        """Return what an endpoint of the API answers, {"error": sentence} for an error."""
        answer = read(self.http.post(f"run/{name}", json={"data": values}))
        return answer["data"][0] if "data" in answer else answer

    def open(self) -> None:
        """Do what a browser does when it opens the page."""
        self.http.get(self.page.url).raise_for_status()
        for number, inputs in self.page.loads:
            remembered = json.dumps({"run": "", "owner": self.owner})  # the form's only input
            values = [remembered] if inputs == 1 else [self.owner, *[None] * (inputs - 1)]
            body = {"data": values, "fn_index": number, "session_hash": self.session}
            self.http.post("run/predict", json=body).raise_for_status()

    def trigger(self, element: str, event: str, *values: Any) -> Any:
        """Return the outputs of a queued event whose first input is the visitor, {"error": sentence} for an error."""
        number = self.page.functions[element, event]
        body = {"data": [self.owner, *values], "fn_index": number, "session_hash": self.session}
        joined = read(self.http.post("queue/join", json=body))
        if "event_id" not in joined:
            return joined
        with self.http.stream("GET", "queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    output = message["output"]
                    return output["data"] if message["success"] else {"error": output.get("error")}
        raise AssertionError("the stream ended without an answer")

    def upload(self, file: Path) -> dict[str, Any]:
        """Send a file; return what names it as an input."""
        (path,) = read(self.http.post("upload", files={"files": (file.name, file.read_bytes())}))
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def read(response: httpx.Response) -> Any:
    """Return the JSON of an answer; of a refusal by status what it says, as {"error": sentence}."""
    answer = response.json()
    refused = response.is_error and isinstance(answer, dict) and "error" not in answer
    return {"error": answer.get("detail")} if refused else answer
