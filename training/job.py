"""What a run is told, and how it stands in a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lexloom.training.progress import Accounts
from lexloom.training.stopping import Score, Stopping, best_of
from lexloom.training.sync.config import SyncConfig
from lexloom.training.trainable import Batch, Trainable


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; it is pickled to workers, so it names the shards and holds none.

    Attributes:
        fingerprint: of the configuration and the data.
        batch_size: examples of one step, over all workers.
        lanes: the largest number of workers that the stream can be shared by.
        checkpoint_every: steps between two checkpoints; None for the clock alone. The newest
            `keep_checkpoints` stay, and the best.
        checkpoint_seconds: between two checkpoints, by worker 0's clock.
        validation: shards of held-out examples; the model must then be `Evaluable`.
        evaluate_every: steps between two evaluations; None evaluates at the end of every epoch. The last
            model is evaluated too.
        sample: something to look at, made of the model by worker 0 at each evaluation, such as text that it
            writes; it may not touch torch's own random state.
        mix_bytes: of rows, in each lane, that change places in memory (training/stream.py).
        on_batch: is called with (epoch, step in it, worker, batch) before each step: a ledger for tests.
    """

    make_trainable: Callable[[], Trainable]
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    checkpoints: Path
    fingerprint: str
    batch_size: int
    lanes: int
    stopping: Stopping
    sync: SyncConfig
    seed: int
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 60.0
    device: str = "cpu"
    validation: tuple[Path, ...] = ()
    evaluate_every: int | None = None
    keep_checkpoints: int = 2
    sample: Callable[[Trainable], str] | None = None
    mix_bytes: int = 0
    on_batch: Callable[[int, int, int, Batch], None] | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "evaluate_every", "keep_checkpoints"):
            steps = getattr(self, name)
            if steps is not None and steps < 1:
                raise ValueError(f"{name} is {steps}: it must be at least 1")
        if not self.checkpoint_seconds > 0:
            raise ValueError(f"checkpoint_seconds is {self.checkpoint_seconds}: it must be above 0")
        if self.stopping.patience is not None and not self.validation:
            raise ValueError("patience watches the validation loss: hold out some examples for validation")


@dataclass
class Run(Accounts):
    """The state of a run beside its tensors, as it stands in a checkpoint: cursor, accounts, history.

    Attributes:
        loss_sum, loss_examples: the sum of this worker's losses since the last point of the history, and of
            how many examples.
        losses: both of every worker; only in a checkpoint.
        time_share: of `max_seconds`, how much was over at the last look; 0 without that limit. It is kept, so
            that a resumed run goes on at the same learning rate.
        recorded_share: the `time_share` of the last point of the history.
        limit_reached, evaluation_due: what is left to be done after the step; in the checkpoint of a run that
            was interrupted in its evaluation.
        decisions: of a model that decides by the machine how it computes.
        next_look: the step after which the workers next look at worker 0's clock (training/clock.py).
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    loss_examples: float = 0.0
    losses: list[list[float]] = field(default_factory=list)
    next_look: int = 1
    time_share: float = 0.0
    recorded_share: float = 0.0
    limit_reached: str | None = None
    evaluation_due: bool = False
    decisions: dict[str, bool] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    stop_reason: str | None = None

    @property
    def best_step(self) -> int | None:
        """The step of the least validation loss; None without validation."""
        return best["step"] if (best := best_of(self.scores)) else None
