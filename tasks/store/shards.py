"""Parquet shards: written in order, read by row group, and processed in threads."""

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

MAX_THREADS = 8  # each thread holds a few items in memory
BLOCKS = 3  # one is being filled, one is being written, and one is queued

Compression = Literal["lz4", "zstd"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class ShardWriter:
    """Writes batches in order to `shard-00000.parquet` and so on, each batch as one row group."""

    def __init__(self, out: Path, shard_bytes: int, name: str = "shard", **options: object) -> None:
        self._out = out
        self._name = name
        self._shard_bytes = shard_bytes
        self._options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False} | options
        self._writer: pq.ParquetWriter | None = None
        self._shard_size = 0
        self.count = 0
        self.bytes = 0

    def write(self, batch: pa.RecordBatch, size: int) -> None:
        """Write a batch; `size` is added to the shard's bytes, and a full shard is closed."""
        if batch.num_rows == 0:
            return
        if self._writer is None:
            path = self._out / f"{self._name}-{self.count:05d}.parquet"
            self._writer = pq.ParquetWriter(path, batch.schema, **self._options)
            self.count += 1
        self._writer.write_batch(batch, row_group_size=batch.num_rows)
        self.bytes += size
        self._shard_size += size
        if self._shard_size >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._shard_size = None, 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class RowGroup:
    """A reference to a row group of a shard, readable in any process with access to the store."""

    path: Path
    group: int
    columns: tuple[str, ...]

    def read(self) -> pa.Array:
        """Read the only column; raise OSError with the file name if the shard can't be read."""
        return self.read_batch()[0]

    def read_batch(self) -> pa.RecordBatch:
        """Read all columns; raise OSError with the file name if the shard can't be read."""
        try:
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(self.group, columns=list(self.columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise OSError(
                f"the shard {self.path} can't be read ({error}): rerun with LEXLOOM_VERIFY=full, which"
                " rebuilds damaged artifacts"
            ) from error
        return pa.record_batch({name: table[name].combine_chunks() for name in self.columns})

    def __str__(self) -> str:
        return f"{self.path}, row group {self.group}"


def list_row_groups(artifact: Artifact, *columns: str) -> list[RowGroup]:
    """List the row groups of an artifact, in order."""
    return [
        RowGroup(path, group, columns)
        for path in artifact.files()
        for group in range(pq.read_metadata(path).num_row_groups)
    ]


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Apply `function` to items in threads and yield the results in order; only a few items are in flight."""
    threads = min(MAX_THREADS, available_cpus())
    with ThreadPoolExecutor(threads, thread_name_prefix="map") as pool:
        running: deque[Future[Result]] = deque()
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
    """Writes a stream of int32 rows as row groups and shards of exact sizes, in a second thread.

    Fill `block` (an array per column, (rows,) or (rows, width)) from row `filled` on, and call `flush` at
    `limit` rows. A block has room for `spare` more rows; rows beyond the limit are moved to the next block.
    Each block becomes one row group. Three blocks are used in turn, so memory is bounded.
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
        # no dictionary: lz4 and zstd already exploit that neighbouring rows are similar
        self._options = {
            "compression": compression,
            "use_dictionary": False,
            "write_statistics": False,
            "column_encoding": column_encoding,
        }
        rows = min(rows_per_group, rows_per_shard) + spare
        self._blocks = [tuple(make_column(field, rows) for field in schema) for _ in range(BLOCKS)]
        self._writes: list[Future[None] | None] = [None] * BLOCKS
        self._current = 0
        self._file: pq.ParquetWriter | None = None
        self._flushed = 0
        self.filled = 0

    @property
    def block(self) -> tuple[NDArray[np.int32], ...]:
        return self._blocks[self._current]

    @property
    def limit(self) -> int:
        """The maximum number of rows in the current block: a row group, or the rest of the shard."""
        return min(self._rows_per_group, self._rows_per_shard - self._flushed % self._rows_per_shard)

    @property
    def rows(self) -> int:
        return self._flushed + self.filled

    @property
    def shards(self) -> int:
        return -(-self.rows // self._rows_per_shard)

    def flush(self) -> None:
        """Queue at most `limit` rows for writing, and switch to a free block."""
        rows = min(self.filled, self.limit)
        shard = self._flushed // self._rows_per_shard
        full = self.block
        columns = [column[:rows] for column in full]
        self._writes[self._current] = self._thread.submit(self._write, shard, columns)
        self._current = (self._current + 1) % BLOCKS
        if (write := self._writes[self._current]) is not None:
            write.result()  # wait until the block is free; raises errors of the writing thread
        excess = self.filled - rows
        for old, new in zip(full, self.block, strict=True):
            new[:excess] = old[rows : rows + excess]
        self._flushed += rows
        self.filled = excess

    def finish(self) -> None:
        """Write the remaining rows and close the last shard."""
        while self.filled:
            self.flush()
        for write in self._writes:
            if write is not None:
                write.result()
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
        arrays = [to_arrow(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._file.write_table(pa.table(arrays, schema=self._schema), row_group_size=self._rows_per_group)


@contextmanager
def block_writer(out: Path, schema: pa.Schema, **options: Any) -> Iterator[BlockWriter]:
    """Yield a `BlockWriter` and finish it at the end; the last file is closed even after an error."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="block-writer") as thread:
        writer = BlockWriter(out, schema, thread=thread, **options)
        try:
            yield writer
            writer.finish()
        finally:
            thread.shutdown()
            writer.close()


def make_column(field: pa.Field, rows: int) -> NDArray[np.int32]:
    width = (field.type.list_size,) if pa.types.is_fixed_size_list(field.type) else ()
    return np.empty((rows, *width), np.int32)


def to_arrow(column: NDArray[np.int32], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), type=kind)
