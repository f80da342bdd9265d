"""The report of a sentiment classifier: how good it is beside a bag of words, and where it errs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.display.charts import Html, calibration_chart, html, join
from lexloom.tasks.display.formatting import counted, duration
from lexloom.tasks.display.page import card, columns, section, table, tiles
from lexloom.tasks.display.sections import (
    STAGE_COLUMNS,
    lineage,
    markdown_table,
    plain,
    read_metrics,
    stage_rows,
    training_section,
    write_report,
)
from lexloom.tasks.evaluate.sentiment import (
    Bin,
    Mistake,
    Scores,
    SentimentEvaluation,
    named_scores,
    one_label_note,
    read_sentiment_evaluation,
    shown,
    verdict,
)
from lexloom.tasks.store.artifacts import Artifact, Manifest, Summary
from lexloom.tasks.store.stage import stage

SCORE_COLUMNS = ["", "accuracy", "F1", "ROC AUC", "calibration error", "time to train"]
LABEL_COLUMNS = ["label", "reviews", "precision", "recall", "F1"]
MATRIX_LABELS = 7  # more would not fit; then the most frequent confusions are listed
MATRIX_ROOM, CELL_LEAST_ROOM = 84, 6  # pixels above the figures: all cells' together, and one cell's
CONFUSIONS = 12
LABELS_SHOWN = 40
EXCERPT = 420  # characters of a review; the rest is a click away
PACKAGE_NOTE = re.compile(r" \(package .*\)$")


class ReportSentimentConfig(BaseModel):
    """Options of the HTML report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Sentiment classifier", min_length=1, description="Title of the report.")


@stage(version=3)
def report_sentiment(
    model: Artifact, evaluation: Artifact, config: ReportSentimentConfig, out: Path
) -> Summary:
    """Writes `report.html`, one file that needs nothing else."""
    metrics, found = read_metrics(model), read_sentiment_evaluation(evaluation)
    manifests = lineage(model, evaluation)
    sections = [
        tiles(headline(model, metrics, found, manifests)),
        scores_section(model, metrics, found, manifests),
        errors_section(found.model),
        labels_section(found.model),
        training_section(metrics, "reviews"),
        mistakes_section(found.mistakes),
    ]
    return write_report(out, config.title, model, manifests, sections, found.reviews, "reviews judged")


def headline(
    model: Artifact, metrics: dict[str, Any], found: SentimentEvaluation, manifests: Sequence[Manifest]
) -> list[tuple[str, str]]:
    """(label, figure) of the run's main figures; those that are not known are left out."""
    trained_on = [each.summary.facts["train"] for each in manifests if each.stage == "features"]
    figures: list[tuple[str, str | None]] = [
        ("accuracy", f"{found.model.accuracy:.1%}"),
        ("F1", f"{found.model.f1:.3f}"),
        ("ROC AUC", shown(found.model.roc_auc)),
        ("calibration error", f"{found.model.ece:.3f}"),
        ("reviews judged", f"{found.reviews:,}"),
        ("reviews trained on", f"{trained_on[0]:,}" if trained_on else None),
        ("labels", f"{len(found.model.labels):,}"),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        ("backbone", short_name(backbone_of(model))),
    ]
    return [(label, value) for label, value in figures if value is not None]


def backbone_of(model: Artifact) -> str:
    return str(model.facts["backbone"])


def short_name(backbone: str) -> str:
    """A backbone's own name, without its owner, folder or package."""
    return PACKAGE_NOTE.sub("", backbone).rstrip("/").rpartition("/")[2]


# sections


def score_rows(
    metrics: dict[str, Any], found: SentimentEvaluation, manifests: Sequence[Manifest]
) -> list[list[str]]:
    seconds = [seconds_to_train(metrics, manifests), found.baseline_seconds]
    return [
        [
            name,
            f"{scores.accuracy:.1%}",
            f"{scores.f1:.3f}",
            shown(scores.roc_auc),
            f"{scores.ece:.3f}",
            "–" if took is None else duration(took),
        ]
        for (name, scores), took in zip(named_scores(found), seconds, strict=False)
    ]


def seconds_to_train(metrics: dict[str, Any], manifests: Sequence[Manifest]) -> float | None:
    """Seconds of training and of the features that it reads."""
    if "seconds" not in metrics:
        return None
    return float(metrics["seconds"]) + sum(each.seconds for each in manifests if each.stage == "features")


def scores_section(
    model: Artifact, metrics: dict[str, Any], found: SentimentEvaluation, manifests: Sequence[Manifest]
) -> Html:
    left_out = f" ({found.met_before:,} met in training left out)" if found.met_before else ""
    note = " ".join([verdict(found), *one_label_note(found)]) + (
        f" Judged by {counted(found.reviews, 'reviews')} that it has not seen{left_out},"
        f" {found.reviews_per_second:,.0f} a second. The classifier stands on {backbone_of(model)}; its time"
        " includes the features."
    )
    if found.baseline is not None:
        note += (
            " The bag of words is a logistic regression on words weighted by tf-idf, trained in the same run."
        )
    rows = score_rows(metrics, found, manifests)
    return section("How good it is", card(table(SCORE_COLUMNS, rows, figures={1, 2, 3, 4, 5})), note)


def errors_section(scores: Scores) -> Html:
    note = (
        "Which labels are found for which, with shares of the true label; and whether scores can be taken at"
        " their word: of the reviews scored 90%, nine in ten should be right, where the broken line is."
    )
    return section("Where it errs", columns([card(confusion(scores)), card(calibration(scores))]), note)


def confusion(scores: Scores) -> Html:
    """The confusion matrix, each cell as dark as its share of the row; of many labels the worst pairs."""
    names = [score.label for score in scores.labels]
    if len(names) > MATRIX_LABELS:
        return confused_pairs(scores, names)
    rows = [[name, *shaded(counts)] for name, counts in zip(names, scores.confusion, strict=True)]
    header = ["is \\ found", *names]
    room = max(CELL_LEAST_ROOM, MATRIX_ROOM // len(names))
    matrix = table(header, rows, figures=range(1, len(header)))
    return Html(f'<div class="matrix" style="--room: {room}px; --labels: {len(names)}">{matrix}</div>')


def shaded(counts: Sequence[int]) -> list[Html]:
    total = max(1, sum(counts))
    return [
        Html(
            f'<i class="cell" style="--share:{count / total:.3f}">{count:,}'
            f"<small>{count / total:.1%}</small></i>"
        )
        for count in counts
    ]


def confused_pairs(scores: Scores, names: Sequence[str]) -> Html:
    pairs = sorted(
        (
            (-count, names[true], names[found])
            for true, counts in enumerate(scores.confusion)
            for found, count in enumerate(counts)
            if count and true != found
        )
    )
    rows = [[true, found, f"{-count:,}"] for count, true, found in pairs[:CONFUSIONS]]
    return table(["is", "found", "times"], rows, figures={2})


def calibration(scores: Scores) -> Html:
    bins = [(bin.lower, bin.upper, bin.accuracy) for bin in scores.reliability]
    return calibration_chart(bins, [bin_hint(bin) for bin in scores.reliability])


def bin_hint(bin: Bin) -> str:
    if bin.score is None or bin.accuracy is None:
        return ""
    return f"{counted(bin.reviews, 'reviews')} · score {bin.score:.1%} · {bin.accuracy:.1%} right"


def label_rows(scores: Scores) -> list[list[str]]:
    """A row a label, the most frequent first where not all have room."""
    labels = scores.labels
    if len(labels) > LABELS_SHOWN:
        labels = sorted(labels, key=lambda score: -score.reviews)[:LABELS_SHOWN]
    return [
        [each.label, f"{each.reviews:,}", shown(each.precision), shown(each.recall), shown(each.f1)]
        for each in labels
    ]


def labels_section(scores: Scores) -> Html:
    rows = label_rows(scores)
    more = len(scores.labels) - len(rows)
    note = (
        "Precision: how many of those found with a label have it. Recall: how many of those that have it are"
        " found with it."
    )
    if more:
        note += f" The {len(rows)} most frequent labels; {more:,} more in evaluation.json."
    return section("Label by label", card(table(LABEL_COLUMNS, rows, figures={1, 2, 3, 4})), note)


def mistakes_section(mistakes: Sequence[Mistake]) -> Html:
    if not mistakes:
        return Html()
    cards = [
        card(
            join(
                [
                    Html(
                        f'<p class="note">is <b>{html(mistake.label)}</b>, found'
                        f" <b>{html(mistake.predicted)}</b> at {mistake.score:.1%}</p>"
                    ),
                    excerpt(mistake.text),
                ]
            )
        )
        for mistake in mistakes
    ]
    note = "Missed with the highest scores: what the model is blind to, or reviews with a wrong label."
    return section("Most confident mistakes", columns(cards, "medium"), note)


def excerpt(text: str) -> Html:
    """A review; of a long one the beginning, and the rest in a fold."""
    text = text.strip()
    if len(text) <= EXCERPT * 1.2:
        return Html(f'<p class="sample">{html(text)}</p>')
    end = text.rfind(" ", EXCERPT // 2, EXCERPT) + 1 or EXCERPT
    return Html(
        f'<p class="sample">{html(text[:end].rstrip())} …</p>'
        f'<details><summary>the rest</summary><p class="sample">{html(text[end:])}</p></details>'
    )


# the same figures as Markdown


def markdown(model: Artifact, evaluation: Artifact, config: ReportSentimentConfig) -> str:
    """The report's figures as Markdown, for Prefect's page of the run."""
    metrics, found = read_metrics(model), read_sentiment_evaluation(evaluation)
    manifests = lineage(model, evaluation)
    parts = [
        f"# {plain(config.title)}",
        markdown_table(["figure", "value"], headline(model, metrics, found, manifests)),
        "## How good it is",
        *(plain(note) for note in (verdict(found), *one_label_note(found))),
        markdown_table(SCORE_COLUMNS, score_rows(metrics, found, manifests)),
        "## Label by label",
        markdown_table(LABEL_COLUMNS, label_rows(found.model)),
    ]
    if found.mistakes:
        parts += ["## Most confident mistakes", *map(quoted, found.mistakes)]
    if manifests:
        parts += ["## Stages", markdown_table(STAGE_COLUMNS, stage_rows(manifests))]
    return "\n\n".join(parts) + "\n"


def quoted(mistake: Mistake) -> str:
    said = f"is **{plain(mistake.label)}**, found **{plain(mistake.predicted)}** at {mistake.score:.1%}"
    return f"> {said}: {plain(mistake.text[:EXCERPT])}"
