"""Batches from Parquet shards, in an order that does not depend on the number of workers.

Blocks of rows are permuted by (seed, epoch) and dealt to a fixed number of *lanes*. A block is a row group,
or a part of one if there are too few row groups to fill the lanes evenly. Global batch number b is the b-th
slice of every lane. A worker owns whole lanes, so it reads only its own blocks, each from front to back,
while the set of examples in batch b depends only on (seed, epoch, b). A position in the stream is therefore
two integers: the epoch, and the number of batches completed in it.

Neighbouring rows of a block often come from the same text. If they should not be trained on together, each
lane shuffles a group of blocks in memory (the shuffle buffer).

In a column of variable-length lists, such as a text's tokens, the examples are the elements, not the lists.
So batches have a fixed size whatever the lengths, and a list may be split between batches. Each element comes
with the number of its list and its position in the list.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lexloom.training.read_ahead import read_ahead

BLOCKS_PER_LANE = 16  # minimum: the lengths of lanes then differ by at most a sixteenth
CACHE_BYTES = 128 << 20  # of row groups that are split into blocks, which are read at different times

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Block:
    """A range of rows of one row group: the unit that is shuffled and read at once."""

    path: Path
    row_group: int
    start: int
    rows: int
    first_row: int  # of the row group, counted over all shards


class ShardStream:
    """The examples of Parquet shards, as global batches of which each worker gets its share.

    Args:
        columns: columns of numbers, (rows,), or of fixed-length lists of numbers, (rows, width), without
            nulls. Or one column of variable-length, non-empty lists: then an example is an element, and
            batches also have the `row` of its list, counted over all files, and its `position` in the list,
            both int64.
        batch_size: examples of a global batch, over all workers.
        lanes: the maximum number of workers that can share the stream.
        shuffle: permute the blocks; otherwise they are dealt in the order of the files.
        shuffle_buffer_bytes: bytes of rows that each lane shuffles in memory; 0 keeps the order of a block's
            rows.
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
        shuffle_buffer_bytes: int = 0,
    ) -> None:
        if batch_size < lanes:
            raise ValueError(
                f"batch_size is {batch_size}: it must be at least {lanes}, one example for each lane"
            )
        if world_size > lanes:
            raise ValueError(f"{world_size} workers can't share {lanes} lanes: use at most {lanes} workers")
        self.columns = list(columns)
        self.lanes = lanes
        self.rows_per_lane = batch_size // lanes
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size = rank, world_size
        shards, rows = [], 0
        for path in files:
            blocks, empty, rows = read_metadata(path, self.columns, rows)
            shards.append((path, blocks, empty))
        row_groups = [block for _, blocks, _ in shards for block in blocks]
        parts = -(-BLOCKS_PER_LANE * lanes // len(row_groups)) if row_groups else 1
        self.blocks = [part for block in row_groups for part in split_block(block, parts)]
        self.examples = sum(block.rows for block in self.blocks)
        if self.examples == 0:
            raise ValueError(f"the {len(files)} shards contain no rows")
        first, _, self._empty = shards[0]
        for path, _, empty in shards:
            if empty.keys() != self._empty.keys():
                raise ValueError(
                    f"the column {self.columns[0]} has variable-length lists in only one of the shards"
                    f" {path} and {first}: rebuild them"
                )
            for name, values in empty.items():
                if (values.dtype, values.shape) != (self._empty[name].dtype, self._empty[name].shape):
                    raise ValueError(
                        f"the column {name} is {describe_dtype(values)} in the shard {path} and"
                        f" {describe_dtype(self._empty[name])} in {first}: rebuild them"
                    )

        self.shuffle_buffer_rows = shuffle_buffer_bytes // sum(
            bytes_per_row(values) for values in self._empty.values()
        )
        largest = max(block.rows for block in row_groups) * sum(
            bytes_per_row(self._empty[name]) for name in columns
        )
        cached_groups = max(1, CACHE_BYTES // largest) if parts > 1 else 0
        self._read_block = partial(read_block, lru_cache(cached_groups)(read_row_group), tuple(columns))

    def epoch(self, number: int) -> "Epoch":
        """Plan an epoch: the blocks of each lane, in order; the same on every worker."""
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
        """Yield this worker's shares of the global batches of `epoch` from number `start` on.

        They are read ahead in a thread. A share is empty if all of the worker's lanes have ended: every
        worker gets `epoch.steps` batches.
        """
        return read_ahead(self._read_now(epoch, start))

    def _read_now(self, epoch: "Epoch", start: int) -> Iterator[Batch]:
        lanes = [
            LaneReader(
                group_blocks(epoch.lanes[lane], self.shuffle_buffer_rows),
                self._read_block,
                self._empty,
                self.rows_per_lane,
                start,
                shuffle_seed=[self.seed, epoch.number, lane] if self.shuffle_buffer_rows else None,
            )
            for lane in range(self.rank, self.lanes, self.world_size)
        ]
        for _ in range(start, epoch.steps):
            shares = [lane.next_slice() for lane in lanes]
            yield {name: np.concatenate([share[name] for share in shares]) for name in self._empty}


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples: the blocks of every lane, in reading order."""

    number: int
    lanes: list[list[Block]]
    lane_rows: np.ndarray  # (lanes,) int64
    rows_per_lane: int  # of one global batch

    @property
    def steps(self) -> int:
        """The number of global batches."""
        return -(-int(self.lane_rows.max()) // self.rows_per_lane)

    def examples_until(self, step: int) -> int:
        """Count the examples that all workers together have seen after the first `step` batches."""
        return int(np.minimum(self.lane_rows, step * self.rows_per_lane).sum())


class LaneReader:
    """Cuts the blocks of one lane into slices of equal length, with one group of blocks in memory.

    With `shuffle_seed` the rows of a group are permuted, by that seed and the group's number.
    """

    def __init__(
        self,
        groups: list[list[Block]],
        read: Callable[[Block], Batch],
        empty: Batch,
        rows: int,
        skip_slices: int,
        shuffle_seed: list[int] | None = None,
    ) -> None:
        self._read_block = read
        self._empty = empty  # a batch with all columns and no rows
        self._rows, self._shuffle_seed = rows, shuffle_seed
        skip, number = rows * skip_slices, 0
        sizes = [sum(block.rows for block in blocks) for blocks in groups]
        while number < len(sizes) and skip >= sizes[number]:
            skip -= sizes[number]
            number += 1
        self._remaining = iter(list(enumerate(groups))[number:])
        self._offset = skip if number < len(sizes) else 0
        self._current: Batch | None = None

    def next_slice(self) -> Batch:
        """Return the next slice: fewer rows at the end of the lane, none after it."""
        pieces = [self._empty]
        missing = self._rows
        while missing:
            if self._current is None:
                next_group = next(self._remaining, None)
                if next_group is None:
                    break
                self._current = self._read(*next_group)
            rows = len(next(iter(self._current.values())))
            end = min(rows, self._offset + missing)
            pieces.append({name: values[self._offset : end] for name, values in self._current.items()})
            missing -= end - self._offset
            self._offset = end
            if end == rows:
                self._current, self._offset = None, 0
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self._empty}

    def _read(self, number: int, blocks: list[Block]) -> Batch:
        parts = [self._read_block(block) for block in blocks]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self._empty}
        if self._shuffle_seed is None:
            return rows
        order = np.random.default_rng([*self._shuffle_seed, number]).permutation(sum(b.rows for b in blocks))
        return {name: values[order] for name, values in rows.items()}


def group_blocks(blocks: list[Block], rows: int) -> list[list[Block]]:
    """Group consecutive blocks until each group has at least `rows` rows."""
    groups: list[list[Block]] = []
    held = rows
    for block in blocks:
        if held >= rows:
            groups.append([])
            held = 0
        groups[-1].append(block)
        held += block.rows
    return groups


def read_metadata(path: Path, columns: list[str], first_row: int) -> tuple[list[Block], Batch, int]:
    """Return a shard's row groups, an empty batch of its columns, and the number of the row after its last.

    Raises:
        ValueError: it is not a Parquet file, or a column is missing or has an unsupported type.
    """
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"the shard {path} can't be read ({first_line(error)}): rebuild it") from error
    schema = metadata.schema.to_arrow_schema()
    if missing := set(columns) - set(schema.names):
        raise ValueError(f"the shard {path} has no column {sorted(missing)}; it has {schema.names}")
    for name in columns:
        kind = schema.field(name).type
        element = kind.value_type if pa.types.is_fixed_size_list(kind) or is_ragged(kind) else kind
        if not (pa.types.is_integer(element) or pa.types.is_floating(element)):
            raise ValueError(
                f"the column {name} of the shard {path} has the type {kind}: only numbers and lists"
                " of numbers can be streamed"
            )
        if is_ragged(kind) and len(columns) > 1:
            raise ValueError(
                f"the column {name} of the shard {path} has variable-length lists:"
                f" it can only be streamed alone, not with {sorted(set(columns) - {name})}"
            )
    ragged = any(is_ragged(schema.field(name).type) for name in columns)
    blocks = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = count_elements(group, columns[0]) if ragged else group.num_rows
        blocks.append(Block(path, number, 0, rows, first_row))
        first_row += group.num_rows
    return blocks, to_batch(schema.empty_table().select(columns), 0, 0, 0), first_row


def is_ragged(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def count_elements(group: pq.RowGroupMetaData, column: str) -> int:
    """Count the elements of a row group's lists; `read_block` rejects empty and null ones, counted as one."""
    leaves = (group.column(i) for i in range(group.num_columns))
    return next(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)


def split_block(block: Block, parts: int) -> list[Block]:
    """Split a block into at most `parts` non-empty parts of nearly equal length."""
    bounds = np.linspace(0, block.rows, min(parts, max(1, block.rows)) + 1).astype(int).tolist()
    return [replace(block, start=block.start + start, rows=end - start) for start, end in pairwise(bounds)]


def read_block(
    read_row_group: Callable[[Path, int, tuple[str, ...]], pa.Table], columns: tuple[str, ...], block: Block
) -> Batch:
    table = read_row_group(block.path, block.row_group, columns)
    return to_batch(table, block.start, block.rows, block.first_row)


def read_row_group(path: Path, number: int, columns: tuple[str, ...]) -> pa.Table:
    """Read the columns of a row group, each in one chunk.

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
            " run the flow again to rebuild it; training resumes from its newest checkpoint"
        ) from error
    for name in columns:
        if has_missing_values(to_array(table.column(name))):
            raise ValueError(f"the column {name} of the shard {path} has missing values")
    return table


def to_array(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array, without a copy if it has one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def has_missing_values(lists: pa.Array) -> bool:
    if lists.null_count or not is_ragged(lists.type):
        return bool(lists.null_count)
    return bool(lists.values.null_count or (np.diff(lists.offsets) == 0).any())


def to_batch(table: pa.Table, start: int, count: int, first_row: int) -> Batch:
    """Convert `count` examples of a row group, from `start` on; `first_row` is the row group's first row."""
    end = start + count
    if not is_ragged(table.column(0).type):
        return {name: to_numpy(table.column(name))[start:end] for name in table.column_names}
    lists = to_array(table.column(0))
    offsets = lists.offsets.to_numpy()
    first, last = np.searchsorted(offsets, [start, end - 1], side="right") - 1
    lengths = np.diff(np.clip(offsets[first : last + 2], start, end))
    row = np.repeat(np.arange(first, last + 1), lengths)
    return {
        table.column_names[0]: lists.values.to_numpy()[start:end],
        "row": first_row + row,
        "position": np.arange(start, end) - offsets[row],
    }


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Convert to (rows,), or (rows, width) for fixed-length lists."""
    values = to_array(column)
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy().reshape(-1, values.type.list_size)
    return values.to_numpy()


def bytes_per_row(values: np.ndarray) -> int:
    return values.dtype.itemsize * int(np.prod(values.shape[1:]))


def describe_dtype(values: np.ndarray) -> str:
    return f"{values.dtype}" + "".join(f" x {width}" for width in values.shape[1:])


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
