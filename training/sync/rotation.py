"""The `rotation` strategy, for models whose pieces are divided among the workers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from lexloom.training.sync.strategies import Synchronisation
from lexloom.training.trainable import Partitioned, Trainable


class Rotation(Synchronisation):
    """Passes one piece of every worker's model to the previous worker after each step.

    The model waits only for the piece that leaves: the others may still be trained while it is sent.
    `seconds` excludes the time in which they are.
    """

    def setup(self, trainable: Trainable, world_size: int) -> None:
        assert isinstance(trainable, Partitioned)  # check_strategy
        self._model, self._world_size = trainable, world_size

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        self._rotate()

    def after_evaluation_step(self) -> None:
        self._rotate()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time to `seconds`, without the time until all steps were finished."""
        started = time.perf_counter()
        yield
        ended, idle_since = time.perf_counter(), self._model.idle_since()
        if idle_since is not None:
            self.seconds += max(0.0, ended - max(started, idle_since))

    def _rotate(self) -> None:
        if self._world_size > 1:
            outgoing, incoming = self._model.outgoing(), self._model.incoming()
            with self.timed():
                exchange(outgoing, incoming, dist.get_rank(), self._world_size)
            self.bytes_sent += outgoing.nbytes
        self._model.rotate()


def exchange(outgoing: Tensor, incoming: Tensor, rank: int, world_size: int) -> None:
    """Send a tensor to the previous worker while receiving one from the next; return when both are done.

    With NCCL, work that is queued on the current stream later sees the received tensor.
    """
    sent, received = outgoing, incoming
    if outgoing.is_cuda and dist.get_backend() == "gloo":  # gloo sends from the CPU's memory only
        sent, received = outgoing.cpu(), torch.empty_like(incoming, device="cpu")
    messages = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, sent, (rank - 1) % world_size),
            dist.P2POp(dist.irecv, received, (rank + 1) % world_size),
        ]
    )
    for message in messages:
        message.wait()
    if received is not incoming:
        incoming.copy_(received)
