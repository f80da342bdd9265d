"""The progress of a run as it is reported to observers. Imports only the standard library, so reading it is
fast.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

PROGRESS = "progress.json"  # the newest `Progress` of a run, next to its checkpoints

Account = Literal["data", "compute", "evaluation", "checkpoint"]


@dataclass
class Accounts:
    """How worker 0 spent its time, in seconds. `seconds` is the total since the first step."""

    seconds: float = 0.0
    data_seconds: float = 0.0  # waiting for the stream
    compute_seconds: float = 0.0
    sync_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    sync_bytes: int = 0

    @contextmanager
    def timed(self, account: Account) -> Iterator[None]:
        """Add the block's time to an account."""
        started = time.perf_counter()
        yield
        name = f"{account}_seconds"
        setattr(self, name, getattr(self, name) + time.perf_counter() - started)


@dataclass
class Progress(Accounts):
    """A record of a run's progress.

    Attributes:
        share: the completed share, 0 to 1, of the limit that will end the run first: its examples or its
            seconds. The learning rate follows it.
        loss: the mean over the `loss_examples` examples of all workers since the last record. A record of
            less than half a batch is merged into the previous one, because the loss of a few examples is
            noisy.
        validation_loss: of the last evaluation; None before the first one.
        sample: the last output of `Job.sample`.

    The accounts are those at the time when all losses up to `step` were complete.
    """

    step: int = 0
    epoch: int = 0
    examples: int = 0
    total_examples: int = 0
    share: float = 0.0
    loss: float = 0.0
    loss_examples: int = 0
    learning_rate: float = 0.0
    workers: int = 1
    validation_loss: float | None = None
    sample: str = ""
