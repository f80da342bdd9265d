"""How replicas of a model on many workers stay one model.

Every strategy has the same small interface: `setup` once with the tensors that it may change, `after_step`
after every training step, `flush` before anything reads the model (checkpoint, evaluation, the end). After a
flush all replicas are equal, bit for bit. Each strategy counts the bytes that a worker hands to the network
and the seconds that it waits.
"""

import time
from typing import Protocol

import torch
import torch.distributed as dist


class Synchronisation(Protocol):
    """Keeps the tensors of `setup` in step across workers."""

    bytes_sent: int
    seconds: float

    def setup(self, tables: dict[str, torch.Tensor]) -> None: ...

    def after_step(self, step: int) -> None: ...

    def flush(self) -> None: ...


class Alone:
    """One worker: nothing to do."""

    bytes_sent = 0
    seconds = 0.0

    def setup(self, tables: dict[str, torch.Tensor]) -> None:
        """Takes the tables; there is nobody to share them with."""

    def after_step(self, step: int) -> None:
        """Nothing to send."""

    def flush(self) -> None:
        """Nothing to wait for."""


class DeltaSum:
    """Every `period` steps, workers add up how far each row has moved since they last agreed.

    For sparse tables trained by in-place kernels, whose updates are sums: row <- agreed row + the sum over
    workers of (local row - agreed row). Only rows that moved on some worker travel. The result equals the
    dense sum of moves exactly, since a row that moved nowhere adds zero.
    """

    def __init__(self, period: int) -> None:
        if period < 1:
            raise ValueError(f"the synchronisation period is {period} steps: it must be at least 1")
        self.period = period
        self.bytes_sent = 0
        self.seconds = 0.0
        self._tables: dict[str, torch.Tensor] = {}
        self._agreed: dict[str, torch.Tensor] = {}
        self._dirty = False

    def setup(self, tables: dict[str, torch.Tensor]) -> None:
        """`tables`: float tensors (rows, width), equal on all workers, changed in place from now on."""
        self._tables = tables
        self._agreed = {name: table.clone() for name, table in tables.items()}

    def after_step(self, step: int) -> None:
        self._dirty = True
        if step % self.period == 0:
            self.flush()

    def flush(self) -> None:
        if not self._dirty:
            return
        started = time.perf_counter()
        for name, table in self._tables.items():
            self._exchange(table, self._agreed[name])
        self._dirty = False
        self.seconds += time.perf_counter() - started

    def _exchange(self, table: torch.Tensor, agreed: torch.Tensor) -> None:
        moved = torch.ne(table, agreed).any(dim=1).to(torch.uint8)  # (rows,)
        dist.all_reduce(moved, op=dist.ReduceOp.MAX)
        rows = moved.nonzero().squeeze(1)  # (moved rows,)
        base = agreed[rows]
        moves = table[rows] - base  # (moved rows, width)
        dist.all_reduce(moves)
        base += moves
        agreed[rows] = base
        table[rows] = base
        self.bytes_sent += moved.nbytes + moves.nbytes


def sum_over_workers(values: list[float], world_size: int) -> list[float]:
    """The element-wise sum of a few figures over all workers."""
    if world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total]
