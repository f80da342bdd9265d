"""Evaluation of sentiment classifiers: metrics against scikit-learn and hand-computed values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score, roc_auc_score

from lexloom.models.sentiment.classifier import Classifier, save_classifier
from lexloom.models.sentiment.frozen_encoder import TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier
from lexloom.tasks.evaluate.classification_scores import compute_scores, reliability_bins, roc_auc
from lexloom.tasks.evaluate.sentiment import (
    EvaluateSentimentConfig,
    SentimentEvaluation,
    bag_of_words,
    baseline_probabilities,
    evaluate_sentiment,
    highlights,
    read_sentiment_evaluation,
    verdict,
)
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
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
    """A classifier with random weights, with an accuracy of about one half."""
    backbone = write_backbone(tmp_path / "backbone")
    part = TrainedPart(load_classifier(backbone, LABELS), 1, from_activations=True)
    save_classifier(
        tmp_path / "model", backbone, LABELS, 16, {part.names[n]: p for n, p in part.named_parameters()}
    )
    return Artifact(stage="train_sentiment", key="model", folder=tmp_path / "model", summary=NOTHING)


def random_scores(labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (probabilities, labels) of 500 reviews, rounded so that some are tied."""
    chance = np.random.default_rng(0)
    raw = chance.random((500, labels)).round(2) + 0.01
    return raw / raw.sum(1, keepdims=True), chance.integers(0, labels, 500)


@pytest.mark.parametrize("labels", [2, 4])
def test_scores_are_those_of_scikit_learn(labels: int) -> None:
    probabilities, truth = random_scores(labels)
    predicted = probabilities.argmax(1)
    found = compute_scores(probabilities, truth, [str(label) for label in range(labels)])
    auc = roc_auc_score(truth, probabilities[:, 1] if labels == 2 else probabilities, multi_class="ovr")
    assert found.accuracy == pytest.approx((predicted == truth).mean())
    assert found.f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found.roc_auc == pytest.approx(auc)
    assert found.confusion == confusion_matrix(truth, predicted).tolist()
    each = f1_score(truth, predicted, average=None)
    assert [entry.f1 for entry in found.labels] == pytest.approx(each.tolist())


def test_a_label_without_reviews_has_no_roc_auc() -> None:
    assert roc_auc(np.array([0.1, 0.9]), np.array([True, True])) is None
    found = compute_scores(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), ["a", "b"])
    assert found.roc_auc is None
    assert [entry.recall for entry in found.labels] == [0.5, None]
    assert [entry.precision for entry in found.labels] == [1.0, 0.0]
    assert [entry.f1 for entry in found.labels] == pytest.approx([2 / 3, 0.0])


def test_a_label_that_does_not_occur_is_left_out_of_means() -> None:
    probabilities, truth = random_scores(3)
    probabilities = np.insert(probabilities, 1, 0.0, axis=1)
    truth = np.array([0, 2, 3])[truth]
    found = compute_scores(probabilities, truth, ["a", "never", "b", "c"])
    without = compute_scores(np.delete(probabilities, 1, axis=1), truth - (truth > 0), ["a", "b", "c"])
    assert found.f1 == pytest.approx(without.f1)
    assert found.roc_auc == pytest.approx(without.roc_auc)
    assert found.ece == pytest.approx(without.ece)


def test_calibration_of_one_label_by_hand() -> None:
    """Five reviews with a score of 0.9, of which one is for the wrong label."""
    scores = np.array([[0.1, 0.9]] * 4 + [[0.9, 0.1]])
    found = compute_scores(scores, np.ones(5, int), ["a", "b"])
    assert found.ece == pytest.approx(0.1)  # 0.9 against 4 of 5
    assert [bin.reviews for bin in found.reliability if bin.reviews] == [5]


def test_scores_of_ordered_labels_are_sklearns_and_those_by_hand() -> None:
    generator = np.random.default_rng(5)
    truth, predicted = generator.integers(0, 5, (2, 300))
    probabilities = np.eye(5)[predicted]
    labels = ["10", "2", "1", "4", "3"]  # not in numeric order
    values = np.array(labels, float)
    found = compute_scores(probabilities, truth, labels).ordinal
    assert found is not None
    assert found.mean_error == pytest.approx(np.abs(values[truth] - values[predicted]).mean())
    ranks = np.array([4, 1, 0, 3, 2])
    assert found.adjacent == pytest.approx((np.abs(ranks[truth] - ranks[predicted]) <= 1).mean())
    stars = compute_scores(probabilities, truth, list("12345")).ordinal
    assert stars is not None
    assert stars.kappa == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"))


@pytest.mark.parametrize("labels", [["0", "1"], ["1", "2", "many"], ["1", "1.0", "2"], ["1", "2", "nan"]])
def test_labels_that_are_not_ordered_numbers_have_no_ordinal_scores(labels: list[str]) -> None:
    probabilities = np.eye(len(labels))
    assert compute_scores(probabilities, np.arange(len(labels)), labels).ordinal is None


def test_kappa_is_undefined_if_all_have_one_label() -> None:
    found = compute_scores(np.eye(3)[[1, 1]], np.array([1, 1]), ["1", "2", "3"]).ordinal
    assert found is not None
    assert (found.mean_error, found.adjacent, found.kappa) == (0, 1, None)


def test_calibration_by_hand() -> None:
    """Four reviews scored 0.75, three of them right: perfect. Two scored 0.95, one right: 0.45 off."""
    scores = np.array([0.75] * 4 + [0.95] * 2)
    right = np.array([True, True, True, False, True, False])
    filled = [bin for bin in reliability_bins(scores, right) if bin.reviews]
    assert [(bin.lower, bin.upper, bin.reviews) for bin in filled] == [(0.7, 0.8, 4), (0.9, 1.0, 2)]
    assert [bin.accuracy for bin in filled] == [0.75, 0.5]
    truth = np.where(right, 0, 1)
    found = compute_scores(np.stack([scores, 1 - scores], 1), truth, ["a", "b"])
    assert found.ece == pytest.approx((4 * 0.0 + 2 * 0.45) / 6)


def test_a_score_of_one_and_one_at_an_edge_are_in_the_bin_below() -> None:
    bins = reliability_bins(np.array([1.0, 0.5]), np.array([True, True]))
    assert [bin.reviews for bin in bins] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_model_and_baseline_are_evaluated_on_the_same_reviews(
    build: Build, model: Artifact, reviews: Artifact
) -> None:
    made = build(evaluate_sentiment, model, reviews, reviews, config=EvaluateSentimentConfig())
    found = read_sentiment_evaluation(made)
    texts = texts_of(reviews, "test")
    right = [
        label == LABELS[text.startswith("good")]
        for text, (label, _) in zip(texts, Classifier.load(model.folder).classify(texts), strict=True)
    ]
    assert found.reviews == len(texts) == 50
    assert found.model.accuracy == pytest.approx(np.mean(right))
    assert found.baseline is not None
    assert found.baseline.accuracy == 1.0  # the words good and bad are all there is to know
    assert made.facts["accuracy"] == round(found.model.accuracy, 4)
    assert made.facts["baseline_accuracy"] == 1.0


def test_a_baseline_that_can_not_be_trained_is_omitted(
    build: Build, model: Artifact, reviews: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateSentimentConfig(baseline_reviews=1)
    made = build(evaluate_sentiment, model, reviews, reviews, config=config)
    assert read_sentiment_evaluation(made).baseline is None
    said = " ".join(capsys.readouterr().err.split())
    assert "no bag-of-words baseline: only one label in the first 1 review;" in said


def test_a_baseline_never_predicts_a_label_that_it_was_not_trained_on(tmp_path: Path) -> None:
    """The missing label is in the middle; the columns after it keep their labels."""
    pq.write_table(
        pa.table({"text": ["bad film", "good film"] * 4, "label": [0, 2] * 4}),
        tmp_path / "train-00000.parquet",
    )
    reviews = Artifact(stage="split", key="k", folder=tmp_path, summary=NOTHING)
    found = baseline_probabilities(bag_of_words(reviews, 8), ["good", "bad"], 4)
    assert found.shape == (2, 4)
    assert found.argmax(1).tolist() == [2, 0]
    assert (found[:, [1, 3]] == 0).all()


def test_reviews_without_words_have_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"text": ["+ +", "- -"], "label": [0, 1]})
    pq.write_table(table, tmp_path / "train-00000.parquet")
    reviews = Artifact(stage="split", key="k", folder=tmp_path, summary=NOTHING)
    assert bag_of_words(reviews, 2) is None
    assert "no bag-of-words baseline" in capsys.readouterr().err


def test_the_most_confident_mistakes_come_first(build: Build, model: Artifact, reviews: Artifact) -> None:
    made = build(evaluate_sentiment, model, reviews, reviews, config=EvaluateSentimentConfig(mistakes=3))
    texts = texts_of(reviews, "test")
    wrong = [
        (share, text)
        for text, (label, share) in zip(texts, Classifier.load(model.folder).classify(texts), strict=True)
        if label != LABELS[text.startswith("good")]
    ]
    found = read_sentiment_evaluation(made).mistakes
    assert [mistake.score for mistake in found] == pytest.approx(
        sorted((s for s, _ in wrong), reverse=True)[:3], abs=1e-4
    )
    assert all(mistake.label != mistake.predicted for mistake in found)
    assert {mistake.text for mistake in found} <= {text for _, text in wrong}


def evaluation_of(accuracy: float, baseline: float | None) -> SentimentEvaluation:
    """Return an evaluation with these accuracies and arbitrary other values."""
    scores = compute_scores(*random_scores(2), ["a", "b"])
    return SentimentEvaluation(
        model=scores.model_copy(update={"accuracy": accuracy}),
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
        (0.9, 0.875, "The classifier beats the bag-of-words baseline by 2.5 percentage points of accuracy."),
        (0.875, 0.9, "does NOT beat the bag-of-words baseline: its accuracy is 2.5 percentage points lower."),
        (0.9, 0.9, "does NOT beat the bag-of-words baseline: the accuracy is the same."),
        (0.9, None, "There is no baseline for comparison."),
    ],
)
def test_the_verdict_says_so_when_the_bag_of_words_is_as_good(
    accuracy: float, baseline: float | None, says: str
) -> None:
    assert says in verdict(evaluation_of(accuracy, baseline))


@pytest.mark.parametrize("baseline", [0.875, None])
def test_a_run_ends_with_the_figures_of_both(tmp_path: Path, baseline: float | None) -> None:
    found = evaluation_of(0.9, baseline)
    (tmp_path / "evaluation.json").write_text(found.model_dump_json())
    artifact = Artifact(stage="evaluate_sentiment", key="k", folder=tmp_path, summary=NOTHING)
    _, header, *rows, last = str(highlights(artifact, 80)).splitlines()
    assert last == verdict(found)
    figures = {row.split("  ")[0]: row.split()[-4:] for row in rows}
    f1, ece = f"{found.model.f1:.3f}", f"{found.model.ece:.3f}"
    assert figures["classifier"] == ["90.0%", f1, f"{found.model.roc_auc:.3f}", ece]
    assert ("bag-of-words baseline" in figures) == (baseline is not None)
    assert all(len(row) == len(header) for row in rows)


def one_label(reviews: Artifact) -> Artifact:
    """The test part, with positive reviews only."""
    (path,) = reviews.files("test-*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.equal(table["label"], 1)), path)
    return reviews


def test_reviews_of_one_label_have_no_roc_auc(build: Build, model: Artifact, reviews: Artifact) -> None:
    test = one_label(reviews)
    made = build(evaluate_sentiment, model, reviews, test, config=EvaluateSentimentConfig())
    found = read_sentiment_evaluation(made)
    assert "roc_auc" not in made.facts
    assert found.model.roc_auc is None
    predicted = [label for label, _ in Classifier.load(model.folder).classify(texts_of(test, "test"))]
    assert made.facts["accuracy"] == pytest.approx(predicted.count("positive") / 25)
    assert found.model.f1 == pytest.approx(f1_score(["positive"] * 25, predicted, average="macro"))
    assert found.baseline is not None
    assert found.baseline.f1 == 1.0  # all are found: the label that does not occur is none of the mean
    negative = found.baseline.labels[0]
    assert (negative.precision, negative.recall, negative.f1) == (None, None, None)
    note = "ROC AUC is undefined, because all test reviews have the label 'positive'."
    assert str(highlights(made, 80)).splitlines()[-1] == note


def test_a_split_without_a_test_part_is_refused(build: Build, model: Artifact, reviews: Artifact) -> None:
    for path in reviews.files("test-*.parquet"):
        path.unlink()
    with pytest.raises(ValueError, match=r"there are no test reviews to evaluate the model on"):
        build(evaluate_sentiment, model, reviews, reviews, config=WITHOUT_BASELINE)
