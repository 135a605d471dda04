"""Many visitors at once, over HTTP as their browsers would be, on synthetic images.

    python -m tests.load watchers [--minutes 10]   45 that watch a run, 20 that classify with it
    python -m tests.load flood [--count 1000]      one network address starts, stops and opens with invented owners
    python -m tests.load sessions [--count 6000]   new pages
    python -m tests.load neighbour [--count 3]     a run beside a busy process, in turns with the same run alone

Prints a table, then one line of JSON; the exit code is 1 where a bound is broken.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cnn_demo.runs.folder import Run
from cnn_demo.sharing.export import export
from cnn_demo.training.events import Progress
from tests.apps import App
from tests.hub_server import hub_server
from tests.visitor import EXAMPLE, Page, Visitor

WATCHERS, CLASSIFIERS = 45, 20
CLASSIFY_SECONDS = 10.0  # between two pictures of one visitor
LIMITS = {"DISK_GB": "0.6", "RUNS": "8", "WAITING": "20", "WAITING_EACH": "5"}  # of the flood
REPOSITORIES = 30  # of 18 MB each: more than fit
FIRST, FLOOD = "8.8.8.8", "9.9.9.9"  # network addresses
Result = dict[str, Any]


def watchers(place: Path, minutes: float) -> Result:
    """Watch and classify with a run that trains; return memory, times and errors."""
    app = App(place / "runs")
    times: dict[str, list[float]] = {"watch": [], "classify": []}
    errors: Counter[str] = Counter()
    ended = threading.Event()

    def timed(kind: str, action: Callable[[], Any]) -> Any:
        begun, answer = time.monotonic(), None
        try:
            answer = action()
            if "error" in answer or "No answer" in str(answer):
                errors[str(answer)[:200]] += 1
        except Exception as error:
            errors[repr(error)[:200]] += 1
        times[kind].append(time.monotonic() - begun)
        return answer

    def watch(number: int) -> None:
        with Visitor(page, f"watcher {number}") as visitor:
            seq = -1
            while not ended.wait(1):
                answer = timed("watch", lambda after=seq: visitor.ask("watch", run=run, after=after))
                seq = (answer or {}).get("seq", seq)

    def classify(number: int) -> None:
        with Visitor(page, f"classifier {number}") as visitor:
            ended.wait(number * CLASSIFY_SECONDS / CLASSIFIERS)  # not all in the same moment
            while not ended.wait(CLASSIFY_SECONDS):
                timed("classify", lambda: visitor.trigger("picture", "change", visitor.upload(EXAMPLE), run, ""))

    try:
        page = Page(app.url)
        with Visitor(page, "trainer") as trainer:
            recipe = {"dataset": "shapes", "seconds": 60 * minutes + 300}
            run = trainer.call("start_run", "resnet50", recipe, trainer.owner)["run"]
            while not trainer.ask("watch", run=run)["saved"]:  # there is something to classify with
                time.sleep(0.5)
            with ThreadPoolExecutor(WATCHERS + CLASSIFIERS) as visitors:
                for i in range(WATCHERS):
                    visitors.submit(watch, i)
                for i in range(CLASSIFIERS):
                    visitors.submit(classify, i)
                ended.wait(early := min(60.0, 30 * minutes))
                first = memory(app)
                ended.wait(60 * minutes - early)
                last = memory(app)
                ended.set()
            state = trainer.ask("watch", run=run)["state"]
    finally:
        ended.set()
        app.end(signal.SIGTERM)
    found: Result = {
        "minutes": minutes,
        "rss_mb_first": first,
        "rss_mb_last": last,
        "rss_ratio": round(last / first, 2),
    }
    for kind, values in times.items():
        found[f"{kind}_count"] = len(values)
        for name, value in zip(("p50", "p99"), quantiles(values), strict=True):
            found[f"{kind}_{name}_ms"] = round(1000 * value)
    found |= {"errors": sum(errors.values()), "kinds_of_errors": dict(errors), "state": state}
    held = last <= 1.3 * first and found["watch_p99_ms"] < 1000 and not errors and state == "training"
    return found | {"held": held}


def flood(place: Path, count: int) -> Result:
    """Start and stop, then open, with a new owner each time; return how large the folder became, and the answers."""
    largest, answers = 0, Counter[str]()
    bound = float(LIMITS["DISK_GB"]) * 1e9
    with hub_server(place / "xet") as hub:
        environ = {f"CNN_DEMO_{name}": value for name, value in LIMITS.items()}
        app = App(place / "runs", SPACE_ID="someone/cnn-demo", HF_ENDPOINT=hub.url, **environ)
        begun = time.monotonic()

        def count_answer(what: str, answer: Any) -> None:
            sentence = answer.get("error") if isinstance(answer, dict) else None
            if isinstance(answer, list) and "wrong" in str(answer[0]):
                sentence = re.sub("<[^>]*>", "", answer[0])
            bad = isinstance(answer, dict) and "error" in answer and not sentence
            shown = re.sub(r"\d+", "N", re.sub(r"'[^']*'|resnet50-[\w-]+", "X", sentence or ""))
            answers[f"{what}: {shown or ('NOTHING' if bad else 'a result')}"] += 1

        def start_and_stop(i: int) -> None:
            with Visitor(page, f"invented {i}", FLOOD) as visitor:
                answer = visitor.call("start_run", "resnet50", {"dataset": "shapes", "epochs": 100}, visitor.owner)
                count_answer("start", answer)
                if "run" in answer:
                    visitor.ask("watch", run=answer["run"])  # what is watched is not the first to go
                    count_answer("stop", visitor.call("stop_run", answer["run"], visitor.owner))

        def open_one(i: int) -> None:
            with Visitor(page, f"opener {i}", FLOOD) as visitor:
                repo = f"ada/net{i % REPOSITORIES}"
                count_answer("open", visitor.trigger("open-fetch", "click", repo))

        try:
            page = Page(app.url)
            with Visitor(page, "the first one", FIRST) as first:
                run = first.call("start_run", "resnet50", {"dataset": "shapes", "seconds": 2}, first.owner)["run"]
                while "end" not in first.ask("watch", run=run):
                    time.sleep(0.2)
                export(Run(app.root / run), place / "files", "ada/net")
                files = {file.name: file.read_bytes() for file in (place / "files").iterdir()}
                for i in range(REPOSITORIES):
                    hub.add_repo(f"ada/net{i}", files)
                for action in (start_and_stop, open_one):
                    for done in range(0, count, 50):
                        with ThreadPoolExecutor(4) as pool:
                            list(pool.map(action, range(done, min(done + 50, count))))
                        largest = max(largest, size := folder_size(app.root))
                        print(f"{action.__name__:15}{done + 50:6} {size / 1e6:8.0f} MB", file=sys.stderr)
                mine = first.ask("watch", run=run)
                picture = first.upload(EXAMPLE)
                answer = first.trigger("picture", "change", picture, run, "")
            seconds = time.monotonic() - begun
        finally:
            app.end(signal.SIGTERM)
        tracebacks = Path(app.log.name).read_text().count("Traceback")
    for text, number in answers.most_common():
        print(f"{number:6}  {text}")
    bad = sum(number for text, number in answers.items() if "NOTHING" in text) + tracebacks
    found = {"count": count, "seconds": round(seconds), "largest_mb": round(largest / 1e6), "bound_mb": bound / 1e6}
    found |= {"first_run_still_answers": mine.get("saved") is True and "verdict" in str(answer)}
    found |= {"bad_answers": bad, "tracebacks": tracebacks}
    return found | {"held": largest <= bound and found["first_run_still_answers"] and not bad}


def sessions(place: Path, count: int) -> Result:
    """Open new pages; return the memory before and after."""
    app = App(place / "runs")
    try:
        page = Page(app.url)

        def visit(i: int) -> None:
            with Visitor(page, f"visitor {i}") as visitor:
                visitor.open()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(visit, range(100)))  # what the first ones load stays
            before, begun = memory(app), time.monotonic()
            list(pool.map(visit, range(count)))
        after, seconds = memory(app), time.monotonic() - begun
    finally:
        app.end(signal.SIGTERM)
    found = {"count": count, "seconds": round(seconds), "rss_mb_before": before, "rss_mb_after": after}
    return found | {"held": after <= before + 100}


def neighbour(place: Path, count: int) -> Result:
    """Train beside a busy process and alone, in turns; return the images per second of both."""
    app, rates = App(place / "runs"), {"alone": list[float](), "beside": list[float]()}
    try:
        with Visitor(Page(app.url), "trainer") as trainer:
            recipe = {"dataset": "shapes", "epochs": 1000, "optimizer": "sgd", "batch_size": 128}
            run = Run(app.root / trainer.call("start_run", "resnet50", recipe, trainer.owner)["run"])

            def at() -> Progress:
                return [event for event in run.log.read() if isinstance(event, Progress) and event.loss][-1]

            time.sleep(15)  # until it trains
            for turn in range(2 * count):
                other = subprocess.Popen(["sh", "-c", "while :; do :; done"]) if turn % 2 else None
                time.sleep(3)
                first = at()
                time.sleep(20)
                last = at()
                rate = (last.step - first.step) * recipe["batch_size"] / (last.seconds - first.seconds)
                rates["beside" if other else "alone"].append(round(rate))
                if other:
                    other.kill()
                    other.wait()
    finally:
        app.end(signal.SIGTERM)
    ratio = statistics.median(rates["beside"]) / statistics.median(rates["alone"])
    return {"images_per_second": rates, "ratio": round(ratio, 2), "held": ratio >= 0.45}


def memory(app: App) -> int:
    """Return the resident memory of the server in MB."""
    status = Path(f"/proc/{app.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024


def folder_size(root: Path) -> int:
    """Return the bytes of a folder's files, one that has several names once."""
    counted = subprocess.run(["du", "-s", "-B1", "--apparent-size", root], capture_output=True, text=True)
    return int(counted.stdout.split()[0])


def quantiles(values: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


def main() -> int:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Load the app as many visitors do.")
    parser.add_argument("name", choices=["watchers", "flood", "sessions", "neighbour"])
    parser.add_argument("--minutes", type=float, default=10, help="of watchers")
    parser.add_argument("--count", type=int, help="of the others (default 1000, 6000, 3)")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        if arguments.name == "watchers":
            found = watchers(place, arguments.minutes)
        elif arguments.name == "flood":
            found = flood(place, arguments.count or 1000)
        elif arguments.name == "sessions":
            found = sessions(place, arguments.count or 6000)
        else:
            found = neighbour(place, arguments.count or 3)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for name, value in found.items():
        print(f"{name:26}{value}")
    print(json.dumps({"load": arguments.name} | found))
    return 0 if found["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
