"""The report: one HTML file that shows what a run made, from what, how fast and how good.

A section is a function that returns HTML, or nothing where the run has nothing to say about it. Those that
tell of any model are in tasks/display/sections.py, the frame is in tasks/display/page.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.charts import Axis, Html, html, in_the_plane, join, line_chart, word_map
from lexloom.tasks.display.formatting import counted, duration, short
from lexloom.tasks.display.page import card, columns, element, section, table, tiles
from lexloom.tasks.display.sections import (
    STAGE_COLUMNS,
    known,
    lineage,
    markdown_table,
    plain,
    stage_rows,
    training_section,
    write_report,
)
from lexloom.tasks.evaluate.word2vec import AnalogyScore, Evaluation, read_evaluation
from lexloom.tasks.store.artifacts import Artifact, Manifest, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

FREQUENCY_POINTS = 120


class ReportConfig(BaseModel):
    """Options of the HTML report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Word vectors", min_length=1, description="Title of the report.")
    words_on_map: int = Field(
        300, ge=2, le=1000, description="Number of most frequent words to show on the map."
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


@stage(version=2)
def report(
    model: Artifact, evaluation: Artifact, vocabulary: Artifact, config: ReportConfig, out: Path
) -> Summary:
    """Writes `report.html`, one file that needs nothing else."""
    run = read_run(model, evaluation, vocabulary)
    sections = [
        tiles(headline(run)),
        training_section(run.metrics, unit_of(run)),
        neighbours_section(run.evaluation),
        map_section(run, config.words_on_map),
        scores_section(run.evaluation),
        frequency_section(run),
    ]
    return write_report(out, config.title, model, run.manifests, sections, len(run.vectors), "words")


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


# what there is to say


def headline(run: Run) -> list[tuple[str, str]]:
    """(label, figure) of the run's main figures; those that are not known are left out."""
    metrics, made = run.metrics, {manifest.stage: manifest.summary for manifest in run.manifests}
    figures: list[tuple[str, str | None]] = [
        ("words", f"{len(run.vectors):,}"),
        ("dimensions", f"{run.vectors.vectors.shape[1]:,}"),
        ("pairs", short(made["pairs"].rows) if "pairs" in made else None),
        ("epochs", known(metrics, "epochs", "{:g}")),
        ("loss, last epoch", known(metrics, "loss", "{:.4f}")),
        (
            f"{unit_of(run)} a second",
            short(metrics["examples_per_second"]) if "examples_per_second" in metrics else None,
        ),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        ("workers", known(metrics, "workers", "{:g}")),
        *((name, figure(score)) for name, score in run.evaluation.scores().items()),
    ]
    return [(label, shown) for label, shown in figures if shown is not None]


def unit_of(run: Run) -> str:
    """What training counted: pairs, or the tokens that it drew pairs from."""
    return str(run.metrics.get("unit", "pairs"))


def figure(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def score_rows(evaluation: Evaluation) -> list[list[str]]:
    rows = [
        [
            score.name,
            "rank correlation",
            figure(score.spearman),
            f"{score.scored:,} of {counted(score.pairs, 'pairs')}",
        ]
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


# sections


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
