"""A run as others get it: half-size weights, configuration, log, table of epochs, curve, and a model card.

The same files make a repository on the Hub, a zip and a shipped checkpoint. They depend on the run alone, so exporting
twice gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import DiskError, RunError
from ..networks.stages import measure
from ..pictures.dataset import SETS
from ..runs.checkpoints import EVALUATION, Checkpoint, read_checkpoint
from ..runs.folder import Run
from ..runs.history import History, thin
from ..training.events import Progress, to_dict

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "events.jsonl", "history.csv", "curve.png", "README.md")  # evaluation.json, too
CURVE_POINTS = 1000
HUB_NAMES = {"cifar10": "uoft-cs/cifar10"}


def export(run: Run, folder: Path, repo: str = "OWNER/NAME") -> None:
    """Write the files of a run into `folder`, which is made; `repo` is named in the card.

    Raises RunError where the run has no weights, DiskError where the folder cannot be written.
    """
    checkpoint = half(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        evaluation = read_evaluation(run)
        with safe_open(run.folder / WEIGHTS, "pt") as file:
            metadata = file.metadata()
        if evaluation:
            metadata |= {name: json.dumps(evaluation[name]) for name in ("temperature", "limits")}
        (folder / WEIGHTS).write_bytes(_pack(checkpoint.weights, metadata))
        shutil.copyfile(run.folder / "config.json", folder / "config.json")
        (folder / "events.jsonl").write_text(short_log(run))
        if evaluation:
            shutil.copyfile(run.folder / EVALUATION, folder / EVALUATION)
        history = run.history()
        (folder / "history.csv").write_text(history_table(history))
        (folder / "curve.png").write_bytes(curve_picture(history))
        (folder / "README.md").write_text(model_card(run, history, evaluation, repo))
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {error.strerror}.") from error


def export_zip(run: Run, file: Path) -> None:
    """Write the files of a run into a zip. Raises what `export` raises."""
    with tempfile.TemporaryDirectory() as folder:
        export(run, Path(folder))
        try:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # weights do not shrink
                for path in sorted(Path(folder).iterdir()):
                    archive.write(path, f"{run.id}/{path.name}")
        except OSError as error:
            raise DiskError(f"{file} cannot be written: {error.strerror}.") from error


def read_evaluation(run: Run) -> dict[str, Any] | None:
    """Return what `evaluate` wrote into the run's folder; None where it was never evaluated.

    It is of this machine: what comes from the Hub has none.
    """
    try:
        found: dict[str, Any] = json.loads((run.folder / EVALUATION).read_text())
        return found
    except (OSError, ValueError):
        return None


def half(run: Run) -> Checkpoint:
    """Return a run's checkpoint with kernels and matrices in float16 (the rest, a thousandth of all, as it is).

    Raises RunError where the run has no weights, or they are too large for float16.
    """
    file = run.folder / WEIGHTS
    if not file.is_file():
        raise RunError(f"The run {run.id} has no weights yet; train it first.")
    checkpoint = read_checkpoint(file, run.id)
    weights = {name: value.half() if value.dim() > 1 else value for name, value in checkpoint.weights.items()}
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise RunError(f"The weights of {run.id} are too large for float16.")
    return replace(checkpoint, weights=weights)


def short_log(run: Run) -> str:
    """Return the log with at most 1,000 points of the curve, as many as a screen shows; an hour has 14,000."""
    found = run.events()
    points = thin([event for event in found if isinstance(event, Progress) and event.loss is not None], CURVE_POINTS)
    kept = [event for event in found if not isinstance(event, Progress)] + list(points)
    return "".join(json.dumps(to_dict(event)) + "\n" for event in sorted(kept, key=lambda event: event.seq))


def history_table(history: History) -> str:
    """Return the epochs as CSV: loss in nats, accuracy 0 to 1, time in seconds."""
    names = ("epoch", "step", "seconds", "train_loss", "validation_loss", "validation_accuracy", "best")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(epoch, name) for name in names] for epoch in history.epochs)
    return text.getvalue()


def curve_picture(history: History) -> bytes:
    """Return the training loss (grey, blue) and validation accuracy (orange) by step, as a small PNG."""
    width, height, edge = 640, 320, 36
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    curve = [point for point in thin(history.curve, 300) if point.loss is not None]
    steps = max([point.step for point in curve] + [epoch.step for epoch in history.epochs] + [1])
    highest = max([math.ceil(point.loss or 0) for point in curve] + [1])

    def place(step: int, share: float) -> tuple[float, float]:
        return edge + step / steps * (width - 2 * edge), height - edge - share * (height - 2 * edge)

    for tenth in range(0, 11, 2):
        draw.line([place(0, tenth / 10), place(steps, tenth / 10)], fill="#dddddd")
        y = place(0, tenth / 10)[1] - 6
        draw.text((6, y), f"{highest * tenth / 10:.1f}", fill="#0072b2")
        draw.text((width - edge + 6, y), f"{10 * tenth}%", fill="#d55e00")
    draw.line([place(p.step, (p.loss or 0.0) / highest) for p in curve], fill="#0072b2", width=2)
    validated = [(e.step, e.validation_accuracy) for e in history.epochs if e.validation_accuracy is not None]
    points = [place(step, accuracy) for step, accuracy in validated]
    draw.line(points, fill="#d55e00", width=2)
    for x, y in points:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="#d55e00")
    draw.text((edge, 8), "training loss (nats)", fill="#0072b2")
    draw.text((edge + 150, 8), "validation accuracy", fill="#d55e00")
    draw.text((width // 2, height - 18), f"{steps:,} steps", fill="#444444")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def model_card(run: Run, history: History, evaluation: dict[str, Any] | None, repo: str) -> str:
    """Return README.md: front matter with the model index, then what a person needs to judge and use the weights."""
    config, end, started = run.config, history.finished, history.started  # of a pulled run, what a stranger claims
    dataset, name = HUB_NAMES.get(config.dataset), f"{config.model} on {config.dataset}"
    accuracy, pictures = (end.test_accuracy, end.test_pictures) if end and not run.source else (None, 0)
    if evaluation:
        accuracy, pictures = evaluation["accuracy"], evaluation["pictures"]
    head: list[str] = ["license: mit", "library_name: pytorch", "pipeline_tag: image-classification"]
    head += ["tags: [cnn-demo, image-classification, " + config.model + "]", "metrics: [accuracy]"]
    if dataset:
        head.append(f"datasets: [{dataset}]")
    if dataset and accuracy is not None:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": dataset, "name": "CIFAR-10", "split": "test"},
            "metrics": [{"type": "accuracy", "value": round(accuracy, 4), "name": f"top-1, {pictures} pictures"}],
        }
        head.append("model-index: " + json.dumps([{"name": name, "results": [result]}]))

    facts = []
    if history.best and not run.source:
        facts.append(f"Best validation accuracy: {_percent(history.best.validation_accuracy)}.")
    if accuracy is not None:
        facts.insert(0, f"**{_percent(accuracy)}** of {pictures:,} test pictures, one view each.")
    if evaluation:
        facts.append(
            f"With the mirror image's logits averaged in: {_percent(evaluation['accuracy_flip'])}. Expected "
            f"calibration error {_percent(evaluation['ece_before'])} before and {_percent(evaluation['ece_after'])} "
            f"after dividing the logits by the temperature {evaluation['temperature']:.3f}, fitted on "
            f"{evaluation['validation_pictures']:,} validation pictures and stored in the file."
        )
    if end:
        facts.append(
            f"The run {run.id} {end.reason} after {end.epochs} epochs, {end.step:,} steps, {end.seconds:,.0f} s"
        )
    where = f" on {started.device} in {started.precision}" if started and not run.source else ""
    rows = [
        f"| {s.name} | {s.description} | {'x'.join(map(str, s.output))} | {s.stride} | {s.receptive_field} | "
        f"{s.parameters:,} | {s.macs:,} |"
        for s in measure(config.model)
    ]
    command = config.to_command().replace("`", "'")
    classes = ", ".join(SETS[config.dataset][0])
    return CARD.format(
        head="\n".join(head),
        name=name,
        facts=" ".join(facts) + where + ".",
        rows="\n".join(rows),
        command=command,
        classes=classes,
        repo=repo,
    )


def _pack(weights: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file with its metadata in order: the library's own order is another each time."""
    content = save(weights, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = json.dumps(header | {"__metadata__": dict(sorted(metadata.items()))}, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.2%}"


CARD = """---
{head}
---

# {name}

{facts}

![Loss and accuracy by step](curve.png)

Trained with

```sh
{command}
```

which also stands, with the versions of torch and torchvision, in `config.json`; `events.jsonl` is the run's log,
`history.csv` its epochs.

## Use

In a folder that holds CNN Demo's `cnn_demo/`:

```python
from pathlib import Path

from huggingface_hub import hf_hub_download

from cnn_demo.answers import inference
from cnn_demo.runs import checkpoints

file = Path(hf_hub_download("{repo}", "model.safetensors"))
checkpoint = checkpoints.read_checkpoint(file, "{repo}")
picture = inference.crop(inference.read_picture(Path("my_photo.jpg")))
answer = inference.classify(checkpoint.network(), checkpoint, inference.to_input(picture))
for prediction in answer.predictions[:3]:
    print(prediction.label, round(prediction.score, 3))
```

or `python -m cnn_demo classify my_photo.jpg --checkpoint hf:{repo}`.

## Stages

| stage | what is in it | output CxHxW | stride | receptive field px | parameters | MACs |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

For a picture of 3x32x32; FLOPs = 2 x MACs. Kernels and matrices are stored in float16.

## Limits

It knows only these classes: {classes}. Whatever it is shown, it answers with one of them. It sees 32x32 pixels of
the centre square. It was made to show how a convolutional network learns, not to decide anything about people or
things.
"""
