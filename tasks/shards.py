"""Parquet shards, written in order and read by row groups, with the work on them done in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Artifact

MAX_THREADS = 8  # each holds a few pieces in memory

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class ShardWriter:
    """Writes batches, in order, as `shard-00000.parquet` and so on: a row group a batch."""

    def __init__(self, out: Path, shard_bytes: int, **options: object) -> None:
        self._out = out
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
            path = self._out / f"shard-{self.count:05d}.parquet"
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


def row_groups(artifact: Artifact, column: str) -> list[Callable[[], pa.Array]]:
    """Readers of the artifact's row groups, in order: each, called in any thread, gives the column."""

    def reader(path: Path, group: int) -> Callable[[], pa.Array]:
        def read() -> pa.Array:
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(group, columns=[column], use_threads=False)
            return table[column].combine_chunks()

        return read

    return [
        reader(path, group)
        for path in artifact.files()
        for group in range(pq.read_metadata(path).num_row_groups)
    ]


def in_order(function: Callable[[Item], Outcome], items: Iterable[Item]) -> Iterator[Outcome]:
    """`function` of every item, worked out in threads, handed out in order; few items wait at any time."""
    threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
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
