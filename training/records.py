"""The losses of a run, and the records of its history that are made of them.

A step's loss may still be pending when the next step begins. A record waits for the losses that it covers; a
single worker makes it as soon as they are complete, and trains on meanwhile.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import NamedTuple, SupportsFloat

from lexloom.training.job import Job, TrainState
from lexloom.training.progress import Accounts, Progress
from lexloom.training.sync.collectives import gather_from_workers
from lexloom.training.sync.strategies import Synchronisation
from lexloom.training.trainable import LOSS_RESOLUTION, PendingLoss, Trainable

EXACT_BELOW = 2.0**53 * LOSS_RESOLUTION
MAX_PENDING_LOSSES = 64  # steps whose losses may be unread


class PendingStep(NamedTuple):
    """A step whose loss has not been read yet."""

    step: int
    epoch: int
    progress: float
    examples: int
    loss: SupportsFloat

    def is_pending(self) -> bool:
        """Whether the loss is known to be incomplete."""
        return isinstance(self.loss, PendingLoss) and not self.loss.done()


class DueRecord(NamedTuple):
    """A record of the history to make as soon as all losses up to its step are complete."""

    step: int
    epoch: int
    examples: int
    share: float


class Records:
    """One worker's losses, and the history that all workers keep of them."""

    def __init__(
        self,
        job: Job,
        state: TrainState,
        trainable: Trainable,
        sync: Synchronisation,
        rank: int,
        world_size: int,
        *,
        total_examples: int,
        seconds: Callable[[], float],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.job, self.state, self.trainable, self.sync = job, state, trainable, sync
        self.rank, self.world_size = rank, world_size
        self.total_examples, self.seconds, self.on_progress = total_examples, seconds, on_progress
        self.pending = deque[PendingStep]()
        self.due = deque[DueRecord]()
        self.first_nonfinite: PendingStep | None = None  # the first step whose loss is not finite

    def add(self, step: PendingStep) -> None:
        """Add a step; if too many losses are pending, wait for those of the earlier ones."""
        self.pending.append(step)
        if len(self.pending) >= MAX_PENDING_LOSSES:
            self.make_due(wait=True)  # before later losses are added
            self.sum_losses(step.step)

    def sum_losses(self, last: int) -> None:
        """Add up the losses of all steps up to `last`; wait for pending ones."""
        with self.state.timed("compute"):
            while self.pending and self.pending[0].step <= last:
                step = self.pending.popleft()
                loss = float(step.loss) * step.examples
                if not math.isfinite(loss) and self.first_nonfinite is None:
                    self.first_nonfinite = step
                self.state.loss_sum += round_sum(loss)
                self.state.loss_examples += step.examples

    def gather(self, last: int) -> list[list[float]]:
        """Update the accounts and gather every worker's losses up to step `last`.

        Returns: for each worker, the sum of its losses since the last record, and the number of examples.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        state = self.state
        self.sum_losses(last)
        losses = self._all_gather([state.loss_sum, state.loss_examples])
        state.seconds = self.seconds()
        state.sync_seconds, state.sync_bytes = self.sync.seconds, self.sync.bytes_sent
        if not math.isfinite(total := sum(worker[0] for worker in losses)):
            step, epoch, progress = self._locate_nonfinite_loss()
            raise FloatingPointError(
                f"the loss is {total} at step {step} (epoch {epoch + 1}, learning rate"
                f" {self.trainable.learning_rate(progress):.2g}): lower the learning rate, or check"
                " the data for invalid rows"
            )
        return losses

    def make_due(self, *, wait: bool) -> None:
        """Make the records that are due; without `wait`, only those whose losses are complete.

        Several workers always make them after the same steps, since they add up their losses.
        """
        wait = wait or self.world_size > 1
        while self.due:
            covered = [step for step in self.pending if step.step <= self.due[0].step]
            if not wait and any(step.is_pending() for step in covered):
                return
            self._record(self.due.popleft())

    def _record(self, due: DueRecord) -> None:
        losses = self.gather(due.step)
        state = self.state
        loss, examples = (sum(column) for column in zip(*losses, strict=True))
        previous = state.history[-1] if state.history else None
        if previous and previous["epoch"] == due.epoch and examples < self.job.batch_size / 2:
            del state.history[-1]
            loss += previous["loss"] * previous["loss_examples"]
            examples += previous["loss_examples"]
        if not examples:
            return  # the next record covers these steps
        record = Progress(
            **{account.name: getattr(state, account.name) for account in fields(Accounts)},
            step=due.step,
            epoch=due.epoch,
            examples=due.examples,
            total_examples=self.total_examples,
            share=due.share,
            loss_examples=int(examples),
            loss=loss / examples,
            learning_rate=self.trainable.learning_rate(due.share),
            workers=self.world_size,
            validation_loss=state.scores[-1]["loss"] if state.scores else None,
            sample=state.scores[-1].get("sample", "") if state.scores else "",
        )
        state.loss_sum = state.loss_examples = 0.0
        values = asdict(record)
        del values["sample"], values["validation_loss"]  # they are in the scores
        state.history.append(values)
        if self.rank == 0 and self.on_progress:
            self.on_progress(record)

    def _locate_nonfinite_loss(self) -> tuple[int, int, float]:
        """Step, epoch and progress of the first loss on any worker that is not finite."""
        positions = self._all_gather(self.first_nonfinite[:3] if self.first_nonfinite else (0, 0, 0.0))
        step, epoch, progress = min(position for position in positions if position[0])
        return int(step), int(epoch), progress

    def _all_gather(self, values: Sequence[float]) -> list[list[float]]:
        with self.sync.timed():
            return gather_from_workers(values, self.rank, self.world_size, self.job.device)


def round_sum(loss: float) -> float:
    """Round a sum of losses to a multiple of `LOSS_RESOLUTION`, so that it can be added exactly."""
    if not abs(loss) < EXACT_BELOW:  # a multiple, infinite or NaN
        return loss
    return round(loss / LOSS_RESOLUTION) * LOSS_RESOLUTION
