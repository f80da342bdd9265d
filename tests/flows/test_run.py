"""Tests of the table of stages on a run's page."""

from pathlib import Path

import pytest

from lexloom.flows import run as outcome
from lexloom.flows.run import RunRecorder, record_run, row
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import StageRecord


def test_a_row_has_a_stages_inputs_and_reasons() -> None:
    summary = Summary(rows_in=5, unit_in="words", rows=3, unit="tokens", dropped={"unknown": 2})
    parents = ["corpus/0123456789abcdef01234567", "vocabulary/fedcba9876543210fedcba98"]
    record = StageRecord("tokens", "a" * 24, parents, False, 1.26, summary, ["pairs.window: 5 -> 8", "more"])
    assert row(record) == {
        "stage": "tokens",
        "cached": "no",
        "seconds": 1.3,
        "rows": "5 words → 3 tokens · 2 unknown",
        "made from": "corpus 01234567, vocabulary fedcba98",
        "key": "aaaaaaaa",
        "reason": "pairs.window: 5 -> 8; more",
    }


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*given: object, **named: object) -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(outcome, "create_table_artifact", gone)


def test_a_completed_run_stays_completed_without_its_table(
    no_server: None, caplog: pytest.LogCaptureFixture
) -> None:
    with record_run("word2vec", ""):
        pass
    assert "the table of stages could not be published" in caplog.text


def test_a_run_that_fails_says_why_even_if_its_table_can_not_be_shown(no_server: None) -> None:
    with pytest.raises(ValueError, match="no text remains"), record_run("word2vec", ""):
        raise ValueError("no text remains")


def test_the_metrics_are_read_from_the_final_artifacts() -> None:
    """The evaluation found the cached model to be damaged, and rebuilt it."""

    def summary(**facts: float) -> Summary:
        return Summary(rows_in=1, unit_in="pairs", rows=1, unit="words", facts=facts)

    built = StageRecord("train_word2vec", "m", [], False, 1.0, summary(loss=2.0), ["rebuilt: x is missing"])
    model, scores, page = (
        Artifact(stage=stage, key="m", folder=Path(stage), summary=summary(**facts))
        for stage, facts in (
            ("train_word2vec", {"loss": 1.0}),
            ("evaluate_word2vec", {"score": 0.5}),
            ("report_word2vec", {}),
        )
    )
    assert RunRecorder("word2vec", [built]).outcome(model, scores, page).metrics == {
        "loss": 2.0,
        "score": 0.5,
    }
