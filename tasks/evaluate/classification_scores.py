"""Scores of a classifier's probabilities: accuracy, F1, ROC AUC, confusion and calibration.

Calibration compares scores with accuracy: of all texts with a score of about 0.9, 90% should be correct
(expected calibration error; Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

BINS = 10


class LabelScore(BaseModel):
    """Precision, recall and F1 of one label.

    Precision is None if the label is never predicted, recall if no review has it, and F1 if both are None.
    """

    label: str
    reviews: int
    precision: float | None
    recall: float | None
    f1: float | None


class Bin(BaseModel):
    """The reviews whose highest score is in one range: calibrated if accuracy equals the mean score."""

    lower: float
    upper: float
    reviews: int
    score: float | None
    accuracy: float | None


class OrdinalScores(BaseModel):
    """Scores of labels that are ordered numbers, such as stars.

    `mean_error` is the mean absolute difference of true and predicted label, `adjacent` the share of reviews
    whose predicted label is the true one or next to it, and `kappa` Cohen's kappa with quadratic weights
    (Cohen, 1968), or None if it is undefined.
    """

    mean_error: float
    adjacent: float
    kappa: float | None


class Scores(BaseModel):
    """Scores of a classifier on the test reviews.

    `f1` is the macro average over labels that occur as true or predicted labels. `roc_auc` is the one-vs-rest
    average over labels (for two labels, the binary ROC AUC), and None if all reviews have the same label.
    `confusion` has a row for each true label and a column for each predicted one. `ece`, the expected
    calibration error, is the mean |score - accuracy| over bins, weighted by their number of reviews.
    `ordinal` is given for three or more labels that are numbers.
    """

    accuracy: float
    f1: float
    roc_auc: float | None
    labels: list[LabelScore]
    confusion: list[list[int]]
    reliability: list[Bin]
    ece: float
    ordinal: OrdinalScores | None = None


def compute_scores(
    probabilities: NDArray[np.floating], truth: NDArray[np.int64], labels: list[str]
) -> Scores:
    """Compute the scores of probabilities, (N, C), for true label indices, (N,)."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # its import takes a second

    predicted, known = probabilities.argmax(1), range(len(labels))
    precision, recall, f1, reviews = precision_recall_fscore_support(
        truth, predicted, labels=known, zero_division=np.nan
    )
    reliability = reliability_bins(probabilities.max(1), predicted == truth)
    measured = known if len(labels) > 2 else [1]  # of two labels, both areas are equal
    aucs = [roc_auc(probabilities[:, label], truth == label) for label in measured]
    measurable = [auc for auc in aucs if auc is not None]
    return Scores(
        accuracy=float((predicted == truth).mean()),
        f1=float(np.nanmean(f1)),
        roc_auc=float(np.mean(measurable)) if measurable else None,
        labels=[
            LabelScore(label=name, reviews=int(n), precision=defined(p), recall=defined(r), f1=defined(f))
            for name, n, p, r, f in zip(labels, reviews, precision, recall, f1, strict=True)
        ],
        confusion=(confusion := confusion_matrix(truth, predicted, labels=known)).tolist(),
        reliability=reliability,
        ece=sum(
            bin.reviews * abs(bin.accuracy - bin.score)
            for bin in reliability
            if bin.accuracy is not None and bin.score is not None
        )
        / len(truth),
        ordinal=compute_ordinal_scores(confusion, labels),
    )


def compute_ordinal_scores(confusion: NDArray[np.integer], labels: list[str]) -> OrdinalScores | None:
    """Compute the scores of a confusion matrix, (C, C).

    Return None unless the labels are three or more different numbers.
    """
    try:
        values = np.array([float(label) for label in labels])
    except ValueError:
        return None
    if len(values) < 3 or not np.isfinite(values).all() or len(set(values.tolist())) < len(values):
        return None
    shares = confusion / confusion.sum()
    errors = np.abs(values[:, None] - values)  # (C, C)
    ranks = values.argsort().argsort()
    by_chance = np.outer(shares.sum(1), shares.sum(0))
    expected = float((by_chance * errors**2).sum())
    return OrdinalScores(
        mean_error=float((shares * errors).sum()),
        adjacent=float(shares[np.abs(ranks[:, None] - ranks) <= 1].sum()),
        kappa=1 - float((shares * errors**2).sum()) / expected if expected else None,
    )


def defined(figure: float) -> float | None:
    return None if np.isnan(figure) else float(figure)


def roc_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve; None if all reviews are positive or all negative."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else None


def reliability_bins(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> list[Bin]:
    """Group scores into ten bins of equal width over (0, 1]; each includes its upper end."""
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
