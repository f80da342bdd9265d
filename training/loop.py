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
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from typing import SupportsFloat

from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.checkpointing import Checkpointer
from lexloom.training.clock import Clock, ClockReading
from lexloom.training.job import EpochPlan, Job, Stream, TrainState, plan_length, step_seed
from lexloom.training.progress import Account, Progress
from lexloom.training.records import DueRecord, PendingStep, Records, round_sum
from lexloom.training.stopping import Score
from lexloom.training.sync.collectives import gather_from_workers, sum_over_workers
from lexloom.training.sync.config import check_strategy, make_synchronisation
from lexloom.training.trainable import Batch, Differentiable, Evaluable, HardwareAware, Partitioned

HISTORY_POINTS, PARTITIONED_POINTS = 200, 50

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
        self.trainable = job.make_trainable()
        check_strategy(job.sync, self.trainable)
        if job.validation and not isinstance(self.trainable, Evaluable):
            raise ValueError(f"{type(self.trainable).__name__} can't be evaluated: train without validation")
        self.stream = job.open_stream(job, rank, world_size, False)
        self.validation = job.open_stream(job, rank, world_size, True) if job.validation else None
        self.total_examples, total_steps = plan_length(self.stream, job.stopping)
        # for a record, the workers of a partitioned model wait until all pieces have been trained
        points = PARTITIONED_POINTS if isinstance(self.trainable, Partitioned) else HISTORY_POINTS
        self.record_every = max(1, total_steps // points)
        self.seed_rank = rank  # replicas draw different numbers
        if isinstance(self.trainable, Partitioned):
            self.seed_rank = 0
            self.trainable.own(rank, world_size)
        self.trainable.prepare(job.device)
        if isinstance(self.trainable, HardwareAware):
            choices = self.trainable.hardware_choices()
            votes = gather_from_workers([*map(float, choices.values())], rank, world_size, job.device)
            state.hardware_choices = state.hardware_choices or dict(
                zip(choices, map(bool, votes[0]), strict=True)
            )
            self.trainable.apply_hardware_choices(state.hardware_choices)
        self.sync = make_synchronisation(job.sync, world_size)
        self.checkpointer = Checkpointer(job, self.trainable, self.sync, checkpoints, rank, world_size)
        self.checkpointer.restore(state, checkpoint)
        self.sync.seconds = state.sync_seconds  # excludes the wait for other workers to start
        self.sync.bytes_sent = state.sync_bytes
        self.clock = Clock(job, state, rank, world_size, interrupted)
        self.records = Records(
            job,
            state,
            self.trainable,
            self.sync,
            rank,
            world_size,
            total_examples=self.total_examples,
            seconds=self.clock.seconds,
            on_progress=on_progress,
        )
        self.interrupted = False
        self.is_interrupted = interrupted

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

    def _batches(self, stream: Stream, epoch: EpochPlan, start: int, account: Account) -> Generator[Batch]:
        """Yield the stream's batches, and add the time spent waiting for them to the account."""
        with closing(stream.read(epoch, start)) as batches:
            while True:
                with self.state.timed(account):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _step(self, epoch: EpochPlan, batch: Batch) -> None:
        """Run one training step, with an exchange of gradients if the strategy asks for it."""
        job, state, step_in_epoch = self.job, self.state, self.state.step_in_epoch
        if job.on_batch:
            job.on_batch(epoch.number, step_in_epoch, self.rank, batch)
        size, progress = self._batch_size(batch), self._progress()
        global_size = epoch.examples_until(step_in_epoch + 1) - epoch.examples_until(step_in_epoch)
        seed = step_seed(job.seed, epoch.number, step_in_epoch, self.seed_rank)
        loss: SupportsFloat = 0.0
        if self.sync.wants_gradients(state.step + 1):
            assert isinstance(self.trainable, Differentiable)  # check_strategy
            with self.state.timed("compute"):
                loss = self.trainable.backward(batch, seed=seed)
            self.sync.after_backward(self.trainable.gradients(), size, global_size)
            with self.state.timed("compute"):
                self.trainable.update(progress=progress)
        elif size:
            with self.state.timed("compute"):
                loss = self.trainable.train_step(batch, progress=progress, seed=seed)
        state.step += 1
        state.step_in_epoch += 1
        state.examples = epoch.number * self.stream.examples + epoch.examples_until(state.step_in_epoch)
        if state.step_in_epoch == epoch.steps:
            state.epoch, state.step_in_epoch = epoch.number + 1, 0
        if size:
            self.records.add(PendingStep(state.step, epoch.number, progress, size, loss))
        # GPU operations run in order, but CPU threads do not
        if self.sync.reads_tables and job.device == "cpu":
            self.records.sum_losses(state.step)
        started, waited = time.perf_counter(), self.sync.seconds
        self.sync.after_step(state.step, size, global_size)
        # the rest of the time, a partitioned model was still being trained
        state.compute_seconds += time.perf_counter() - started - (self.sync.seconds - waited)

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
            self.records.make_due(wait=True)
            self.records.sum_losses(state.step)  # no step is pending while the model is evaluated
            if self.interrupted or not self._evaluate(self.validation):
                self.interrupted = True
                self._checkpoint()
                return
            evaluated, state.evaluation_due = True, False
            reason = reason or job.stopping.check_patience(state.scores)
        time_passed = state.time_share - state.recorded_share >= 1 / HISTORY_POINTS
        if state.step % self.record_every == 0 or time_passed or reason is not None:
            epoch = state.epoch if state.step_in_epoch else state.epoch - 1
            self.records.due.append(DueRecord(state.step, epoch, state.examples, self._progress()))
            state.recorded_share = state.time_share
        self.records.make_due(wait=reason is not None)
        if reason is not None and not state.history:
            raise ValueError(
                f"none of the {state.step} training steps had an example: train for longer, or on more data"
            )
        state.stop_reason = reason
        improved = evaluated and state.best_step == state.step
        by_step = job.checkpoint_every is not None and state.step % job.checkpoint_every == 0
        by_clock = reading is not None and reading.checkpoint
        if by_step or by_clock or improved or self.interrupted or reason is not None:
            self._checkpoint()

    def _progress(self) -> float:
        """The completed share, 0 to 1, of the limit that will end the run first."""
        return max(self.state.examples / self.total_examples, self.state.time_share)

    def _evaluate(self, validation: Stream) -> bool:
        """Append the mean loss over the held-out examples, which the workers share, to the scores.

        Returns False if the evaluation was interrupted; nothing is recorded then.
        """
        assert isinstance(self.trainable, Evaluable)
        self.sync.flush()
        loss = examples = 0.0
        plan = validation.epoch(self.state.step)
        with closing(self._batches(validation, plan, 0, "evaluation")) as batches:
            for batch in batches:
                if self._sum_over_workers([0.0 if self.rank else float(self.is_interrupted())])[0]:
                    return False
                if self._batch_size(batch):
                    with self.state.timed("evaluation"):
                        batch_loss, batch_examples = self.trainable.evaluate(batch)
                    loss, examples = loss + round_sum(batch_loss), examples + batch_examples
                self.sync.after_evaluation_step()
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
            with self.state.timed("evaluation"):
                score["sample"] = self.job.sample(self.trainable)
        state.scores.append(score)
        return True

    def _checkpoint(self) -> None:
        started = time.perf_counter()
        self.records.make_due(wait=True)
        losses = self.records.gather(self.state.step)
        with self.state.timed("checkpoint"):
            self.checkpointer.save(self.state, losses)
        self.clock.record_checkpoint(time.perf_counter() - started)

    def _batch_size(self, batch: Batch) -> int:
        return len(batch[self.job.columns[0]])

    def _sum_over_workers(self, values: list[float]) -> list[float]:
        with self.sync.timed():
            return sum_over_workers(values, self.world_size, self.job.device)
