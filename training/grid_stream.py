"""Batches of a grid: each is one worker's share of a diagonal (models/word2vec/grid.py defines the grid).

An episode's pairs are in P x P blocks (i, j), and step d of it trains the blocks (i, (i + d) mod P). A worker
reads the blocks of its own input parts i. Episodes are permuted by (seed, epoch); diagonals always follow
each other, since output parts move from worker to worker in that order. A position in the stream is two
integers: the epoch, and the number of diagonals completed in it.

Episodes come from stored blocks (`StoredEpisodes`), or are drawn from tokens (`DrawnEpisodes`).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lexloom.training.job import step_seed
from lexloom.training.read_ahead import read_ahead
from lexloom.training.stream import Batch, ShardStream, first_line

UNREADABLE = (OSError, KeyError, pa.ArrowInvalid)  # damaged files, and those without a column


class Blocks(Protocol):
    """Pairs in blocks."""

    @property
    def targets(self) -> np.ndarray:
        """(pairs,) integers."""

    @property
    def contexts(self) -> np.ndarray:
        """(pairs,) integers."""

    @property
    def bounds(self) -> NDArray[np.int64]:
        """(inputs, P + 1): the block of the i-th own input part and output part j is
        bounds[i, j]:bounds[i, j + 1].
        """


class StoredBlocks(NamedTuple):
    """`Blocks` that were read."""

    targets: np.ndarray
    contexts: np.ndarray
    bounds: NDArray[np.int64]


class Episodes(Protocol):
    """The episodes of a pass over the data."""

    def examples(self, epoch: int) -> NDArray[np.int64]:
        """The examples of each episode and diagonal of an epoch, in reading order, over all workers.

        Shape: (episodes, P).
        """

    def read(self, epoch: int, first: int, own: range) -> Generator[Blocks]:
        """Yield the blocks of input parts `own` of the epoch's episodes from number `first` on."""


@dataclass(frozen=True)
class GridEpoch:
    """One pass over the episodes; step s trains the diagonal (first_diagonal + s) mod P."""

    number: int
    first_diagonal: int
    counts: NDArray[np.int64]  # (episodes, P), examples

    @property
    def steps(self) -> int:
        """The number of diagonals."""
        return self.counts.size

    def examples_until(self, step: int) -> int:
        """Count the examples of the first `step` diagonals, over all workers."""
        return int(self._until[step])

    @cached_property
    def _until(self) -> NDArray[np.int64]:
        counts = np.roll(self.counts, -self.first_diagonal, axis=1)  # in training order
        return np.concatenate([[0], np.cumsum(counts)])


class GridStream:
    """The shares of one worker in the diagonals of a grid.

    Batches have `target` and `context`, (pairs,), and `bounds`, (inputs + 1,) int64: the block of the k-th
    own input part is bounds[k]:bounds[k + 1].

    Args:
        parts: of the grid, P.
        own: the worker's input parts.
        shuffle: whether epochs differ. If not, the number of an epoch is the diagonal with which it begins,
            modulo P.
    """

    def __init__(self, episodes: Episodes, parts: int, own: range, *, shuffle: bool = True) -> None:
        self._episodes, self._parts, self._own, self._shuffle = episodes, parts, own, shuffle
        self.examples = int(episodes.examples(0).sum())

    def epoch(self, number: int) -> GridEpoch:
        """Plan an epoch; the same on every worker."""
        first = 0 if self._shuffle else number % self._parts
        return GridEpoch(number, first, self._episodes.examples(number))

    def read(self, epoch: GridEpoch, start: int = 0) -> Generator[Batch]:
        """Yield this worker's shares of the diagonals of `epoch` from number `start` on, read ahead."""
        return read_ahead(self._read_now(epoch, start))

    def _read_now(self, epoch: GridEpoch, start: int) -> Iterator[Batch]:
        episode, skipped = divmod(start, self._parts)
        own = np.array(self._own)
        with closing(self._episodes.read(epoch.number, episode, self._own)) as episodes:
            for blocks in episodes:
                for step in range(skipped, self._parts):
                    outputs = (own + epoch.first_diagonal + step) % self._parts
                    inputs = np.arange(len(own))
                    first, last = blocks.bounds[inputs, outputs], blocks.bounds[inputs, outputs + 1]
                    slices = [slice(*each) for each in zip(first.tolist(), last.tolist(), strict=True)]
                    yield {
                        "target": np.concatenate([blocks.targets[each] for each in slices]),
                        "context": np.concatenate([blocks.contexts[each] for each in slices]),
                        "bounds": np.concatenate([[0], np.cumsum(last - first)]),
                    }
                skipped = 0
                del blocks  # before the next ones are read


class StoredEpisodes:
    """Episodes in Parquet shards, one for each input part, with one row group for each episode.

    Args:
        folder: has the shards `{name}-{part:05d}.parquet` (columns `target` and `context`), and the table
            `blocks-{name}.parquet`, with one row group for each episode and one row for each input part:
            `pairs`, the lengths of its P blocks, in the order of the output parts. A shard has no row group
            for an episode without pairs.

    Raises:
        ValueError: the files do not belong together, or there are no pairs.
    """

    def __init__(self, folder: Path, name: str, *, parts: int, seed: int, shuffle: bool = True) -> None:
        self._folder, self._name = folder, name
        self._parts, self._seed, self._shuffle = parts, seed, shuffle
        self._blocks = folder / f"blocks-{name}.parquet"
        i = np.arange(parts)
        with self._open(self._blocks) as file:
            lengths = [self._lengths(file, number) for number in range(file.num_row_groups)]
        # pairs of each diagonal d (blocks (i, (i + d) mod P)), and of each input part; (episodes, P) each
        shape = (len(lengths), parts)
        self._diagonals = np.array(
            [[each[i, (i + d) % parts].sum() for d in range(parts)] for each in lengths], np.int64
        ).reshape(shape)
        self._inputs = np.array([each.sum(1) for each in lengths], np.int64).reshape(shape)
        if not self._diagonals.sum():
            raise ValueError(f"the shards {folder}/{name}-*.parquet contain no pairs")

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path)
        except UNREADABLE as error:
            raise ValueError(f"the shard {path} can't be read ({first_line(error)}): rebuild it") from error

    def _lengths(self, file: pq.ParquetFile, episode: int) -> NDArray[np.int64]:
        """Read the lengths of an episode's blocks, (P, P)."""
        try:
            lists = file.read_row_group(episode, columns=["pairs"])["pairs"].combine_chunks()
        except UNREADABLE as error:
            raise ValueError(
                f"the shard {self._blocks} can't be read ({first_line(error)}): rebuild it"
            ) from error
        lengths = lists.flatten().to_numpy()
        if lengths.size != self._parts**2 or len(lists) != self._parts:
            raise ValueError(
                f"{self._blocks} has blocks of a grid with {len(lists)} parts, not {self._parts}: rebuild the"
                " pairs"
            )
        return lengths.reshape(self._parts, self._parts)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = np.arange(len(self._diagonals))
        if self._shuffle:
            np.random.default_rng([self._seed, epoch]).shuffle(order)
        return order

    def examples(self, epoch: int) -> NDArray[np.int64]:
        return self._diagonals[self._order(epoch)]

    def read(self, epoch: int, first: int, own: range) -> Generator[Blocks]:
        row_groups = np.cumsum(self._inputs > 0, axis=0) - 1
        with self._open(self._blocks) as file:
            for episode in self._order(epoch)[first:]:
                lengths = self._lengths(file, int(episode))[own.start : own.stop]
                targets, contexts = (np.empty(lengths.sum(), np.uint16) for _ in range(2))
                ends = np.cumsum(lengths).reshape(lengths.shape)
                for part, last, pairs in zip(own, ends[:, -1], lengths.sum(1), strict=True):
                    pairs_of_part = slice(last - pairs, last)
                    targets[pairs_of_part], contexts[pairs_of_part] = self._read_part(
                        part, int(row_groups[episode, part]), int(pairs)
                    )
                yield StoredBlocks(targets, contexts, np.concatenate([(ends - lengths)[:, :1], ends], axis=1))
                del targets, contexts  # before the next ones are read

    def _read_part(self, part: int, row_group: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the pairs of one input part in one episode."""
        empty = np.empty(0, np.uint16)
        if not pairs:
            return empty, empty
        path = self._folder / f"{self._name}-{part:05d}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(row_group, columns=["target", "context"], use_threads=False)
            targets, contexts = table["target"].to_numpy(), table["context"].to_numpy()
        except UNREADABLE as error:
            raise OSError(
                f"row group {row_group} of the shard {path} can't be read ({first_line(error)}):"
                " run the flow again to rebuild it; training resumes from its newest checkpoint"
            ) from error
        if len(targets) != pairs:
            raise ValueError(
                f"row group {row_group} of the shard {path} has {len(targets)} pairs, not {pairs}: rebuild"
                " the pairs"
            )
        return targets, contexts


class DrawnEpisodes:
    """Episodes that are drawn from tokens: each from the next `tokens` tokens of the shards.

    Every worker reads all tokens, and draws the pairs of its own input parts.

    Args:
        files: shards with a column `tokens` of variable-length lists.
        draw: draws the blocks of a batch of tokens (see `ShardStream`) from (batch, seed, own).
    """

    def __init__(
        self,
        files: Sequence[Path],
        draw: Callable[[Batch, int, range], Blocks],
        *,
        tokens: int,
        parts: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self._stream = ShardStream(files, ("tokens",), batch_size=tokens, lanes=1, seed=seed, shuffle=shuffle)
        self._draw, self._parts, self._seed, self._shuffle = draw, parts, seed, shuffle

    def _epoch(self, number: int) -> int:
        return number if self._shuffle else 0

    def examples(self, epoch: int) -> NDArray[np.int64]:
        plan = self._stream.epoch(self._epoch(epoch))
        until = np.array([plan.examples_until(step) for step in range(plan.steps + 1)])
        shares = np.arange(self._parts + 1) * np.diff(until)[:, None] // self._parts
        return np.diff(shares, axis=1)

    def read(self, epoch: int, first: int, own: range) -> Generator[Blocks]:
        number = self._epoch(epoch)
        with closing(self._stream.read(self._stream.epoch(number), first)) as batches:
            for episode, batch in enumerate(batches, first):
                yield self._draw(batch, step_seed(self._seed, number, episode), own)
