"""A run as others get it: the same files, byte for byte, in a repository on the Hub, a zip and a shipped checkpoint."""

import io
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ..errors import RunError
from ..runs.checkpoints import Checkpoint, pack_checkpoint, read_checkpoint
from ..runs.files import CONFIG, EVALUATION, LOG, WEIGHTS, writing
from ..runs.folder import Run
from ..runs.history import History, thin
from ..training.events import Progress, Validated, to_dict
from .card import model_card, seal

HISTORY, CURVE, CARD = "history.csv", "curve.png", "README.md"
FILES = (WEIGHTS, CONFIG, LOG, HISTORY, CURVE, CARD)  # and EVALUATION, if the run has one
# of HISTORY: time in seconds, loss in nats, accuracy 0 to 1
COLUMNS = ("epoch", "step", "seconds", "train_loss", "validation_loss", "validation_accuracy", "best")


def files_of(run: Run, repo: str = "OWNER/NAME") -> dict[str, bytes]:
    """Return the files of a run by name; the card names `repo`. Raises RunError if the run has no weights."""
    weights, evaluation, history, events = half_size(run), run.evaluation(), run.history(), run.log.read()
    # as many points of the curve as a screen shows; an hour logs 14,000
    points = thin([event for event in events if isinstance(event, Progress) and event.loss is not None], 1000)
    checks = [event for event in events if isinstance(event, Validated)][::-1]
    rest = [event for event in events if not isinstance(event, (Progress, Validated))]
    chosen = [*points, *checks[:: 1 + len(checks) // 1000], *rest]
    log = "".join(json.dumps(to_dict(event)) + "\n" for event in sorted(chosen, key=lambda event: event.seq))
    rows = [COLUMNS, *([getattr(epoch, name) for name in COLUMNS] for epoch in history.epochs)]
    table = "".join(",".join("" if cell is None else str(cell) for cell in row) + "\n" for row in rows)
    copied = (CONFIG, EVALUATION) if evaluation else (CONFIG,)
    return {name: (run.folder / name).read_bytes() for name in copied} | {
        WEIGHTS: pack_checkpoint(weights),
        LOG: log.encode(),
        HISTORY: table.encode(),
        CURVE: draw_curve(history),
        CARD: seal(model_card(run, history, evaluation, repo)).encode(),
    }


def export(run: Run, folder: Path, repo: str = "OWNER/NAME") -> None:
    """Write the files of a run into `folder`, which is made if needed. Raises RunError, DiskError."""
    with writing(folder):
        files = files_of(run, repo)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)


def export_zip(run: Run, path: Path) -> None:
    """Write the files of a run into a zip. Raises what `export` raises."""
    files = files_of(run)
    with writing(path), zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # weights do not compress
        for name, content in files.items():
            archive.writestr(f"{run.id}/{name}", content)


def half_size(run: Run) -> Checkpoint:
    """Return a run's checkpoint with float16 kernels and matrices; raise RunError if it has none, or too large ones."""
    if not run.has(WEIGHTS):
        raise RunError(f"The run {run.id} has no weights yet; train it first.")
    checkpoint = read_checkpoint(run.folder / WEIGHTS, run.id)
    weights = {name: value.half() if value.dim() > 1 else value for name, value in checkpoint.weights.items()}
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise RunError(f"The weights of {run.id} are too large for float16.")
    return replace(checkpoint, weights=weights)


def draw_curve(history: History) -> bytes:
    """Return training loss (blue, left axis) and validation accuracy (orange, right axis) by step, as a small PNG."""
    width, height, margin, blue, orange = 640, 320, 36, "#0072b2", "#d55e00"
    draw = ImageDraw.Draw(picture := Image.new("RGB", (width, height), "white"))
    losses = [(point.step, point.loss) for point in thin(history.curve, 300) if point.loss is not None]
    last_step = max([step for step, _ in losses] + [epoch.step for epoch in history.epochs] + [1])
    highest = max([math.ceil(loss) for _, loss in losses] + [1])

    def place(step: int, share: float) -> tuple[float, float]:
        return margin + step / last_step * (width - 2 * margin), height - margin - share * (height - 2 * margin)

    for fifth in range(6):
        (left, y), (right, _) = place(0, fifth / 5), place(last_step, fifth / 5)
        draw.line([left, y, right, y], fill="#dddddd")
        draw.text((6, y - 6), f"{highest * fifth / 5:.1f}", fill=blue)
        draw.text((right + 6, y - 6), f"{20 * fifth}%", fill=orange)
    draw.line([place(step, loss / highest) for step, loss in losses], fill=blue, width=2)
    points = [place(e.step, e.validation_accuracy) for e in history.epochs if e.validation_accuracy is not None]
    draw.line(points, fill=orange, width=2)
    for point in points:
        draw.circle(point, 3, fill=orange)
    draw.text((margin, 8), "training loss (nats)", fill=blue)
    draw.text((margin + 150, 8), "validation accuracy", fill=orange)
    draw.text((width // 2, height - 18), f"{last_step:,} steps", fill="#444444")
    picture.save(file := io.BytesIO(), "PNG", optimize=True)
    return file.getvalue()
