"""The model card: README.md of an exported run, with what a person needs to judge and use the weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .. import settings
from ..networks.catalog import NETWORKS
from ..networks.stages import measure
from ..pictures.catalog import DATASETS
from ..runs.folder import Run
from ..runs.history import History

SEAL = "\n<!-- By CNN Demo, which keeps what you edit here. SHA-256 of its own words: "


def model_card(run: Run, history: History, found: dict[str, Any] | None, repo: str) -> str:
    """Return the card in Markdown. The log of a pulled run is a stranger's: no result that only it claims is stated."""
    data, network, code = DATASETS[run.config.dataset], NETWORKS[run.config.model].title, settings.read_code()
    known = History() if run.source else history
    end, best, started = known.finished, known.best, known.started
    accuracy, images = (end.test_accuracy, end.test_pictures) if end else (None, 0)
    accuracy, images = (found["accuracy"], found["pictures"]) if found else (accuracy, images)
    head = f"tags: [cnn-demo, image-classification, {run.config.model}]"
    if data.hub:
        head += f"\ndatasets: [{data.hub}]"
    if data.hub and accuracy is not None:
        metric = {"type": "accuracy", "value": round(accuracy, 4), "name": f"top-1, {images} images"}
        source = {"type": data.hub, "name": data.title, "split": "test"}
        result = {"task": {"type": "image-classification"}, "dataset": source, "metrics": [metric]}
        head += "\nmodel-index: " + json.dumps([{"name": f"{network} on {data.title}", "results": [result]}])
    rows: list[tuple[Any, ...]] = []
    if accuracy is not None:
        rows.append(("test accuracy", f"**{accuracy:.2%}** ({images:,} images)"))
    if found and found.get("accuracy_flip") is not None:
        rows.append(("test accuracy with flip averaging", f"{found['accuracy_flip']:.2%}"))
    if found:
        scaling = "{ece_before:.2%} before temperature scaling by {temperature:.3f}, fitted on {validation_pictures:,}"
        before = f" ({scaling.format(**found)} images)" if found["validation_pictures"] else ""
        rows.append(("expected calibration error", f"{found['ece_after']:.2%}{before}"))
    if best and best.validation_accuracy is not None:
        rows.append(("best validation accuracy", f"{best.validation_accuracy:.2%}"))
    results = _table("measure", "result", rows=rows) + "\n\n" if rows else ""
    if found:
        shares = [f"{row[i] / max(sum(row), 1):.1%}" for i, row in enumerate(found["confusion"])]
        results += _table("class", *found["classes"], rows=[("accuracy", *shares)]) + "\n\n"
    if end and started:
        took = f"{end.epochs} epochs, {end.step:,} steps, {end.seconds:,.0f} s in {started.precision}"
        results += f"The run `{run.id}` {end.reason} after {took} on {started.device}."
    elif run.source:
        results += "The weights were pulled from the Hub and exported again."
    else:
        results += f"The run `{run.id}` has not ended."
    stages = [
        (s.name, s.description, "x".join(map(str, s.output)), s.stride, s.receptive_field, s.parameters, s.macs)
        for s in measure(run.config.model)
    ]
    heads = ("stage", "layers", "output CxHxW", "stride", "receptive field px", "parameters", "MACs")
    return (
        (Path(__file__).parent / "card.md")
        .read_text("utf-8")
        .format(
            head=head,
            network=network,
            data=data.title,
            program=f"[CNN Demo]({code})" if code else "CNN Demo",
            results=results,
            command=run.config.to_command().replace("`", "'"),
            install=f"pip install git+{code}" if code else "# install CNN Demo, then",
            repo=repo,
            stages=_table(*heads, rows=stages),
            classes=", ".join(data.classes),
        )
    )


def seal(card: str) -> str:
    """Return a card with its SHA-256 in a comment at its end, which one that was edited does not match any more."""
    card = card.partition(SEAL)[0]
    return f"{card}{SEAL}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def _table(*heads: str, rows: list[tuple[Any, ...]]) -> str:
    """Return a table in Markdown, numbers with thousands separators."""
    lines = [heads, ("---",) * len(heads), *rows]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
