"""The report on word vectors: scores, training, neighbours, a map of the words, and word frequencies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.charts import Axis, line_chart, project, word_map
from lexloom.tasks.display.formatting import counted, duration, short
from lexloom.tasks.evaluate.content_words import MIN_COUNT
from lexloom.tasks.evaluate.intervals import accuracy_interval, correlation_interval, format_interval
from lexloom.tasks.evaluate.word2vec import Evaluation, describe_analogy, read_evaluation
from lexloom.tasks.evaluate.word_scores import AnalogyScore
from lexloom.tasks.report.sections import (
    STAGE_COLUMNS,
    count_tile,
    format_metric,
    lineage,
    markdown_table,
    plain,
    stage_rows,
    training_content,
    write_report,
)
from lexloom.tasks.report.usage import with_name
from lexloom.tasks.store.artifacts import Artifact, Manifest, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

FREQUENCY_POINTS = 120
REQUESTED = "The words with the highest cosine similarity."
CHOSEN = (
    "The frequent content words whose nearest neighbours are most similar to them, by cosine similarity. All"
    f" words shown occur at least {MIN_COUNT} times, if the text has enough of them."
)


class ReportConfig(BaseModel):
    """Options of the HTML report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Word vectors", min_length=1, description="Title of the report.")
    words_on_map: int = Field(
        300, ge=2, le=1000, description="Number of most frequent content words to show on the map."
    )


@dataclass(frozen=True)
class Run:
    """Everything that the report shows."""

    model: Artifact
    vectors: WordVectors
    counts: list[int]
    evaluation: Evaluation
    metrics: dict[str, Any]
    manifests: list[Manifest]


@stage(version=4)
def report_word2vec(
    model: Artifact, evaluation: Artifact, vocabulary: Artifact, config: ReportConfig, out: Path
) -> Summary:
    """Write `report.html`, one self-contained file."""
    run = read_run(model, evaluation, vocabulary)
    return write_report(
        out,
        "word2vec.html.j2",
        config.title,
        model,
        run.manifests,
        rows_in=len(run.vectors),
        unit_in="words",
        word=next((entry.word for entry in run.evaluation.neighbours), run.vectors.words[0]),
        headline=headline(run),
        training=training_content(run.metrics, unit_of(run)),
        neighbours={
            "cards": neighbour_cards(run.evaluation),
            "note": CHOSEN if run.evaluation.chosen else REQUESTED,
        },
        map=map_content(run, config.words_on_map),
        scores={
            "columns": SCORE_COLUMNS,
            "rows": score_rows(run.evaluation),
            "sections": [(each.name, section_rows(each)) for each in run.evaluation.analogies if each.scored],
            "note": without_score(run.evaluation),
        },
        frequencies=frequency_content(run),
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


# figures


def headline(run: Run) -> list[tuple[str, str]]:
    """Return (label, value) of the main metrics, without unknown ones."""
    metrics, made = run.metrics, {manifest.stage: manifest.summary for manifest in run.manifests}
    figures: list[tuple[str, str | None]] = [
        ("words", f"{len(run.vectors):,}"),
        ("dimensions", f"{run.vectors.vectors.shape[1]:,}"),
        ("pairs", short(made["pairs"].rows) if "pairs" in made else None),
        count_tile(metrics.get("epochs"), "epochs"),
        ("loss, last epoch", format_metric(metrics, "loss", "{:.4f}")),
        (
            f"{unit_of(run)} per second",
            short(metrics["examples_per_second"]) if "examples_per_second" in metrics else None,
        ),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        count_tile(metrics.get("workers"), "workers"),
        *((name, figure(score)) for name, score in run.evaluation.scores().items() if score is not None),
    ]
    return [(label, shown) for label, shown in figures if shown is not None]


def unit_of(run: Run) -> str:
    """Return the unit of training examples: pairs, or tokens if pairs were sampled during training."""
    return str(run.metrics.get("unit", "pairs"))


def figure(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def score_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return a row for each set that has a score."""
    rows = [
        [
            score.name,
            "rank correlation",
            figure(score.spearman),
            format_interval(correlation_interval(score.spearman, score.scored), ".3f"),
            f"{score.scored:,} of {counted(score.pairs, 'pairs')}",
        ]
        for score in evaluation.similarity
        if score.spearman is not None
    ]
    return rows + [
        [
            score.name,
            "accuracy",
            figure(score.accuracy),
            format_interval(accuracy_interval(score.accuracy, score.scored), ".3f"),
            f"{score.scored:,} of {counted(score.questions, 'questions')}",
        ]
        for score in evaluation.analogies
        if score.accuracy is not None
    ]


SCORE_COLUMNS = ["set", "metric", "score", "95% interval", "coverage"]


def without_score(evaluation: Evaluation) -> str:
    """Return a sentence that names the sets without a score; empty if all have one."""
    names = [name for name, score in evaluation.scores().items() if score is None]
    if not names:
        return ""
    return f"{' and '.join(names)} can't be scored, because the vocabulary contains too few of the words."


def markdown(model: Artifact, evaluation: Artifact, vocabulary: Artifact, config: ReportConfig) -> str:
    """Return the report's figures as Markdown, for the flow run's page in Prefect's UI."""
    run = read_run(model, evaluation, vocabulary)
    parts = [f"# {plain(with_name(config.title))}", markdown_table(["metric", "value"], headline(run))]
    rows, note = score_rows(run.evaluation), without_score(run.evaluation)
    if rows or note:
        table = [markdown_table(SCORE_COLUMNS, rows)] if rows else []
        parts += ["## Evaluation", *table, *([plain(note)] if note else [])]
    if run.evaluation.neighbours:
        rows = [
            [entry.word, ", ".join(f"{near.word} {near.similarity:.2f}" for near in entry.neighbours)]
            for entry in run.evaluation.neighbours
        ]
        parts += ["## Nearest neighbours", markdown_table(["word", "neighbours"], rows)]
    if run.manifests:
        parts += ["## Stages", markdown_table(STAGE_COLUMNS, stage_rows(run.manifests))]
    return "\n\n".join(parts) + "\n"


# content of the template


def neighbour_cards(evaluation: Evaluation) -> list[tuple[str, str, list[tuple[str, float, str]]]]:
    """Return (word, count, rows of (neighbour, similarity, hint)) for each word."""
    return [
        (
            entry.word,
            counted(entry.count, "occurrences"),
            [(near.word, near.similarity, counted(near.count, "occurrences")) for near in entry.neighbours],
        )
        for entry in evaluation.neighbours
    ]


def map_content(run: Run, words: int) -> dict[str, Any] | None:
    """Return the map of the most frequent content words."""
    names = run.evaluation.content_words[:words]
    if len(names) < 2:
        return None
    count_of = dict(zip(run.vectors.words, run.counts, strict=True))
    hints = [
        f"{name} · {counted(count_of[name], 'occurrences')} · near {', '.join(word for word, _ in near)}"
        for name, near in zip(names, run.vectors.neighbours(names, 5), strict=True)
    ]
    vectors = torch.stack([run.vectors[name] for name in names])
    return {"words": f"{len(names):,}", "chart": word_map(project(vectors.numpy()), names, hints)}


def section_rows(score: AnalogyScore) -> list[tuple[str, float, str, str, str]]:
    """Return (section, share, accuracy, correct of scored, example) for each section with known words."""
    return [
        (
            part.name,
            part.accuracy,
            figure(part.accuracy),
            f"{part.correct:,} of {part.scored:,}",
            describe_analogy(part.example) if part.example else "",
        )
        for part in score.sections
        if part.accuracy is not None
    ]


def frequency_content(run: Run) -> dict[str, Any] | None:
    """Return the chart of counts by rank (Zipf's law), and the shares of the most frequent words."""
    if len(run.counts) < 2:
        return None
    ranks = np.unique(np.geomspace(1, len(run.counts), FREQUENCY_POINTS).round().astype(int)).tolist()
    points = [(rank, run.counts[rank - 1]) for rank in ranks]
    hints = [
        f"{run.vectors.words[rank - 1]} · rank {rank:,} · {counted(count, 'occurrences')}"
        for rank, count in points
    ]
    total = sum(run.counts)
    shares = [
        [f"top {short(top)}", f"{sum(run.counts[:top]) / total:.1%}"]
        for top in (10, 100, 1_000, 10_000, 100_000)
        if top < len(run.counts)
    ]
    shares.append([f"all {len(run.counts):,}", f"{short(total)} words"])
    chart = line_chart(points, Axis("rank", short, log=True), Axis("count", short, log=True), hints)
    return {"chart": chart, "shares": shares}
