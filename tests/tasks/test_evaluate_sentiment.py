"""Judging a sentiment classifier: figures against scikit-learn's and against sums done by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from models.encoder import TrainedPart, load_classifier
from models.sentiment import Sentiment, save_classifier
from tasks.artifacts import Artifact, Store, Summary
from tasks.evaluate_sentiment import (
    EvaluateSentimentConfig,
    SentimentEvaluation,
    bag_of_words,
    evaluate_sentiment,
    highlights,
    read_sentiment_evaluation,
    reliability_bins,
    rival_scores,
    roc_auc,
    score,
    verdict,
)
from tests.models.tiny import write_backbone
from tests.tasks.labelled import LABELS, texts_of, write_split

NOTHING = Summary(rows_in=0, unit_in="", rows=0, unit="")
WITHOUT_BASELINE = EvaluateSentimentConfig(baseline_reviews=0)

Build = Callable[..., Artifact]


@pytest.fixture
def reviews(store: Store) -> Artifact:
    return write_split(store, reviews=200)


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    """A classifier of invented weights: right about as often as not."""
    backbone = write_backbone(tmp_path / "backbone")
    part = TrainedPart(load_classifier(backbone, LABELS), 1, from_activations=True)
    save_classifier(
        tmp_path / "model", backbone, LABELS, 16, {part.names[n]: p for n, p in part.named_parameters()}
    )
    return Artifact(stage="train_sentiment", key="model", folder=tmp_path / "model", summary=NOTHING)


def corpus(store: Store, texts: list[str], labels: list[Any], key: str = "other") -> Artifact:
    folder = store.folder("corpus", key)
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), folder / "shard-00000.parquet")
    return Artifact(stage="corpus", key=key, folder=folder, summary=NOTHING)


def random_scores(labels: int) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, truth) of 500 reviews; rounded, so that some are tied."""
    chance = np.random.default_rng(0)
    raw = chance.random((500, labels)).round(2) + 0.01
    return raw / raw.sum(1, keepdims=True), chance.integers(0, labels, 500)


@pytest.mark.parametrize("labels", [2, 4])
def test_scores_are_those_of_scikit_learn(labels: int) -> None:
    probabilities, truth = random_scores(labels)
    predicted = probabilities.argmax(1)
    found = score(probabilities, truth, [str(label) for label in range(labels)])
    auc = roc_auc_score(truth, probabilities[:, 1] if labels == 2 else probabilities, multi_class="ovr")
    assert found.accuracy == pytest.approx((predicted == truth).mean())
    assert found.f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found.roc_auc == pytest.approx(auc)
    assert found.confusion == confusion_matrix(truth, predicted).tolist()
    each = f1_score(truth, predicted, average=None)
    assert [entry.f1 for entry in found.labels] == pytest.approx(each.tolist())


def test_a_label_that_is_never_met_has_no_area() -> None:
    assert roc_auc(np.array([0.1, 0.9]), np.array([True, True])) is None
    found = score(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), ["a", "b"])
    assert found.roc_auc is None
    assert [entry.recall for entry in found.labels] == [0.5, 0.0]


def test_calibration_by_hand() -> None:
    """Four reviews scored 0.75, three of them right: perfect. Two scored 0.95, one right: 0.45 off."""
    scores = np.array([0.75] * 4 + [0.95] * 2)
    right = np.array([True, True, True, False, True, False])
    filled = [bin for bin in reliability_bins(scores, right) if bin.reviews]
    assert [(bin.lower, bin.upper, bin.reviews) for bin in filled] == [(0.7, 0.8, 4), (0.9, 1.0, 2)]
    assert [bin.accuracy for bin in filled] == [0.75, 0.5]
    truth = np.where(right, 0, 1)
    found = score(np.stack([scores, 1 - scores], 1), truth, ["a", "b"])
    assert found.ece == pytest.approx((4 * 0.0 + 2 * 0.45) / 6)


def test_a_score_of_one_and_one_at_an_edge_are_in_the_bin_below() -> None:
    bins = reliability_bins(np.array([1.0, 0.5]), np.array([True, True]))
    assert [bin.reviews for bin in bins] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_model_and_rival_are_judged_by_the_same_reviews(
    build: Build, model: Artifact, reviews: Artifact
) -> None:
    made = build(evaluate_sentiment, model, reviews, reviews, config=EvaluateSentimentConfig())
    found = read_sentiment_evaluation(made)
    texts = texts_of(reviews, "test")
    right = [
        label == LABELS[text.startswith("good")]
        for text, (label, _) in zip(texts, Sentiment.load(model.folder).classify(texts), strict=True)
    ]
    assert found.reviews == len(texts) == 50
    assert found.model.accuracy == pytest.approx(np.mean(right))
    assert found.baseline is not None
    assert found.baseline.accuracy == 1.0  # the words good and bad are all there is to know
    assert made.facts["accuracy"] == round(found.model.accuracy, 4)
    assert made.facts["baseline_accuracy"] == 1.0


def test_a_rival_that_can_not_be_trained_is_done_without(
    build: Build, model: Artifact, reviews: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateSentimentConfig(baseline_reviews=1)
    made = build(evaluate_sentiment, model, reviews, reviews, config=config)
    assert read_sentiment_evaluation(made).baseline is None
    said = " ".join(capsys.readouterr().err.split())
    assert "no bag of words to compare with: the first 1 reviews have one label" in said


def test_a_rival_that_met_no_review_of_a_label_never_finds_it(tmp_path: Path) -> None:
    """The label in the middle: the column behind it stays its own label's."""
    pq.write_table(
        pa.table({"text": ["bad film", "good film"] * 4, "label": [0, 2] * 4}),
        tmp_path / "train-00000.parquet",
    )
    reviews = Artifact(stage="split", key="k", folder=tmp_path, summary=NOTHING)
    found = rival_scores(bag_of_words(reviews, 8), ["good", "bad"], 4)
    assert found.shape == (2, 4)
    assert found.argmax(1).tolist() == [2, 0]
    assert (found[:, [1, 3]] == 0).all()


def test_reviews_without_words_have_no_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"text": ["+ +", "- -"], "label": [0, 1]})
    pq.write_table(table, tmp_path / "train-00000.parquet")
    reviews = Artifact(stage="split", key="k", folder=tmp_path, summary=NOTHING)
    assert bag_of_words(reviews, 2) is None
    assert "no bag of words to compare with" in capsys.readouterr().err


def test_the_most_confident_mistakes_come_first(build: Build, model: Artifact, reviews: Artifact) -> None:
    made = build(evaluate_sentiment, model, reviews, reviews, config=EvaluateSentimentConfig(mistakes=3))
    texts = texts_of(reviews, "test")
    wrong = [
        (share, text)
        for text, (label, share) in zip(texts, Sentiment.load(model.folder).classify(texts), strict=True)
        if label != LABELS[text.startswith("good")]
    ]
    found = read_sentiment_evaluation(made).mistakes
    assert [mistake.score for mistake in found] == pytest.approx(
        sorted((s for s, _ in wrong), reverse=True)[:3], abs=1e-4
    )
    assert all(mistake.label != mistake.predicted for mistake in found)
    assert {mistake.text for mistake in found} <= {text for _, text in wrong}


def judged(accuracy: float, baseline: float | None) -> SentimentEvaluation:
    """An evaluation with these accuracies; of the rest of it, something."""
    scores = score(*random_scores(2), ["a", "b"])
    return SentimentEvaluation(
        model=scores.model_copy(update={"accuracy": accuracy, "roc_auc": None}),
        baseline=None if baseline is None else scores.model_copy(update={"accuracy": baseline}),
        baseline_seconds=None,
        reviews=500,
        met_before=0,
        reviews_per_second=1.0,
        mistakes=[],
    )


@pytest.mark.parametrize(
    ("accuracy", "baseline", "says"),
    [
        (0.9, 0.875, "The classifier beats the bag of words by 2.5 points of accuracy."),
        (0.875, 0.9, "does NOT beat the bag of words: it is 2.5 points of accuracy behind."),
        (0.9, 0.9, "does NOT beat the bag of words: both are equally accurate."),
        (0.9, None, "There was no baseline to compare it with."),
    ],
)
def test_the_verdict_says_so_when_the_bag_of_words_is_as_good(
    accuracy: float, baseline: float | None, says: str
) -> None:
    assert says in verdict(judged(accuracy, baseline))


@pytest.mark.parametrize("baseline", [0.875, None])
def test_a_run_ends_with_the_figures_of_both(tmp_path: Path, baseline: float | None) -> None:
    found = judged(0.9, baseline)
    (tmp_path / "evaluation.json").write_text(found.model_dump_json())
    artifact = Artifact(stage="evaluate_sentiment", key="k", folder=tmp_path, summary=NOTHING)
    _, header, *rows, last = str(highlights(artifact, 80)).splitlines()
    assert last == verdict(found)
    figures = {row.split("  ")[0]: row.split()[-4:] for row in rows}
    f1, ece = f"{found.model.f1:.3f}", f"{found.model.ece:.3f}"
    assert figures["classifier"] == ["90.0%", f1, "–", ece]
    assert ("bag of words" in figures) == (baseline is not None)
    assert all(len(row) == len(header) for row in rows)


def test_reviews_from_elsewhere_have_the_labels_of_their_corpus(
    build: Build, store: Store, model: Artifact, reviews: Artifact
) -> None:
    """The split called 0 and 1 negative and positive; a test corpus says 0 and 1 as the first one did."""
    texts = [f"film {text}" for text in texts_of(reviews, "test")]
    labels = [int(text.startswith("film good")) for text in texts]
    found = Sentiment.load(model.folder).classify(texts)
    elsewhere = corpus(store, [*texts, "good film"], [*labels, None])
    made = build(evaluate_sentiment, model, reviews, elsewhere, config=WITHOUT_BASELINE)
    evaluation = read_sentiment_evaluation(made)
    right = [label == LABELS[number] for (label, _), number in zip(found, labels, strict=True)]
    assert evaluation.model.accuracy == pytest.approx(np.mean(right))
    assert made.summary.dropped == {"without a label": 1, "met in training": 0}
    assert evaluation.baseline is None


def test_reviews_from_elsewhere_that_training_or_validation_met_are_left_out(
    build: Build, store: Store, model: Artifact, reviews: Artifact
) -> None:
    met = [*texts_of(reviews, "train")[:30], *texts_of(reviews, "validation")[:5]]
    mixed = corpus(store, [*met, "film good", "film bad", met[0]], [0, 1] * 18 + [0, None])
    made = build(evaluate_sentiment, model, reviews, mixed, config=WITHOUT_BASELINE)
    assert made.summary.dropped == {"without a label": 1, "met in training": 35}
    assert (made.summary.rows_in, made.summary.rows) == (38, 2)
    assert read_sentiment_evaluation(made).met_before == 35
    none_new = corpus(store, met, [0] * 35, key="met")
    with pytest.raises(ValueError, match="no test review with a label that the model has not met"):
        build(evaluate_sentiment, model, reviews, none_new, config=WITHOUT_BASELINE)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 7], r"a test review has the label 7, and the model knows only \[0, 1\]"),
        ([None, None], "there is no test review with a label"),
    ],
)
def test_test_reviews_that_cannot_be_judged_are_refused(
    build: Build, store: Store, model: Artifact, reviews: Artifact, labels: list[Any], says: str
) -> None:
    source = corpus(store, ["good", "bad"], pa.array(labels, pa.int64()))
    with pytest.raises(ValueError, match=says):
        build(evaluate_sentiment, model, reviews, source, config=WITHOUT_BASELINE)


def test_a_split_without_a_test_part_is_refused(build: Build, model: Artifact, reviews: Artifact) -> None:
    for path in reviews.files("test-*.parquet"):
        path.unlink()
    with pytest.raises(ValueError, match=r"there is no test review with a label .*hold some out"):
        build(evaluate_sentiment, model, reviews, reviews, config=WITHOUT_BASELINE)
