"""Worker 0's clock, which all workers read after the same steps, so that they agree on what is due.

Workers differ in how long a step takes them, and only worker 0 knows of an interrupt. So they look at worker
0's clock: after a step that all of them know beforehand it sends one small message, with the seconds and the
step after which to look again. That is about every half second. A worker that is alone looks after every
step.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from training.exchange import sum_over_workers
from training.job import Job, Run

LOOK_SECONDS = 0.5  # between two looks of several workers, about
LOOKS = 200  # at least, within `max_seconds`
LOOK_STEPS = 256  # between two looks, at most
CHECKPOINTS_SHARE = 0.02  # of the time, at most, that goes into checkpoints which the clock asks for


class Look(NamedTuple):
    """What worker 0's clock says.

    Attributes:
        seconds: of training, over all restarts.
        checkpoint: whether it is time for one.
        interrupted: whether the run is to stop after this step.
    """

    seconds: float
    checkpoint: bool
    interrupted: bool


class Clock:
    """The seconds of a run, over all restarts. `interrupted` is asked on worker 0."""

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

    def saved(self, cost: float) -> None:
        """A checkpoint was written just now, in `cost` seconds."""
        self._saved, self._cost = self.seconds(), cost

    def look(self, run: Run) -> Look | None:
        """What worker 0's clock says after the step, the same on all workers; None where no look is due."""
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
        """So many as take `look_seconds`, but no more than twice as many as the last time."""
        if self.world_size == 1:
            return 1
        pace = (seconds - self._looked) / max(1, step - self._looked_step)
        self._looked_step, self._looked = step, seconds
        fitting = LOOK_STEPS if pace * LOOK_STEPS <= self.look_seconds else int(self.look_seconds / pace)
        self._steps = max(1, min(fitting, 2 * self._steps))
        return self._steps
