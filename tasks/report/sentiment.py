"""The report on a sentiment classifier: scores of the classifier and its baseline, and errors."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.display.charts import calibration_chart
from lexloom.tasks.display.formatting import counted, duration
from lexloom.tasks.evaluate.classification_scores import Bin, Scores
from lexloom.tasks.evaluate.intervals import accuracy_interval, format_interval
from lexloom.tasks.evaluate.sentiment import (
    Mistake,
    SentimentEvaluation,
    named_scores,
    one_label_note,
    read_sentiment_evaluation,
    shown,
    verdict,
)
from lexloom.tasks.report.sections import (
    STAGE_COLUMNS,
    lineage,
    markdown_table,
    plain,
    read_metrics,
    stage_rows,
    training_content,
    write_report,
)
from lexloom.tasks.report.usage import with_name
from lexloom.tasks.store.artifacts import Artifact, Manifest, Summary
from lexloom.tasks.store.stage import stage

SCORE_COLUMNS = ["", "accuracy", "95% interval", "F1", "ROC AUC", "calibration error", "training time"]
ORDINAL_COLUMNS = [
    "",
    "mean absolute error",
    "correct or adjacent",
    "95% interval",
    "quadratic weighted kappa",
]
LABEL_COLUMNS = ["label", "reviews", "precision", "recall", "F1"]
MATRIX_LABELS = 7  # with more labels, the most frequent confusions are listed instead
MATRIX_ROOM, CELL_LEAST_ROOM = 84, 6  # pixels of padding: of a column of cells, and the minimum of a cell
CONFUSIONS = 12
LABELS_SHOWN = 40
EXCERPT = 420  # characters of a review; the rest is folded
PACKAGE_NOTE = re.compile(r" \(package .*\)$")


class ReportSentimentConfig(BaseModel):
    """Options of the HTML report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Sentiment classifier", min_length=1, description="Title of the report.")


@stage(version=5)
def report_sentiment(
    model: Artifact, evaluation: Artifact, config: ReportSentimentConfig, out: Path
) -> Summary:
    """Write `report.html`, one self-contained file."""
    metrics, found = read_metrics(model), read_sentiment_evaluation(evaluation)
    manifests = lineage(model, evaluation)
    return write_report(
        out,
        "sentiment.html.j2",
        config.title,
        model,
        manifests,
        rows_in=found.reviews,
        unit_in="reviews evaluated",
        headline=headline(model, metrics, found, manifests),
        scores={
            "columns": SCORE_COLUMNS,
            "rows": score_rows(metrics, found, manifests),
            "note": scores_note(model, found),
        },
        ordinal={"columns": ORDINAL_COLUMNS, "rows": ordinal_rows(found)},
        confusion=confusion(found.model),
        calibration=calibration(found.model),
        labels={"columns": LABEL_COLUMNS, "rows": label_rows(found.model), "note": labels_note(found.model)},
        training=training_content(metrics, "reviews"),
        mistakes=[mistake_card(mistake) for mistake in found.mistakes],
    )


def headline(
    model: Artifact, metrics: dict[str, Any], found: SentimentEvaluation, manifests: Sequence[Manifest]
) -> list[tuple[str, str]]:
    """Return (label, value) of the main metrics, without unknown ones."""
    trained_on = [each.summary.facts["train"] for each in manifests if each.stage == "frozen_features"]
    figures: list[tuple[str, str | None]] = [
        ("accuracy", f"{found.model.accuracy:.1%}"),
        ("F1", f"{found.model.f1:.3f}"),
        ("ROC AUC", shown(found.model.roc_auc)),
        ("calibration error", f"{found.model.ece:.3f}"),
        ("reviews evaluated", f"{found.reviews:,}"),
        ("training reviews", f"{trained_on[0]:,}" if trained_on else None),
        *ordinal_tiles(found.model),
        ("labels", f"{len(found.model.labels):,}"),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        ("encoder", short_name(backbone_of(model))),
    ]
    return [(label, value) for label, value in figures if value is not None]


def ordinal_tiles(scores: Scores) -> list[tuple[str, str | None]]:
    if scores.ordinal is None:
        return []
    return [
        ("mean absolute error", f"{scores.ordinal.mean_error:.2f}"),
        ("correct or adjacent", f"{scores.ordinal.adjacent:.1%}"),
    ]


def backbone_of(model: Artifact) -> str:
    return str(model.facts["backbone"])


def short_name(backbone: str) -> str:
    """Return an encoder's name without its owner, folder or package."""
    return PACKAGE_NOTE.sub("", backbone).rstrip("/").rpartition("/")[2]


# content of the template


def score_rows(
    metrics: dict[str, Any], found: SentimentEvaluation, manifests: Sequence[Manifest]
) -> list[list[str]]:
    seconds = [seconds_to_train(metrics, manifests), found.baseline_seconds]
    return [
        [
            name,
            f"{scores.accuracy:.1%}",
            format_interval(accuracy_interval(scores.accuracy, found.reviews)),
            f"{scores.f1:.3f}",
            shown(scores.roc_auc),
            f"{scores.ece:.3f}",
            "–" if took is None else duration(took),
        ]
        for (name, scores), took in zip(named_scores(found), seconds, strict=False)
    ]


def ordinal_rows(found: SentimentEvaluation) -> list[list[str]]:
    """Return a row for the classifier and the baseline; none if the labels are not ordered numbers."""
    return [
        [
            name,
            f"{ordinal.mean_error:.3f}",
            f"{ordinal.adjacent:.1%}",
            format_interval(accuracy_interval(ordinal.adjacent, found.reviews)),
            shown(ordinal.kappa),
        ]
        for name, scores in named_scores(found)
        if (ordinal := scores.ordinal) is not None
    ]


def seconds_to_train(metrics: dict[str, Any], manifests: Sequence[Manifest]) -> float | None:
    """Return the time of training, including the computation of features, in seconds."""
    if "seconds" not in metrics:
        return None
    return float(metrics["seconds"]) + sum(
        each.seconds for each in manifests if each.stage == "frozen_features"
    )


def scores_note(model: Artifact, found: SentimentEvaluation) -> str:
    excluded = f" (without {found.met_before:,} that occur in the training data)" if found.met_before else ""
    notes = [
        verdict(found),
        *one_label_note(found),
        f"Evaluated on {counted(found.reviews, 'held-out reviews')}{excluded} at"
        f" {found.reviews_per_second:,.0f} reviews per second. The encoder is {backbone_of(model)}; the"
        " training time includes computing its features.",
    ]
    if found.baseline is not None:
        notes.append("The baseline is a logistic regression on tf-idf features, trained in the same run.")
    return " ".join(notes)


def confusion(scores: Scores) -> dict[str, Any]:
    """Return the confusion matrix as (count, share of the true label), or the most frequent confusions."""
    names = [score.label for score in scores.labels]
    if len(names) > MATRIX_LABELS:
        return {"matrix": [], "pairs": confused_pairs(scores, names)}
    return {
        "matrix": [
            (name, [(count, count / max(1, sum(counts))) for count in counts])
            for name, counts in zip(names, scores.confusion, strict=True)
        ],
        "labels": names,
        "room": max(CELL_LEAST_ROOM, MATRIX_ROOM // len(names)),
    }


def confused_pairs(scores: Scores, names: Sequence[str]) -> list[list[str]]:
    """Return (true label, predicted label, reviews) of the most frequent confusions."""
    pairs = sorted(
        (
            (-count, names[true], names[found])
            for true, counts in enumerate(scores.confusion)
            for found, count in enumerate(counts)
            if count and true != found
        )
    )
    return [[true, found, f"{-count:,}"] for count, true, found in pairs[:CONFUSIONS]]


def calibration(scores: Scores) -> Markup:
    bins = [(bin.lower, bin.upper, bin.accuracy) for bin in scores.reliability]
    return calibration_chart(bins, [bin_hint(bin) for bin in scores.reliability])


def bin_hint(bin: Bin) -> str:
    if bin.score is None or bin.accuracy is None:
        return ""
    return f"{counted(bin.reviews, 'reviews')} · score {bin.score:.1%} · accuracy {bin.accuracy:.1%}"


def label_rows(scores: Scores) -> list[list[str]]:
    """Return a row per label; of too many labels, the most frequent ones."""
    labels = scores.labels
    if len(labels) > LABELS_SHOWN:
        labels = sorted(labels, key=lambda score: -score.reviews)[:LABELS_SHOWN]
    return [
        [each.label, f"{each.reviews:,}", shown(each.precision), shown(each.recall), shown(each.f1)]
        for each in labels
    ]


def labels_note(scores: Scores) -> str:
    more = len(scores.labels) - LABELS_SHOWN
    if more <= 0:
        return ""
    return f"The {LABELS_SHOWN} most frequent labels; the other {more:,} are in evaluation.json."


def mistake_card(mistake: Mistake) -> dict[str, str]:
    """Return a mistake for the template: the beginning of its text, and the rest, which is collapsed."""
    beginning, rest = excerpt(mistake.text.strip())
    return {
        "label": mistake.label,
        "predicted": mistake.predicted,
        "score": f"{mistake.score:.1%}",
        "beginning": beginning,
        "rest": rest,
    }


def excerpt(text: str) -> tuple[str, str]:
    """Split a long text after EXCERPT characters or less, at a space."""
    if len(text) <= EXCERPT * 1.2:
        return text, ""
    end = text.rfind(" ", EXCERPT // 2, EXCERPT) + 1 or EXCERPT
    return text[:end].rstrip(), text[end:]


# the same figures as Markdown


def markdown(model: Artifact, evaluation: Artifact, config: ReportSentimentConfig) -> str:
    """Return the report's figures as Markdown, for the flow run's page in Prefect's UI."""
    metrics, found = read_metrics(model), read_sentiment_evaluation(evaluation)
    manifests = lineage(model, evaluation)
    parts = [
        f"# {plain(with_name(config.title))}",
        markdown_table(["metric", "value"], headline(model, metrics, found, manifests)),
        "## Evaluation",
        *(plain(note) for note in (verdict(found), *one_label_note(found))),
        markdown_table(SCORE_COLUMNS, score_rows(metrics, found, manifests)),
        *([markdown_table(ORDINAL_COLUMNS, ordinal)] if (ordinal := ordinal_rows(found)) else []),
        "## Scores by label",
        markdown_table(LABEL_COLUMNS, label_rows(found.model)),
    ]
    if found.mistakes:
        parts += ["## Most confident mistakes", *map(quoted, found.mistakes)]
    if manifests:
        parts += ["## Stages", markdown_table(STAGE_COLUMNS, stage_rows(manifests))]
    return "\n\n".join(parts) + "\n"


def quoted(mistake: Mistake) -> str:
    labels = f"true label **{plain(mistake.label)}**, predicted **{plain(mistake.predicted)}**"
    return f"> {labels} ({mistake.score:.1%}): {plain(mistake.text[:EXCERPT])}"
