"""Worker 0's clock, which all workers read after the same steps, so that they agree on what is due.

Step times differ between workers, and only worker 0 is informed of an interrupt. After a step that all
workers know in advance, worker 0 sends a small message with its elapsed seconds and the step of the next
message, about every half second. A single worker reads its clock after every step.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from lexloom.training.job import Job, Run
from lexloom.training.sync.collectives import sum_over_workers

LOOK_SECONDS = 0.5  # approximate time between two messages to several workers
LOOKS = 200  # minimum number of messages within `max_seconds`
LOOK_STEPS = 256  # maximum number of steps between two messages
CHECKPOINTS_SHARE = 0.02  # maximum share of the time spent on periodic checkpoints


class Look(NamedTuple):
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
        self, job: Job, run: Run, rank: int, world_size: int, interrupted: Callable[[], bool]
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, job.device
        self.interrupted = interrupted
        self.checkpoint_seconds = job.checkpoint_seconds
        limit = job.stopping.max_seconds
        self.look_seconds = LOOK_SECONDS if limit is None else min(LOOK_SECONDS, limit / LOOKS)
        self._began = time.perf_counter() - run.seconds
        self._looked_step, self._looked = run.step, run.seconds
        self._steps = 1
        self._saved, self._cost = run.seconds, 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def record_checkpoint(self, cost: float) -> None:
        """Record that a checkpoint was just written, in `cost` seconds."""
        self._saved, self._cost = self.seconds(), cost

    def look(self, run: Run) -> Look | None:
        """Read worker 0's clock after a step, the same on all workers; None if no reading is due."""
        if run.step < run.next_look:
            return None
        mine = [0.0] * 4
        if self.rank == 0:
            seconds = self.seconds()
            wait = max(self.checkpoint_seconds, self._cost / CHECKPOINTS_SHARE)
            due = seconds - self._saved >= wait
            mine = [seconds, float(due), float(self.interrupted()), self._steps_until_next(run.step, seconds)]
        seconds, due_votes, interrupts, steps = sum_over_workers(mine, self.world_size, self.device)
        run.next_look = run.step + int(steps)
        return Look(seconds, due_votes > 0, interrupts > 0)

    def _steps_until_next(self, step: int, seconds: float) -> int:
        """The number of steps in about `look_seconds`, at most twice the previous number."""
        if self.world_size == 1:
            return 1
        pace = (seconds - self._looked) / max(1, step - self._looked_step)
        self._looked_step, self._looked = step, seconds
        fitting = LOOK_STEPS if pace * LOOK_STEPS <= self.look_seconds else int(self.look_seconds / pace)
        self._steps = max(1, min(fitting, 2 * self._steps))
        return self._steps
