"""The protocols between the training loop and a model.

A kernel that updates its tables in place is only a `Trainable`. A model trained with gradients is also
`Differentiable`, so that workers can exchange gradients between its backward pass and its update
(training/torch_trainable.py makes one from any torch module). An `Evaluable` model can be measured on
held-out data.
"""

from collections.abc import Mapping
from typing import Protocol, SupportsFloat, runtime_checkable

import numpy as np
from torch import Tensor

Batch = Mapping[str, np.ndarray]  # column -> (rows,) or (rows, width)


@runtime_checkable
class PendingLoss(Protocol):
    """A loss that may not be computed yet."""

    def __float__(self) -> float:
        """Wait for the step, and return the loss."""

    def done(self) -> bool:
        """Whether the step is finished. A failed step is finished too, and raises when read."""


class Trainable(Protocol):
    """A model as the training loop sees it."""

    def prepare(self, device: str) -> None:
        """Allocate and initialize the model: with the same values on every worker."""

    def learning_rate(self, progress: float) -> float:
        """The learning rate at `progress`, the completed share (0 to 1) of the run."""

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> SupportsFloat:
        """Train on a batch of at least one example; return the mean loss of its examples.

        All randomness in the step comes from `seed`, a function of the position in the run, so there is no
        random state to save. The loss may still be pending (on a GPU, for example); reading it waits for the
        step. To make a record, a single worker reads a `PendingLoss` only when it is done.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The state after all steps so far, including those whose loss has not been read."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def tables(self) -> dict[str, Tensor]:
        """The live float tensors that synchronisation may change in place; the same names on every worker."""


@runtime_checkable
class Differentiable(Trainable, Protocol):
    """A model whose `train_step` is `backward` followed by `update`."""

    def backward(self, batch: Batch, *, seed: int) -> float | Tensor:
        """Compute the gradients of the mean loss, and return that loss; zeros and 0 for an empty batch."""

    def gradients(self) -> list[Tensor]:
        """The live gradients, one for each of `tables()`, in the same order."""

    def update(self, *, progress: float) -> None:
        """Take the optimizer's step."""

    def optimizer_tables(self) -> dict[str, Tensor]:
        """The optimizer's live float tensors (moments, step counters); all exist after `prepare`."""


@runtime_checkable
class HardwareAware(Protocol):
    """A model that chooses how to compute by the hardware it runs on, for example its precision.

    All workers use worker 0's choices, and a resumed run uses its original ones on any machine, so that all
    of a run is computed in the same way.
    """

    def hardware_choices(self) -> dict[str, bool]:
        """The choices made in `prepare`; the same names on every worker."""

    def apply_hardware_choices(self, choices: Mapping[str, bool]) -> None:
        """Replace the choices, before the first step."""


@runtime_checkable
class Evaluable(Protocol):
    """A model that can be measured on held-out data."""

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """Return the sum of the losses of a batch of at least one example, and the number of examples."""
