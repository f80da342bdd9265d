"""A training job: its parameters, its stream, its planned length, its step seeds, and its state."""

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from lexloom.training.progress import Accounts
from lexloom.training.stopping import Score, Stopping, best_score
from lexloom.training.stream import ShardStream
from lexloom.training.sync.config import SyncConfig
from lexloom.training.trainable import Batch, Trainable


class EpochPlan(Protocol):
    """One pass over a stream's examples; the same on every worker."""

    @property
    def number(self) -> int: ...

    @property
    def steps(self) -> int:
        """The number of global batches."""

    def examples_until(self, step: int) -> int:
        """Count the examples of the first `step` batches, at most `steps`, over all workers."""


class Stream(Protocol):
    """A source of global batches, of which each worker gets its share."""

    @property
    def examples(self) -> int:
        """The number of examples of an epoch."""

    def epoch(self, number: int) -> EpochPlan:
        """Plan an epoch. For held-out examples, `number` is the step after which they are evaluated."""

    def read(self, epoch: Any, start: int = 0) -> Generator[Batch]:
        """Yield this worker's shares of the batches of a plan of `epoch()`, from batch `start` on."""


def open_shard_stream(job: "Job", rank: int, world_size: int, held_out: bool) -> Stream:
    """Open the job's shards: those of training shuffled, the held-out ones in order."""
    return ShardStream(
        job.validation if held_out else job.files,
        job.columns,
        batch_size=job.batch_size,
        lanes=job.lanes,
        seed=job.seed,
        rank=rank,
        world_size=world_size,
        shuffle=not held_out,
        shuffle_buffer_bytes=0 if held_out else job.shuffle_buffer_bytes,
        most_examples=job.validation_examples if held_out else None,
    )


@dataclass(frozen=True)
class Job:
    """All that a worker needs to train. It is pickled, so it names the shards and holds no data.

    Attributes:
        fingerprint: a digest of the configuration and the data.
        batch_size: examples per step, over all workers.
        lanes: the maximum number of workers that can share the stream.
        checkpoint_every: steps between two checkpoints; None for periodic checkpoints by time only. The
            newest `keep_checkpoints` are kept, and the best one.
        checkpoint_seconds: seconds between two checkpoints, by worker 0's clock.
        validation: shards of held-out examples; the model must then be `Evaluable`.
        validation_examples: approximate number of them that an evaluation reads; None for all.
        evaluate_every: steps between two evaluations; None evaluates at the end of every epoch. The final
            model is always evaluated.
        sample: makes a text sample of the model, on worker 0 at each evaluation. It must not change torch's
            global random state.
        shuffle_buffer_bytes: bytes of rows shuffled in memory, over all workers (training/stream.py).
        open_stream: opens worker `rank`'s stream of the training or the held-out examples; called with (job,
            rank, world_size, held_out). The column `columns[0]` of its batches has a row for each example.
        on_batch: called with (epoch, step in epoch, worker, batch) before each step; tests record batches.
    """

    make_trainable: Callable[[], Trainable]
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    checkpoints: Path
    fingerprint: str
    stopping: Stopping
    sync: SyncConfig
    seed: int
    batch_size: int = 1
    lanes: int = 1
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 60.0
    device: str = "cpu"
    validation: tuple[Path, ...] = ()
    validation_examples: int | None = None
    evaluate_every: int | None = None
    keep_checkpoints: int = 2
    sample: Callable[[Trainable], str] | None = None
    shuffle_buffer_bytes: int = 0
    open_stream: Callable[["Job", int, int, bool], Stream] = open_shard_stream
    on_batch: Callable[[int, int, int, Batch], None] | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "evaluate_every", "validation_examples", "keep_checkpoints"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}: it must be at least 1")
        if not self.checkpoint_seconds > 0:
            raise ValueError(f"checkpoint_seconds is {self.checkpoint_seconds}: it must be above 0")
        if self.stopping.patience is not None and not self.validation:
            raise ValueError("patience needs a validation loss: hold out some examples for validation")


def plan_length(stream: Stream, stopping: Stopping) -> tuple[int, int]:
    """Count the examples and steps until max_epochs or max_steps ends a run (steps: estimated).

    Raises:
        ValueError: there are no examples.
    """
    examples, steps = count_steps(stream, stopping)
    if not examples:
        raise ValueError(
            f"the first {steps} training steps have no examples: train for more steps, or on more data"
        )
    return examples, steps


def count_steps(stream: Stream, stopping: Stopping) -> tuple[int, int]:
    if stopping.max_steps is None:
        assert stopping.max_epochs is not None  # checked by Stopping
        return stopping.max_epochs * stream.examples, stopping.max_epochs * stream.epoch(0).steps
    examples = steps = 0
    for number in count() if stopping.max_epochs is None else range(stopping.max_epochs):
        epoch = stream.epoch(number)
        examples += epoch.examples_until(min(epoch.steps, stopping.max_steps - steps))
        steps += epoch.steps
        if steps >= stopping.max_steps:
            return examples, stopping.max_steps
    return examples, steps


def step_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends only on the position in the run where it is used."""
    text = ",".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@dataclass
class TrainState(Accounts):
    """The state of a run except for its tensors, as saved in checkpoints: position, accounts, history.

    Attributes:
        loss_sum, loss_examples: the sum of this worker's losses since the last record of the history, and the
            number of examples in it.
        losses: both for every worker; only in a checkpoint.
        time_share: the elapsed share of `max_seconds` at the last clock reading; 0 without that limit. It is
            saved so that a resumed run continues at the same learning rate.
        recorded_share: the `time_share` of the last record of the history.
        limit_reached, evaluation_due: work left to do after the step. They are set in the checkpoint of a run
            that was interrupted during an evaluation.
        hardware_choices: see `HardwareAware`.
        next_clock_reading: the step after which the workers next read worker 0's clock (training/clock.py).
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    loss_examples: float = 0.0
    losses: list[list[float]] = field(default_factory=list)
    next_clock_reading: int = 1
    time_share: float = 0.0
    recorded_share: float = 0.0
    limit_reached: str | None = None
    evaluation_due: bool = False
    hardware_choices: dict[str, bool] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    stop_reason: str | None = None

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss; None without validation."""
        return best["step"] if (best := best_score(self.scores)) else None
