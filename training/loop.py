"""The training loop for all models, in one process or as one of many workers.

    for batch in stream:  trainable.train_step(batch);  sync.after_step();  periodically: record, evaluate,
    checkpoint, and check whether the validation loss still improves

The loop does not depend on Ray, Prefect or a particular model: it drives a `Trainable`. All its decisions are
a function of the job, the step number and the losses, never of the clock (except with `max_seconds`), so a
run that was killed and resumed takes the same steps as an uninterrupted one. The times of checkpoints depend
on the clock, but checkpoints do not affect training (training/checkpointing.py).
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, NamedTuple, SupportsFloat

from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.checkpointing import Checkpointer
from lexloom.training.clock import Clock, ClockReading
from lexloom.training.job import Job, TrainState, plan_length, step_seed
from lexloom.training.progress import Accounts, Progress
from lexloom.training.stopping import Score
from lexloom.training.stream import Epoch, ShardStream
from lexloom.training.sync.collectives import gather_from_workers, sum_over_workers
from lexloom.training.sync.config import check_strategy, make_synchronisation
from lexloom.training.sync.strategies import Synchronisation
from lexloom.training.trainable import Batch, Differentiable, Evaluable, HardwareAware, PendingLoss

HISTORY_POINTS = 200
MAX_PENDING_LOSSES = 64  # steps whose losses may be unread

Account = Literal["data", "compute", "evaluation", "checkpoint"]

logger = logging.getLogger("lexloom.loop")


def train(
    job: Job,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train from the newest checkpoint, or from the start, until a limit is reached.

    The last checkpoint is the result, and so is that of `TrainState.best_step` if there is validation. A
    finished run returns at once. `on_progress` is called on worker 0 about 200 times per run. `interrupted`
    is called on worker 0 after a step: if it returns true, a checkpoint is written, and the run returns
    without a `stop_reason`. `world_size` > 1 requires an initialized torch.distributed process group.

    Raises:
        ValueError: the job can't be trained (data, strategy, or a checkpoint of another run).
        OSError: checkpoints can't be written, or a shard can't be read.
        FloatingPointError: the loss is not finite.
    """
    checkpoints = Checkpoints(job.checkpoints, job.fingerprint, job.keep_checkpoints)
    checkpoint = checkpoints.load(worker=rank, workers=world_size)
    state = TrainState() if checkpoint is None else TrainState(**checkpoint.state)
    if state.stop_reason is None:
        checkpoints.open()
        Training(job, state, checkpoint, checkpoints, rank, world_size, on_progress, interrupted).run()
    return state


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


class Training:
    """One worker's part of a training run."""

    def __init__(
        self,
        job: Job,
        state: TrainState,
        checkpoint: Checkpoint | None,
        checkpoints: Checkpoints,
        rank: int,
        world_size: int,
        on_progress: Callable[[Progress], None] | None,
        interrupted: Callable[[], bool],
    ) -> None:
        self.job, self.state, self.checkpoints = job, state, checkpoints
        self.rank, self.world_size = rank, world_size
        self.on_progress = on_progress
        self.trainable = job.make_trainable()
        check_strategy(job.sync, self.trainable)
        if job.validation and not isinstance(self.trainable, Evaluable):
            raise ValueError(f"{type(self.trainable).__name__} can't be evaluated: train without validation")
        self.stream = self._stream(job.files)
        self.validation = self._stream(job.validation, shuffle=False) if job.validation else None
        self.total_examples, total_steps = plan_length(self.stream, job.stopping)
        self.record_every = max(1, total_steps // HISTORY_POINTS)
        self.trainable.prepare(job.device)
        if isinstance(self.trainable, HardwareAware):
            choices = self.trainable.hardware_choices()
            votes = gather_from_workers([*map(float, choices.values())], rank, world_size, job.device)
            state.hardware_choices = state.hardware_choices or dict(
                zip(choices, map(bool, votes[0]), strict=True)
            )
            self.trainable.apply_hardware_choices(state.hardware_choices)
        self.sync = make_synchronisation(job.sync, world_size)
        self.pending = deque[PendingStep]()
        self.due_records = deque[DueRecord]()
        self.first_nonfinite: PendingStep | None = None  # the first step whose loss is not finite
        self.checkpointer = Checkpointer(job, self.trainable, self.sync, checkpoints, rank, world_size)
        self.checkpointer.restore(state, checkpoint)
        self.sync.seconds = state.sync_seconds  # excludes the wait for other workers to start
        self.sync.bytes_sent = state.sync_bytes
        self.clock = Clock(job, state, rank, world_size, interrupted)
        self.interrupted = False
        self.is_interrupted = interrupted

    def _stream(self, files: tuple[Path, ...], shuffle: bool = True) -> ShardStream:
        return ShardStream(
            files,
            self.job.columns,
            batch_size=self.job.batch_size,
            lanes=self.job.lanes,
            seed=self.job.seed,
            rank=self.rank,
            world_size=self.world_size,
            shuffle=shuffle,
            shuffle_buffer_bytes=self.job.shuffle_buffer_bytes if shuffle else 0,
        )

    def run(self) -> None:
        """Train from the current state to the end of the run."""
        state = self.state
        if state.evaluation_due:  # the previous process was interrupted during it
            self._end_step(None)
        while state.stop_reason is None and not self.interrupted:
            epoch = self.stream.epoch(state.epoch)
            with closing(self._batches(self.stream, epoch, state.step_in_epoch, "data")) as batches:
                for batch in batches:
                    self._step(epoch, batch)
                    self._after_step()
                    if state.stop_reason is not None or self.interrupted:
                        break

    def _batches(self, stream: ShardStream, epoch: Epoch, start: int, account: Account) -> Generator[Batch]:
        """Yield the stream's batches, and add the time spent waiting for them to the account."""
        with closing(stream.read(epoch, start)) as batches:
            while True:
                with self._timed(account):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _step(self, epoch: Epoch, batch: Batch) -> None:
        """Run one training step, with an exchange of gradients if the strategy asks for it."""
        job, state, step_in_epoch = self.job, self.state, self.state.step_in_epoch
        if job.on_batch:
            job.on_batch(epoch.number, step_in_epoch, self.rank, batch)
        size, progress = self._batch_size(batch), self._progress()
        global_size = epoch.examples_until(step_in_epoch + 1) - epoch.examples_until(step_in_epoch)
        seed = step_seed(job.seed, epoch.number, step_in_epoch, self.rank)
        loss: SupportsFloat = 0.0
        if self.sync.wants_gradients(state.step + 1):
            assert isinstance(self.trainable, Differentiable)  # check_strategy
            with self._timed("compute"):
                loss = self.trainable.backward(batch, seed=seed)
            self.sync.after_backward(self.trainable.gradients(), size, global_size)
            with self._timed("compute"):
                self.trainable.update(progress=progress)
        elif size:
            with self._timed("compute"):
                loss = self.trainable.train_step(batch, progress=progress, seed=seed)
        state.step += 1
        state.step_in_epoch += 1
        state.examples = epoch.number * self.stream.examples + epoch.examples_until(state.step_in_epoch)
        if state.step_in_epoch == epoch.steps:
            state.epoch, state.step_in_epoch = epoch.number + 1, 0
        if size:
            self.pending.append(PendingStep(state.step, epoch.number, progress, size, loss))
        has_strategy = type(self.sync) is not Synchronisation
        # the strategy may read the tables next; GPU operations run in order, but CPU threads do not
        if has_strategy and job.device == "cpu":
            self._sum_losses(state.step)
        elif len(self.pending) >= MAX_PENDING_LOSSES:
            self._record_due(wait=True)  # before later losses are added
            self._sum_losses(state.step)
        self.sync.after_step(state.step, size, global_size)

    def _after_step(self) -> None:
        """Determine what is due after a step; the result is the same on all workers."""
        job, state = self.job, self.state
        with self.sync.timed() if self.world_size > 1 else nullcontext():  # no GPU synchronisation
            reading = self.clock.read(state)
        if reading:
            state.time_share = job.stopping.time_share(reading.seconds)
        seconds = reading.seconds if reading else 0.0
        state.limit_reached = job.stopping.reached(epochs=state.epoch, steps=state.step, seconds=seconds)
        every = job.evaluate_every
        due = state.step_in_epoch == 0 if every is None else state.step % every == 0
        state.evaluation_due = self.validation is not None and (due or state.limit_reached is not None)
        self._end_step(reading)

    def _end_step(self, reading: ClockReading | None) -> None:
        """Do what is due after a step; a resumed run starts here if its evaluation was interrupted."""
        job, state = self.job, self.state
        reason = state.limit_reached
        if reason is not None:
            self.sync.flush()  # the result is the synchronised model
        self.interrupted = reading is not None and reading.interrupted
        evaluated = False
        if self.validation is not None and state.evaluation_due:
            self._record_due(wait=True)  # no losses are pending while the model is evaluated
            if self.interrupted or not self._evaluate(self.validation):
                self.interrupted = True
                self._checkpoint()
                return
            evaluated, state.evaluation_due = True, False
            reason = reason or job.stopping.check_patience(state.scores)
        time_passed = state.time_share - state.recorded_share >= 1 / HISTORY_POINTS
        if state.step % self.record_every == 0 or time_passed or reason is not None:
            epoch = state.epoch if state.step_in_epoch else state.epoch - 1
            self.due_records.append(DueRecord(state.step, epoch, state.examples, self._progress()))
            state.recorded_share = state.time_share
        self._record_due(wait=reason is not None)
        state.stop_reason = reason
        improved = evaluated and state.best_step == state.step
        by_step = job.checkpoint_every is not None and state.step % job.checkpoint_every == 0
        by_clock = reading is not None and reading.checkpoint
        if by_step or by_clock or improved or self.interrupted or reason is not None:
            self._checkpoint()

    def _progress(self) -> float:
        """The completed share, 0 to 1, of the limit that will end the run first."""
        return max(self.state.examples / self.total_examples, self.state.time_share)

    def _sum_losses(self, last: int) -> None:
        """Add up the losses of all steps up to `last`; wait for pending ones."""
        with self._timed("compute"):
            while self.pending and self.pending[0].step <= last:
                step = self.pending.popleft()
                loss = float(step.loss)
                if not math.isfinite(loss) and self.first_nonfinite is None:
                    self.first_nonfinite = step
                self.state.loss_sum += loss * step.examples
                self.state.loss_examples += step.examples

    def _gather(self, last: int) -> list[list[float]]:
        """Update the accounts and gather every worker's losses up to step `last`.

        Returns: for each worker, the sum of its losses since the last record, and the number of examples.
        """
        state = self.state
        self._sum_losses(last)
        losses = self._all_gather([state.loss_sum, state.loss_examples])
        state.seconds = self.clock.seconds()
        state.sync_seconds, state.sync_bytes = self.sync.seconds, self.sync.bytes_sent
        if not math.isfinite(total := sum(worker[0] for worker in losses)):
            step, epoch, progress = self._locate_nonfinite_loss()
            raise FloatingPointError(
                f"the loss is {total} at step {step} (epoch {epoch + 1}, learning rate"
                f" {self.trainable.learning_rate(progress):.2g}): lower the learning rate, or check"
                " the data for invalid rows"
            )
        return losses

    def _locate_nonfinite_loss(self) -> tuple[int, int, float]:
        """Step, epoch and progress of the first loss on any worker that is not finite."""
        positions = self._all_gather(self.first_nonfinite[:3] if self.first_nonfinite else (0, 0, 0.0))
        step, epoch, progress = min(position for position in positions if position[0])
        return int(step), int(epoch), progress

    def _record_due(self, *, wait: bool) -> None:
        """Make the records that are due; without `wait`, only those whose losses are complete.

        Several workers always make them after the same steps, since they add up their losses.
        """
        wait = wait or self.world_size > 1
        while self.due_records:
            covered = [step for step in self.pending if step.step <= self.due_records[0].step]
            if not wait and any(step.is_pending() for step in covered):
                return
            self._record(self.due_records.popleft())

    def _record(self, due: DueRecord) -> None:
        losses = self._gather(due.step)
        state = self.state
        loss, examples = (sum(column) for column in zip(*losses, strict=True))
        previous = state.history[-1] if state.history else None
        if previous and previous["epoch"] == due.epoch and examples < self.job.batch_size / 2:
            del state.history[-1]
            loss += previous["loss"] * previous["loss_examples"]
            examples += previous["loss_examples"]
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
            sample=state.scores[-1].get("sample", "") if state.scores else "",
        )
        state.loss_sum = state.loss_examples = 0.0
        values = asdict(record)
        del values["sample"]  # it is in the scores
        state.history.append(values)
        if self.rank == 0 and self.on_progress:
            self.on_progress(record)

    def _evaluate(self, validation: ShardStream) -> bool:
        """Append the mean loss over the held-out examples, which the workers share, to the scores.

        Returns False if the evaluation was interrupted; nothing is recorded then.
        """
        assert isinstance(self.trainable, Evaluable)
        self.sync.flush()
        loss = examples = 0.0
        with closing(self._batches(validation, validation.epoch(0), 0, "evaluation")) as batches:
            for batch in batches:
                if self._sum_over_workers([0.0 if self.rank else float(self.is_interrupted())])[0]:
                    return False
                if self._batch_size(batch):
                    with self._timed("evaluation"):
                        batch_loss, batch_examples = self.trainable.evaluate(batch)
                    loss, examples = loss + batch_loss, examples + batch_examples
        loss, examples = self._sum_over_workers([loss, examples])
        state = self.state
        if not examples:
            raise ValueError("there are no held-out examples to evaluate on: hold out more")
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss is {loss} after step {state.step}: lower the learning rate"
            )
        score = Score(
            step=state.step,
            epoch=state.examples / self.stream.examples,
            examples=state.examples,
            seconds=round(self.clock.seconds(), 3),
            loss=loss / examples,
        )
        if self.job.sample and self.rank == 0:
            with self._timed("evaluation"):
                score["sample"] = self.job.sample(self.trainable)
        state.scores.append(score)
        return True

    def _checkpoint(self) -> None:
        started = time.perf_counter()
        self._record_due(wait=True)
        losses = self._gather(self.state.step)
        with self._timed("checkpoint"):
            self.checkpointer.save(self.state, losses)
        self.clock.record_checkpoint(time.perf_counter() - started)

    def _batch_size(self, batch: Batch) -> int:
        return len(batch[self.job.columns[0]])

    def _all_gather(self, values: Sequence[float]) -> list[list[float]]:
        with self.sync.timed():
            return gather_from_workers(values, self.rank, self.world_size, self.job.device)

    def _sum_over_workers(self, values: list[float]) -> list[float]:
        with self.sync.timed():
            return sum_over_workers(values, self.world_size, self.job.device)

    @contextmanager
    def _timed(self, account: Account) -> Iterator[None]:
        started = time.perf_counter()
        yield
        name = f"{account}_seconds"
        setattr(self.state, name, getattr(self.state, name) + time.perf_counter() - started)
