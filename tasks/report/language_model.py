"""The report of a language model: how well it predicts beside plain baselines, and what it writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.display.charts import Html, join
from lexloom.tasks.display.formatting import counted, duration, short
from lexloom.tasks.display.page import card, columns, element, section, table, tiles
from lexloom.tasks.display.sections import (
    STAGE_COLUMNS,
    known,
    lineage,
    markdown_table,
    plain,
    read_metrics,
    stage_rows,
    training_section,
    write_report,
)
from lexloom.tasks.evaluate.language_model import LMEvaluation, Score, read_lm_evaluation, shown
from lexloom.tasks.generate import Sample, read_samples
from lexloom.tasks.store.artifacts import Artifact, Manifest, Summary
from lexloom.tasks.store.stage import stage

SHOWN_SAMPLES = 6  # of those written in training
SCORE_COLUMNS = ["on held-out text", "bits per byte", "perplexity", "likeliest token right", "among five"]


class ReportLMConfig(BaseModel):
    """Options of the HTML report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field("Language model", min_length=1, description="Title of the report.")


@stage(version=2)
def report_lm(
    model: Artifact, evaluation: Artifact, samples: Artifact, config: ReportLMConfig, out: Path
) -> Summary:
    """Writes `report.html`, one file that needs nothing else."""
    metrics, found = read_metrics(model), read_lm_evaluation(evaluation)
    manifests = lineage(model, evaluation, samples)
    sections = [
        tiles(headline(metrics, found, manifests)),
        scores_section(found),
        samples_section(read_samples(samples)),
        training_section(metrics, "windows"),
        learning_section(metrics),
    ]
    return write_report(out, config.title, model, manifests, sections, found.tokens, "tokens predicted")


def headline(
    metrics: dict[str, Any], found: LMEvaluation, manifests: Sequence[Manifest]
) -> list[tuple[str, str]]:
    """(label, figure) of the run's main figures; those that are not known are left out."""
    made = {manifest.stage: manifest.summary for manifest in manifests}
    score = found.scores[0]
    parameters = [each.summary.rows for each in manifests if each.summary.unit.endswith("parameters")]
    figures: list[tuple[str, str | None]] = [
        ("bits per byte", None if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}"),
        ("perplexity", None if score.perplexity is None else f"{score.perplexity:.1f}"),
        ("likeliest token right", f"{score.top_1:.1%}"),
        ("parameters", short(parameters[0]) if parameters else None),
        ("tokens", short(made["subwords"].rows) if "subwords" in made else None),
        ("epochs", known(metrics, "epochs", "{:g}")),
        ("training time", duration(metrics["seconds"]) if "seconds" in metrics else None),
        ("workers", known(metrics, "workers", "{:g}")),
    ]
    return [(label, value) for label, value in figures if value is not None]


def score_rows(scores: Sequence[Score]) -> list[list[str]]:
    return [
        [
            score.name,
            shown(score.bits_per_byte, ".3f"),
            shown(score.perplexity, ".1f"),
            f"{score.top_1:.1%}",
            f"{score.top_5:.1%}",
        ]
        for score in scores
    ]


def scores_section(found: LMEvaluation) -> Html:
    measured = (
        f" Measured on {counted(found.tokens, 'held-out tokens')}, {counted(found.bytes, 'bytes')} of text."
    )
    body = card(table(SCORE_COLUMNS, score_rows(found.scores), figures={1, 2, 3, 4}))
    return section("How well it predicts", body, found.verdict + measured)


def samples_section(samples: Sequence[Sample]) -> Html:
    """What the model wrote; prompts stand out."""
    cards = [
        card(Html(f'<p class="sample">{element("b", sample.prompt)}{join([sample.text])}</p>'))
        for sample in samples
    ]
    return section("What it writes", columns(cards))


def learning_section(metrics: dict[str, Any]) -> Html:
    """What the model wrote as it was trained: the first evaluation, the last, and some in between."""
    scores = [score for score in metrics.get("scores", []) if score.get("sample", "").strip()]
    last = len(scores) - 1
    places = sorted({round(last * shown / (SHOWN_SAMPLES - 1)) for shown in range(SHOWN_SAMPLES)})
    cards = [
        card(
            join(
                [
                    element("p", f"step {score['step']:,} · validation loss {score['loss']:.3f}", "note"),
                    element("p", score["sample"], "sample"),
                ]
            )
        )
        for score in (scores[place] for place in places if scores)
    ]
    return section("How it learned to write", columns(cards)) if cards else Html()


def markdown(model: Artifact, evaluation: Artifact, samples: Artifact, config: ReportLMConfig) -> str:
    """The report's figures as Markdown, for Prefect's page of the run."""
    found, manifests = read_lm_evaluation(evaluation), lineage(model, evaluation, samples)
    parts = [
        f"# {plain(config.title)}",
        markdown_table(["figure", "value"], headline(read_metrics(model), found, manifests)),
        "## How well it predicts",
        plain(found.verdict),
        markdown_table(SCORE_COLUMNS, score_rows(found.scores)),
        "## What it writes",
        *(f"> {quoted(sample)}" for sample in read_samples(samples)),
    ]
    if manifests:
        parts += ["## Stages", markdown_table(STAGE_COLUMNS, stage_rows(manifests))]
    return "\n\n".join(parts) + "\n"


def quoted(sample: Sample) -> str:
    prompt = f"**{plain(sample.prompt)}** " if sample.prompt else ""
    return prompt + plain(sample.text)
