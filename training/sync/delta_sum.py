"""`delta_sum`: the strategy for sparse tables that are trained by in-place kernels."""

import torch
import torch.distributed as dist
from torch import Tensor

from lexloom.training.sync.strategies import Synchronisation
from lexloom.training.trainable import Trainable


class DeltaSum(Synchronisation):
    """Workers add up how far each row has moved since they last agreed.

    Updates of such kernels are sums over examples, so moves add up too: row <- agreed row + the sum over
    workers of (local row - agreed row). Only rows that moved on some worker travel. The result equals the
    dense sum of moves exactly, since a row that moved nowhere adds zero.

    The first `frequent_rows` rows (tables are in order of frequency) are exchanged every `period` steps, all
    others every `rare_period` steps: in natural text a thousand words are most of what is trained, so they
    drift apart fast, and cost little to send.

    Moves of many workers that point the same way add up to a leap: four replicas of word2vec diverge. So with
    more workers than `cap` no row moves farther than `cap` times the mean move of the workers that moved it.
    """

    local_optimizer = True

    def __init__(
        self, period: int, frequent_rows: int = 0, rare_period: int | None = None, cap: float | None = None
    ) -> None:
        super().__init__()
        self.cap = cap
        self.period = period
        self.rare_period = period if rare_period is None else rare_period
        self.frequent_rows = frequent_rows
        self._dirty = False

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._tables = trainable.tables()  # (rows, width) each
        for name, table in self._tables.items():
            if table.ndim != 2:
                raise ValueError(
                    f"delta_sum exchanges the rows of tables, and {name} has the shape {tuple(table.shape)}:"
                    " use all_reduce, average or diloco"
                )
        self._capped = self.cap is not None and world_size > self.cap
        self._agreed = {name: table.clone() for name, table in self._tables.items()}

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        self._dirty = True
        if step % self.rare_period == 0:
            self.flush()
        elif self.frequent_rows and step % self.period == 0:
            self._exchange(self.frequent_rows)

    def flush(self) -> None:
        if self._dirty:
            self._exchange(None)
            self._dirty = False

    @property
    def agreed(self) -> bool:
        return not self._dirty

    def round_state(self) -> dict[str, Tensor]:
        return self._agreed

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        for name, agreed in self._agreed.items():
            agreed.copy_(state[name])
        self._dirty = True

    def _exchange(self, rows: int | None) -> None:
        """Brings the first `rows` rows of every table together; all of them for None.

        All tables share one message, or two: what a message costs before its first byte is most of it.
        """
        with self.timed(), torch.no_grad():
            pairs = [(table[:rows], self._agreed[name][:rows]) for name, table in self._tables.items()]
            if rows is None:
                chosen = self._moved_rows(pairs)
                bases = [agreed.index_select(0, ids) for (_, agreed), ids in zip(pairs, chosen, strict=True)]
                moves = [
                    table.index_select(0, ids) - base
                    for (table, _), ids, base in zip(pairs, chosen, bases, strict=True)
                ]
                self._add_up(moves)
                for (table, agreed), ids, base, move in zip(pairs, chosen, bases, moves, strict=True):
                    base += move
                    agreed.index_copy_(0, ids, base)
                    table.index_copy_(0, ids, base)
            else:  # frequent rows: nearly all of them have moved
                moves = [table - agreed for table, agreed in pairs]
                self._add_up(moves)
                for (table, agreed), move in zip(pairs, moves, strict=True):
                    agreed += move
                    table.copy_(agreed)

    def _moved_rows(self, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The ids of each table's rows that have moved on some worker."""
        # on 53,000 rows of 112 in 1 thread: 15 ms, against 34 for `torch.ne(table, agreed).any(1)`
        moved = [(table - agreed).abs_().amax(dim=1) != 0 for table, agreed in pairs]  # NaN counts as moved
        together = torch.cat(moved).to(torch.uint8)
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        self.bytes_sent += together.nbytes
        return [part.nonzero().squeeze(1) for part in together.split([len(rows) for rows in moved])]

    def _add_up(self, moves: list[Tensor]) -> None:
        """Sums the moves over all workers, in place, and caps them."""
        parts = [move.reshape(-1) for move in moves]
        if self._capped:
            lengths = [move.norm(dim=1) for move in moves]
            parts += [*lengths, *((length > 0).float() for length in lengths)]
        together = torch.cat(parts)
        dist.all_reduce(together)
        self.bytes_sent += together.nbytes
        sums = together.split([part.numel() for part in parts])
        tables = len(moves)
        for move, total in zip(moves, sums[:tables], strict=True):
            move.copy_(total.view(move.shape))
        if self._capped:
            assert self.cap is not None
            for move, length, movers in zip(
                moves, sums[tables : 2 * tables], sums[2 * tables :], strict=True
            ):
                farthest = self.cap * length / movers.clamp_min(1)
                shrunk = (farthest / move.norm(dim=1)).nan_to_num(1.0).clamp_max(1)  # 0 / 0: nobody moved
                move *= shrunk.unsqueeze(1)
