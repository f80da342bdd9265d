"""Content shared by all reports: training curves and times, stages and configuration.

A report is a template (tasks/display/templates/) that extends report.html.j2; this module and the report
stages compute the values that it shows.
"""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from lexloom.tasks.display.colours import report_style
from lexloom.tasks.display.curves import draw_curve
from lexloom.tasks.display.formatting import counted, duration, size
from lexloom.tasks.display.templates import render
from lexloom.tasks.report.usage import usage_content, with_name
from lexloom.tasks.store.artifacts import Artifact, Manifest, Store, Summary

FILE = "report.html"
ACCOUNT_LABELS = {
    "compute": "computation",
    "data": "waiting for data",
    "sync": "synchronization",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
}
SHOWN_VALUES = 8  # of a list in the configuration
SHOWN_EPOCHS = 6  # whose beginnings are marked in a curve
SHOWN_VERSIONS = ("lexloom", "torch", "ray", "prefect", "numba", "pyarrow")

STOP_REASONS = {
    "max_epochs": "Training completed all epochs.",
    "max_steps": "Training stopped at the maximum number of steps.",
    "max_seconds": "Training stopped at the time limit.",
    "patience": "Training stopped early: the validation loss no longer improved.",
}


def lineage(*artifacts: Artifact) -> list[Manifest]:
    """Return the manifests of these artifacts and of all their ancestors, in the order of creation."""
    found: dict[tuple[str, str], Manifest] = {}
    waiting = [(Store(artifact.folder.parent.parent), artifact.stage, artifact.key) for artifact in artifacts]
    while waiting:
        store, name, key = waiting.pop()
        manifest = store.manifest(name, key)
        if manifest is not None and (name, key) not in found:
            found[name, key] = manifest
            waiting += [(store, entry.stage, entry.key) for entry in manifest.inputs if entry.stage]
    return sorted(found.values(), key=lambda manifest: manifest.created)


def read_metrics(model: Artifact) -> dict[str, Any]:
    """Read the model folder's metrics.json."""
    metrics: dict[str, Any] = json.loads((model.folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def format_metric(metrics: dict[str, Any], name: str, form: str) -> str | None:
    value = metrics.get(name)
    return form.format(value) if isinstance(value, int | float) else None


def count_tile(number: Any, units: str) -> tuple[str, str | None]:
    """Return the (label, value) of a count: `epoch`, `1`; None as the value if it is unknown."""
    if not isinstance(number, int):
        return units, None
    value, label = counted(number, units).split(" ", 1)
    return label, value


def stage_rows(manifests: Iterable[Manifest]) -> list[list[str]]:
    """Return a row per stage: rows in and out, dropped rows by reason, size and time."""
    return [
        [
            manifest.stage,
            counted(manifest.summary.rows_in, manifest.summary.unit_in),
            counted(manifest.summary.rows, manifest.summary.unit),
            ", ".join(counted(count, reason) for reason, count in manifest.summary.dropped.items() if count),
            size(sum(entry.size for entry in manifest.files)),
            duration(manifest.seconds),
        ]
        for manifest in manifests
    ]


STAGE_COLUMNS = ["stage", "in", "out", "dropped", "size", "time"]


def training_content(metrics: dict[str, Any], unit: str) -> dict[str, Any]:
    """Return the charts, the times and the note of the section on training, for its template."""
    history = metrics.get("history", [])
    marks = [
        (before["examples"], f"epoch {after['epoch'] + 1}")
        for before, after in pairwise(history)
        if after.get("epoch", 0) != before.get("epoch", 0)
    ]
    marks = marks[:: -(-len(marks) // SHOWN_EPOCHS) or 1]
    best = [(score["examples"], "best") for score in metrics.get("scores", []) if is_best(score, metrics)]
    scores = metrics.get("scores", [])
    charts = [
        draw_curve(values_of(history, "loss"), "loss (smoothed)", unit, marks, smooth=True),
        draw_curve(values_of(scores, "loss"), "validation loss", unit, best),
        draw_curve(values_of(history, "learning_rate"), "learning rate", unit, marks),
    ]
    note = STOP_REASONS.get(str(metrics.get("stop_reason")), "")
    if best:
        note += f" The saved model is that of step {metrics['best_step']:,}, with the lowest validation loss."
    return {
        "charts": [chart for chart in charts if chart],
        "times": time_rows(metrics),
        "note": note.strip(),
    }


def is_best(score: dict[str, Any], metrics: dict[str, Any]) -> bool:
    return bool(score["step"] == metrics.get("best_step"))


def values_of(points: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return (examples, value) of a metric where it is known."""
    return [(entry["examples"], entry[name]) for entry in points if is_number(entry.get(name))]


def time_rows(metrics: dict[str, Any]) -> list[tuple[str, float | None, str]]:
    """Return (activity, share, time) of training on worker 0, with the total as the last row."""
    seconds: dict[str, float] = {
        label: metrics[f"{account}_seconds"]
        for account, label in ACCOUNT_LABELS.items()
        if f"{account}_seconds" in metrics
    }
    total = metrics.get("seconds")
    if not seconds or not total:
        return []
    seconds["other"] = max(0.0, total - sum(seconds.values()))
    rows = [(label, value / total, duration(value)) for label, value in seconds.items()]
    return [*rows, ("total", None, duration(total))]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def configuration(manifests: Sequence[Manifest]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each stage's config, and the descriptions of its inputs from outside the store."""
    found = []
    for manifest in manifests:
        values = list(flatten(manifest.config))
        for entry in manifest.inputs:
            values += flatten(entry.description, f"{entry.name}.")
        if values:
            found.append((manifest.stage, values))
    return found


def flatten(values: JsonValue, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of nested JSON as (dotted name, formatted value)."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from flatten(value, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), format_value(values)


def format_value(value: JsonValue) -> str:
    """Format a value: the first few items of a list, and the name of an object that has one."""
    if isinstance(value, dict):
        return str(value.get("name", json.dumps(value, ensure_ascii=False)))
    if isinstance(value, list):
        more = [f"and {len(value) - SHOWN_VALUES:,} more"] if len(value) > SHOWN_VALUES else []
        return ", ".join([*map(format_value, value[:SHOWN_VALUES]), *more]) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value is None or value == "" else str(value)


def write_report(
    out: Path,
    template: str,
    title: str,
    model: Artifact,
    manifests: Sequence[Manifest],
    rows_in: int,
    unit_in: str,
    word: str = "",
    **content: Any,
) -> Summary:
    """Render `template` with `content` to `report.html`, a self-contained file without scripts.

    `rows_in` and `unit_in` say what was evaluated, for the summary. `word` is an example of a word in the
    vocabulary of word vectors.
    """
    page = render(
        template,
        title=with_name(title),
        usage=usage_content(model, word),
        subtitle=subtitle(model, manifests),
        footer=footer(manifests),
        style=report_style(),
        stages={"columns": STAGE_COLUMNS, "rows": stage_rows(manifests)},
        configuration=configuration(manifests),
        **content,
    )
    (out / FILE).write_text(page, encoding="utf-8")
    return Summary(
        rows_in=rows_in, unit_in=unit_in, rows=page.count("<section>"), unit="sections", facts={"file": FILE}
    )


def subtitle(model: Artifact, manifests: Sequence[Manifest]) -> str:
    created = next((manifest.created for manifest in manifests if manifest.key == model.key), None)
    when = f"{created:%d %B %Y, %H:%M} UTC · " if created else ""
    return f"{when}{model.stage} {model.key[:8]}"


def footer(manifests: Sequence[Manifest]) -> str:
    versions: dict[str, str] = manifests[-1].versions if manifests else {}
    return " · ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions)


# the same content as Markdown, for the flow run's page in Prefect's UI


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Escape text for Markdown and HTML, on one line."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]#" else c for c in " ".join(escaped.split()))
