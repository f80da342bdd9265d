"""What the loop asks of a model: a small protocol, with two additions for those that can offer more.

A kernel that updates its tables in place is a `Trainable` and no more. A model that learns by gradients is
`Differentiable` too, so that workers can exchange gradients between its backward pass and its update
(training/torch_trainable.py makes one of any torch module). An `Evaluable` can be measured on held-out data.
"""

from collections.abc import Mapping
from typing import Protocol, SupportsFloat, runtime_checkable

import numpy as np
from torch import Tensor

Batch = Mapping[str, np.ndarray]  # column -> (rows,) or (rows, width)


@runtime_checkable
class LateLoss(Protocol):
    """A loss that may still be on its way, and can tell."""

    def __float__(self) -> float:
        """Waits for the step."""

    def done(self) -> bool:
        """Whether it has come; a step that failed has come, too, and raises when it is read."""


class Trainable(Protocol):
    """A model as the loop sees it."""

    def prepare(self, device: str) -> None:
        """Allocates and initialises; the same values on every worker."""

    def learning_rate(self, progress: float) -> float:
        """The rate in force when the share `progress` (0 to 1) of the training is done."""

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> SupportsFloat:
        """Takes a batch of at least one example, updates itself, and returns the examples' mean loss.

        All chance in the step comes from `seed`, a function of the place in the run: so there is no random
        state to save. The loss may still be on its way (on a GPU, say): reading it waits for the step.
        A worker that is alone does not read a `LateLoss` for a record before it has come.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """After all the steps that were taken, even those whose loss nobody has read."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def tables(self) -> dict[str, Tensor]:
        """The live float tensors that synchronisation may change in place; of the same names everywhere."""


@runtime_checkable
class Differentiable(Trainable, Protocol):
    """A step that comes apart: `train_step` is `backward` and then `update`."""

    def backward(self, batch: Batch, *, seed: int) -> float | Tensor:
        """Leaves the gradients of the mean loss, and returns that loss; zeros and 0 for an empty batch."""

    def gradients(self) -> list[Tensor]:
        """The live gradients, one for each of `tables()`, in that order."""

    def update(self, *, progress: float) -> None:
        """Takes the optimizer's step."""

    def optimizer_tables(self) -> dict[str, Tensor]:
        """The optimizer's live float tensors (moments, step counters); complete from `prepare` on."""


@runtime_checkable
class Deciding(Protocol):
    """A model that decides by the machine how it computes: all workers then do as worker 0, and a resumed run
    as it began, on whatever machine, so that no run is computed in two ways."""

    def decisions(self) -> dict[str, bool]:
        """What was decided in `prepare`; of the same names everywhere."""

    def decide(self, decisions: Mapping[str, bool]) -> None:
        """Takes other decisions, before the first step."""


@runtime_checkable
class Evaluable(Protocol):
    """A model that can be measured on held-out data."""

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """The sum of the losses of a batch of at least one example, and the number of examples."""
