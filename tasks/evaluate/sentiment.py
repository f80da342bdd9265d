"""Evaluation of a classifier on test reviews, compared with a bag-of-words baseline.

The baseline is scikit-learn's logistic regression on tf-idf features, trained on the same reviews in the same
run. A neural model that does not beat it is not worth its cost.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.text import Text

from lexloom.models.device import find_device
from lexloom.models.registry import TextClassifier, load_model
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.evaluate.classification_scores import Scores, compute_scores
from lexloom.tasks.match_labels import IN_TRAINING
from lexloom.tasks.split import read_batches
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.train.run import TRAIN

FILE = "evaluation.json"
MODEL, BASELINE = "classifier", "bag-of-words baseline"
TEST = "test-*.parquet"


class EvaluateSentimentConfig(BaseModel):
    """Size of the baseline, and number of mistakes in the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline_reviews: int = Field(
        50_000,
        ge=0,
        description="Maximum number of reviews on which the bag-of-words baseline is trained; 0 disables it.",
    )
    mistakes: int = Field(
        10, ge=0, le=1000, description="Number of most confident wrong predictions to keep for the report."
    )
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, RunOnly()] = Field(
        None, description="Device that runs the classifier (default: the training device)."
    )


class Mistake(BaseModel):
    """A review that was classified wrongly."""

    text: str
    label: str
    predicted: str
    score: float


class SentimentEvaluation(BaseModel):
    """The content of `evaluation.json`.

    `met_before` is the number of test reviews that also occur in the training or validation part; `reviews`
    excludes them.
    """

    model: Scores
    baseline: Scores | None
    baseline_seconds: float | None
    reviews: int
    met_before: int
    reviews_per_second: float
    mistakes: list[Mistake]


def read_sentiment_evaluation(artifact: Artifact) -> SentimentEvaluation:
    return SentimentEvaluation.model_validate_json((artifact.folder / FILE).read_bytes())


def named_scores(found: SentimentEvaluation) -> list[tuple[str, Scores]]:
    """Return the scores of the model and, if there is one, of the baseline, with their names."""
    baseline = [] if found.baseline is None else [(BASELINE, found.baseline)]
    return [(MODEL, found.model), *baseline]


def verdict(found: SentimentEvaluation) -> str:
    """Return one sentence on whether the model beats the baseline."""
    if found.baseline is None:
        return "There is no baseline for comparison."
    apart = 100 * (found.model.accuracy - found.baseline.accuracy)
    if apart > 0:
        return f"The {MODEL} beats the {BASELINE} by {apart:.1f} percentage points of accuracy."
    behind = f"its accuracy is {-apart:.1f} percentage points lower" if apart else "the accuracy is the same"
    return f"The {MODEL} does NOT beat the {BASELINE}: {behind}. Train more blocks, or use more reviews."


def highlights(artifact: Artifact, width: int) -> Text:
    """Return the evaluation summary that a run prints."""
    found = read_sentiment_evaluation(artifact)
    names = [name for name, _ in named_scores(found)]
    longest = max(map(len, names))
    lines = [Text(f"\n{'':{longest}}  accuracy     F1  ROC AUC  calibration error", style="bold")]
    for name, scores in named_scores(found):
        line = Text(f"{name:<{longest}}", style="bold")
        line.append(
            f"  {scores.accuracy:8.1%}  {scores.f1:.3f}  {shown(scores.roc_auc):>7}  {scores.ece:17.3f}"
        )
        lines.append(line)
    notes = [verdict(found), *one_label_note(found)]
    return Text("\n").join([*lines, *map(Text, notes)])


def one_label_note(found: SentimentEvaluation) -> list[str]:
    """Return a sentence on why there is no ROC AUC, if there is none."""
    if found.model.roc_auc is not None:
        return []
    (only,) = [each.label for each in found.model.labels if each.reviews]
    return [f"ROC AUC is undefined, because all test reviews have the label {only!r}."]


def shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"


@stage(version=4)
def evaluate_sentiment(
    model: Artifact, reviews: Artifact, test: Artifact, config: EvaluateSentimentConfig, out: Path
) -> Summary:
    """Write `evaluation.json`: scores of model and baseline on test reviews, and most confident mistakes.

    `reviews` is the split that the model was trained on. `test` is the same split, whose test part is used,
    or reviews of another source with matched labels.

    Raises:
        ValueError: there are no test reviews.
        ImportError: scikit-learn is not installed.
    """
    classifier = load_model(model.folder, "classify", find_device(config.device or "auto"))
    classifier.normalization = None  # the corpus is already normalized
    baseline, baseline_seconds = None, None
    if config.baseline_reviews:
        started = perf_counter()
        baseline = bag_of_words(reviews, config.baseline_reviews)
        baseline_seconds = None if baseline is None else round(perf_counter() - started, 3)
    predictions = predict(classifier, baseline, test, config.mistakes)
    others, done = predictions.baseline, len(predictions.truth)
    evaluation = SentimentEvaluation(
        model=compute_scores(predictions.model, predictions.truth, classifier.labels),
        baseline=None if others is None else compute_scores(others, predictions.truth, classifier.labels),
        baseline_seconds=baseline_seconds,
        reviews=done,
        met_before=test.summary.dropped.get(IN_TRAINING, 0),
        reviews_per_second=round(done / predictions.seconds, 1),
        mistakes=predictions.mistakes,
    )
    (out / FILE).write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    figures = {name: getattr(evaluation.model, name) for name in ("accuracy", "f1", "roc_auc", "ece")}
    facts: dict[str, JsonValue] = {
        name: round(figure, 4) for name, figure in figures.items() if figure is not None
    }
    if evaluation.baseline:
        facts["baseline_accuracy"] = round(evaluation.baseline.accuracy, 4)
    return Summary(rows_in=done, unit_in="reviews", rows=done, unit="reviews", facts=facts)


@dataclass(frozen=True)
class Predictions:
    """The probabilities of model and baseline for N test reviews, and the true labels."""

    truth: NDArray[np.int64]  # (N,)
    model: NDArray[np.floating]  # (N, C)
    baseline: NDArray[np.floating] | None  # (N, C)
    mistakes: list[Mistake]
    seconds: float  # of the model alone


def predict(classifier: TextClassifier, baseline: Any, test: Artifact, mistakes: int) -> Predictions:
    """Classify every test review by model and baseline; keep the model's most confident mistakes."""
    worst = WorstMistakes(classifier.labels, mistakes)
    truth: list[NDArray[np.int64]] = []
    found: list[NDArray[np.floating]] = []
    others: list[NDArray[np.floating]] = []
    seconds, done = 0.0, 0
    paths = test.files(TEST)
    with console.bar("evaluation", total=sum(pq.read_metadata(path).num_rows for path in paths)) as bar:
        for batch in read_batches(paths, ["text", "label"]):
            texts, labels = batch["text"].to_pylist(), batch["label"].to_numpy().astype(np.int64)
            started = perf_counter()
            probabilities = classifier.probabilities(texts)
            seconds += perf_counter() - started
            truth.append(labels)
            found.append(probabilities)
            if baseline is not None:
                others.append(baseline_probabilities(baseline, texts, len(classifier.labels)))
            worst.add(texts, labels, probabilities)
            done += len(texts)
            bar.update(done, f"{done / seconds:.0f} reviews/s")
    if not done:
        raise ValueError(
            "there are no test reviews to evaluate the model on: hold some out with --test-share, or set"
            " --test-source"
        )
    theirs = np.concatenate(others) if others else None
    return Predictions(np.concatenate(truth), np.concatenate(found), theirs, worst.in_order(), seconds)


class WorstMistakes:
    """Keeps the mistakes with the highest scores."""

    def __init__(self, labels: Sequence[str], most: int) -> None:
        self._labels, self._most, self._added = labels, most, 0
        self._heap: list[tuple[float, int, Mistake]] = []  # of equal scores the first stay

    def add(self, texts: Sequence[str], labels: NDArray[np.int64], scores: NDArray[np.floating]) -> None:
        """Add texts with their true label numbers, (N,), and scores, (N, C)."""
        for row in np.flatnonzero(scores.argmax(1) != labels).tolist():
            best = int(scores[row].argmax())
            mistake = Mistake(
                text=texts[row],
                label=self._labels[labels[row]],
                predicted=self._labels[best],
                score=round(float(scores[row, best]), 4),
            )
            heapq.heappush(self._heap, (mistake.score, -self._added - row, mistake))
            if len(self._heap) > self._most:
                heapq.heappop(self._heap)
        self._added += len(texts)

    def in_order(self) -> list[Mistake]:
        return [mistake for _, _, mistake in sorted(self._heap, reverse=True)]


def bag_of_words(reviews: Artifact, most: int) -> Any:
    """Return the baseline, trained on the first `most` training reviews, which are in random order.

    Return None, with a warning, if it can't be trained: all reviews have the same label, or none has words.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ImportError(
            "the bag-of-words baseline needs scikit-learn: pip install 'lexloom[sentiment]', or omit it with"
            " --baseline-reviews 0"
        ) from error
    texts: list[str] = []
    labels: list[int] = []
    for batch in read_batches(reviews.files(TRAIN), ["text", "label"]):
        texts += batch["text"].to_pylist()
        labels += batch["label"].to_pylist()
        if len(texts) >= most:
            break
    if len(set(labels[:most])) < 2:
        console.warn(
            f"no {BASELINE}: only one label in the first {counted(len(labels[:most]), 'reviews')};"
            " raise --baseline-reviews"
        )
        return None
    try:
        return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(
            texts[:most], labels[:most]
        )
    except ValueError as error:  # such as of reviews without a word of two letters
        console.warn(f"no {BASELINE}: {error}")
        return None


def baseline_probabilities(baseline: Any, texts: list[str], labels: int) -> NDArray[np.floating]:
    """Return the baseline's probabilities, (N, C); 0 for labels that do not occur in its training reviews."""
    found = np.zeros((len(texts), labels))
    found[:, baseline.classes_] = baseline.predict_proba(texts)
    return found
