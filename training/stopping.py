"""Stopping criteria of a run: a number of epochs, steps or seconds, or a validation loss that stops
improving.

They depend only on values that the workers share, so all workers stop at the same step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict


class Score(TypedDict):
    """One evaluation: `loss` is the mean over the held-out examples, `sample` the output of `Job.sample`."""

    step: int
    epoch: float
    examples: int
    seconds: float
    loss: float
    sample: NotRequired[str]


@dataclass(frozen=True)
class Stopping:
    """The limits of a run. The first one reached ends it, and its name is recorded as the reason.

    The learning rate follows the largest completed share of epochs, steps and seconds.

    Attributes:
        max_epochs, max_steps: at least one is required.
        max_seconds: training time over all restarts, by worker 0's clock (training/clock.py).
        patience: stop after this many evaluations in a row that improve the validation loss by no more than
            `min_delta`.

    Raises:
        ValueError: a limit is out of range, or there is none.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_steps", "max_seconds", "patience"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} is {limit}: it must be above 0, or None for no limit")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta is {self.min_delta}: it must be at least 0")
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("set max_epochs or max_steps: the learning rate schedule needs a length")

    def reached(self, *, epochs: int, steps: int, seconds: float) -> str | None:
        """The name of the limit reached after `epochs` whole epochs, `steps` and `seconds`, or None."""
        for name, done in (("max_epochs", epochs), ("max_steps", steps), ("max_seconds", seconds)):
            limit = getattr(self, name)
            if limit is not None and done >= limit:
                return name
        return None

    def time_share(self, seconds: float) -> float:
        """The elapsed share of `max_seconds`, 0 to 1; 0 without that limit."""
        return 0.0 if self.max_seconds is None else min(1.0, seconds / self.max_seconds)

    def check_patience(self, scores: Sequence[Score]) -> str | None:
        """Return "patience" if the validation loss has stopped improving; otherwise None."""
        exhausted = (
            self.patience is not None
            and count_evaluations_without_improvement(scores, self.min_delta) >= self.patience
        )
        return "patience" if exhausted else None


def count_evaluations_without_improvement(scores: Sequence[Score], min_delta: float) -> int:
    """Count the evaluations since the loss last improved by more than `min_delta`."""
    reference, since = float("inf"), 0
    for score in scores:
        if score["loss"] < reference - min_delta:
            reference, since = score["loss"], 0
        else:
            since += 1
    return since


def best_score(scores: Sequence[Score]) -> Score | None:
    """The evaluation with the lowest loss; the first one of equals."""
    return min(scores, key=lambda score: score["loss"], default=None)
