"""Commands without permission, for tests/fuzz.py: needs to be root, which becomes another user."""

# ruff: noqa: T201

import os
import shutil
import signal
import tarfile
import traceback
from collections import Counter
from pathlib import Path

from PIL import Image

from cnn_demo import cli
from cnn_demo.runs import folder
from cnn_demo.runs.checkpoints import find_checkpoint
from tests.apps import ROOT
from tests.fuzz import Hang, limited

NOBODY = 65534


def as_nobody(words: list[str], environ: dict[str, str], said: Path) -> tuple[int, str]:
    """Run a command line in a child process as a user without rights; return its exit code and stderr."""
    child = os.fork()
    if child == 0:
        with said.open("w") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ |= environ
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            code = cli.main(words)
        except BaseException:
            traceback.print_exc()
            code = 99
        os._exit(code)
    try:
        with limited():
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except Hang:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return code, said.read_text()


def forbidden(place: Path) -> Counter[str]:
    """Run twenty commands as a user who may not read, or not write, what they need."""
    if os.getuid():
        return Counter()  # only root can become another user
    from cnn_demo.answers import evaluation  # noqa: F401  as the other user it could not be imported
    from cnn_demo.sharing import hub  # noqa: F401
    from cnn_demo.training import distributed  # noqa: F401

    found: Counter[str] = Counter()
    with tarfile.open(ROOT / "tests" / "data" / "run_0.tar.xz") as archive:
        archive.extractall(place / "origin", filter="data")
    name = folder.list_runs(place / "origin")[0].id
    find_checkpoint(place / "origin", name)  # imports what a network needs
    cases = [("runs", ".", 0), ("train resnet50 --dataset shapes --epochs 1", ".", 0o555), ("runs", "RUN", 0)]
    cases += [
        (f"{what} RUN{more}", "RUN", 0) for what, more in (("continue", ""), ("export", " OUT"), ("evaluate", ""))
    ]
    cases += [
        ("continue RUN", "RUN", 0o555),
        ("evaluate RUN", "RUN", 0o555),
        ("classify PNG --checkpoint RUN", "RUN", 0),
    ]
    cases += [("continue RUN", "RUN/events.jsonl", 0o444), ("continue RUN", "RUN/events.jsonl", 0)]
    cases += [
        ("export RUN OUT", "RUN/events.jsonl", 0),
        ("runs --json", "RUN/config.json", 0),
        ("runs", "RUN/owner", 0),
    ]
    cases += [("continue RUN", "RUN/resume", 0), ("export RUN OUT", "RUN/model.safetensors", 0)]
    cases += [("export RUN OUT", "OUT", 0o555), ("classify PNG", "PNG", 0), ("classify OUT", "OUT", 0)]
    cases += [("train vgg16 --dataset cifar10 --epochs 1 --data OUT", "OUT", 0)]
    for number, (line, path, mode) in enumerate(cases):
        case = place / str(number)
        shutil.copytree(place / "origin", case / "runs")
        (case / "out").mkdir()
        Image.new("RGB", (8, 8)).save(case / "a.png")
        for parent, _, names in os.walk(case):
            for entry in (parent, *(os.path.join(parent, n) for n in names)):
                os.chown(entry, NOBODY, NOBODY)
        names = {"RUN": name, "OUT": str(case / "out"), "PNG": str(case / "a.png")}
        target = {"OUT": case / "out", "PNG": case / "a.png"}.get(path, case / "runs" / path.replace("RUN", name))
        target.chmod(mode)
        environ = {"CNN_DEMO_CHECKPOINTS": str(case / "runs"), "CNN_DEMO_CACHE": str(case / "cache")}
        environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "CNN_DEMO_TORONTO": "http://127.0.0.1:9", "HOME": str(case)}
        words = [names.get(word, word) for word in line.split()]
        try:
            code, error = as_nobody(words, environ, case / "said")
        except Hang:
            found["hangs"] += 1
            print("HANG", line, path, oct(mode))
            continue
        finally:
            target.chmod(0o755)
            shutil.rmtree(case)
        kind = "tracebacks" if "Traceback" in error else "answered"
        found[kind] += 1
        print("TRACEBACK" if kind == "tracebacks" else "  said", code, line, path, oct(mode), error[-300:])
    return found
