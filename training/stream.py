"""Batches from Parquet shards, in an order that the number of workers does not change.

Blocks of rows are permuted by (seed, epoch) and dealt to a fixed number of *lanes*; a block is a row group,
or a part of one where there are too few of them to fill the lanes evenly. Global batch number b is the b-th
slice of every lane. A worker owns whole lanes, so it reads its blocks only, each from front to back,
while the set of examples in batch b depends on (seed, epoch, b) alone. A position in the stream is therefore
two integers: the epoch, and the number of batches done in it.

A block's rows often lie side by side in one text. Where they should not be trained on side by side, the next
few blocks of a lane are held in memory together, and their rows change places.

In a column of lists of any length, such as a text's tokens, the example is the element and not the list: so
batches have one size whatever the lengths, and a list may be cut between two of them. Of each element it is
told from which list it came, and from which place.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

READ_AHEAD_BATCHES = 4
BLOCKS_PER_LANE = 16  # at least: lanes then differ by a sixteenth of their length at most
STOP_POLL_SECONDS = 0.2
KEPT_BYTES = 128 << 20  # of the row groups of a small text: each is cut into blocks, which are read far apart

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Block:
    """Examples of one row group of one shard: the unit that is shuffled and read at a time."""

    path: Path
    row_group: int
    start: int
    rows: int
    first_row: int  # of the row group, counted through all shards


class ShardStream:
    """The examples of some Parquet shards, as global batches of which this worker gets its share.

    `columns` must be numbers, (rows,), or lists of numbers of one fixed length, (rows, width), without nulls.
    Or it is one column of lists of any length but 0: then an example is an element, and beside the column
    stand the `row` of its list, counted through all files, and its `place` in the list, int64 both.
    `lanes` bounds the number of workers that can share the stream; `batch_size` counts the examples of a
    global batch, over all workers. Without `shuffle` the row groups are dealt in the order of the files.
    `mix_bytes` of rows, in each lane, change places in memory; with 0 a block's rows stay in their order.
    """

    def __init__(
        self,
        files: Sequence[Path],
        columns: Sequence[str],
        *,
        batch_size: int,
        lanes: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        mix_bytes: int = 0,
    ) -> None:
        if batch_size < lanes:
            raise ValueError(f"batch_size {batch_size} is less than one example for each of {lanes} lanes")
        if world_size > lanes:
            raise ValueError(
                f"{world_size} workers can't share {lanes} lanes: ask for at most {lanes} workers"
            )
        self.columns = list(columns)
        self.lanes = lanes
        self.rows_per_lane = batch_size // lanes
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size = rank, world_size
        shards, rows = [], 0
        for path in files:
            blocks, none, rows = shard(path, self.columns, rows)
            shards.append((path, blocks, none))
        row_groups = [block for _, blocks, _ in shards for block in blocks]
        parts = -(-BLOCKS_PER_LANE * lanes // len(row_groups)) if row_groups else 1
        self.blocks = [part for block in row_groups for part in cut(block, parts)]
        self.examples = sum(block.rows for block in self.blocks)
        if self.examples == 0:
            raise ValueError(f"there is nothing to read: the {len(files)} shards hold no rows")
        first, _, self._none = shards[0]
        for path, _, none in shards:
            if none.keys() != self._none.keys():
                raise ValueError(
                    f"the column {self.columns[0]} has lists of any length in one of the shards {path} and"
                    f" {first}, but not in the other: build them again"
                )
            for name, values in none.items():
                if (values.dtype, values.shape) != (self._none[name].dtype, self._none[name].shape):
                    raise ValueError(
                        f"the column {name} is {described(values)} in the shard {path} and"
                        f" {described(self._none[name])} in {first}: build them again"
                    )

        self.mix_rows = mix_bytes // sum(bytes_of_a_row(values) for values in self._none.values())
        largest = max(block.rows for block in row_groups) * sum(
            bytes_of_a_row(self._none[name]) for name in columns
        )
        kept = max(1, KEPT_BYTES // largest) if parts > 1 else 0
        self._read_block = partial(read_block, lru_cache(kept)(read_row_group), tuple(columns))

    def epoch(self, number: int) -> "Epoch":
        """Who reads what, and when, in an epoch; the same answer on every worker."""
        order = np.arange(len(self.blocks))
        if self.shuffle:
            np.random.default_rng([self.seed, number]).shuffle(order)
        lanes: list[list[Block]] = [[] for _ in range(self.lanes)]
        rows = [0] * self.lanes
        for index in order:
            shortest = rows.index(min(rows))
            lanes[shortest].append(self.blocks[index])
            rows[shortest] += self.blocks[index].rows
        return Epoch(number, lanes, np.array(rows, np.int64), self.rows_per_lane)

    def read(self, epoch: "Epoch", start: int = 0) -> Generator[Batch]:
        """This worker's share of every global batch of `epoch` from number `start` on, read ahead.

        A share may be empty (all its lanes have ended): every worker still gets `epoch.steps` of them.
        """
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(READ_AHEAD_BATCHES)
        stopped = threading.Event()

        def hand_over(item: Batch | BaseException | None) -> None:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=STOP_POLL_SECONDS)
                    return
                except queue.Full:
                    continue

        def fill() -> None:
            try:
                for batch in self._read_now(epoch, start):
                    hand_over(batch)
                    if stopped.is_set():
                        return
                hand_over(None)
            except BaseException as error:
                hand_over(error)

        reader = threading.Thread(target=fill, name="read-ahead", daemon=True)
        reader.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            reader.join()

    def _read_now(self, epoch: "Epoch", start: int) -> Iterator[Batch]:
        mine = [
            LaneReader(
                handfuls(epoch.lanes[lane], self.mix_rows),
                self._read_block,
                self._none,
                self.rows_per_lane,
                start,
                mix_seed=[self.seed, epoch.number, lane] if self.mix_rows else None,
            )
            for lane in range(self.rank, self.lanes, self.world_size)
        ]
        for _ in range(start, epoch.steps):
            shares = [lane.take() for lane in mine]
            yield {name: np.concatenate([share[name] for share in shares]) for name in self._none}


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples: the blocks of every lane, in the order in which they are read."""

    number: int
    lanes: list[list[Block]]
    lane_rows: np.ndarray  # (lanes,) int64
    rows_per_lane: int  # of one global batch

    @property
    def steps(self) -> int:
        """The number of global batches."""
        return -(-int(self.lane_rows.max()) // self.rows_per_lane)

    def examples_until(self, step: int) -> int:
        """Examples that all workers together have seen after the first `step` batches."""
        return int(np.minimum(self.lane_rows, step * self.rows_per_lane).sum())


class LaneReader:
    """Cuts the blocks of one lane into slices of equal length, holding one handful of blocks in memory.

    With `mix_seed` the rows of a handful change places, by that seed and the handful's number.
    """

    def __init__(
        self,
        handfuls: list[list[Block]],
        read: Callable[[Block], Batch],
        none: Batch,
        rows: int,
        skip_slices: int,
        mix_seed: list[int] | None = None,
    ) -> None:
        self._read_block = read
        self._none = none  # all that a batch has, without rows
        self._rows, self._mix_seed = rows, mix_seed
        skip, number = rows * skip_slices, 0
        sizes = [sum(block.rows for block in blocks) for blocks in handfuls]
        while number < len(sizes) and skip >= sizes[number]:
            skip -= sizes[number]
            number += 1
        self._waiting = iter(list(enumerate(handfuls))[number:])
        self._offset = skip if number < len(sizes) else 0
        self._current: Batch | None = None

    def take(self) -> Batch:
        """The next slice: fewer rows at the lane's end, none after it."""
        pieces = [self._none]
        missing = self._rows
        while missing:
            if self._current is None:
                following = next(self._waiting, None)
                if following is None:
                    break
                self._current = self._read(*following)
            rows = len(next(iter(self._current.values())))
            end = min(rows, self._offset + missing)
            pieces.append({name: values[self._offset : end] for name, values in self._current.items()})
            missing -= end - self._offset
            self._offset = end
            if end == rows:
                self._current, self._offset = None, 0
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self._none}

    def _read(self, number: int, blocks: list[Block]) -> Batch:
        parts = [self._read_block(block) for block in blocks]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self._none}
        if self._mix_seed is None:
            return rows
        order = np.random.default_rng([*self._mix_seed, number]).permutation(sum(b.rows for b in blocks))
        return {name: values[order] for name, values in rows.items()}


def handfuls(blocks: list[Block], rows: int) -> list[list[Block]]:
    """Blocks in their order, as many together as have at least so many rows."""
    together: list[list[Block]] = []
    held = rows
    for block in blocks:
        if held >= rows:
            together.append([])
            held = 0
        together[-1].append(block)
        held += block.rows
    return together


def shard(path: Path, columns: list[str], first_row: int) -> tuple[list[Block], Batch, int]:
    """The row groups of a shard, what a batch of it has (without rows), and the row behind its last.

    Raises:
        ValueError: it is no Parquet file, or a column is missing or of a kind that can't be streamed.
    """
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"the shard {path} can't be read ({first_line(error)}): build it again") from error
    schema = metadata.schema.to_arrow_schema()
    if missing := set(columns) - set(schema.names):
        raise ValueError(f"the shard {path} has no column {sorted(missing)}; it has {schema.names}")
    for name in columns:
        kind = schema.field(name).type
        element = kind.value_type if pa.types.is_fixed_size_list(kind) or is_ragged(kind) else kind
        if not (pa.types.is_integer(element) or pa.types.is_floating(element)):
            raise ValueError(
                f"the column {name} of the shard {path} is {kind}: only numbers and lists of numbers can be"
                " streamed"
            )
        if is_ragged(kind) and len(columns) > 1:
            raise ValueError(
                f"the column {name} of the shard {path} has lists of any length:"
                f" it can be streamed alone, not with {sorted(set(columns) - {name})}"
            )
    ragged = any(is_ragged(schema.field(name).type) for name in columns)
    blocks = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = elements(group, columns[0]) if ragged else group.num_rows
        blocks.append(Block(path, number, 0, rows, first_row))
        first_row += group.num_rows
    return blocks, as_batch(schema.empty_table().select(columns), 0, 0, 0), first_row


def is_ragged(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def elements(group: pq.RowGroupMetaData, column: str) -> int:
    """Of all lists in a row group; a list that is empty or null counts as one (`read_block` refuses it)."""
    leaves = (group.column(i) for i in range(group.num_columns))
    return next(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)


def cut(block: Block, parts: int) -> list[Block]:
    """A block in at most `parts` parts of nearly equal length, none of them empty."""
    bounds = np.linspace(0, block.rows, min(parts, max(1, block.rows)) + 1).astype(int).tolist()
    return [replace(block, start=block.start + start, rows=end - start) for start, end in pairwise(bounds)]


def read_block(
    read_row_group: Callable[[Path, int, tuple[str, ...]], pa.Table], columns: tuple[str, ...], block: Block
) -> Batch:
    table = read_row_group(block.path, block.row_group, columns)
    return as_batch(table, block.start, block.rows, block.first_row)


def read_row_group(path: Path, number: int, columns: tuple[str, ...]) -> pa.Table:
    """The columns, each in one piece.

    Raises:
        OSError: the file can't be read.
        ValueError: a value is missing.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(number, columns=list(columns), use_threads=False).combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise OSError(
            f"row group {number} of the shard {path} can't be read ({first_line(error)}):"
            " run the flow again, it rebuilds what is damaged; training goes on from its newest checkpoint"
        ) from error
    for name in columns:
        if lacks_values(one_piece(table.column(name))):
            raise ValueError(f"the column {name} of the shard {path} has rows without a value")
    return table


def one_piece(column: pa.ChunkedArray) -> pa.Array:
    """The column as an array, without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def lacks_values(lists: pa.Array) -> bool:
    if lists.null_count or not is_ragged(lists.type):
        return bool(lists.null_count)
    return bool(lists.values.null_count or (np.diff(lists.offsets) == 0).any())


def as_batch(table: pa.Table, start: int, count: int, first_row: int) -> Batch:
    """`count` examples of a row group from number `start` on, whose first row is the shards' `first_row`."""
    end = start + count
    if not is_ragged(table.column(0).type):
        return {name: as_numpy(table.column(name))[start:end] for name in table.column_names}
    lists = one_piece(table.column(0))
    offsets = lists.offsets.to_numpy()
    first, last = np.searchsorted(offsets, [start, end - 1], side="right") - 1
    lengths = np.diff(np.clip(offsets[first : last + 2], start, end))
    row = np.repeat(np.arange(first, last + 1), lengths)
    return {
        table.column_names[0]: lists.values.to_numpy()[start:end],
        "row": first_row + row,
        "place": np.arange(start, end) - offsets[row],
    }


def as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,), or (rows, width) of lists of one fixed length."""
    values = one_piece(column)
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy().reshape(-1, values.type.list_size)
    return values.to_numpy()


def bytes_of_a_row(values: np.ndarray) -> int:
    return values.dtype.itemsize * int(np.prod(values.shape[1:]))


def described(values: np.ndarray) -> str:
    return f"{values.dtype}" + "".join(f" x {width}" for width in values.shape[1:])


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
