"""The command line. Exit code 0: done, 2: what was given cannot be used, 1: something failed here.

What a person reads goes to stderr while it happens and to stdout when it is a result; with --json the last line of
stdout is one JSON object (or list). torch is imported only by the commands that need it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings
from .errors import CnnDemoError, DownloadError, InputError
from .runs.history import History, course_log
from .training import config as configs
from .training.config import MODELS, RunConfig, flag

if TYPE_CHECKING:
    import torch

    from .pictures.dataset import Dataset
    from .runs.folder import Run
    from .training.events import Progress


CHECKPOINT_HELP = "name, run id, folder, file or hf:owner/name[@revision] (default: the first there is)"


def main(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        result: int = arguments.command(arguments, settings.read())
        return result
    except CnnDemoError as error:
        print(f"cnn_demo: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("cnn_demo: left at once; what was saved before is kept.", file=sys.stderr)
        return 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> Any:
        """Print the sentence and leave with 2."""
        self.exit(2, f"cnn_demo: {message}. See {self.prog} --help.\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the flags of `train` are the fields of RunConfig."""
    parser = Parser(prog="python -m cnn_demo", description="Train VGG16 or ResNet50 on CIFAR-10 and classify pictures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    def add_common(sub: argparse.ArgumentParser, data: bool = False) -> None:
        sub.add_argument("--json", action="store_true", help="make the last line of stdout one JSON value")
        if data:
            sub.add_argument("--data", metavar="FOLDER", type=Path, help="a folder that holds CIFAR-10")

    sub = command("train", train, "Train a network. Ctrl-C stops and saves, a second one leaves at once.")
    sub.add_argument("model", metavar="MODEL", help=" | ".join(MODELS))
    sub.add_argument("--on", metavar="jobs", choices=["jobs"], help="run it as a Hugging Face Job (your credit)")
    sub.add_argument("--flavor", metavar="NAME", help="of the job's machine (default t4-small)", default="t4-small")
    sub.add_argument("--space", metavar="OWNER/NAME", help="a Space of this app, from which the job takes the program")
    sub.add_argument("--push", metavar="OWNER/NAME", help="where the job saves its run")
    sub.add_argument("--preset", metavar="NAME", help="start from: quick (60 s) | best (20 epochs) | course")
    for field in dataclasses.fields(RunConfig)[1:]:
        choices = field.metadata["choices"]
        metavar = "|".join(choices) if choices else {int: "N", float: "X", str: "NAME"}[field.metadata["kind"]]
        default = "" if field.default is None else f" (default {field.default})"
        sub.add_argument(flag(field.name), metavar=metavar, help=field.metadata["help"] + default)
    add_common(sub, data=True)

    sub = command("continue", continue_run, "Continue a stopped, failed or interrupted run where it was saved.")
    sub.add_argument("run", metavar="RUN")
    add_common(sub, data=True)

    sub = command("classify", classify, "Classify pictures with a checkpoint.")
    sub.add_argument("pictures", metavar="IMAGE|FOLDER", type=Path, nargs="+")
    sub.add_argument("--checkpoint", metavar="NAME", help=CHECKPOINT_HELP)
    add_common(sub)

    sub = command("evaluate", evaluate, "Measure a run's weights: test accuracy, calibration, confusion, mistakes.")
    sub.add_argument("run", metavar="RUN")
    add_common(sub, data=True)

    sub = command("export", export, "Write a run's weights in half size, with its card, log and curve, into a folder.")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("folder", metavar="FOLDER", type=Path)

    sub = command("push", push, "Save a run to the Hugging Face Hub: one commit, with a model card and a tag.")
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("repo", metavar="OWNER/NAME")
    sub.add_argument("--private", action="store_true", help="make the repository private")

    sub = command("pull", pull, "Fetch a checkpoint from the Hugging Face Hub; it then works without a network.")
    sub.add_argument("repo", metavar="OWNER/NAME[@REVISION]")

    sub = command("space", space, "Upload this app to a Space of yours, ready to run.")
    sub.add_argument("space", metavar="OWNER/NAME")

    sub = command("stages", stages, "Show the size of every stage of a network.")
    sub.add_argument("model", metavar="MODEL", choices=MODELS, help=" | ".join(MODELS))
    sub.add_argument("--input-size", metavar="PX", type=int, default=32, help="width and height (default 32)")
    add_common(sub)

    add_common(command("runs", runs, "List the runs, the latest first."))
    return parser


def train(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`train MODEL`: make a run and train it."""
    base = configs.preset(arguments.preset or "quick", arguments.model)
    names = [field.name for field in dataclasses.fields(RunConfig)[1:]]
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    config = configs.override(base, changes)
    if arguments.on:
        return launch_job(config, arguments, where)
    if config.start_from:
        from .runs.folder import hold_out

        config = dataclasses.replace(config, start_from=local_name(config.start_from, where))
        if "validation_pictures" not in changes:
            config = hold_out(where.checkpoints, config)
    data = load_data(config.dataset, arguments, where, required="dataset" in changes or config.start_from is not None)
    if data.name != config.dataset:
        config = dataclasses.replace(config, dataset=data.name)
    if settings.read_rank().number > 0:
        return assist(None, config, data, where)
    from .runs import folder as run_folders

    run = run_folders.create(where.checkpoints, config)
    return follow(run, data, arguments.json)


def assist(run: Run | None, config: RunConfig, data: Dataset, where: settings.Settings) -> int:
    """Train along with rank 0, where torchrun started several processes; print nothing."""
    from .runs import folder as run_folders
    from .training import distributed
    from .training.loop import keep_freed_memory

    keep_freed_memory()
    with stop_on_interrupt() as stop, distributed.joined(settings.read_rank()) as group:
        run_folders.assist(where.checkpoints, run, config, data, pick_device(), stop, group)
    return 0


def launch_job(config: RunConfig, arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`train ... --on jobs`: the same command on a machine of Hugging Face; the run is pushed from there."""
    if not arguments.space or not arguments.push:
        raise InputError("--on jobs needs --space OWNER/NAME (where the program is) and --push OWNER/NAME (results).")
    from .sharing import hub

    token = hub.machine_login()
    job = hub.launch(where.hub, config.to_command(), arguments.flavor, arguments.space, arguments.push, token)
    print(f"started {job}\nnext: python -m cnn_demo pull {arguments.push}")
    return 0


def local_name(name: str, where: settings.Settings) -> str:
    """Return the name of a checkpoint; one on the Hub is fetched, and named with its commit."""
    from .runs.checkpoints import PREFIX

    if not name.startswith(PREFIX):
        return name
    from .sharing import hub

    source = hub.pull(where.checkpoints, where.hub, name, hub.machine_login()).source
    return f"{PREFIX}{source['repo']}@{source['commit']}"


def continue_run(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`continue RUN`."""
    from .runs import folder as run_folders

    run = run_folders.find(where.checkpoints, arguments.run)
    data = load_data(run.config.dataset, arguments, where, required=True)
    if settings.read_rank().number > 0:
        return assist(run, run.config, data, where)
    return follow(run, data, arguments.json)


def load_data(name: str, arguments: argparse.Namespace, where: settings.Settings, required: bool) -> Dataset:
    """Return the data set, saying where it is from; where CIFAR-10 was not asked for by name, `shapes` may stand in."""
    from .pictures import dataset as data

    first = settings.read_rank().number == 0
    report = line_reporter() if first else (lambda text, share: None)
    try:
        found = data.load(name, dataclasses.replace(where, data=arguments.data or where.data), report)
    except DownloadError as error:
        if required:
            raise
        say(f"{error}\nUsing shapes instead: ten classes of pictures that the program draws.")
        found = data.draw_shapes()
    if first:
        say(f"data      {found.name}: {found.source}")
    return found


def follow(run: Run, data: Dataset, as_json: bool) -> int:
    """Drive a run, showing what happens on stderr; print its result."""
    from .runs import folder as run_folders
    from .training import distributed
    from .training.events import EpochDone, Progress, RunFinished, RunStarted
    from .training.loop import keep_freed_memory

    keep_freed_memory()
    show, history = line_reporter(), History()
    say(f"run       {run.id}\ncommand   {run.config.to_command()}")
    with stop_on_interrupt() as stop, distributed.joined(settings.read_rank()) as group:
        for event in run_folders.drive(run, data, pick_device(), stop, group):
            history = history.fold(event)
            match event:
                case RunStarted():
                    pictures = f"{event.train_pictures:,} pictures ({event.validation_pictures:,} held out)"
                    say(f"training  {pictures} on {event.device}, {event.precision}, from step {event.step}")
                case Progress():
                    for line in course_log(event, history, run.config.epochs):
                        say(line)
                    show(progress_text(event, history), event.share)
                case EpochDone():
                    text = f"epoch {event.epoch}  train loss {event.train_loss:.3f}"
                    if event.validation_accuracy is not None:
                        text += (
                            f"  validation loss {event.validation_loss:.3f}  accuracy {event.validation_accuracy:.2%}"
                        )
                    say(text + "  best so far" * event.best)
                case RunFinished():
                    clear_line()
    end, checkpoint = history.finished, str(run.folder / "model.safetensors")
    assert end is not None
    if as_json:
        result = {
            **{"run_id": run.id, "model": run.config.model, "dataset": data.name, "reason": end.reason},
            **{"epochs": end.epochs, "steps": end.step, "seconds": round(end.seconds, 2)},
            **{"images_per_second": round(end.images_per_second, 1), "validation_accuracy": end.validation_accuracy},
            **{"test_accuracy": end.test_accuracy, "test_pictures": end.test_pictures, "checkpoint": checkpoint},
        }
        print(json.dumps(result))
        return 0
    print(f"{end.reason}: {end.message}")
    print(f"{end.step} steps in {clock(end.seconds)}, {end.images_per_second:,.0f} images/s")
    if end.test_accuracy is not None:
        print(
            f"test accuracy {end.test_accuracy:.2%} on {end.test_pictures:,} pictures, weights of step {end.best_step}"
        )
    print(f"checkpoint {checkpoint}")
    again = "continue" if end.reason == "stopped" else "classify PICTURE --checkpoint"
    print(f"next: python -m cnn_demo {again} {run.id}")
    return 0


def progress_text(event: Progress, history: History) -> str:
    """Return where a run is, for the living line; the accuracy is that of the last validation."""
    accuracies = [epoch.validation_accuracy for epoch in history.epochs if epoch.validation_accuracy is not None]
    accuracy = f"  accuracy {accuracies[-1]:.2%}" if accuracies else ""
    loss = "" if event.loss is None else f"  loss {event.loss:.3f}"
    rate = f"  {event.images_per_second:,.0f} images/s" if event.images_per_second else ""
    left = "" if event.seconds_left is None else f"  {clock(event.seconds_left)} left"
    return f"{event.phase:<10} epoch {event.epoch}  step {event.step}{loss}{accuracy}{rate}{left}"


def classify(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`classify IMAGE|FOLDER...`: a bad file is named, the rest go on; exit code 2 if none could be classified."""
    from .answers import inference
    from .runs import checkpoints

    given = arguments.checkpoint
    names = [local_name(given, where)] if given else checkpoints.checkpoint_names(where.checkpoints)
    if not names:
        raise InputError("There is no checkpoint yet; train one, or name a file with --checkpoint.")
    checkpoint = checkpoints.find_checkpoint(where.checkpoints, names[0])
    network = checkpoint.network()
    rows: list[dict[str, Any]] = []
    for file in picture_files(arguments.pictures):
        row: dict[str, Any] = {"file": str(file), "checkpoint": names[0], "predictions": [], "error": None}
        try:
            pixels = inference.to_input(inference.crop(inference.read_picture(file)))
            row |= dataclasses.asdict(inference.classify(network, checkpoint, pixels))
            if not arguments.json:
                top = ", ".join(f"{p['label']} {inference.percent(p['score'])}" for p in row["predictions"][:3])
                print(f"{file}: {top}")
        except InputError as error:
            row["error"] = str(error)
            say(f"cnn_demo: {error}")
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows))
    else:
        say(f"by {names[0]} ({checkpoint.model}), which knows only: {', '.join(checkpoint.classes)}")
    return 2 if rows and all(row["error"] for row in rows) else 0


def picture_files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files; of a folder, all with a picture's suffix, by name, or the folder itself if there are none."""
    from .answers.inference import SUFFIXES

    for path in paths:
        files: list[Path] = []
        with contextlib.suppress(OSError):
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        yield from files or [path]


def evaluate(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`evaluate RUN`: what its exported weights are worth; kept in the run's folder for the card and the page."""
    from .answers import evaluation
    from .runs import folder as run_folders
    from .sharing import card

    run = run_folders.find(where.checkpoints, arguments.run)
    data = load_data(run.config.dataset, arguments, where, required=True)
    with run.held():  # so that its weights stay what they are
        result = evaluation.evaluate(card.half(run), data, run.config.validation_pictures, line_reporter())
        run.save_evaluation(result)
    clear_line()
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(f"test accuracy {result['accuracy']:.2%} on {result['pictures']:,} pictures, one view each")
    print(f"              {result['accuracy_flip']:.2%} with the mirror image's logits averaged in")
    print(f"calibration error {result['ece_before']:.2%}, {result['ece_after']:.2%} at {result['temperature']:.3f}")
    print_table(
        ("true \\ answer", *(name[:5] for name in result["classes"])),
        [[name, *map(str, row)] for name, row in zip(result["classes"], result["confusion"], strict=True)],
        left=1,
    )
    return 0


def export(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`export RUN FOLDER`."""
    from .runs import folder as run_folders
    from .sharing import card

    card.export(run_folders.find(where.checkpoints, arguments.run), arguments.folder)
    print(arguments.folder)
    return 0


def push(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`push RUN OWNER/NAME`."""
    from .runs import folder as run_folders
    from .sharing import hub

    run = run_folders.find(where.checkpoints, arguments.run)
    token, private = hub.machine_login(), arguments.private
    print(hub.push(run, where.hub, arguments.repo, token, private, lambda text, share: say(f"{share:4.0%}  {text}")))
    return 0


def pull(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`pull OWNER/NAME[@REVISION]`."""
    from .sharing import hub

    run = hub.pull(where.checkpoints, where.hub, arguments.repo, hub.machine_login())
    print(f"{run.folder}\nnext: python -m cnn_demo classify PICTURE --checkpoint {run.id}")
    return 0


def space(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`space OWNER/NAME`."""
    from .sharing import hub

    report, token = (lambda text, share: say(f"{share:4.0%}  {text}")), hub.machine_login()
    print(hub.publish(where.hub, arguments.space, settings.ROOT, token, report))
    return 0


def stages(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`stages MODEL`: one row a stage, then the totals."""
    from .networks import stages as sizes

    size = arguments.input_size
    table = sizes.to_dict(arguments.model, size)
    if arguments.json:
        print(json.dumps(table))
        return 0
    print(f"{table['model']}, for a picture of 3x{size}x{size}; MACs and memory for one picture, FLOPs = 2 x MACs\n")
    heads = ("stage", "what is in it", "output CxHxW", "values", "stride", "field px", "parameters", "MACs", "KiB")
    lines, values = [], 0
    for stage in table["stages"]:
        channels, height, width = stage["output"]
        values += channels * height * width
        numbers = [channels * height * width, stage["stride"], stage["receptive_field"]]
        cells = [f"{n:,}" for n in (*numbers, stage["parameters"], stage["macs"])]
        shape, memory = f"{channels}x{height}x{width}", f"{stage['activation_bytes'] / 1024:,.2f}"
        lines.append([stage["name"], stage["description"], shape, *cells, memory])
    sums = [f"{table['parameters']:,}", f"{table['macs']:,}", f"{values * 4 / 1024:,.2f}"]
    lines.append(["total", "", "", f"{values:,}", "", "", *sums])
    print_table(heads, lines, left=3)
    return 0


def runs(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """`runs`: one row a run."""
    from .runs import folder as run_folders

    rows = [{"run_id": run.id, **run.summary()} for run in run_folders.listing(where.checkpoints)]
    if arguments.json:
        print(json.dumps(rows))
    elif not rows:
        print(f"No runs yet in {where.checkpoints}. Start one: python -m cnn_demo train vgg16")
    else:
        lines = [[show_value(value) for value in row.values()] for row in rows]
        print_table(("run", "model", "dataset", "state", "step", "validation", "test"), lines, left=4)
    return 0


def show_value(value: object) -> str:
    """Return a value for a table: accuracies in percent, nothing for None."""
    return "" if value is None else f"{value:.2%}" if isinstance(value, float) else str(value)


def pick_device() -> torch.device:
    """Return this process's GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda", settings.read_rank().local) if torch.cuda.is_available() else torch.device("cpu")


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed (or SIGTERM came); the second time leaves at once.

    torchrun sends SIGTERM after a Ctrl-C that its processes had, too: there a second time means nothing.
    """
    asked: list[int] = []
    rank = settings.read_rank()

    def ask(number: int, frame: object) -> None:
        if asked and rank.size == 1:
            raise KeyboardInterrupt
        asked.append(number)
        if rank.number > 0 or len(asked) > 1:
            return
        say("stopping and saving; press again to leave at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """Print a line to stderr, in place of the living one."""
    clear_line()
    print(text, file=sys.stderr)


def line_reporter() -> Callable[[str, float], None]:
    """Return a function that shows a text and a share: on a terminal one living line, else a line every 10 s."""
    told = [0.0]

    def report(text: str, share: float) -> None:
        now, living = time.monotonic(), sys.stderr.isatty()
        if now - told[0] < (0.1 if living else 10.0):
            return
        told[0] = now
        line = f"{share:4.0%}  {text}"
        print(f"\r\x1b[K{line}" if living else line, end="" if living else "\n", file=sys.stderr, flush=True)

    return report


def clear_line() -> None:
    """Take the living line away."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return minutes and seconds, or hours too: 1:05, 2:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_table(heads: tuple[str, ...], lines: list[list[str]], left: int) -> None:
    """Print columns, the first `left` of them flush left."""
    widths = [max(len(row[i]) for row in [list(heads), *lines]) for i in range(len(heads))]
    for row in [list(heads), *lines]:
        cells = zip(row, widths, strict=True)
        print("  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
