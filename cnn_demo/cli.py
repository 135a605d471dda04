"""The command line. Exit code 0: done, 1: something failed here, 2: what was given cannot be used, 3: a run diverged.

Results go to stdout, with --json as JSON in its last line, all else to stderr. torch is imported only where needed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings
from .errors import CnnDemoError, DownloadError, InputError
from .networks.catalog import NETWORKS
from .runs.history import History
from .terminal import clear_line, clock, line_reporter, print_table, say, show_event, stop_on_interrupt
from .training.config import PRESETS, RunConfig, flag, kind_of, override, preset

if TYPE_CHECKING:
    from .pictures.dataset import Dataset
    from .runs.checkpoints import Checkpoint
    from .runs.folder import Run


def main(argv: list[str] | None = None) -> int:
    """Run one command, by default the one this process was started with; return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        where = settings.read()
        if "run" in arguments:
            from .runs import folder

            arguments.run = folder.find(where.checkpoints, arguments.run)
        return int(arguments.command(arguments, where) or 0)
    except CnnDemoError as error:
        say(f"cnn_demo: {error}")
        return error.exit_code
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a place that may not be read, or a path that is none
        say(f"cnn_demo: {str(error.filename)[:200]} cannot be used: {error.strerror}.")
        return 2
    except KeyboardInterrupt:
        print("cnn_demo: exited at once; what was saved before is still there.", file=sys.stderr)
        return 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> Any:
        """Print the sentence and exit with 2."""
        self.exit(2, f"cnn_demo: {message}. See {self.prog} --help.\n")


def build_parser() -> Parser:
    """Return the parser of all commands; the flags of `train` are the fields of RunConfig."""
    parser = Parser(prog="python -m cnn_demo", description="Train VGG16 or ResNet50 on CIFAR-10 and classify pictures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    as_json, data, run, repo, weights, place = (Parser(add_help=False) for _ in range(6))  # what several commands take
    as_json.add_argument("--json", action="store_true", help="make the last line of stdout one JSON value")
    data.add_argument("--data", metavar="FOLDER", type=Path, help="a folder that holds CIFAR-10")
    place.add_argument("--device", metavar="cpu|cuda|cuda:1|mps", help="where to train (default: a GPU, else the CPU)")
    run.add_argument("run", metavar="RUN")
    repo.add_argument("name", metavar="OWNER/NAME")
    text = "name, run id, folder, file or hf:owner/name[@revision] (default: the first there is)"
    weights.add_argument("--checkpoint", metavar="NAME", help=text)

    def command(name: str, function: Callable[..., int | None], *parents: Parser) -> Parser:
        text = str(function.__doc__).split("\n")[0]
        sub = commands.add_parser(name, help=text, description=text, parents=parents)
        sub.set_defaults(command=function)
        return sub

    sub = command("train", train, as_json, data, place)
    sub.add_argument("model", metavar="MODEL", help=" | ".join(NETWORKS))
    sub.add_argument("--on", metavar="jobs", choices=["jobs"], help="run it as a Hugging Face Job, on your credit")
    sub.add_argument("--flavor", metavar="NAME", help="the job's machine (default t4-small)", default="t4-small")
    sub.add_argument("--space", metavar="OWNER/NAME", help="a Space of this app, which the job clones")
    sub.add_argument("--push", metavar="OWNER/NAME", help="where the job saves its run")
    sub.add_argument("--preset", metavar="NAME", help="settings to change: " + " | ".join(PRESETS))
    for field in dataclasses.fields(RunConfig)[1:]:
        metavar = "|".join(field.metadata["choices"]) or {int: "N", float: "X", str: "NAME"}[kind_of(field)]
        default = "" if field.default is None else f" (default {field.default})"
        sub.add_argument(flag(field.name), metavar=metavar, help=field.metadata["help"] + default)
    command("continue", continue_run, run, as_json, data, place)
    sub = command("classify", classify, as_json, weights)
    sub.add_argument("pictures", metavar="IMAGE|FOLDER", type=Path, nargs="+")
    sub = command("explain", explain, weights)
    sub.add_argument("picture", metavar="IMAGE", type=Path)
    sub.add_argument("--class", dest="label", metavar="NAME", help="class to explain (default: the answer)", default="")
    sub.add_argument("--stage", metavar="NAME", help="stage for Grad-CAM, or stage3.conv2, say", default="")
    sub.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="a new or empty folder")
    command("evaluate", evaluate, run, as_json, data)
    sub = command("export", export, run)
    sub.add_argument("folder", metavar="FOLDER", type=Path)
    sub.add_argument("--force", action="store_true", help="also into a folder that holds something else")
    command("push", push, run, repo).add_argument("--private", action="store_true", help="make the repository private")
    command("pull", pull).add_argument("name", metavar="OWNER/NAME[@REVISION]")
    sub = command("space", space, repo)
    sub.add_argument("--force", action="store_true", help="also into a Space that holds something else")
    sub = command("stages", stages, as_json)
    sub.add_argument("model", metavar="MODEL", choices=list(NETWORKS), help=" | ".join(NETWORKS))
    sub.add_argument("--input-size", metavar="PX", type=int, default=32, help="width and height (default 32)")
    command("runs", runs, as_json)
    return parser


def train(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """Train a network. Ctrl-C stops and saves, a second one exits at once."""
    names = {field.name for field in dataclasses.fields(RunConfig)[1:]}
    changes = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    config = override(preset(arguments.preset or "quick", arguments.model, on_gpu=chooses_gpu(arguments)), changes)
    if arguments.on:
        return start_job(arguments, config, where)
    if config.start_from:
        config = dataclasses.replace(config, start_from=local_name(config.start_from, where))
    data = load_data(config.dataset, arguments, where, "dataset" in changes or config.start_from is not None)
    return follow(None, dataclasses.replace(config, dataset=data.name), data, where, arguments)


def chooses_gpu(arguments: argparse.Namespace) -> bool:
    """Tell whether a preset, if one is named, is chosen for a GPU; without one a command is the same everywhere."""
    if not arguments.preset or arguments.on:
        return bool(arguments.preset) and not arguments.flavor.startswith("cpu")
    from .training.device import pick_device

    return pick_device(arguments.device).type == "cuda"


def start_job(arguments: argparse.Namespace, config: RunConfig, where: settings.Settings) -> int:
    """Start a training as a Hugging Face Job; what cannot succeed there is refused before it costs anything."""
    if not arguments.space or not arguments.push:
        raise InputError("--on jobs needs --space OWNER/NAME (the program) and --push OWNER/NAME (for the results).")
    if arguments.data:
        raise InputError("--data: a job cannot read this machine's folders; leave it out, and CIFAR-10 is downloaded.")
    from .runs.start import resolve_start
    from .sharing import hub, jobs

    token, start = hub.machine_login(), config.start_from
    if start and not start.startswith("hf:") and start not in NETWORKS:
        raise InputError(f"Start from: a job cannot read {start[:80]!r}; push it to the Hub, and give hf:OWNER/NAME.")
    start = start and local_name(start, where)
    config = resolve_start(where.checkpoints, dataclasses.replace(config, start_from=start))
    job = jobs.launch(where.hub, config, arguments.flavor, arguments.space, arguments.push, token)
    text = f"started {job}\nnext: python -m cnn_demo pull {arguments.push}"
    print(json.dumps({"job": job, "push": arguments.push}) if arguments.json else text)
    return 0


def continue_run(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """Continue a stopped, failed or interrupted run from its last checkpoint."""
    config = arguments.run.config
    return follow(arguments.run, config, load_data(config.dataset, arguments, where), where, arguments)


def local_name(name: str, where: settings.Settings) -> str:
    """Return the name of a checkpoint; one on the Hub is downloaded, and named with its commit."""
    from .runs.checkpoints import PREFIX

    if not name.startswith(PREFIX):
        return name
    from .sharing import hub

    source = hub.pull(where.checkpoints, where.hub, name, hub.machine_login(), notify=say).source
    return f"{PREFIX}{source['repo']}@{source['commit']}"


def load_data(name: str, arguments: argparse.Namespace, where: settings.Settings, required: bool = True) -> Dataset:
    """Return the data set and print its source; where CIFAR-10 was not asked for by name, `shapes` may replace it."""
    from .pictures import sources

    first = settings.read_rank().number == 0
    report = line_reporter() if first else (lambda text, share: None)
    try:
        found = sources.load(name, dataclasses.replace(where, data=arguments.data or where.data), report)
    except DownloadError as error:
        if required:
            raise
        say(f"{error}\nUsing shapes instead: ten classes of images that the program draws.")
        found = sources.load("shapes", where, report)
    if first:
        say(f"data      {found.name}: {found.source}")
    return found


def follow(
    run: Run | None, config: RunConfig, data: Dataset, where: settings.Settings, arguments: argparse.Namespace
) -> int:
    """Train a run (None: a new one), print events to stderr, its result to stdout; return the exit code."""
    from .runs import folder, recording
    from .training import device, distributed

    device.keep_freed_memory()
    rank, show, history = settings.read_rank(), line_reporter(), History()
    with stop_on_interrupt(rank) as stop, distributed.joined(rank) as group:
        group.part(config.batch_size)  # refused before there is a folder
        place = device.pick_device(arguments.device, rank.local)
        if rank.number > 0:
            recording.train_as_worker(where.checkpoints, run, config, data, place, stop, group)
            return 0
        if arguments.device is None and (problem := device.unusable_gpu()):
            say(f"{problem} Until then the CPU trains.")
        run = run or folder.create(where.checkpoints, config)
        say(f"run       {run.id}\ncommand   {run.config.to_command()}")
        for event in recording.train_run(run, data, place, stop, group):
            history.add(event)
            show_event(event, history, run.config, show)
    end, checkpoint = history.finished, str(run.folder / "model.safetensors")
    assert end is not None
    code = 3 if end.reason == "diverged" else 0
    if arguments.json:
        result: dict[str, Any] = {"run_id": run.id, "model": config.model, "dataset": data.name, "reason": end.reason}
        result |= {"epochs": end.epochs, "steps": end.step, "seconds": round(end.seconds, 2)}
        result |= {"images_per_second": round(end.images_per_second, 1), "validation_accuracy": end.validation_accuracy}
        result |= {"test_accuracy": end.test_accuracy, "test_pictures": end.test_pictures, "checkpoint": checkpoint}
        print(json.dumps(result))
        return code
    print(f"{end.reason}: {end.message}")
    print(f"{end.step} steps in {clock(end.seconds)}, {end.images_per_second:,.0f} images/s")
    if end.test_accuracy is not None:
        print(f"test accuracy {end.test_accuracy:.2%} ({end.test_pictures:,} images), weights of step {end.best_step}")
    if found := run.evaluation():
        print(f"calibration error {found['ece_after']:.2%} ({found['ece_before']:.2%} before temperature scaling)")
    again = "continue" if end.reason == "stopped" else "classify PICTURE --checkpoint"
    print(f"checkpoint {checkpoint}\nnext: python -m cnn_demo {again} {run.id}")
    return code


def classify(arguments: argparse.Namespace, where: settings.Settings) -> int:
    """Classify pictures with a checkpoint."""
    from .answers import inference
    from .pictures import photo

    checkpoint = load_checkpoint(arguments.checkpoint, where)
    name, network = checkpoint.name, checkpoint.network()
    files: list[Path] = []
    for path in arguments.pictures:
        found: list[Path] = []
        with contextlib.suppress(OSError):
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in photo.SUFFIXES)
        files += found or [path]
    rows: list[dict[str, Any]] = []
    for file in files:
        rows.append({"file": str(file), "checkpoint": name, "predictions": [], "error": None})
        try:
            pixels = photo.to_input(photo.crop(photo.read_picture(file)))
            rows[-1] |= dataclasses.asdict(inference.classify(network, checkpoint, pixels))
            if not arguments.json:
                best = rows[-1]["predictions"][:3]
                print(f"{file}: " + ", ".join(f"{p['label']} {inference.percent(p['score'])}" for p in best))
        except InputError as error:
            rows[-1]["error"] = str(error)
            say(f"cnn_demo: {error}")
    if arguments.json:
        print(json.dumps(rows))
    else:
        say(f"by {name} ({checkpoint.model}), which knows only: {', '.join(checkpoint.classes)}")
    return 2 if rows and all(row["error"] for row in rows) else 0  # a bad file alone does not fail the rest


def load_checkpoint(name: str | None, where: settings.Settings) -> Checkpoint:
    """Return the checkpoint of a name, None for the first there is."""
    from .runs import checkpoints

    names = [name] if name else checkpoints.checkpoint_names(where.checkpoints)
    if not names:
        raise InputError("There is no checkpoint yet; train one, or name a file with --checkpoint.")
    return checkpoints.find_checkpoint(where.checkpoints, local_name(names[0], where))


def explain(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Draw the feature maps of a picture and what the answer rests on: PNG files and explain.json in a folder."""
    from .answers import explain as explaining
    from .answers.inference import percent
    from .pictures import photo
    from .runs.files import writing

    folder: Path = arguments.output
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise InputError(f"{folder} already holds something; name a new or an empty folder.")
    checkpoint = load_checkpoint(arguments.checkpoint, where)
    pixels = photo.to_input(photo.crop(photo.read_picture(arguments.picture)))
    network, label, stage = checkpoint.network(), arguments.label, arguments.stage
    report, pictures = explaining.explain(network, checkpoint, pixels, label, stage)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            picture.save(folder / f"{name}.png")
        (folder / "explain.json").write_text(json.dumps(report, indent=1))
    best = report["predictions"][0]
    print(f"{best['label']} {percent(best['score'])}; Grad-CAM of {report['class']} at {report['stage']}\n{folder}")


def evaluate(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Test a run's weights: accuracy, calibration, confusion matrix, worst mistakes."""
    from .answers import evaluation
    from .sharing.export import half_size

    run: Run = arguments.run
    data = load_data(run.config.dataset, arguments, where)
    with run.locked():  # so that its weights do not change
        result = evaluation.evaluate(half_size(run), data, line_reporter())
        run.write_json("evaluation.json", result)
    clear_line()
    if arguments.json:
        return print(json.dumps(result))
    print(f"test accuracy {result['accuracy']:.2%} ({result['pictures']:,} images)")
    print(f"              {result['accuracy_flip']:.2%} with flip averaging")
    print(f"calibration error {result['ece_after']:.2%} ({result['ece_before']:.2%} before temperature scaling)")
    lines = [[name, *row] for name, row in zip(result["classes"], result["confusion"], strict=True)]
    print_table(("true \\ answer", *(name[:5] for name in result["classes"])), lines, left=1)


def export(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Write a run's float16 weights, model card, log and curve into a folder."""
    from .runs.files import EVALUATION, LOG, WEIGHTS
    from .sharing import export as exports

    folder, known = arguments.folder, {*exports.FILES, EVALUATION}
    found = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    if found and not {WEIGHTS, LOG} <= found <= known and not arguments.force:
        replaced = ", ".join(sorted(found & known)) or "no file"
        raise InputError(f"{folder} holds something other than an export ({replaced} would be replaced); see --force.")
    exports.export(arguments.run, arguments.folder)
    print(arguments.folder)


def push(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Save a run to the Hugging Face Hub: one commit, with a model card and a tag."""
    from .sharing import hub

    token, report = hub.machine_login(), line_reporter()
    print(hub.push(arguments.run, where.hub, arguments.name, token, arguments.private, report, say))


def pull(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Download a checkpoint from the Hugging Face Hub; it then works offline."""
    from .sharing import hub

    run = hub.pull(where.checkpoints, where.hub, arguments.name, hub.machine_login(), notify=say)
    print(f"{run.folder}\nnext: python -m cnn_demo classify PICTURE --checkpoint {run.id}")


def space(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Upload this app to a Space of yours."""
    from .sharing import hub
    from .sharing.space import upload_space

    print(upload_space(where.hub, arguments.name, settings.ROOT, hub.machine_login(), line_reporter(), arguments.force))


def stages(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """Show the size of every stage of a network."""
    from .networks.stages import to_dict

    size = arguments.input_size
    table = to_dict(arguments.model, size)
    if arguments.json:
        return print(json.dumps(table))
    print(f"{table['model']}, for an image of 3x{size}x{size}; MACs and memory per image, FLOPs = 2 x MACs\n")
    heads = ("stage", "layers", "output CxHxW", "values", "stride", "field px", "parameters", "MACs", "KiB")
    total = {**table, "name": "total", "description": "", "output": [], "stride": None, "receptive_field": None}
    total["activation_bytes"] = sum(stage["activation_bytes"] for stage in table["stages"])
    lines = []
    for row in (*table["stages"], total):
        numbers = [row["activation_bytes"] // 4, row["stride"], row["receptive_field"], row["parameters"], row["macs"]]
        cells = ["" if number is None else f"{number:,}" for number in numbers]
        shape, memory = "x".join(map(str, row["output"])), f"{row['activation_bytes'] / 1024:,.2f}"
        lines.append([row["name"], row["description"], shape, *cells, memory])
    print_table(heads, lines, left=3)


def runs(arguments: argparse.Namespace, where: settings.Settings) -> None:
    """List the runs, the latest first."""
    from .runs.folder import list_runs

    rows = [{"run_id": run.id, **run.summary()} for run in list_runs(where.checkpoints)]
    if arguments.json:
        print(json.dumps(rows))
    elif not rows:
        print(f"No runs yet in {where.checkpoints}. Start one: python -m cnn_demo train vgg16")
    else:
        heads = ("run", "title", "model", "dataset", "state", "step", "validation", "test")
        print_table(heads, [list(row.values()) for row in rows], left=5)
