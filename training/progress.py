"""How a run stands, as it tells those who watch it. Imports nothing heavy, so that a look costs little."""

from dataclasses import dataclass

PROGRESS = "progress.json"  # the last `Progress` of a run, beside its checkpoints


@dataclass
class Accounts:
    """Where worker 0's time has gone, in seconds. `seconds` is all of it, from the first step."""

    seconds: float = 0.0
    data_seconds: float = 0.0  # waiting for the stream
    compute_seconds: float = 0.0
    sync_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    sync_bytes: int = 0


@dataclass
class Progress(Accounts):
    """Where a run stands: `loss` is the mean over all workers' examples since the last point, `sample` what
    `Job.sample` gave last. The accounts are of the moment when the losses until `step` had come."""

    step: int = 0
    epoch: int = 0
    examples: int = 0
    total_examples: int = 0
    loss: float = 0.0
    learning_rate: float = 0.0
    workers: int = 1
    sample: str = ""
