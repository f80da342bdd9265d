"""When a run is over: after so many epochs, steps or seconds, or when the error ceases to shrink.

All of it is a function of figures that the workers share, so all of them stop at the same step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict


class Score(TypedDict):
    """One evaluation: `loss` is the mean over the held-out examples, `sample` what `Job.sample` gave."""

    step: int
    epoch: float
    examples: int
    seconds: float
    loss: float
    sample: NotRequired[str]


@dataclass(frozen=True)
class Stopping:
    """The limits of a run; the first that is reached ends it, and its name is the recorded reason.

    The learning rate follows the largest share done of epochs, steps and seconds.

    Attributes:
        max_epochs, max_steps: at least one is needed.
        max_seconds: training time over all restarts, by worker 0's clock (training/clock.py).
        patience: evaluations in a row without a validation loss that is better by more than `min_delta`.

    Raises:
        ValueError: a limit is out of its range, or there is none.
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
                raise ValueError(f"{name} is {limit}: it must be above 0, or None for no such limit")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta is {self.min_delta}: it must be at least 0")
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("a run needs max_epochs or max_steps: its learning rate falls towards its end")

    def reached(self, *, epochs: int, steps: int, seconds: float) -> str | None:
        """The limit that is reached after `epochs` whole epochs, `steps` and `seconds`; None for none."""
        for name, done in (("max_epochs", epochs), ("max_steps", steps), ("max_seconds", seconds)):
            limit = getattr(self, name)
            if limit is not None and done >= limit:
                return name
        return None

    def time_share(self, seconds: float) -> float:
        """The elapsed share of `max_seconds`, 0 to 1; 0 without that limit."""
        return 0.0 if self.max_seconds is None else min(1.0, seconds / self.max_seconds)

    def in_vain(self, scores: Sequence[Score]) -> str | None:
        """`patience` where the error has ceased to shrink; else None."""
        over = self.patience is not None and evaluations_in_vain(scores, self.min_delta) >= self.patience
        return "patience" if over else None


def evaluations_in_vain(scores: Sequence[Score], min_delta: float) -> int:
    """How many evaluations ago the loss was last better, by more than `min_delta`, than the last such one."""
    reference, since = float("inf"), 0
    for score in scores:
        if score["loss"] < reference - min_delta:
            reference, since = score["loss"], 0
        else:
            since += 1
    return since


def best_of(scores: Sequence[Score]) -> Score | None:
    """The evaluation of the least loss; the first of equals."""
    return min(scores, key=lambda score: score["loss"], default=None)
