"""How good a sentiment classifier is, on reviews that it has not seen, and against a simple rival.

The rival is a logistic regression on tf-idf weighted words, by scikit-learn, trained on the same reviews in
the same run: a neural model that does not beat it is not worth its time. Calibration asks whether scores can
be taken at their word: of all reviews scored about 0.9, nine in ten should be right (expected calibration
error, Guo et al. 2017).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.text import Text

from lexloom.models.sentiment.classifier import Sentiment
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.evaluate.word2vec import mean_ranks
from lexloom.tasks.match_labels import MET_BEFORE
from lexloom.tasks.split import batches
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.train.run import TRAIN

FILE = "evaluation.json"
BINS = 10
MODEL, BASELINE = "classifier", "bag of words"
TEST = "test-*.parquet"


class EvaluateSentimentConfig(BaseModel):
    """Size of the baseline, and what the report shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline_reviews: int = Field(
        50_000,
        ge=0,
        description="Maximum number of reviews on which the bag-of-words baseline is trained; 0 disables it.",
    )
    mistakes: int = Field(
        10, ge=0, le=1000, description="Number of most confident wrong predictions to keep for the report."
    )
    device: Annotated[Literal["cpu", "cuda"] | None, RunOnly()] = Field(
        None, description="Device that runs the classifier (default: the training device)."
    )


class LabelScore(BaseModel):
    """How well one label is found: precision, recall and their harmonic mean.

    Precision is None for a label that is never predicted, recall for one that no review has, F1 for one that
    is neither.
    """

    label: str
    reviews: int
    precision: float | None
    recall: float | None
    f1: float | None


class Bin(BaseModel):
    """The reviews whose best score is in one range: calibrated if accuracy is as high as the mean score."""

    lower: float
    upper: float
    reviews: int
    score: float | None
    accuracy: float | None


class Scores(BaseModel):
    """What a classifier's probabilities are worth on the test reviews.

    `f1` is the mean over the labels that occur, as a true or a predicted one (macro). `roc_auc` is the mean
    of each true label against the others (with two labels the usual one), and None if all reviews have one
    label. `confusion` has a row for each true label, a column for each predicted one. `ece` is the mean
    distance of score and accuracy over bins, weighted by their reviews.
    """

    accuracy: float
    f1: float
    roc_auc: float | None
    labels: list[LabelScore]
    confusion: list[list[int]]
    reliability: list[Bin]
    ece: float


class Mistake(BaseModel):
    """A review whose label was missed."""

    text: str
    label: str
    predicted: str
    score: float


class SentimentEvaluation(BaseModel):
    """What `evaluation.json` holds.

    `met_before` test reviews were in the train or validation part too, and are not among the `reviews`.
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
    """The model's scores, and its rival's where there is one, each with what to call it."""
    rival = [] if found.baseline is None else [(BASELINE, found.baseline)]
    return [(MODEL, found.model), *rival]


def verdict(found: SentimentEvaluation) -> str:
    """Whether the model is worth its training, in one sentence."""
    if found.baseline is None:
        return "There was no baseline to compare it with."
    apart = 100 * (found.model.accuracy - found.baseline.accuracy)
    if apart > 0:
        return f"The {MODEL} beats the {BASELINE} by {apart:.1f} points of accuracy."
    behind = f"it is {-apart:.1f} points of accuracy behind" if apart else "both are equally accurate"
    return f"The {MODEL} does NOT beat the {BASELINE}: {behind}. Train more blocks, or on more reviews."


def highlights(artifact: Artifact, width: int) -> Text:
    """What to show of an evaluation at the end of a run."""
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
    """Why there is no ROC AUC, in one sentence, if there is none."""
    if found.model.roc_auc is not None:
        return []
    (only,) = [each.label for each in found.model.labels if each.reviews]
    return [f"There is no ROC AUC, which needs test reviews of two labels: all have the label {only!r}."]


def shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"


@stage(version=3)
def evaluate_sentiment(
    model: Artifact, reviews: Artifact, test: Artifact, config: EvaluateSentimentConfig, out: Path
) -> Summary:
    """Writes `evaluation.json`: the model's scores on test reviews, its rival's, and its worst mistakes.

    `reviews` is the split that the model was trained on. `test` is the same again, for its test part, or
    reviews of another source with matched labels.

    Raises:
        ValueError: there is no test review.
        ImportError: scikit-learn is not installed.
    """
    classifier = Sentiment.load(model.folder, config.device or "cpu")
    classifier.normalization = None  # the corpus is normalised already
    baseline, baseline_seconds = None, None
    if config.baseline_reviews:
        started = perf_counter()
        baseline = bag_of_words(reviews, config.baseline_reviews)
        baseline_seconds = None if baseline is None else round(perf_counter() - started, 3)
    judgement = judge(classifier, baseline, test, config.mistakes)
    rival, done = judgement.rival, len(judgement.truth)
    evaluation = SentimentEvaluation(
        model=score(judgement.found, judgement.truth, classifier.labels),
        baseline=None if rival is None else score(rival, judgement.truth, classifier.labels),
        baseline_seconds=baseline_seconds,
        reviews=done,
        met_before=test.summary.dropped.get(MET_BEFORE, 0),
        reviews_per_second=round(done / judgement.seconds, 1),
        mistakes=judgement.mistakes,
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
class Judgement:
    """What classifier and rival said of N test reviews, and what is true."""

    truth: NDArray[np.int64]  # (N,)
    found: NDArray[np.floating]  # (N, C)
    rival: NDArray[np.floating] | None  # (N, C)
    mistakes: list[Mistake]
    seconds: float  # the classifier's alone


def judge(classifier: Sentiment, baseline: Any, test: Artifact, mistakes: int) -> Judgement:
    """Asks both about every test review; of the classifier's mistakes keeps the most confident."""
    worst = WorstMistakes(classifier.labels, mistakes)
    truth: list[NDArray[np.int64]] = []
    found: list[NDArray[np.floating]] = []
    rival: list[NDArray[np.floating]] = []
    seconds, done = 0.0, 0
    paths = test.files(TEST)
    with console.bar("evaluation", total=sum(pq.read_metadata(path).num_rows for path in paths)) as bar:
        for batch in batches(paths, ["text", "label"]):
            texts, labels = batch["text"].to_pylist(), batch["label"].to_numpy().astype(np.int64)
            started = perf_counter()
            probabilities = classifier.probabilities(texts)
            seconds += perf_counter() - started
            truth.append(labels)
            found.append(probabilities)
            if baseline is not None:
                rival.append(rival_scores(baseline, texts, len(classifier.labels)))
            worst.meet(texts, labels, probabilities)
            done += len(texts)
            bar.update(done, f"{done / seconds:.0f} reviews/s")
    if not done:
        raise ValueError(
            "there is no test review to judge the model by: hold some out with --test-share, or name a"
            " --test-source"
        )
    theirs = np.concatenate(rival) if rival else None
    return Judgement(np.concatenate(truth), np.concatenate(found), theirs, worst.in_order(), seconds)


class WorstMistakes:
    """The mistakes with the highest scores, of all that were met."""

    def __init__(self, labels: Sequence[str], most: int) -> None:
        self._labels, self._most, self._met = labels, most, 0
        self._heap: list[tuple[float, int, Mistake]] = []  # of equal ones the first stay

    def meet(self, texts: Sequence[str], labels: NDArray[np.int64], scores: NDArray[np.floating]) -> None:
        """labels: (N,) true numbers; scores: (N, C)."""
        for row in np.flatnonzero(scores.argmax(1) != labels).tolist():
            best = int(scores[row].argmax())
            mistake = Mistake(
                text=texts[row],
                label=self._labels[labels[row]],
                predicted=self._labels[best],
                score=round(float(scores[row, best]), 4),
            )
            heapq.heappush(self._heap, (mistake.score, -self._met - row, mistake))
            if len(self._heap) > self._most:
                heapq.heappop(self._heap)
        self._met += len(texts)

    def in_order(self) -> list[Mistake]:
        return [mistake for _, _, mistake in sorted(self._heap, reverse=True)]


def bag_of_words(reviews: Artifact, most: int) -> Any:
    """The rival, trained on the first `most` reviews of the train part (they lie in random order).

    None, and a warning, where they teach it nothing: all have one label, or none has words.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ImportError(
            "the bag-of-words rival needs scikit-learn: pip install 'lexloom[sentiment]', or do without it by"
            " --baseline-reviews 0"
        ) from error
    texts: list[str] = []
    labels: list[int] = []
    for batch in batches(reviews.files(TRAIN), ["text", "label"]):
        texts += batch["text"].to_pylist()
        labels += batch["label"].to_pylist()
        if len(texts) >= most:
            break
    if len(set(labels[:most])) < 2:
        console.warn(
            f"no {BASELINE} to compare with: one label in the first {counted(len(labels[:most]), 'reviews')};"
            " raise --baseline-reviews"
        )
        return None
    try:
        return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(
            texts[:most], labels[:most]
        )
    except ValueError as error:  # of reviews without a word of two letters, say
        console.warn(f"no {BASELINE} to compare with: {error}")
        return None


def rival_scores(baseline: Any, texts: list[str], labels: int) -> NDArray[np.floating]:
    """(N, C): the rival's probabilities; 0 for a label that was not among its reviews."""
    found = np.zeros((len(texts), labels))
    found[:, baseline.classes_] = baseline.predict_proba(texts)
    return found


# the figures


def score(probabilities: NDArray[np.floating], truth: NDArray[np.int64], labels: list[str]) -> Scores:
    """probabilities: (N, C); truth: (N,) label numbers."""
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    right = confusion.diagonal()
    predictions, reviews = confusion.sum(0), confusion.sum(1)
    f1 = [ratio(2 * n, of) for n, of in zip(right, predictions + reviews, strict=True)]
    reliability = reliability_bins(probabilities.max(1), predicted == truth)
    asked = range(len(labels)) if len(labels) > 2 else [1]  # of two labels, both areas are one
    aucs = [roc_auc(probabilities[:, label], truth == label) for label in asked]
    measurable = [auc for auc in aucs if auc is not None]
    return Scores(
        accuracy=float(right.sum() / len(truth)),
        f1=float(np.mean([each for each in f1 if each is not None])),
        roc_auc=float(np.mean(measurable)) if measurable else None,
        labels=[
            LabelScore(label=name, reviews=of, precision=ratio(n, found), recall=ratio(n, of), f1=f)
            for name, n, found, of, f in zip(labels, right, predictions, reviews, f1, strict=True)
        ],
        confusion=confusion.tolist(),
        reliability=reliability,
        ece=sum(
            bin.reviews * abs(bin.accuracy - bin.score)
            for bin in reliability
            if bin.accuracy is not None and bin.score is not None
        )
        / len(truth),
    )


def ratio(part: int, whole: int) -> float | None:
    """None where it is not defined, since there is no whole."""
    return float(part / whole) if whole else None


def roc_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """The chance that a positive scores above a negative, ties half (Mann and Whitney); None without both."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    above = mean_ranks(scores)[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def reliability_bins(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> list[Bin]:
    """Ten bins of equal width over (0, 1], each with its upper end."""
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.ceil(scores * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for number, (lower, upper) in enumerate(pairwise(edges.round(10).tolist())):
        inside = place == number
        some = bool(inside.any())
        bins.append(
            Bin(
                lower=lower,
                upper=upper,
                reviews=int(inside.sum()),
                score=float(scores[inside].mean()) if some else None,
                accuracy=float(right[inside].mean()) if some else None,
            )
        )
    return bins
