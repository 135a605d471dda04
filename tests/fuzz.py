"""Throws what strangers send at the program, from a seed: each answer must be a sentence.

python -m tests.fuzz --all: the full size, one line for each kind. The suite runs a few of each (unit/test_answers.py,
api/test_api.py). python -m tests.fuzz kills: kills.py at all points.
"""

# ruff: noqa: T201

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from cnn_demo import cli
from cnn_demo.errors import CnnDemoError, DataError
from cnn_demo.pictures import photo
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import checkpoint_names, find_checkpoint
from cnn_demo.training.config import RunConfig
from tests.apps import ROOT, App

SECONDS = 20  # what takes longer hangs
DEEP: Any = 1
for _ in range(200):
    DEEP = [DEEP]
WRONG = [None, True, 5, -1, 1.5, 10**30, float("inf"), float("nan"), "x", "", "\ud800", "a\0b", "x" * 5000, [], [1], {}]
WRONG += [{"a": 1}, {"\ud800": 1}, DEEP, "../../etc/passwd", "hf:a/b"]
RECIPES = [{name: value} for name in ("optimizer", "epochs", "seed", "start_from", "model", "x") for value in WRONG]


class Hang(BaseException):
    """Raised when something takes too long; nobody catches it by mistake."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise Hang after a while."""

    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(found: Counter[str], allowed: type[BaseException], what: str, function: Callable[[], object]) -> None:
    """Call a function and count how it ended."""
    try:
        with limited():
            function()
        found["answered"] += 1
    except allowed:
        found["answered"] += 1
    except Hang:
        found["hangs"] += 1
        print("HANG", what)
    except Exception as error:
        found["tracebacks"] += 1
        print("TRACEBACK", what, repr(error)[:300])


def pictures(count: int, place: Path) -> Counter[str]:
    """Read pictures of all formats with some bytes changed."""
    rng, found, originals = random.Random(1), Counter(), []
    for suffix in photo.SUFFIXES:
        picture = Image.radial_gradient("L").resize((48, 40)).convert("P" if suffix == ".gif" else "RGB")
        exif = Image.Exif()
        exif[0x0112], exif[0x011A], exif[0x013B] = 6, 72.0, "someone"
        exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
        kept = {} if suffix in (".gif", ".bmp") else {"exif": exif}
        picture.save(file := io.BytesIO(), Image.registered_extensions()[suffix], **kept)
        originals.append((suffix, file.getvalue()))
    for number in range(count):
        suffix, content = originals[number % len(originals)]
        changed = bytearray(content)
        end = len(changed) if number % 3 else min(300, len(changed))  # often where the metadata is
        for _ in range(rng.choice((1, 2, 5, 20))):
            changed[rng.randrange(end)] = rng.randrange(256)
        path = place / f"picture{suffix}"
        path.write_bytes(changed if number % 10 else changed[: rng.randrange(len(changed))])
        read = lambda path=path: photo.to_input(photo.crop(photo.read_picture(path)))  # noqa: E731
        attempt(found, DataError, f"picture {number}", read)
    return found


def ask(app: App, path: str, body: object) -> tuple[int, Any]:
    """Return status and JSON of a POST."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{app.url}/gradio_api/{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        content = error.read()
        with contextlib.suppress(ValueError):
            return error.code, json.loads(content)
        return error.code, None


def ask_queued(app: App, name: str, values: list[Any]) -> tuple[int, Any]:
    """Return what a function of the queue answers, as `ask` does."""
    status, event = ask(app, f"call/{name}", {"data": values})
    if "event_id" not in event:
        return status, event
    with urllib.request.urlopen(f"{app.url}/gradio_api/call/{name}/{event['event_id']}", timeout=SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    kind, data = lines[-3:-1] if not lines[-1] else lines[-2:]
    return (500 if kind == "event: error" else 200), json.loads(data.removeprefix("data: "))


def count_answer(found: Counter[str], what: object, send: Callable[[], tuple[int, Any]]) -> None:
    try:
        status, answer = send()
    except TimeoutError:
        found["hangs"] += 1
        return print("HANG", str(what)[:200])
    sentence = answer.get("error", answer.get("detail", "")) if isinstance(answer, dict) else answer
    kind = "nulls" if isinstance(answer, dict) and sentence is None else "answered"
    if status >= 500 and not sentence and kind == "answered":
        kind = "500s"
    if kind != "answered":
        print(kind, ascii(what)[:200], status, answer)
    found[kind] += 1


def end_of(app: App, found: Counter[str], logged: int) -> Counter[str]:
    """Return the counts with the tracebacks in the server's log and the folders that hold no run."""
    with Path(app.log.name).open() as log:
        log.seek(logged)
        text = log.read()
    found["tracebacks"] = text.count("Traceback")
    if found["tracebacks"]:
        print(text[:3000])
    found["empty folders"] = sum(not (path / "events.jsonl").exists() for path in app.root.iterdir() if path.is_dir())
    return found


def api(count: int, app: App) -> Counter[str]:
    """Call the endpoints with arguments of wrong types, too few and too many."""
    rng, found, logged = random.Random(2), Counter(), Path(app.log.name).stat().st_size
    right: dict[str, list[Any]] = {
        "start_run": ["vgg16", {"dataset": "shapes"}, "owner"],
        "run_status": ["resnet50", -1, ""],
        "stop_run": ["resnet50", "owner"],
        "stages": ["vgg16", 32],
        "classify": [None, "resnet50"],
    }
    files = [*WRONG, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"url": "x"}]
    for _ in range(count):
        name = rng.choice(list(right))
        values = copy.copy(right[name])
        for _ in range(rng.choice((1, 1, 2))):
            values[rng.randrange(len(values))] = rng.choice(WRONG)
        if name == "start_run":
            values[1] = rng.choice([*RECIPES, *WRONG[1:]])
            values[0] = rng.choice(["vgg16", *WRONG]) if type(values[1]) is not dict or values[1] == {} else "vgg16"
        if name == "classify":
            values[0] = rng.choice(files)
        cut = rng.randrange(8)
        values = values[:-1] if cut == 0 else [*values, 5] if cut == 1 else values
        if name == "classify":
            count_answer(found, (name, values), lambda name=name, values=values: ask_queued(app, name, values))
        else:
            body = {"data": values if cut != 2 else rng.choice(WRONG)}
            count_answer(found, (name, body), lambda name=name, body=body: ask(app, f"run/{name}", body))
    return end_of(app, found, logged)


def page(count: int, app: App) -> Counter[str]:
    """Call the page's own functions with arguments of wrong types, missing ones and others."""
    rng, found, logged = random.Random(3), Counter(), Path(app.log.name).stat().st_size
    config = json.load(urllib.request.urlopen(f"{app.url}/config", timeout=10))
    view = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "run")
    right: dict[str, dict[str, Any]] = {
        "watch": {"run": "resnet50", "after": -1, "owner": ""},
        "change": {"action": "stop", "run": "resnet50", "owner": "x", "title": ""},
        "listing": {"owner": ""},
        "evaluation": {"run": "resnet50", "owner": ""},
    }
    for _ in range(count):
        name = rng.choice(list(right))
        asked: Any = right[name] | {rng.choice([*right[name], "more", "\ud800"]): rng.choice(WRONG)}
        cut = rng.randrange(6)
        if cut == 0:
            del asked[rng.choice(list(asked))]
        asked = rng.choice(WRONG) if cut == 1 else asked
        body = {"data": asked, "component_id": view, "fn_name": name, "session_hash": "x", "event_id": None}
        body |= {rng.choice(list(body)): rng.choice(WRONG)} if cut == 2 else {}
        count_answer(found, body, lambda body=body: ask(app, "component_server", body))
    return end_of(app, found, logged)


DAMAGED = ("config.json", "owner", "title", "source.json", "events.jsonl", "evaluation.json", "model.safetensors")
DAMAGED += ("resume/state.json", "resume/weights-6.safetensors", "resume/optimizer-6.safetensors", "lock")
CONTENTS = [b"", b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"[]", b"null", b"5", b'{"recipe": 5}', b'{"repo": 5}']
CONTENTS += [b'{"kind": "Progress", "logged": [[1e999, 1]]}\n', b'{"kind": []}\n', b'"\\ud800"', b'{"revisions": 1}']


def damage(run: Path, rng: random.Random) -> str:
    """Damage a file of a run folder; return how. The other files may be links to the original."""
    name = rng.choice(DAMAGED)
    file, content = run / name, b""
    if file.exists():
        content = file.read_bytes()
        file.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        file.symlink_to("/nowhere")
    elif kind == 2 and content:
        file.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 3 and content:
        changed = bytearray(content)
        for _ in range(5):
            changed[rng.randrange(min(len(changed), 2000))] = rng.randrange(256)
        file.write_bytes(changed)
    elif kind == 4 and name == "resume/state.json":
        state = json.loads(content)
        state[rng.choice(list(state))] = rng.choice(WRONG[:10])
        file.write_text(json.dumps(state))
    else:
        file.write_bytes(rng.choice(CONTENTS))
    return f"{name} {kind}"


def folders(count: int, place: Path) -> Counter[str]:
    """Damage copies of a stopped run; list them all beside a good one, open each, prepare to continue it."""
    rng, found, root = random.Random(4), Counter(), place / "runs"
    with tarfile.open(ROOT / "tests" / "data" / "run_0.tar.xz") as archive:
        archive.extractall(root, filter="data")
    good = folder.list_runs(root)[0]
    for number in range(count):
        run = folder.Run(root / f"{good.id[:-8]}{number:08x}")
        shutil.copytree(good.folder, run.folder, copy_function=os.link)
        what = damage(run.folder, rng)
        actions = {
            "summary": run.summary,
            "history": lambda run=run: run.history().curve,
            "config": lambda run=run: run.config.to_command(),
            "texts": lambda run=run: (run.title, run.belongs_to("anna"), run.source and run.source["repo"]),
            "evaluation": run.evaluation,
            "weights": lambda run=run: find_checkpoint(root, run.id),
            "continue": lambda run=run: prepare(run),
            "list": lambda: good.id in [r.id for r in folder.list_runs(root) if r.summary()] or 1 / 0,
            "names": lambda: checkpoint_names(root)[0],
        }
        for name, action in actions.items():
            attempt(found, CnnDemoError, f"folder {what}: {name}", action)
        shutil.rmtree(run.folder)
    return found


def prepare(run: folder.Run) -> None:
    """Do all that comes before the first step of a continuation."""
    from cnn_demo.pictures.catalog import DATASETS

    with run.locked():
        recording._prepare(run.folder.parent, run, run.config, DATASETS[run.config.dataset])  # type: ignore[arg-type]


def commands(count: int, place: Path) -> Counter[str]:
    """Run command lines with unusual arguments, none of which starts a training."""
    rng, found = random.Random(5), Counter()
    os.mkfifo(place / "pipe")
    (place / "folder").mkdir()
    words = [
        "",
        "x" * 5000,
        "\udcff",
        "-1",
        "1e999",
        "nan",
        "../..",
        "/etc",
        str(place / "pipe"),
        str(place / "folder"),
    ]
    words += ["hf:x", "hf:../..", "hf:a/b@c", "hf-nothing", "--", "--help!", "\x1b[31m", "a/b", "/dev/null", "[" * 500]
    lines = ["train vgg16 --epochs", "train vgg16 --seed 1.5 --start-from", "train", "train vgg16 --preset", "runs"]
    lines += ["continue", "classify", "classify x.png --checkpoint", "evaluate", "export x", "push x", "pull"]
    lines += ["stages", "stages vgg16 --input-size", "space", "train vgg16 --dataset cifar10 --data", ""]
    for number in range(count):
        line = lines[number % len(lines)].split() + rng.choices(words, k=rng.choice((1, 1, 2)))
        output = io.StringIO()
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            attempt(found, SystemExit, f"command {line!r:.200}", lambda line=line: cli.main(line))
    found["tracebacks"] += 0
    return found


def main() -> None:
    """Print one line for each kind."""
    if "kills" in sys.argv:
        from tests import kills

        return kills.main()
    sizes = {"pictures": 20_000, "folders": 300, "commands": 100} if "--all" in sys.argv else {}
    sizes = sizes or {"pictures": 600, "folders": 30, "commands": 40}
    begun = time.monotonic()

    def show(kind: str, found: Counter[str]) -> None:
        counts = {name: found[name] for name in ("answered", "tracebacks", "nulls", "500s", "hangs", "empty folders")}
        print(f"{kind:<10}{counts}  after {time.monotonic() - begun:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        os.environ |= {"CNN_DEMO_CHECKPOINTS": str(place / "none"), "CNN_DEMO_CACHE": str(place / "cache")}
        os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "CNN_DEMO_TORONTO": "http://127.0.0.1:9"}
        for kind in (commands, pictures, folders):
            (place / kind.__name__).mkdir()
            show(kind.__name__, kind(sizes[kind.__name__], place / kind.__name__))
        (place / "app").mkdir()
        folder.create(place / "app" / "runs", RunConfig(model="resnet50", dataset="shapes", epochs=1)).folder.rename(
            place / "app" / "runs" / "resnet50"
        )
        app = App(place / "app" / "runs")
        try:
            show("api", api(500 if "--all" in sys.argv else 60, app))
            show("page", page(100 if "--all" in sys.argv else 40, app))
        finally:
            app.end(signal.SIGTERM)
        if "--all" in sys.argv:
            (place / "forbidden").mkdir()
            from tests.forbidden import forbidden

            show("forbidden", forbidden(place / "forbidden"))


if __name__ == "__main__":
    main()
