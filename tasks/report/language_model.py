"""The report on a language model: scores of the model and its baselines, and generated samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.display.formatting import counted, duration, short
from lexloom.tasks.evaluate.intervals import accuracy_interval, format_interval
from lexloom.tasks.evaluate.language_model import LMEvaluation, read_lm_evaluation, shown
from lexloom.tasks.generate_samples import Sample, read_samples
from lexloom.tasks.report.sections import (
    STAGE_COLUMNS,
    count_tile,
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

SHOWN_SAMPLES = 6  # of those written during training
SCORE_COLUMNS = ["model", "bits per byte", "perplexity", "top-1 accuracy", "95% interval", "top-5 accuracy"]


class ReportLMConfig(BaseModel):
    """Options of the HTML report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Language model", min_length=1, description="Title of the report.")


@stage(version=5)
def report_lm(
    model: Artifact, evaluation: Artifact, samples: Artifact, config: ReportLMConfig, out: Path
) -> Summary:
    """Write `report.html`, one self-contained file."""
    metrics, found = read_metrics(model), read_lm_evaluation(evaluation)
    manifests = lineage(model, evaluation, samples)
    measured = (
        f"Evaluated on {counted(found.tokens, 'held-out tokens')} ({counted(found.bytes, 'bytes')} of text)."
    )
    return write_report(
        out,
        "language_model.html.j2",
        config.title,
        model,
        manifests,
        rows_in=found.tokens,
        unit_in="tokens predicted",
        headline=headline(metrics, found, manifests),
        scores={
            "columns": SCORE_COLUMNS,
            "rows": score_rows(found),
            "note": f"{found.verdict} {measured}",
        },
        samples=read_samples(samples),
        training=training_content(metrics, "windows"),
        training_samples=training_samples(metrics),
    )


def headline(
    metrics: dict[str, Any], found: LMEvaluation, manifests: Sequence[Manifest]
) -> list[tuple[str, str]]:
    """Return (label, value) of the main metrics, without unknown ones."""
    made = {manifest.stage: manifest.summary for manifest in manifests}
    score = found.scores[0]
    parameters = [each.summary.rows for each in manifests if each.summary.unit.endswith("parameters")]
    figures: list[tuple[str, str | None]] = [
        ("bits per byte", None if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}"),
        ("perplexity", None if score.perplexity is None else f"{score.perplexity:.1f}"),
        ("top-1 accuracy", f"{score.top_1:.1%}"),
        ("parameters", short(parameters[0]) if parameters else None),
        ("tokens", short(made["subwords"].rows) if "subwords" in made else None),
        ("encoding", describe_encoding(made["subwords"].facts) if "subwords" in made else None),
        ("bytes per token", describe_length(made["subwords"].facts) if "subwords" in made else None),
        count_tile(metrics.get("epochs"), "epochs"),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        count_tile(metrics.get("workers"), "workers"),
    ]
    return [(label, value) for label, value in figures if value is not None]


def describe_encoding(facts: dict[str, Any]) -> str:
    """Format the encoding of a `subwords` artifact: `bpe, 4,096 tokens`."""
    return f"{facts['encoding']}, {counted(facts['vocabulary'], 'tokens')}"


def describe_length(facts: dict[str, Any]) -> str:
    """Format the mean length of a token of the training part, without end of text."""
    return f"{facts['bytes'] / (facts['tokens'] or 1):.2f}"


def score_rows(found: LMEvaluation) -> list[list[str]]:
    return [
        [
            score.name,
            shown(score.bits_per_byte, ".3f"),
            shown(score.perplexity, ".1f"),
            f"{score.top_1:.1%}",
            format_interval(accuracy_interval(score.top_1, found.tokens)),
            f"{score.top_5:.1%}",
        ]
        for score in found.scores
    ]


def training_samples(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (caption, text) of samples from training: the first, the last, and some in between."""
    scores = [score for score in metrics.get("scores", []) if score.get("sample", "").strip()]
    last = len(scores) - 1
    places = sorted({round(last * shown / (SHOWN_SAMPLES - 1)) for shown in range(SHOWN_SAMPLES)})
    return [
        (f"step {score['step']:,} · validation loss {score['loss']:.3f}", score["sample"])
        for score in (scores[place] for place in places if scores)
    ]


def markdown(model: Artifact, evaluation: Artifact, samples: Artifact, config: ReportLMConfig) -> str:
    """Return the report's figures as Markdown, for the flow run's page in Prefect's UI."""
    found, manifests = read_lm_evaluation(evaluation), lineage(model, evaluation, samples)
    parts = [
        f"# {plain(with_name(config.title))}",
        markdown_table(["metric", "value"], headline(read_metrics(model), found, manifests)),
        "## Evaluation",
        plain(found.verdict),
        markdown_table(SCORE_COLUMNS, score_rows(found)),
        "## Samples",
        *(f"> {quoted(sample)}" for sample in read_samples(samples)),
    ]
    if manifests:
        parts += ["## Stages", markdown_table(STAGE_COLUMNS, stage_rows(manifests))]
    return "\n\n".join(parts) + "\n"


def quoted(sample: Sample) -> str:
    prompt = f"**{plain(sample.prompt)}** " if sample.prompt else ""
    return prompt + (plain(sample.text) if sample.text.strip() else "*(The model generated no text.)*")
