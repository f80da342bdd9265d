"""The protocols between the training loop and a model.

Each worker has a replica of a `Replicated` model, or its own pieces of a `Partitioned` one. A replicated
model that is trained with gradients is also `Differentiable`, so that workers can exchange gradients between
its backward pass and its update (training/torch_trainable.py makes one from any torch module). An `Evaluable`
model can be measured on held-out data.
"""

from collections.abc import Mapping
from typing import Protocol, SupportsFloat, runtime_checkable

import numpy as np
from torch import Tensor

Batch = Mapping[str, np.ndarray]  # column -> (rows,) or (rows, width)
# The loop rounds sums of losses to multiples of this number. As float64, sums below 2**33 are then exact, so
# they depend neither on the order of their terms nor on the number of workers.
LOSS_RESOLUTION = 2.0**-20


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


@runtime_checkable
class Replicated(Protocol):
    """A model of which every worker has a replica."""

    def tables(self) -> dict[str, Tensor]:
        """The live float tensors that synchronisation may change in place; the same names on every worker."""


@runtime_checkable
class Differentiable(Trainable, Replicated, Protocol):
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
class Partitioned(Trainable, Protocol):
    """A model whose pieces are divided among the workers; one piece of each worker moves on after each step.

    The calls are: `own`, `prepare`, `start_at`, perhaps `piece_names` and `load_state_dict`; then after each
    step `outgoing`, `incoming` and `rotate` (only `rotate` if there is a single worker). An evaluation batch
    is a step in this sense; evaluations take as many steps as bring every piece back to its place.

    The results are the same with any number of workers if a step changes each piece by that piece's examples
    only, does not change a piece without examples, and derives its random numbers from the seed (the same on
    all workers) and the piece. The sums of losses of a worker must be sums over pieces, each rounded to a
    multiple of `LOSS_RESOLUTION`, in `evaluate` and before they are divided to the mean of `train_step`.
    """

    def own(self, rank: int, world_size: int) -> None:
        """Make this the model's part of worker `rank`; before `prepare`. The default is worker 0 of 1.

        Raises:
            ValueError: there are fewer pieces than workers.
        """

    def start_at(self, step: int) -> None:
        """Arrange the pieces, of any content, as they are after `step` steps; after `prepare`."""

    def piece_names(self) -> list[str]:
        """The names in this worker's `state_dict`; all workers together have each name once."""

    def state_dict(self) -> dict[str, Tensor]:
        """This worker's pieces after all steps so far; waits for pending ones."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the pieces of `piece_names()`, no more and no fewer."""

    def outgoing(self) -> Tensor:
        """Wait until the piece that leaves has been trained, and return it: contiguous, valid until `rotate`.

        It goes to the previous worker (rank - 1, and from worker 0 to the last one).
        """

    def incoming(self) -> Tensor:
        """A free contiguous buffer for the piece of the next worker, like the outgoing one."""

    def rotate(self) -> None:
        """Go on to the next step's pieces; called after every step, also after one without examples."""

    def idle_since(self) -> float | None:
        """`time.perf_counter()` when all steps so far were finished; None if one is still running."""


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
        """Return the sum of the losses of a batch of at least one example, and the number of examples.

        No training step is pending.
        """
