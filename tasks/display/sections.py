"""What every model's report says: how training went and where its time went, which stages ran and how.

A report is a page (tasks/display/page.py) of such sections and of the model's own (report.py for word
vectors).
"""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from lexloom.tasks.display.charts import Axis, Html, join, line_chart, smoothed
from lexloom.tasks.display.formatting import counted, duration, short, size
from lexloom.tasks.display.page import card, columns, element, page, section, table
from lexloom.tasks.store.artifacts import Artifact, Manifest, Store, Summary

FILE = "report.html"
ACCOUNT_LABELS = {
    "compute": "computing",
    "data": "waiting for data",
    "sync": "synchronising workers",
    "evaluation": "evaluating",
    "checkpoint": "writing checkpoints",
}
SHOWN_VALUES = 8  # of a list in the configuration
SHOWN_VERSIONS = ("lexloom", "torch", "ray", "prefect", "numba", "pyarrow")

STOP_REASONS = {
    "max_epochs": "Training ended after its last epoch.",
    "max_steps": "Training ended after its last step.",
    "max_seconds": "Training ended when its time was up.",
    "patience": "Training ended when the error ceased to shrink.",
}


def lineage(*artifacts: Artifact) -> list[Manifest]:
    """The manifests of these artifacts and of all that they were made from, in the order of their making."""
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
    """How training went, as the model folder says."""
    metrics: dict[str, Any] = json.loads((model.folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def known(metrics: dict[str, Any], name: str, form: str) -> str | None:
    value = metrics.get(name)
    return form.format(value) if isinstance(value, int | float) else None


def stage_rows(manifests: Iterable[Manifest]) -> list[list[str]]:
    """One row a stage: what came in, what went out, why the rest did not, bytes and seconds."""
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


def training_section(metrics: dict[str, Any], unit: str) -> Html:
    """The losses and the learning rate as training went on, why it ended, and where its time went."""
    history = metrics.get("history", [])
    marks = [
        (before["examples"], f"epoch {after['epoch'] + 1}")
        for before, after in pairwise(history)
        if after.get("epoch", 0) != before.get("epoch", 0)
    ]
    best = [(score["examples"], "best") for score in metrics.get("scores", []) if is_best(score, metrics)]
    cards = [
        curve(history, "loss", "loss (smoothed)", unit, marks, smooth=True),
        curve(metrics.get("scores", []), "loss", "validation loss", unit, best),
        curve(history, "learning_rate", "learning rate", unit, marks),
        accounts_card(metrics),
    ]
    cards = [each for each in cards if each]
    note = STOP_REASONS.get(str(metrics.get("stop_reason")), "")
    if best:
        note += f" The model is that of step {metrics['best_step']:,}, the best of those evaluated."
    return section("Training", columns(cards), note.strip()) if cards else Html()


def is_best(score: dict[str, Any], metrics: dict[str, Any]) -> bool:
    return bool(score["step"] == metrics.get("best_step"))


def curve(
    points: Sequence[dict[str, Any]],
    name: str,
    label: str,
    unit: str,
    marks: Sequence[tuple[float, str]],
    *,
    smooth: bool = False,
) -> Html:
    """One figure against the examples done; nothing where no two points are known.

    A figure that is a mean over the examples since the point before can be smoothed: by their number.
    """
    known = [(entry["examples"], entry[name]) for entry in points if is_number(entry.get(name))]
    if len(known) < 2:
        return Html()
    if smooth:
        known = smoothed(known)
    hints = [f"{short(x)} {unit} · {label} {y:.4g}" for x, y in known]
    axes = Axis(unit, short), Axis(label, lambda value: f"{value:.3g}")
    return card(line_chart(known, *axes, hints, marks))


def accounts_card(metrics: dict[str, Any]) -> Html:
    """Where the seconds of training went, on worker 0."""
    seconds: dict[str, float] = {
        label: metrics[f"{account}_seconds"]
        for account, label in ACCOUNT_LABELS.items()
        if f"{account}_seconds" in metrics
    }
    total = metrics.get("seconds")
    if not seconds or not total:
        return Html()
    seconds["everything else"] = max(0.0, total - sum(seconds.values()))
    rows = [
        [label, Html(f'<i class="bar" style="--share:{value / total:.3f}"></i>'), duration(value)]
        for label, value in seconds.items()
    ]
    rows.append(["all", "", duration(total)])
    return card(table(["where the time went", "", "time"], rows, figures={2}))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def stages_section(manifests: Sequence[Manifest]) -> Html:
    if not manifests:
        return Html()
    rows = stage_rows(manifests)
    return section("Stages", card(table(STAGE_COLUMNS, rows, figures={4, 5})))


def configuration_section(manifests: Sequence[Manifest]) -> Html:
    """Every stage's config, and the description of what came from outside."""
    cards = []
    for manifest in manifests:
        values = list(flattened(manifest.config))
        for entry in manifest.inputs:
            values += flattened(entry.description, f"{entry.name}.")
        if values:
            pairs = (element("dt", name) + element("dd", shown) for name, shown in values)
            cards.append(card(join([element("h3", manifest.stage), Html(f"<dl>{''.join(pairs)}</dl>")])))
    return section("Configuration", columns(cards, "medium")) if cards else Html()


def flattened(values: JsonValue, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested JSON as (dotted name, value in words)."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from flattened(value, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), shown_value(values)


def shown_value(value: JsonValue) -> str:
    """A value in words; of a list the first few, of what has a name the name."""
    if isinstance(value, dict):
        return str(value.get("name", json.dumps(value, ensure_ascii=False)))
    if isinstance(value, list):
        more = [f"and {len(value) - SHOWN_VALUES:,} more"] if len(value) > SHOWN_VALUES else []
        return ", ".join([*map(shown_value, value[:SHOWN_VALUES]), *more]) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value is None or value == "" else str(value)


def write_report(
    out: Path,
    title: str,
    model: Artifact,
    manifests: Sequence[Manifest],
    sections: Sequence[Html],
    rows_in: int,
    unit_in: str,
) -> Summary:
    """Writes `report.html`, one file that needs nothing else: the model's sections, and how it was made.

    A section that is empty is left out. `rows_in` and `unit_in` say what the report tells of.
    """
    made = [stages_section(manifests), configuration_section(manifests)]
    shown = [each for each in (*sections, *made) if each]
    whole = page(title, subtitle(model, manifests), shown, footer(manifests))
    (out / FILE).write_text(whole, encoding="utf-8")
    return Summary(rows_in=rows_in, unit_in=unit_in, rows=len(shown), unit="sections", facts={"file": FILE})


def subtitle(model: Artifact, manifests: Sequence[Manifest]) -> str:
    made = next((manifest.created for manifest in manifests if manifest.key == model.key), None)
    when = f"{made:%d %B %Y, %H:%M} UTC · " if made else ""
    return f"{when}{model.stage} {model.key[:8]}"


def footer(manifests: Sequence[Manifest]) -> str:
    versions: dict[str, str] = manifests[-1].versions if manifests else {}
    return " · ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions)


# the same figures as Markdown, for Prefect's page of the run


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that neither Markdown nor HTML takes for its own."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]#" else c for c in " ".join(escaped.split()))
