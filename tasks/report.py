"""The report: one HTML file that shows what a run made, from what, how fast and how good.

A page is a title and a list of sections; a section is a function that returns HTML, or nothing where the run
has nothing to say about it. No script, no network: charts are inline SVG (tasks/charts.py). All text is
escaped by the frame; only `Html` passes as it is.
"""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from models.word2vec import WordVectors
from tasks import charts
from tasks.artifacts import Artifact, Manifest, Store, Summary
from tasks.charts import Axis, Html, html, in_the_plane, join, line_chart, word_map
from tasks.evaluate import AnalogyScore, Evaluation, read_evaluation
from tasks.stage import stage
from tasks.vocabulary import read_vocabulary

FILE = "report.html"
FREQUENCY_POINTS = 120
SHOWN_VALUES = 8  # of a list in the configuration
SHOWN_VERSIONS = ("lexloom", "torch", "ray", "prefect", "numba", "pyarrow")


STOP_REASONS = {
    "max_epochs": "Training ended after its last epoch.",
    "max_steps": "Training ended after its last step.",
    "max_seconds": "Training ended when its time was up.",
    "patience": "Training ended when the error ceased to shrink.",
}


class ReportConfig(BaseModel):
    """What the report's page looks like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(
        default="Word vectors",
        min_length=1,
        description="the page's title",
        json_schema_extra={"position": 0},
    )
    words_on_map: int = Field(
        default=300,
        ge=2,
        le=1000,
        description="how many of the most frequent words stand on the map",
        json_schema_extra={"position": 1},
    )


@dataclass(frozen=True)
class Run:
    """All that the report tells of: what was made, how it was made, and how it went."""

    model: Artifact
    vectors: WordVectors
    counts: list[int]
    evaluation: Evaluation
    metrics: dict[str, Any]
    manifests: list[Manifest]


@stage(version=1)
def report(
    model: Artifact, evaluation: Artifact, vocabulary: Artifact, config: ReportConfig, out: Path
) -> Summary:
    """Writes `report.html`, one file that needs nothing else."""
    run = read_run(model, evaluation, vocabulary)
    sections = [
        tiles(headline(run)),
        training_section(run.metrics),
        neighbours_section(run.evaluation),
        map_section(run, config.words_on_map),
        scores_section(run.evaluation),
        frequency_section(run),
        stages_section(run.manifests),
        configuration_section(run.manifests),
    ]
    sections = [section for section in sections if section]
    (out / FILE).write_text(page(config.title, subtitle(run), sections, footer(run)), encoding="utf-8")
    return Summary(
        rows_in=len(run.vectors), unit_in="words", rows=len(sections), unit="sections", facts={"file": FILE}
    )


def read_run(model: Artifact, evaluation: Artifact, vocabulary: Artifact) -> Run:
    _, counts = read_vocabulary(vocabulary)
    return Run(
        model=model,
        vectors=WordVectors.load(model.folder),
        counts=counts.tolist(),
        evaluation=read_evaluation(evaluation),
        metrics=json.loads((model.folder / "metrics.json").read_text(encoding="utf-8")),
        manifests=lineage(model, evaluation, vocabulary),
    )


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


# what there is to say


def headline(run: Run) -> list[tuple[str, str]]:
    """(label, figure) of the run's main figures; those that are not known are left out."""
    metrics, made = run.metrics, {manifest.stage: manifest.summary for manifest in run.manifests}
    figures: list[tuple[str, str | None]] = [
        ("words", f"{len(run.vectors):,}"),
        ("dimensions", f"{run.vectors.vectors.shape[1]:,}"),
        ("pairs", short(made["pairs"].rows) if "pairs" in made else None),
        ("epochs", known(metrics, "epochs", "{:g}")),
        ("final loss", known(metrics, "loss", "{:.4f}")),
        (
            "pairs a second",
            short(metrics["examples_per_second"]) if "examples_per_second" in metrics else None,
        ),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        ("workers", known(metrics, "workers", "{:g}")),
        *((name, figure(score)) for name, score in run.evaluation.scores().items()),
    ]
    return [(label, shown) for label, shown in figures if shown is not None]


def known(metrics: dict[str, Any], name: str, form: str) -> str | None:
    value = metrics.get(name)
    return form.format(value) if isinstance(value, int | float) else None


def figure(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def stage_rows(manifests: Iterable[Manifest]) -> list[list[str]]:
    """One row a stage: what came in, what went out, why the rest did not, bytes and seconds."""
    return [
        [
            manifest.stage,
            f"{manifest.summary.rows_in:,} {manifest.summary.unit_in}",
            f"{manifest.summary.rows:,} {manifest.summary.unit}",
            ", ".join(f"{count:,} {reason}" for reason, count in manifest.summary.dropped.items() if count),
            size(sum(entry.size for entry in manifest.files)),
            duration(manifest.seconds),
        ]
        for manifest in manifests
    ]


STAGE_COLUMNS = ["stage", "in", "out", "dropped", "size", "time"]


def score_rows(evaluation: Evaluation) -> list[list[str]]:
    rows = [
        [score.name, "rank correlation", figure(score.spearman), f"{score.scored:,} of {score.pairs:,} pairs"]
        for score in evaluation.similarity
    ]
    return rows + [
        [
            score.name,
            "right answers",
            figure(score.accuracy),
            f"{score.scored:,} of {score.questions:,} questions",
        ]
        for score in evaluation.analogies
    ]


SCORE_COLUMNS = ["set", "measure", "score", "coverage"]


def markdown(model: Artifact, evaluation: Artifact, vocabulary: Artifact, config: ReportConfig) -> str:
    """The report's figures as Markdown, for Prefect's page of the run."""
    run = read_run(model, evaluation, vocabulary)
    parts = [f"# {plain(config.title)}", markdown_table(["figure", "value"], headline(run))]
    if run.evaluation.similarity or run.evaluation.analogies:
        parts += ["## Scores", markdown_table(SCORE_COLUMNS, score_rows(run.evaluation))]
    if run.evaluation.neighbours:
        rows = [
            [entry.word, ", ".join(f"{near.word} {near.similarity:.2f}" for near in entry.neighbours)]
            for entry in run.evaluation.neighbours
        ]
        parts += ["## Nearest neighbours", markdown_table(["word", "neighbours"], rows)]
    if run.manifests:
        parts += ["## Stages", markdown_table(STAGE_COLUMNS, stage_rows(run.manifests))]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that neither Markdown nor HTML takes for its own."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "\\|`*_[]#" else c for c in " ".join(escaped.split()))


# sections


def training_section(metrics: dict[str, Any]) -> Html:
    """The loss and the learning rate as training went on; nothing where no two points were recorded."""
    history = [entry for entry in metrics.get("history", []) if {"examples", "loss"} <= entry.keys()]
    marks = [
        (before["examples"], f"epoch {after['epoch'] + 1}")
        for before, after in pairwise(history)
        if after.get("epoch", 0) != before.get("epoch", 0)
    ]
    curves = []
    for name, label in (("loss", "loss"), ("learning_rate", "learning rate")):
        points = [(entry["examples"], entry[name]) for entry in history if is_number(entry.get(name))]
        if len(points) > 1:
            hints = [f"{short(x)} pairs · {label} {y:.4g}" for x, y in points]
            axes = Axis("pairs", short), Axis(label, lambda value: f"{value:.3g}")
            curves.append(card(line_chart(points, *axes, hints, marks)))
    note = STOP_REASONS.get(str(metrics.get("stop_reason")), "")
    return section("Training", columns(curves), note) if curves else Html()


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def neighbours_section(evaluation: Evaluation) -> Html:
    if not evaluation.neighbours:
        return Html()
    cards = [
        card(
            join(
                [
                    element("h3", entry.word),
                    element("p", f"{entry.count:,} times in the text", "note"),
                    Html('<ol class="near">'),
                    *(
                        Html(
                            f'<li title="{near.count:,} times in the text"><span>{html(near.word)}</span>'
                            f'<i style="--share:{max(0.0, min(1.0, near.similarity)):.3f}"></i>'
                            f"<b>{near.similarity:.2f}</b></li>"
                        )
                        for near in entry.neighbours
                    ),
                    Html("</ol>"),
                ]
            )
        )
        for entry in evaluation.neighbours
    ]
    return section(
        "Nearest neighbours",
        columns(cards, "small"),
        "The words whose vectors point most nearly the same way, with their cosine.",
    )


def map_section(run: Run, words: int) -> Html:
    count = min(words, len(run.vectors))
    if count < 2:
        return Html()
    names = run.vectors.words[:count]
    near = run.vectors.neighbours(names, 5)
    hints = [
        f"{name} · {times:,} times · near {', '.join(word for word, _ in found)}"
        for name, times, found in zip(names, run.counts, near, strict=False)
    ]
    picture = word_map(in_the_plane(run.vectors.vectors[:count].numpy()), names, hints)
    return section(
        "Map of words",
        card(Html(f'<div class="wide">{picture}</div>')),
        f"The {count:,} most frequent words, laid out in the plane (t-SNE) so that words of like use stand"
        " together. Point at a dot to read it.",
    )


def scores_section(evaluation: Evaluation) -> Html:
    if not evaluation.similarity and not evaluation.analogies:
        return Html()
    parts = [table(SCORE_COLUMNS, score_rows(evaluation), figures={2})]
    for score in evaluation.analogies:
        if score.sections:
            parts.append(
                Html(f"<details><summary>{html(score.name)} by section</summary>{bars(score)}</details>")
            )
    return section(
        "Scores",
        card(join(parts)),
        "Spearman's rank correlation with people's judgements of similarity, and the share of analogies"
        " answered right (3CosAdd). What holds a word that the model does not know is left out.",
    )


def bars(score: AnalogyScore) -> Html:
    rows = [
        [
            part.name,
            Html(f'<i class="bar" style="--share:{part.accuracy or 0:.3f}"></i>'),
            figure(part.accuracy),
            f"{part.correct:,} of {part.scored:,}",
        ]
        for part in score.sections
    ]
    return table(["section", "", "share", "right"], rows, figures={2, 3})


def frequency_section(run: Run) -> Html:
    """Zipf's law as the corpus keeps it: counts by rank, both on logarithmic axes."""
    if len(run.counts) < 2:
        return Html()
    ranks = np.unique(np.geomspace(1, len(run.counts), FREQUENCY_POINTS).round().astype(int)).tolist()
    points = [(rank, run.counts[rank - 1]) for rank in ranks]
    hints = [f"{run.vectors.words[rank - 1]} · rank {rank:,} · {count:,} times" for rank, count in points]
    chart = line_chart(points, Axis("rank", short, log=True), Axis("count", short, log=True), hints)
    total = sum(run.counts)
    shares = [
        [f"the first {short(top)}", f"{sum(run.counts[:top]) / total:.1%}"]
        for top in (10, 100, 1_000, 10_000, 100_000)
        if top < len(run.counts)
    ]
    shares.append([f"all {len(run.counts):,}", f"{short(total)} words"])
    beside = card(table(["most frequent words", "share of the text"], shares, figures={1}))
    return section("Word frequencies", columns([card(chart), beside]))


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


def subtitle(run: Run) -> str:
    made = next((manifest.created for manifest in run.manifests if manifest.key == run.model.key), None)
    when = f"{made:%d %B %Y, %H:%M} UTC · " if made else ""
    return f"{when}{run.model.stage} {run.model.key[:8]}"


def footer(run: Run) -> str:
    versions: dict[str, str] = run.manifests[-1].versions if run.manifests else {}
    return " · ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions)


# the frame of a page


def page(title: str, subtitle: str, sections: Sequence[Html], footer: str) -> str:
    """A whole HTML document."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html(title)} · Lexloom</title>
<style>{CSS}{charts.CSS}</style>
</head>
<body>
<header><p class="brand">Lexloom</p><h1>{html(title)}</h1><p class="note">{html(subtitle)}</p></header>
<main>
{join(sections)}
</main>
<footer>{html(footer)}</footer>
</body>
</html>
"""


def section(heading: str, body: Html, note: str = "") -> Html:
    return join(
        [Html("<section>"), element("h2", heading), element("p", note, "note"), body, Html("</section>")]
    )


def element(tag: str, content: str, kind: str = "") -> Html:
    """`<tag class=kind>content</tag>`; nothing where there is no content."""
    named = f' class="{kind}"' if kind else ""
    return Html(f"<{tag}{named}>{html(content)}</{tag}>") if content else Html()


def card(body: Html) -> Html:
    return Html(f'<div class="card">{body}</div>')


def columns(cards: Sequence[Html], kind: str = "") -> Html:
    """Cards side by side, as many as the screen has room for."""
    return Html(f'<div class="columns {kind}">{join(cards)}</div>')


def tiles(figures: Sequence[tuple[str, str]]) -> Html:
    """The figures that a reader looks for first, large."""
    return Html(
        '<div class="tiles">'
        + "".join(f"<div><b>{html(value)}</b><span>{html(label)}</span></div>" for label, value in figures)
        + "</div>"
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], figures: Collection[int] = frozenset()
) -> Html:
    """A table; columns named in `figures` are set to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=figure' if i in figures else ''}>{html(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return Html(f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>')


# figures


def short(value: float) -> str:
    """A figure at a glance: 950, 12.3k, 104M, 2.5B."""
    return three_digits(value, ("", "k", "M", "B"))


def size(count: int) -> str:
    return three_digits(count, (" B", " kB", " MB", " GB"))


def three_digits(value: float, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{units[power]}" if abs(value) < 999.5 else f"{value:,.0f}{units[power]}"


def duration(seconds: float) -> str:
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


CSS = """
:root {
  --paper: #f6f4f0; --card: #fff; --ink: #22201d; --muted: #6f6a63; --line: #e6e1d9; --accent: #3a5a9b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15161a; --card: #1d1f25; --ink: #e9e6e1; --muted: #9a968f; --line: #30333b; --accent: #8fb0f5;
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1120px; margin: 0 auto; padding: 40px 24px; font-variant-numeric: tabular-nums;
}
.brand {
  color: var(--accent); font-weight: 600; letter-spacing: .08em; text-transform: uppercase; font-size: 12px;
}
h1 { font-size: 34px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 20px; font-weight: 650; letter-spacing: -.01em; }
h3 { font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
.note, footer { color: var(--muted); font-size: 13px; }
section { margin-top: 44px; }
section > h2 + div, section > .note + div { margin-top: 14px; }
section > .note { max-width: 72ch; }
footer { margin-top: 44px; padding-top: 16px; border-top: 1px solid var(--line); }
.card {
  min-width: 0; padding: 16px 18px;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.columns { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.columns.medium { display: block; columns: 3 300px; column-gap: 14px; }
.columns.medium .card { break-inside: avoid; margin-bottom: 14px; }
.columns.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
.tiles {
  margin-top: 28px; display: flex; flex-wrap: wrap; gap: 1px;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
}
.tiles div { background: var(--card); padding: 14px 18px; flex: 1 1 150px; }
.tiles b { display: block; font-size: 24px; font-weight: 650; letter-spacing: -.01em; }
.tiles span { color: var(--muted); font-size: 13px; }
.wide { overflow-x: auto; }
.wide > svg { min-width: 760px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--muted); font-weight: 500; font-size: 13px; white-space: nowrap; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
td:first-child { font-weight: 600; }
.figure { text-align: right; white-space: nowrap; }
.figure + :not(.figure) { padding-left: 24px; }
.near { list-style: none; padding: 0; margin-top: 10px; font-size: 14px; }
.near li { display: grid; grid-template-columns: 1fr 48px 34px; gap: 10px; align-items: center; }
.near span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.near b { font-weight: 400; color: var(--muted); font-size: 13px; text-align: right; }
.near i, .bar { display: block; height: 5px; border-radius: 3px; background:
  linear-gradient(90deg, var(--accent) calc(var(--share) * 100%), var(--line) 0); }
.bar { margin-top: 8px; min-width: 120px; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
dl {
  display: grid; grid-template-columns: minmax(110px, auto) 1fr; gap: 3px 16px;
  margin-top: 8px; font-size: 13px;
}
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { text-align: right; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 600px) {
  body { padding: 24px 14px; }
  h1 { font-size: 27px; }
  .tiles div { padding: 10px 14px; flex-basis: 100px; }
  .tiles b { font-size: 19px; }
  .card { padding: 12px 14px; }
}
@media print { body { max-width: none; } .card, .tiles { break-inside: avoid; } }
"""
