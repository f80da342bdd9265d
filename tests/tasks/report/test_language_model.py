"""The report of a language model: metrics next to the baselines', and samples with prompts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lexloom.tasks.evaluate.language_model import LMEvaluation, Score
from lexloom.tasks.generate_samples import Sample, Samples
from lexloom.tasks.report.language_model import (
    ReportLMConfig,
    describe_encoding,
    describe_length,
    markdown,
    report_lm,
)
from lexloom.tasks.store.artifacts import Artifact, Store, Summary

SCORES = [
    Score(name="window language model", perplexity=80.04, bits_per_byte=1.1234, top_1=0.25, top_5=0.5),
    Score(name="4-gram", perplexity=90.0, bits_per_byte=1.2, top_1=0.2, top_5=0.4),
]
REGRESSION = [
    SCORES[0].model_copy(update={"perplexity": None, "bits_per_byte": None}),
    SCORES[1],
]
METRICS = {
    "seconds": 75.4,
    "epochs": 2,
    "workers": 2,
    "compute_seconds": 60.0,
    "stop_reason": "patience",
    "best_step": 20,
    "scores": [
        {"step": 10, "examples": 100, "loss": 3.0, "sample": "aaaa"},
        {"step": 20, "examples": 200, "loss": 2.0, "sample": "a time <b>"},
    ],
    "history": [],
}
Make = Callable[..., list[Artifact]]


@pytest.fixture
def made(store: Store) -> Make:
    def make(
        scores: list[Score] = SCORES,
        verdict: str = "It beats the 4-gram.",
        text: str = " upon\na time & more",
    ) -> list[Artifact]:
        evaluation = LMEvaluation(scores=scores, tokens=1234, bytes=5678, verdict=verdict)
        samples = Samples(samples=[Sample(prompt="Once <b>", text=text)])
        artifacts = []
        for stage, name, content in (
            ("train_window_lm", "metrics.json", json.dumps(METRICS)),
            ("evaluate_lm", "evaluation.json", evaluation.model_dump_json()),
            ("samples", "samples.json", samples.model_dump_json()),
        ):
            folder = store.folder(stage, "key")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
            summary = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows")
            artifacts.append(Artifact(stage=stage, key="key", folder=folder, summary=summary))
        return artifacts

    return make


def page_of(build: Callable[..., Artifact], artifacts: list[Artifact]) -> str:
    return (build(report_lm, *artifacts, config=ReportLMConfig()).folder / "report.html").read_text()


def test_figures_are_shown_with_those_of_the_baselines(build: Callable[..., Artifact], made: Make) -> None:
    text = " ".join(re.sub("<[^>]+>", " ", page_of(build, made())).split())
    assert "It beats the 4-gram. Evaluated on 1,234 held-out tokens (5,678 bytes of text)." in text
    assert "window language model 1.123 80.0 25.0% 22.7% to 27.5% 50.0%" in text
    assert "4-gram 1.200 90.0 20.0% 17.9% to 22.3% 40.0%" in text
    assert "1 min 15 s training time" in text
    assert "no longer improved. The saved model is that of step 20" in text


def test_a_sample_keeps_its_lines_and_can_not_become_markup(
    build: Callable[..., Artifact], made: Make
) -> None:
    page = page_of(build, made())
    assert '<p class="sample"><b>Once &lt;b&gt;</b> upon\na time &amp; more</p>' in page
    assert "white-space: pre-wrap" in page


def test_an_empty_sample_is_marked(build: Callable[..., Artifact], made: Make) -> None:
    artifacts = made(text="\n")
    assert "The model generated no text." in page_of(build, artifacts)
    assert "(The model generated no text.)" in markdown(*artifacts, ReportLMConfig())


def test_a_sample_with_text_is_not_marked(build: Callable[..., Artifact], made: Make) -> None:
    assert "no text" not in page_of(build, made())


def test_samples_during_training_are_in_order(build: Callable[..., Artifact], made: Make) -> None:
    page = page_of(build, made())
    learning = page[page.index("Samples during training") :]
    assert learning.index("step 10 · validation loss 3.000") < learning.index('<p class="sample">aaaa</p>')
    assert learning.index("aaaa") < learning.index('<p class="sample">a time &lt;b&gt;</p>')


def test_a_model_without_a_distribution_has_no_perplexity(build: Callable[..., Artifact], made: Make) -> None:
    text = " ".join(re.sub("<[^>]+>", " ", page_of(build, made(REGRESSION))).split())
    assert "window language model – – 25.0% 22.7% to 27.5% 50.0%" in text
    assert "1.123" not in text


def test_markdown_has_the_same_figures(made: Make) -> None:
    text = markdown(*made(verdict="It does NOT beat the 4-gram."), ReportLMConfig(title="Speeches"))
    assert text.startswith("# Speeches\n")
    assert "It does NOT beat the 4-gram." in text
    assert "| 4-gram | 1.200 | 90.0 | 20.0% | 17.9% to 22.3% | 40.0% |" in text
    assert "> **Once &lt;b>** upon a time &amp; more" in text


def test_encoding_and_token_length_are_among_the_figures() -> None:
    facts = {"encoding": "bpe", "vocabulary": 4096, "bytes": 1000, "tokens": 300}
    assert describe_encoding(facts) == "bpe, 4,096 tokens"
    assert describe_length(facts) == "3.33"


def test_no_file_but_the_page_is_written(build: Callable[..., Artifact], made: Make) -> None:
    folder: Path = build(report_lm, *made(), config=ReportLMConfig()).folder
    assert [path.name for path in folder.iterdir()] == ["report.html"]
