"""Batches from Parquet shards, in an order that does not depend on the number of workers.

Blocks of rows are permuted by (seed, epoch), and the resulting sequence is cut into *lanes*, whose lengths
differ by at most one. A block is a row group, or a part of one if there are few row groups. The order of the
examples is round-robin over the lanes: example p of the epoch is row p // lanes of lane p % lanes, and a
global batch consists of the next `batch_size` examples. A worker owns whole lanes, so it reads only its own
blocks, each from front to back, while the set of examples in batch b depends only on (seed, epoch, b). All
batches are full except the last one. A position in the stream is therefore two integers: the epoch, and the
number of batches completed in it.

Neighbouring rows of a block often come from the same text. If they should not be trained on together, each
lane shuffles a group of blocks in memory (its part of the shuffle buffer).

In a column of variable-length lists, such as a text's tokens, the examples are the elements, not the lists.
So batches have a fixed size whatever the lengths, and a list may be split between batches. Each element comes
with the number of its list and its position in the list.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lexloom.training.read_ahead import read_ahead

BYTES_AT_ONCE = 1 << 20  # small batches are gathered together: 64 lanes have to be sliced for each gathering
MIN_BLOCKS = 128  # row groups are split into at least so many, so that small data is shuffled too
CACHE_BYTES = 128 << 20  # of row groups that are split into blocks, which are read at different times
LANE_ENDS_CACHE_BYTES = 8 << 20  # of row groups, if only those at the end of a lane are split

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
        shuffle: permute the blocks; otherwise the lanes are consecutive ranges of the files' rows.
        shuffle_buffer_bytes: bytes of rows that all lanes together shuffle in memory; 0 keeps the order of a
            block's rows.
        most_examples: read only about this many examples, in evenly spaced blocks; None for all.
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
        most_examples: int | None = None,
    ) -> None:
        if batch_size < lanes:
            raise ValueError(f"batch_size is {batch_size}: it must be at least {lanes}, one example per lane")
        if world_size > lanes:
            raise ValueError(f"{world_size} workers can't share {lanes} lanes: use at most {lanes} workers")
        self.columns = list(columns)
        self.lanes = lanes
        self.batch_size = batch_size
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size = rank, world_size
        shards, rows = [], 0
        for path in files:
            blocks, empty, rows = read_metadata(path, self.columns, rows)
            shards.append((path, blocks, empty))
        row_groups = [block for _, blocks, _ in shards for block in blocks]
        parts = -(-MIN_BLOCKS // len(row_groups)) if row_groups else 1
        self.blocks = [part for block in row_groups if block.rows for part in split_block(block, parts)]
        self.examples = sum(block.rows for block in self.blocks)
        if self.examples == 0:
            raise ValueError(f"the {len(files)} shards contain no rows")
        if most_examples is not None and most_examples < self.examples:
            self.blocks = self.blocks[:: -(-self.examples // most_examples)]
            self.examples = sum(block.rows for block in self.blocks)
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

        self._row_bytes = sum(bytes_per_row(values) for values in self._empty.values())
        self.lane_buffer_rows = -(-shuffle_buffer_bytes // (self._row_bytes * lanes))
        largest = max(block.rows for block in row_groups) * sum(
            bytes_per_row(self._empty[name]) for name in columns
        )
        cached_groups = max(1, (CACHE_BYTES if parts > 1 else LANE_ENDS_CACHE_BYTES) // largest)
        self._read_block = partial(read_block, lru_cache(cached_groups)(read_row_group), tuple(columns))

    def epoch(self, number: int) -> "Epoch":
        """Plan an epoch: the blocks of each lane, in order; the same on every worker."""
        order = np.arange(len(self.blocks))
        if self.shuffle:
            np.random.default_rng([self.seed, number]).shuffle(order)
        lengths = [count_lane_rows(self.examples, lane, self.lanes) for lane in range(self.lanes)]
        lanes = cut_into_lanes([self.blocks[index] for index in order], lengths)
        return Epoch(number, lanes, self.examples, self.batch_size)

    def read(self, epoch: "Epoch", start: int = 0) -> Generator[Batch]:
        """Yield this worker's shares of the global batches of `epoch` from number `start` on.

        They are read ahead in a thread. A share is empty if all of the worker's lanes have ended: every
        worker gets `epoch.steps` batches.
        """
        return read_ahead(self._read_now(epoch, start))

    def _read_now(self, epoch: "Epoch", start: int) -> Iterator[Batch]:
        own = range(self.rank, self.lanes, self.world_size)
        read = [count_lane_rows(epoch.examples_until(start), lane, self.lanes) for lane in own]
        readers = [
            LaneReader(
                group_blocks(epoch.lanes[lane], self.lane_buffer_rows),
                self._read_block,
                skip,
                shuffle_seed=[self.seed, epoch.number, lane] if self.lane_buffer_rows else None,
            )
            for lane, skip in zip(own, read, strict=True)
        ]
        batches = max(1, BYTES_AT_ONCE // (self.batch_size * self._row_bytes))
        for first in range(start, epoch.steps, batches):
            last = min(first + batches, epoch.steps)
            ends = [count_lane_rows(epoch.examples_until(last), lane, self.lanes) for lane in own]
            rows = self._allocate(sum(ends) - sum(read))
            filled = 0
            for reader, begin, end in zip(readers, read, ends, strict=True):
                reader.read_into(rows, filled, end - begin)
                filled += end - begin
            if last == first + 1:
                yield rows
            else:
                yield from self._split_into_batches(rows, own, read, ends, first, last)
            read = ends

    def _allocate(self, rows: int) -> Batch:
        return {name: np.empty((rows, *like.shape[1:]), like.dtype) for name, like in self._empty.items()}

    def _split_into_batches(
        self, rows: Batch, lanes: Sequence[int], begins: list[int], ends: list[int], first: int, last: int
    ) -> Iterator[Batch]:
        """Split the rows `begins` to `ends` of `lanes`, lane after lane, into the batches `first` to `last`.

        A batch has the rows of the first lane first, and so on, as if it had been read alone.
        """
        places = [
            np.arange(begin, end) * self.lanes + lane
            for lane, begin, end in zip(lanes, begins, ends, strict=True)
        ]
        batch = np.concatenate(places) // self.batch_size - first
        order = np.argsort(batch, kind="stable")
        bounds = np.searchsorted(batch[order], np.arange(last - first + 1)).tolist()
        rows = {name: values.take(order, axis=0) for name, values in rows.items()}
        for start, end in pairwise(bounds):
            yield {name: values[start:end] for name, values in rows.items()}


@dataclass(frozen=True)
class Epoch:
    """One pass over the examples: the blocks of every lane, in reading order."""

    number: int
    lanes: list[list[Block]]
    examples: int
    batch_size: int

    @property
    def steps(self) -> int:
        """The number of global batches."""
        return -(-self.examples // self.batch_size)

    def examples_until(self, step: int) -> int:
        """Count the examples that all workers together have seen after the first `step` batches."""
        return min(self.examples, step * self.batch_size)


class LaneReader:
    """Reads the blocks of one lane from front to back, with one group of blocks in memory.

    With `shuffle_seed` the rows of a group are permuted, by that seed and the group's number.
    """

    def __init__(
        self,
        groups: list[list[Block]],
        read: Callable[[Block], Batch],
        skip_rows: int,
        shuffle_seed: list[int] | None = None,
    ) -> None:
        self._read_block, self._shuffle_seed = read, shuffle_seed
        sizes = [sum(block.rows for block in blocks) for blocks in groups]
        number = 0
        while number < len(sizes) and skip_rows >= sizes[number]:
            skip_rows -= sizes[number]
            number += 1
        self._remaining = iter(list(enumerate(groups))[number:])
        self._offset = skip_rows
        self._current: Batch | None = None

    def read_into(self, out: Batch, start: int, rows: int) -> None:
        """Copy the lane's next `rows` rows into `out` from row `start` on."""
        while rows:
            if self._current is None:
                self._current = self._read(*next(self._remaining))
                self._length = len(next(iter(self._current.values())))
            count = min(rows, self._length - self._offset)
            end = self._offset + count
            for name, values in self._current.items():
                out[name][start : start + count] = values[self._offset : end]
            start, rows, self._offset = start + count, rows - count, end
            if end == self._length:
                self._current, self._offset = None, 0

    def _read(self, number: int, blocks: list[Block]) -> Batch:
        parts = [self._read_block(block) for block in blocks]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self._shuffle_seed is None:
            return rows
        order = np.random.default_rng([*self._shuffle_seed, number]).permutation(sum(b.rows for b in blocks))
        # `values[order]` takes up to nine times as long for short rows
        return {name: values.take(order, axis=0) for name, values in rows.items()}


def count_lane_rows(examples: int, lane: int, lanes: int) -> int:
    """Count the rows of a lane among the first `examples` examples, which are round-robin over the lanes."""
    return (examples - lane + lanes - 1) // lanes


def cut_into_lanes(blocks: Sequence[Block], lengths: Sequence[int]) -> list[list[Block]]:
    """Cut a sequence of blocks into lanes with the given numbers of rows.

    A block that crosses the end of a lane is split. Both parts move to the front of their lanes: if a worker
    has both lanes and a shuffle buffer, it reads the parts soon after each other and decodes them once.
    """
    remaining = deque(blocks)
    lanes = []
    for length in lengths:
        lane = []
        while length:
            block = remaining.popleft()
            if block.rows <= length:
                lane.append(block)
                length -= block.rows
            else:
                lane.insert(1, replace(block, rows=length))
                rest = replace(block, start=block.start + length, rows=block.rows - length)
                remaining.appendleft(rest)
                length = 0
        lanes.append(lane)
    return lanes


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
    bounds = np.linspace(0, block.rows, min(parts, block.rows) + 1).astype(int).tolist()
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
