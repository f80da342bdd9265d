"""Worker 0's clock. All workers read it after the same steps, so that they agree on what is due.

Step times differ between workers, and only worker 0 is informed of an interrupt. After a step that all
workers know in advance, worker 0 sends a small message with its elapsed seconds and the step of the next
message, about every half second. A single worker reads its clock after every step.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from lexloom.training.job import Job, TrainState
from lexloom.training.sync.collectives import sum_over_workers

READING_SECONDS = 0.5  # approximate time between two readings by several workers
MIN_READINGS = 200  # within `max_seconds`
MAX_READING_STEPS = 256  # steps between two readings
MAX_CHECKPOINT_SHARE = 0.02  # of the time, spent on periodic checkpoints


class ClockReading(NamedTuple):
    """A reading of worker 0's clock.

    Attributes:
        seconds: training time, over all restarts.
        checkpoint: whether a periodic checkpoint is due.
        interrupted: whether the run must stop after this step.
    """

    seconds: float
    checkpoint: bool
    interrupted: bool


class Clock:
    """Training time of a run, over all restarts. `interrupted` is called on worker 0."""

    def __init__(
        self, job: Job, state: TrainState, rank: int, world_size: int, interrupted: Callable[[], bool]
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, job.device
        self.interrupted = interrupted
        self.checkpoint_seconds = job.checkpoint_seconds
        limit = job.stopping.max_seconds
        self.reading_seconds = (
            READING_SECONDS if limit is None else min(READING_SECONDS, limit / MIN_READINGS)
        )
        self._started = time.perf_counter() - state.seconds
        self._last_step, self._last_seconds = state.step, state.seconds
        self._steps = 1
        self._checkpoint_at, self._checkpoint_cost = state.seconds, 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def record_checkpoint(self, cost: float) -> None:
        """Record that a checkpoint was just written, in `cost` seconds."""
        self._checkpoint_at, self._checkpoint_cost = self.seconds(), cost

    def read(self, state: TrainState) -> ClockReading | None:
        """Read worker 0's clock after a step; return the same on all workers, None if no reading is due."""
        if state.step < state.next_clock_reading:
            return None
        values = [0.0] * 4
        if self.rank == 0:
            seconds = self.seconds()
            wait = max(self.checkpoint_seconds, self._checkpoint_cost / MAX_CHECKPOINT_SHARE)
            due = seconds - self._checkpoint_at >= wait
            wait_steps = self._steps_until_next(state.step, seconds)
            values = [seconds, float(due), float(self.interrupted()), wait_steps]
        seconds, due_votes, interrupts, steps = sum_over_workers(values, self.world_size, self.device)
        state.next_clock_reading = state.step + int(steps)
        return ClockReading(seconds, due_votes > 0, interrupts > 0)

    def _steps_until_next(self, step: int, seconds: float) -> int:
        """Return the number of steps in about `reading_seconds`, at most twice the previous number."""
        if self.world_size == 1:
            return 1
        step_seconds = (seconds - self._last_seconds) / max(1, step - self._last_step)
        self._last_step, self._last_seconds = step, seconds
        if step_seconds * MAX_READING_STEPS <= self.reading_seconds:
            steps = MAX_READING_STEPS
        else:
            steps = int(self.reading_seconds / step_seconds)
        self._steps = max(1, min(steps, 2 * self._steps))
        return self._steps
