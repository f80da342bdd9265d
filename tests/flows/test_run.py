"""Tests of the table of stages on a run's page."""

import errno
from datetime import datetime
from pathlib import Path

import pytest

from lexloom.flows import run as module
from lexloom.flows.config import FlowConfig
from lexloom.flows.run import RunRecorder, record_run, row
from lexloom.tasks.report.usage import described_runs, with_name
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.store.names import NAMES_FILE
from lexloom.tasks.store.stage import StageRecord
from tests.deployments.cli.test_main import complaint
from tests.deployments.store import made_from, shelve


def test_a_row_has_a_stages_inputs_and_reasons() -> None:
    summary = Summary(rows_in=5, unit_in="words", rows=3, unit="tokens", dropped={"unknown": 2})
    parents = ["corpus/0123456789abcdef01234567", "vocabulary/fedcba9876543210fedcba98"]
    record = StageRecord("tokens", "a" * 24, parents, False, 1.26, summary, ["pairs.window: 5 -> 8", "more"])
    assert row(record) == {
        "stage": "tokens",
        "cached": "no",
        "seconds": 1.3,
        "rows": "5 words → 3 tokens · 2 unknown",
        "inputs": "corpus 01234567, vocabulary fedcba98",
        "key": "aaaaaaaa",
        "reason": "pairs.window: 5 -> 8; more",
    }


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*given: object, **named: object) -> None:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(module, "create_table_artifact", gone)


def test_a_completed_run_stays_completed_without_its_table(
    no_server: None, caplog: pytest.LogCaptureFixture
) -> None:
    with record_run("word2vec", FlowConfig(), ""):
        pass
    assert "the table of stages could not be published" in caplog.text


def test_a_run_that_fails_says_why_even_if_its_table_can_not_be_shown(no_server: None) -> None:
    with pytest.raises(ValueError, match="no text remains"), record_run("word2vec", FlowConfig(), ""):
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
    with described_runs():
        outcome = RunRecorder("word2vec", FlowConfig(), [built]).outcome(model, scores, page)
    assert outcome.metrics == {"loss": 2.0, "score": 0.5}


@pytest.fixture
def model(store: Store) -> Artifact:
    shelve(store, "corpus", "c", inputs=[made_from("", "source", called="books/Moby Dick.txt")])
    shelve(store, "train_word2vec", "m" * 24, inputs=[made_from("corpus", "c")])
    (found,) = [manifest for manifest in store.manifests() if manifest.stage == "train_word2vec"]
    return store.artifact(found)


def test_a_name_of_the_wrong_form_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/b", "latest", ""):
        said = complaint(capsys, "word2vec", f"--name={name}")
        assert "error: --name must " in said
        assert f"(got {name!r})" in said


def test_damaged_names_are_reported_before_the_first_stage(store: Store, no_server: None) -> None:
    store.root.mkdir()
    (store.root / NAMES_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"names.json is damaged"), record_run("word2vec", FlowConfig(), ""):
        pytest.fail("the run has started")


def test_a_model_that_can_not_be_named_has_its_key_as_name(
    no_server: None, model: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store is read-only. If the user has set a name, that is an error."""

    def read_only(*given: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "names.json")

    monkeypatch.setattr(Store, "lock", read_only)
    with record_run("word2vec", FlowConfig(), "") as recorder:
        assert recorder.outcome(model, model, model).name == "mmmmmmmm"
    assert "the model is named by its key" in capsys.readouterr().err
    with (
        pytest.raises(OSError, match="Read-only"),
        record_run("word2vec", FlowConfig(name="mine"), "") as recorder,
    ):
        recorder.name_model(model)


def test_the_default_name_comes_from_the_corpus(no_server: None, model: Artifact) -> None:
    with record_run("word2vec", FlowConfig(), "") as recorder:
        recorder.name_model(model)
        assert with_name("Word vectors") == f"Word vectors · moby-dick-{datetime.now():%Y-%m-%d}"
        assert recorder.outcome(model, model, model).name == f"moby-dick-{datetime.now():%Y-%m-%d}"
