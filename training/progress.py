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
    """Where a run stands.

    Attributes:
        share: how much is done of the limit that will end the run first, 0 to 1: of its examples, or of its
            seconds. The learning rate follows it.
        loss: the mean over all workers' examples since the last point, `loss_examples` in number. A point of
            less than half a batch takes the place of the one before, and has its examples too: the loss of a
            few examples is mostly chance.
        sample: what `Job.sample` gave last.

    The accounts are of the moment when the losses until `step` had come.
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
    sample: str = ""
