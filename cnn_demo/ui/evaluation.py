"""A run's evaluation as HTML: pictures have a sentence and a table for screen readers. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..answers.inference import percent
from ..runs.checkpoints import PREFIX

CELL, LEFT, TOP = 30, 84, 66  # of the confusion matrix, in units of its drawing
SIDE = 300  # of the reliability diagram


def render(found: dict[str, Any] | None, name: str) -> str:
    """Return an evaluation (see training/scoring.py) as HTML; None: what to do to get one."""
    if found is None and name.startswith(PREFIX.replace(":", "-")):  # pulled: what others measured is not ours
        command = f"<code>python -m cnn_demo evaluate {escape(name)}</code>"
        return f"<p>Not evaluated on this machine. Evaluate it from a terminal: {command}</p>"
    if found is None:
        return "<p>Not tested yet: a run is tested when it finishes.</p>"
    classes, counts, flip = found["classes"], found["confusion"], found.get("accuracy_flip")
    shares = (row[i] / max(1, sum(row)) for i, row in enumerate(counts))
    sections = {
        "Accuracy of each class": bars(zip(classes, shares, strict=True)),
        "Confusion matrix": confusion(classes, counts),
        "Reliability": reliability(found["reliability"], found["ece_after"]) if found.get("reliability") else "",
        "Most confident mistakes": mistakes(found["mistakes"]),
    }
    shown = "".join(f"<section><h3>{title}</h3>{part}</section>" for title, part in sections.items() if part)
    flipped = "" if flip is None else f" ({percent(flip)} with flip averaging)"
    return f"""<p>Test accuracy <strong>{percent(found["accuracy"])}</strong>{flipped} on {found["pictures"]:,} images.
Calibration error {percent(found["ece_after"])} ({percent(found["ece_before"])} before temperature scaling).</p>
<div class='evaluation'>{shown}</div>"""


def bars(rows: Iterable[tuple[str, float]], caption: str = "") -> str:
    """Return a bar for each label and its share, 0 to 1."""
    body = "".join(
        f"<tr><th scope='row'>{escape(label)}</th><td class='meter'><div style='width:{100 * share:.2f}%'></div></td>"
        f"<td>{percent(share)}</td></tr>"
        for label, share in rows
    )
    return f"<table class='scores'>{caption and f'<caption>{caption}</caption>'}<tbody>{body}</tbody></table>"


def confusion(classes: Sequence[str], counts: list[list[int]]) -> str:
    """Return the matrix: right answers blue, by their share of the class; mistakes orange, by the most frequent one."""
    most, label, answer = max((cell, i, j) for i, row in enumerate(counts) for j, cell in enumerate(row) if i != j)
    parts = []
    for i, row in enumerate(counts):
        y, along = TOP + CELL * i, LEFT + CELL * i + 19
        parts.append(f"<text x='{LEFT - 6}' y='{y + 19}' text-anchor='end'>{escape(classes[i])}</text>")
        parts.append(f"<text transform='translate({along} {TOP - 8}) rotate(-45)'>{escape(classes[i])}</text>")
        for j, cell in enumerate(row):
            x, kind = LEFT + CELL * j, "right" if i == j else "mistake"
            shade = cell / max(1, sum(row)) if i == j else 0.65 * cell / max(1, most)
            box = f"x='{x}' y='{y}' width='{CELL - 1}' height='{CELL - 1}' fill-opacity='{shade:.2f}'"
            style = "strong" if i == j and shade > 0.5 else ""
            parts.append(f"<rect class='{kind}' {box}/>")
            parts.append(f"<text class='{style}' x='{x + CELL / 2}' y='{y + 19}' text-anchor='middle'>{cell}</text>")
    worst = f"{classes[label]} is taken for {classes[answer]} {most:,} times" if most else "there are no mistakes"
    size, sentence = CELL * len(classes), f"Confusion matrix; the most frequent mistake: {worst}."
    table = [[name, *map(str, row)] for name, row in zip(classes, counts, strict=True)]
    picture = drawing(LEFT + size + 24, TOP + size, sentence, parts, ["true class", *classes], table)
    return f"{picture}<p class='quiet'>Rows: true class. Columns: the network's answer.</p>"


def reliability(bins: list[list[float]], error: float) -> str:
    """Return the diagram of `count, mean score, accuracy` of each bin: on the diagonal scores are honest."""
    most, width = max(1, *(count for count, _, _ in bins)), SIDE / len(bins)
    parts, table = [f"<path d='M40 10V{SIDE + 10}H{SIDE + 40}'/>"], []
    for i, (count, score, accuracy) in enumerate(bins):
        if count:
            place = f"x='{40 + width * i:.1f}' y='{10 + SIDE * (1 - accuracy):.1f}' width='{width - 1:.1f}'"
            shade = f"height='{SIDE * accuracy:.1f}' fill-opacity='{0.3 + 0.7 * count / most:.2f}'"
            parts.append(f"<rect class='right' {place} {shade}/>")
            range_ = f"{i / len(bins):.0%} to {(i + 1) / len(bins):.0%}"
            table.append([range_, f"{count:,.0f}", percent(score), percent(accuracy)])
    for share in (0, 0.5, 1):
        parts.append(f"<text x='{40 + SIDE * share}' y='{SIDE + 28}' text-anchor='middle'>{share:.0%}</text>")
        parts.append(f"<text x='34' y='{14 + SIDE * (1 - share)}' text-anchor='end'>{share:.0%}</text>")
    parts.append(f"<path class='ideal' d='M40 {SIDE + 10}L{SIDE + 40} 10'/>")
    sentence = f"Reliability diagram; scores differ from the accuracy by {percent(error)} on average."
    heads = ["score", "images", "mean score", "accuracy"]
    return f"""{drawing(SIDE + 60, SIDE + 36, sentence, parts, heads, table)}<p class='quiet'>Horizontal: top score.
Vertical: accuracy at that score. Dashed: perfect calibration. Darker: more images.</p>"""


def mistakes(found: list[dict[str, Any]]) -> str:
    """Return the wrong answers with the highest scores."""
    figures = "".join(
        f"<figure><img alt='' src='data:image/png;base64,{escape(one['png'])}'><figcaption>{escape(one['label'])}, "
        f"taken for {escape(one['answer'])}: {percent(one['score'])}</figcaption></figure>"
        for one in found
    )
    return f"<div class='mistakes'>{figures}</div>" if found else ""


def drawing(width: int, height: int, sentence: str, parts: list[str], heads: list[str], rows: list[list[str]]) -> str:
    """Return an SVG that screen readers hear as one sentence, and a table that only they see."""
    top = "".join(f"<th scope='col'>{escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"""<svg role='img' aria-label='{escape(sentence)}' viewBox='0 0 {width} {height}'>{"".join(parts)}</svg>
<table class='visually-hidden'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"""
