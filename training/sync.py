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
    """Workers add up how far each row has moved since they last agreed.

    For sparse tables trained by in-place kernels, whose updates are sums: row <- agreed row + the sum over
    workers of (local row - agreed row). Only rows that moved on some worker travel. The result equals the
    dense sum of moves exactly, since a row that moved nowhere adds zero.

    The first `frequent_rows` rows (tables are in order of frequency) are exchanged every `period` steps, all
    others every `rare_period` steps: in natural text a thousand words are most of what is trained, so they
    drift apart fast, and cost little to send.
    """

    def __init__(self, period: int, frequent_rows: int = 0, rare_period: int | None = None) -> None:
        self.period = period
        self.rare_period = period if rare_period is None else rare_period
        self.frequent_rows = frequent_rows
        for name, steps in (("period", period), ("rare_period", self.rare_period)):
            if steps < 1:
                raise ValueError(f"the synchronisation's {name} is {steps} steps: it must be at least 1")
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
        if step % self.rare_period == 0:
            self.flush()
        elif step % self.period == 0:
            self._exchange(self.frequent_rows)

    def flush(self) -> None:
        if self._dirty:
            self._exchange(None)
            self._dirty = False

    def _exchange(self, rows: int | None) -> None:
        """Brings the first `rows` rows of every table together; all of them for None."""
        started = time.perf_counter()
        for name, table in self._tables.items():
            self._add_moves(table[:rows], self._agreed[name][:rows])
        self.seconds += time.perf_counter() - started

    def _add_moves(self, table: torch.Tensor, agreed: torch.Tensor) -> None:
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
