"""One loop that trains any model, in one plain process or as one of many workers.

    for batch in stream:  trainable.train_step(batch);  sync.after_step();  every so often: record, evaluate,
    checkpoint, and ask whether the error still shrinks

The loop knows neither Ray nor Prefect nor what a model is: it drives a `Trainable`. All that it decides is a
function of the job, the step number and the losses, never of the clock (save under `max_seconds`), so a run
that was killed and resumed takes the same steps as one that was not. The times of
checkpoints depend on the clock, but checkpoints do not affect training (training/saving.py).
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

from lexloom.training.checkpoint import Checkpoint, Checkpoints
from lexloom.training.clock import Clock, Look
from lexloom.training.job import Job, Run
from lexloom.training.plan import plan_length, step_seed
from lexloom.training.progress import Accounts, Progress
from lexloom.training.saving import Saving
from lexloom.training.stopping import Score
from lexloom.training.stream import Epoch, ShardStream
from lexloom.training.sync.collectives import every_workers, sum_over_workers
from lexloom.training.sync.config import refuse_misfit, synchronisation
from lexloom.training.sync.strategies import Synchronisation
from lexloom.training.trainable import Batch, Deciding, Differentiable, Evaluable, LateLoss

HISTORY_POINTS = 200
UNSETTLED_LOSSES = 64  # losses that may be on their way before they are asked for

Account = Literal["data", "compute", "evaluation", "checkpoint"]

logger = logging.getLogger("lexloom.loop")


def train(
    job: Job,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Run:
    """Trains from the newest checkpoint, or from the start, until a limit is reached.

    The last checkpoint is the result, and so is the one of `Run.best_step` where there is validation. A run
    that is over already returns at once. `on_progress` is called on worker 0 about 200 times a run.
    `interrupted` is called on worker 0 after a step: if it returns true, a checkpoint is written, and the run
    returns without a `stop_reason`. With `world_size` > 1 a torch.distributed process group must stand.

    Raises:
        ValueError: the job can't be trained (data, strategy, a checkpoint of another run).
        OSError: checkpoints can't be written, or a shard can't be read.
        FloatingPointError: the loss is no longer a finite number.
    """
    checkpoints = Checkpoints(job.checkpoints, job.fingerprint, job.keep_checkpoints)
    found = checkpoints.load(worker=rank, workers=world_size)
    run = Run() if found is None else Run(**found.state)
    if run.stop_reason is None:
        checkpoints.open()
        Training(job, run, found, checkpoints, rank, world_size, on_progress, interrupted).go_on()
    return run


class Taken(NamedTuple):
    """A step that this worker took; its loss may still be on its way."""

    step: int
    epoch: int
    progress: float
    examples: int
    loss: SupportsFloat

    def waits(self) -> bool:
        """Whether the loss says that it has not come."""
        return isinstance(self.loss, LateLoss) and not self.loss.done()


class Due(NamedTuple):
    """A point of the history that is recorded as soon as the losses until there have come."""

    step: int
    epoch: int
    examples: int
    share: float


class Training:
    """One worker's side of a run."""

    def __init__(
        self,
        job: Job,
        run: Run,
        found: Checkpoint | None,
        checkpoints: Checkpoints,
        rank: int,
        world_size: int,
        on_progress: Callable[[Progress], None] | None,
        interrupted: Callable[[], bool],
    ) -> None:
        self.job, self.run, self.checkpoints = job, run, checkpoints
        self.rank, self.world_size = rank, world_size
        self.on_progress = on_progress
        self.trainable = job.make_trainable()
        refuse_misfit(job.sync, self.trainable)
        if job.validation and not isinstance(self.trainable, Evaluable):
            raise ValueError(f"{type(self.trainable).__name__} can't be evaluated: train without validation")
        self.stream = self._stream(job.files)
        self.validation = self._stream(job.validation, shuffle=False) if job.validation else None
        self.total_examples, total_steps = plan_length(self.stream, job.stopping)
        self.record_every = max(1, total_steps // HISTORY_POINTS)
        self.trainable.prepare(job.device)
        if isinstance(self.trainable, Deciding):
            decided = self.trainable.decisions()
            votes = every_workers([*map(float, decided.values())], rank, world_size, job.device)
            run.decisions = run.decisions or dict(zip(decided, map(bool, votes[0]), strict=True))
            self.trainable.decide(run.decisions)
        self.sync = synchronisation(job.sync, world_size)
        self.unsettled = deque[Taken]()
        self.due = deque[Due]()
        self.broken: Taken | None = None  # the first step of a loss that is no finite number
        self.saving = Saving(job, self.trainable, self.sync, checkpoints, rank, world_size)
        self.saving.restore(run, found)
        self.sync.seconds = run.sync_seconds  # excludes the wait for other workers to start
        self.sync.bytes_sent = run.sync_bytes
        self.clock = Clock(job, run, rank, world_size, interrupted)
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
            mix_bytes=self.job.mix_bytes if shuffle else 0,
        )

    def go_on(self) -> None:
        """From where the run stands to its end."""
        run = self.run
        if run.evaluation_due:  # it was interrupted
            self._end_step(None)
        while run.stop_reason is None and not self.interrupted:
            epoch = self.stream.epoch(run.epoch)
            with closing(self._batches(self.stream, epoch, run.step_in_epoch, "data")) as batches:
                for batch in batches:
                    self._step(epoch, batch)
                    self._after_step()
                    if run.stop_reason is not None or self.interrupted:
                        break

    def _batches(self, stream: ShardStream, epoch: Epoch, start: int, account: Account) -> Generator[Batch]:
        """The stream's batches; waiting for them is charged to the account."""
        with closing(stream.read(epoch, start)) as batches:
            while True:
                with self._charged(account):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _step(self, epoch: Epoch, batch: Batch) -> None:
        """One training step: with gradients exchanged where the strategy wants it, by itself elsewhere."""
        job, run, place = self.job, self.run, self.run.step_in_epoch
        if job.on_batch:
            job.on_batch(epoch.number, place, self.rank, batch)
        size, progress = self._rows(batch), self._share()
        everybody = epoch.examples_until(place + 1) - epoch.examples_until(place)
        seed = step_seed(job.seed, epoch.number, place, self.rank)
        loss: SupportsFloat = 0.0
        if self.sync.wants_gradients(run.step + 1):
            assert isinstance(self.trainable, Differentiable)  # refuse_misfit
            with self._charged("compute"):
                loss = self.trainable.backward(batch, seed=seed)
            self.sync.after_backward(self.trainable.gradients(), size, everybody)
            with self._charged("compute"):
                self.trainable.update(progress=progress)
        elif size:
            with self._charged("compute"):
                loss = self.trainable.train_step(batch, progress=progress, seed=seed)
        run.step += 1
        run.step_in_epoch += 1
        run.examples = epoch.number * self.stream.examples + epoch.examples_until(run.step_in_epoch)
        if run.step_in_epoch == epoch.steps:
            run.epoch, run.step_in_epoch = epoch.number + 1, 0
        if size:
            self.unsettled.append(Taken(run.step, epoch.number, progress, size, loss))
        exchanges = type(self.sync) is not Synchronisation
        # a strategy may read the tables next: a GPU keeps the order of what it is asked, threads do not
        if exchanges and job.device == "cpu":
            self._settle(run.step)
        elif len(self.unsettled) >= UNSETTLED_LOSSES:
            self._record_due(at_once=True)  # before later losses are added
            self._settle(run.step)
        self.sync.after_step(run.step, size, everybody)

    def _after_step(self) -> None:
        """Determine what is due after a step; the result is the same on all workers."""
        job, run = self.job, self.run
        with self.sync.timed() if self.world_size > 1 else nullcontext():  # no GPU synchronisation
            look = self.clock.look(run)
        if look:
            run.time_share = job.stopping.time_share(look.seconds)
        seconds = look.seconds if look else 0.0
        run.limit_reached = job.stopping.reached(epochs=run.epoch, steps=run.step, seconds=seconds)
        every = job.evaluate_every
        due = run.step_in_epoch == 0 if every is None else run.step % every == 0
        run.evaluation_due = self.validation is not None and (due or run.limit_reached is not None)
        self._end_step(look)

    def _end_step(self, look: Look | None) -> None:
        """Do what is due after a step; a resumed run starts here if its evaluation was interrupted."""
        job, run = self.job, self.run
        reason = run.limit_reached
        if reason is not None:
            self.sync.flush()  # the result is the synchronised model
        self.interrupted = look is not None and look.interrupted
        evaluated = False
        if self.validation is not None and run.evaluation_due:
            self._record_due(at_once=True)  # no losses are pending while the model is evaluated
            if self.interrupted or not self._evaluate(self.validation):
                self.interrupted = True
                self._checkpoint()
                return
            evaluated, run.evaluation_due = True, False
            reason = reason or job.stopping.in_vain(run.scores)
        late = run.time_share - run.recorded_share >= 1 / HISTORY_POINTS
        if run.step % self.record_every == 0 or late or reason is not None:
            epoch = run.epoch if run.step_in_epoch else run.epoch - 1
            self.due.append(Due(run.step, epoch, run.examples, self._share()))
            run.recorded_share = run.time_share
        self._record_due(at_once=reason is not None)
        run.stop_reason = reason
        improved = evaluated and run.best_step == run.step
        by_step = job.checkpoint_every is not None and run.step % job.checkpoint_every == 0
        by_clock = look is not None and look.checkpoint
        if by_step or by_clock or improved or self.interrupted or reason is not None:
            self._checkpoint()

    def _share(self) -> float:
        """The share done of the limit that will end the run first."""
        return max(self.run.examples / self.total_examples, self.run.time_share)

    def _settle(self, last: int) -> None:
        """Adds up the losses of the steps until the `last`, and waits for those that are on their way."""
        with self._charged("compute"):
            while self.unsettled and self.unsettled[0].step <= last:
                taken = self.unsettled.popleft()
                loss = float(taken.loss)
                if not math.isfinite(loss) and self.broken is None:
                    self.broken = taken
                self.run.loss_sum += loss * taken.examples
                self.run.loss_examples += taken.examples

    def _gather(self, last: int) -> list[list[float]]:
        """Update the accounts; return each worker's sum of losses and number of examples since the last
        record, up to step `last`.
        """
        run = self.run
        self._settle(last)
        losses = self._all_gather([run.loss_sum, run.loss_examples])
        run.seconds = self.clock.seconds()
        run.sync_seconds, run.sync_bytes = self.sync.seconds, self.sync.bytes_sent
        if not math.isfinite(total := sum(worker[0] for worker in losses)):
            step, epoch, progress = self._first_broken()
            raise FloatingPointError(
                f"the loss is {total} at step {step} (epoch {epoch + 1}, learning rate"
                f" {self.trainable.learning_rate(progress):.2g}): lower the learning rate, or check"
                " the data for invalid rows"
            )
        return losses

    def _first_broken(self) -> tuple[int, int, float]:
        """Step, epoch and progress of the first loss on any worker that is no finite number."""
        places = self._all_gather(self.broken[:3] if self.broken else (0, 0, 0.0))
        step, epoch, progress = min(place for place in places if place[0])
        return int(step), int(epoch), progress

    def _record_due(self, *, at_once: bool) -> None:
        """Records what is due: where this worker is alone, not before it can without a wait.

        Several workers record in step with each other, as they add up their losses.
        """
        at_once = at_once or self.world_size > 1
        while self.due:
            ours = [taken for taken in self.unsettled if taken.step <= self.due[0].step]
            if not at_once and any(taken.waits() for taken in ours):
                return
            self._record(self.due.popleft())

    def _record(self, due: Due) -> None:
        losses = self._gather(due.step)
        run = self.run
        loss, examples = (sum(column) for column in zip(*losses, strict=True))
        before = run.history[-1] if run.history else None
        if before and before["epoch"] == due.epoch and examples < self.job.batch_size / 2:
            del run.history[-1]
            loss, examples = (
                loss + before["loss"] * before["loss_examples"],
                examples + before["loss_examples"],
            )
        point = Progress(
            **{account.name: getattr(run, account.name) for account in fields(Accounts)},
            step=due.step,
            epoch=due.epoch,
            examples=due.examples,
            total_examples=self.total_examples,
            share=due.share,
            loss_examples=int(examples),
            loss=loss / examples,
            learning_rate=self.trainable.learning_rate(due.share),
            workers=self.world_size,
            sample=run.scores[-1].get("sample", "") if run.scores else "",
        )
        run.loss_sum = run.loss_examples = 0.0
        recorded = asdict(point)
        del recorded["sample"]  # the scores have each of them once
        run.history.append(recorded)
        if self.rank == 0 and self.on_progress:
            self.on_progress(point)

    def _evaluate(self, validation: ShardStream) -> bool:
        """Add the mean loss over the held-out examples, which the workers share, to the scores.

        Returns False if it was interrupted; nothing is recorded then.
        """
        assert isinstance(self.trainable, Evaluable)
        self.sync.flush()
        loss = examples = 0.0
        with closing(self._batches(validation, validation.epoch(0), 0, "evaluation")) as batches:
            for batch in batches:
                if self._total([0.0 if self.rank else float(self.is_interrupted())])[0]:
                    return False
                if self._rows(batch):
                    with self._charged("evaluation"):
                        batch_loss, batch_examples = self.trainable.evaluate(batch)
                    loss, examples = loss + batch_loss, examples + batch_examples
        loss, examples = self._total([loss, examples])
        run = self.run
        if not examples:
            raise ValueError("there is no held-out example to measure the error on: hold out more")
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss is {loss} after step {run.step}: lower the learning rate"
            )
        score = Score(
            step=run.step,
            epoch=run.examples / self.stream.examples,
            examples=run.examples,
            seconds=round(self.clock.seconds(), 3),
            loss=loss / examples,
        )
        if self.job.sample and self.rank == 0:
            with self._charged("evaluation"):
                score["sample"] = self.job.sample(self.trainable)
        run.scores.append(score)
        return True

    def _checkpoint(self) -> None:
        began = time.perf_counter()
        self._record_due(at_once=True)
        losses = self._gather(self.run.step)
        with self._charged("checkpoint"):
            self.saving.save(self.run, losses)
        self.clock.record_checkpoint(time.perf_counter() - began)

    def _rows(self, batch: Batch) -> int:
        return len(batch[self.job.columns[0]])

    def _all_gather(self, values: Sequence[float]) -> list[list[float]]:
        with self.sync.timed():
            return every_workers(values, self.rank, self.world_size, self.job.device)

    def _total(self, values: list[float]) -> list[float]:
        with self.sync.timed():
            return sum_over_workers(values, self.world_size, self.job.device)

    @contextmanager
    def _charged(self, account: Account) -> Iterator[None]:
        started = time.perf_counter()
        yield
        name = f"{account}_seconds"
        setattr(self.run, name, getattr(self.run, name) + time.perf_counter() - started)
