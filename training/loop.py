"""One loop that trains any model, in one plain process or as one of many workers.

    for batch in stream:  trainable.train_step(batch);  sync.after_step();  every so often: record, checkpoint

The loop knows neither Ray nor Prefect nor what a model is: it drives a `Trainable`. All that it decides is a
function of the job and the step number, never of the clock, so a run that was killed and resumed takes the
same steps as one that was not.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from training.checkpoint import Checkpoint, Checkpoints
from training.stream import ShardStream
from training.sync import Alone, Synchronisation, sum_over_workers

HISTORY_POINTS = 200


class Trainable(Protocol):
    """A model as the loop sees it."""

    def prepare(self, device: str) -> None:
        """Allocates and initialises; the same values on every worker."""

    def learning_rate(self, progress: float) -> float:
        """The rate in force when the share `progress` (0 to 1) of all examples is done."""

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> float:
        """Takes a batch, updates itself, and returns the mean loss over the batch's examples."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...

    def tables(self) -> dict[str, torch.Tensor]:
        """The live tensors that synchronisation may change in place."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; it is pickled to workers, so it names the shards and holds none."""

    make_trainable: Callable[[], Trainable]
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    checkpoints: Path
    fingerprint: str
    epochs: int
    batch_size: int
    lanes: int
    make_sync: Callable[[], Synchronisation]
    checkpoint_every: int
    seed: int
    device: str = "cpu"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `loss` is the mean over all workers' examples since the last point."""

    step: int
    epoch: int
    examples: int
    total_examples: int
    loss: float
    learning_rate: float
    seconds: float
    sync_seconds: float
    sync_bytes: int


def train(
    job: Job, *, rank: int = 0, world_size: int = 1, on_progress: Callable[[Progress], None] | None = None
) -> None:
    """Trains from the newest checkpoint, or from the start, to the end; the last checkpoint is the result.

    `on_progress` is called on worker 0 about 200 times a run. With `world_size` > 1 a torch.distributed
    process group must stand. Raises FloatingPointError where the loss is no longer a finite number.
    """
    stream = ShardStream(
        job.files,
        job.columns,
        batch_size=job.batch_size,
        lanes=job.lanes,
        seed=job.seed,
        rank=rank,
        world_size=world_size,
    )
    checkpoints = Checkpoints(job.checkpoints, job.fingerprint)
    trainable = job.make_trainable()
    trainable.prepare(job.device)
    run = Run()
    if (found := checkpoints.load()) is not None:
        trainable.load_state_dict(found.tensors)
        run = Run(**found.state)
        if rank != 0:
            run.loss_sum = run.loss_examples = 0.0  # worker 0 holds everybody's since the checkpoint
    if run.epoch == job.epochs:
        return
    sync: Synchronisation = Alone() if world_size == 1 else job.make_sync()
    sync.setup(trainable.tables())
    sync.seconds, sync.bytes_sent = run.sync_seconds, run.sync_bytes
    total = job.epochs * stream.examples
    record_every = max(1, job.epochs * stream.epoch(0).steps // HISTORY_POINTS)
    clock = time.perf_counter() - run.seconds

    def gather() -> None:
        """Brings the clock up to date, and the losses of all workers together."""
        run.seconds = time.perf_counter() - clock
        run.sync_seconds, run.sync_bytes = sync.seconds, sync.bytes_sent
        run.loss_sum, run.loss_examples = sum_over_workers([run.loss_sum, run.loss_examples], world_size)
        if not math.isfinite(run.loss_sum):
            raise FloatingPointError(
                f"the loss is {run.loss_sum} at step {run.step} (epoch {run.epoch + 1}, learning rate"
                f" {trainable.learning_rate(run.examples / total):.2g}): lower the learning rate, or look for"
                " broken rows in the data; the last checkpoint before it is kept"
            )

    def record() -> None:
        gather()
        point = Progress(
            step=run.step,
            epoch=run.epoch,
            examples=run.examples,
            total_examples=total,
            loss=run.loss_sum / run.loss_examples,
            learning_rate=trainable.learning_rate(run.examples / total),
            seconds=run.seconds,
            sync_seconds=run.sync_seconds,
            sync_bytes=run.sync_bytes,
        )
        run.loss_sum = run.loss_examples = 0.0
        run.history.append(asdict(point))
        if rank == 0 and on_progress:
            on_progress(point)

    def checkpoint() -> None:
        sync.flush()
        gather()
        if rank == 0:
            checkpoints.save(run.step, Checkpoint(trainable.state_dict(), asdict(run)))
        else:
            run.loss_sum = run.loss_examples = 0.0

    for epoch in map(stream.epoch, range(run.epoch, job.epochs)):
        before = epoch.number * stream.examples
        for batch in stream.read(epoch, run.step_in_epoch):
            if size := len(batch[job.columns[0]]):
                seed = step_seed(job.seed, epoch.number, run.step_in_epoch, rank)
                loss = trainable.train_step(batch, progress=run.examples / total, seed=seed)
                run.loss_sum += loss * size
                run.loss_examples += size
            run.step += 1
            run.step_in_epoch += 1
            run.examples = before + epoch.examples_until(run.step_in_epoch)
            sync.after_step(run.step)
            if run.step % record_every == 0 or run.examples == total:
                record()
            if run.step % job.checkpoint_every == 0 and run.examples < total:
                checkpoint()
        run.epoch, run.step_in_epoch = epoch.number + 1, 0
    checkpoint()


@dataclass
class Run:
    """The state of a run beside its tensors: cursor, clock and history, as it stands in a checkpoint."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    examples: int = 0
    seconds: float = 0.0
    sync_seconds: float = 0.0
    sync_bytes: int = 0
    loss_sum: float = 0.0
    loss_examples: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def step_seed(*parts: int) -> int:
    """A 63-bit seed that is a function of where in the run it is used, and of nothing else."""
    text = ",".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
