"""Parquet shards, written in order and read by row groups, with the work on them done in threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lexloom.models.cpus import available_cpus
from lexloom.tasks.store.artifacts import Artifact

MAX_THREADS = 8  # each holds a few pieces in memory
BLOCKS = 3  # one that is filled, one that is written, one that waits

Compression = Literal["lz4", "zstd"]

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class ShardWriter:
    """Writes batches, in order, as `shard-00000.parquet` and so on: a row group a batch."""

    def __init__(self, out: Path, shard_bytes: int, name: str = "shard", **options: object) -> None:
        self._out = out
        self._name = name
        self._shard_bytes = shard_bytes
        self._options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False} | options
        self._writer: pq.ParquetWriter | None = None
        self._held = 0
        self.count = 0
        self.bytes = 0

    def write(self, batch: pa.RecordBatch, size: int) -> None:
        """`size` is what the batch counts towards the shard's bytes."""
        if batch.num_rows == 0:
            return
        if self._writer is None:
            path = self._out / f"{self._name}-{self.count:05d}.parquet"
            self._writer = pq.ParquetWriter(path, batch.schema, **self._options)
            self.count += 1
        self._writer.write_batch(batch, row_group_size=batch.num_rows)
        self.bytes += size
        self._held += size
        if self._held >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._held = None, 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class RowGroup:
    """A piece of a shard, to be read in any thread or process that sees the store."""

    path: Path
    group: int
    columns: tuple[str, ...]

    def read(self) -> pa.Array:
        """The only column; an OSError that names the file where it can't be read."""
        return self.read_batch()[0]

    def read_batch(self) -> pa.RecordBatch:
        """All columns; an OSError that names the file where it can't be read."""
        try:
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(self.group, columns=list(self.columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise OSError(
                f"the shard {self.path} can't be read ({error}): LEXLOOM_VERIFY=full finds it damaged, and"
                " builds it again"
            ) from error
        return pa.record_batch({name: table[name].combine_chunks() for name in self.columns})

    def __str__(self) -> str:
        return f"{self.path}, row group {self.group}"


def row_groups(artifact: Artifact, *columns: str) -> list[RowGroup]:
    """The artifact's row groups, in order."""
    return [
        RowGroup(path, group, columns)
        for path in artifact.files()
        for group in range(pq.read_metadata(path).num_row_groups)
    ]


def in_order(function: Callable[[Item], Outcome], items: Iterable[Item]) -> Generator[Outcome]:
    """`function` of every item, worked out in threads, handed out in order; few items wait at any time."""
    threads = min(MAX_THREADS, available_cpus())
    with ThreadPoolExecutor(threads, thread_name_prefix="piece") as pool:
        running: deque[Future[Outcome]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class BlockWriter:
    """Cuts a stream of int32 rows into row groups and shards of exact sizes, written in a second thread.

    Fill `block`, an array a column, (rows,) or (rows, width), behind row `filled`, and call `flush` when
    `limit` rows are there. A block has room for `spare` rows more; what lies beyond the limit moves to the
    next block. A block is a row group; three of them rotate, so memory is bounded.
    """

    def __init__(
        self,
        out: Path,
        schema: pa.Schema,
        *,
        rows_per_group: int,
        rows_per_shard: int,
        compression: Compression,
        thread: ThreadPoolExecutor,
        name: str = "shard",
        spare: int = 0,
        column_encoding: dict[str, str] | None = None,
    ) -> None:
        self._out, self._name, self._schema, self._thread = out, name, schema, thread
        self._rows_per_group, self._rows_per_shard = rows_per_group, rows_per_shard
        # no dictionary: neighbouring rows repeat each other, which the compressions find by themselves
        self._options = {
            "compression": compression,
            "use_dictionary": False,
            "write_statistics": False,
            "column_encoding": column_encoding,
        }
        rows = min(rows_per_group, rows_per_shard) + spare
        self._blocks = [tuple(empty_column(field, rows) for field in schema) for _ in range(BLOCKS)]
        self._written: list[Future[None] | None] = [None] * BLOCKS
        self._turn = 0
        self._file: pq.ParquetWriter | None = None
        self._flushed = 0
        self.filled = 0

    @property
    def block(self) -> tuple[NDArray[np.int32], ...]:
        return self._blocks[self._turn]

    @property
    def limit(self) -> int:
        """Rows that the present block may have: a row group, or what the shard still lacks."""
        return min(self._rows_per_group, self._rows_per_shard - self._flushed % self._rows_per_shard)

    @property
    def rows(self) -> int:
        return self._flushed + self.filled

    @property
    def shards(self) -> int:
        return -(-self.rows // self._rows_per_shard)

    def flush(self) -> None:
        """Sends at most `limit` rows on their way, and turns to a block that is free."""
        rows = min(self.filled, self.limit)
        shard = self._flushed // self._rows_per_shard
        full = self.block
        columns = [column[:rows] for column in full]
        self._written[self._turn] = self._thread.submit(self._write, shard, columns)
        self._turn = (self._turn + 1) % BLOCKS
        if (written := self._written[self._turn]) is not None:
            written.result()  # waits, and raises here what went wrong there
        beyond = self.filled - rows
        for old, new in zip(full, self.block, strict=True):
            new[:beyond] = old[rows : rows + beyond]
        self._flushed += rows
        self.filled = beyond

    def finish(self) -> None:
        """Writes what is left and closes the last shard."""
        while self.filled:
            self.flush()
        for written in self._written:
            if written is not None:
                written.result()
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, shard: int, columns: list[NDArray[np.int32]]) -> None:
        path = self._out / f"{self._name}-{shard:05d}.parquet"
        if self._file is None or not path.exists():
            self.close()
            self._file = pq.ParquetWriter(path, self._schema, **self._options)
        arrays = [as_arrow(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._file.write_table(pa.table(arrays, schema=self._schema), row_group_size=self._rows_per_group)


@contextmanager
def block_writer(out: Path, schema: pa.Schema, **options: Any) -> Iterator[BlockWriter]:
    """A `BlockWriter` whose shards are whole when the block ends; the last file is closed in any case."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="block-writer") as thread:
        writer = BlockWriter(out, schema, thread=thread, **options)
        try:
            yield writer
            writer.finish()
        finally:
            thread.shutdown()
            writer.close()


def empty_column(field: pa.Field, rows: int) -> NDArray[np.int32]:
    width = (field.type.list_size,) if pa.types.is_fixed_size_list(field.type) else ()
    return np.empty((rows, *width), np.int32)


def as_arrow(column: NDArray[np.int32], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), type=kind)
