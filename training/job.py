"""What a run is told, and how it stands in a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.progress import Accounts
from training.stopping import Score, Stopping, best_of
from training.sync import SyncConfig
from training.trainable import Batch, Trainable


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; it is pickled to workers, so it names the shards and holds none.

    Attributes:
        fingerprint: of the configuration and the data.
        batch_size: examples of one step, over all workers.
        lanes: the largest number of workers that the stream can be shared by.
        checkpoint_every: steps between two checkpoints. The newest `keep_checkpoints` stay, and the best.
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
    checkpoint_every: int
    seed: int
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
        if self.stopping.patience is not None and not self.validation:
            raise ValueError("patience watches the validation loss: hold out some examples for validation")


@dataclass
class Run(Accounts):
    """The state of a run beside its tensors, as it stands in a checkpoint: cursor, accounts, history."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    loss_examples: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    stop_reason: str | None = None

    @property
    def best_step(self) -> int | None:
        """The step of the least validation loss; None without validation."""
        return best["step"] if (best := best_of(self.scores)) else None
