"""Reads Parquet files, a few MB of rows at a time.

A column with a large dictionary is read as a dictionary array: a few kilobytes can encode terabytes of
repeated text, so a batch is split by the size of its text before the text is decoded.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lexloom.tasks.readers.raw import (
    BLOCK_BYTES,
    RawBatch,
    ReadOptions,
    at_row,
    check_columns,
    select,
    wanted_columns,
)
from lexloom.tasks.readers.streams import open_binary, split_name

MAX_BATCH_ROWS = 1 << 14
MAX_BATCH_BYTES = 4 * BLOCK_BYTES
MAX_COMPRESSION = 50


def read_parquet(path: Path, options: ReadOptions) -> Iterator[RawBatch]:
    """Read the text column (and the label column), a few MB of rows at a time."""
    _, compression = split_name(path)
    if compression is None:
        yield from read_parquet_file(path, path, options)
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as plain:  # reading Parquet needs random access
        with open_binary(path) as (stream, _):
            shutil.copyfileobj(stream, plain, BLOCK_BYTES)
        plain.flush()
        yield from read_parquet_file(Path(plain.name), path, options)


def read_parquet_file(plain: Path, path: Path, options: ReadOptions) -> Iterator[RawBatch]:
    columns = wanted_columns(options)
    size = path.stat().st_size
    check_columns(columns, pq.read_schema(plain).names, str(path))
    repetitive = find_repetitive(pq.read_metadata(plain))
    with pq.ParquetFile(plain, read_dictionary=[name for name in columns if name in repetitive]) as file:
        read, total = 0, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(rows_per_batch(file, options), columns=columns, use_threads=False):
            for part in split_by_text(batch):
                first, read = read + 1, read + part.num_rows
                yield select(part, options, str(path), at_row(path, first), size * read // total)


def find_repetitive(metadata: pq.FileMetaData) -> set[str]:
    """Return columns with a chunk that is mostly dictionary, or compressed more than text can be."""
    found = set()
    for n in range(metadata.num_row_groups):
        for m in range(metadata.num_columns):
            chunk = metadata.row_group(n).column(m)
            size = max(1, chunk.total_compressed_size)
            if chunk.has_dictionary_page and (
                2 * (chunk.data_page_offset - chunk.dictionary_page_offset) > size
                or chunk.total_uncompressed_size > MAX_COMPRESSION * size
            ):
                found.add(chunk.path_in_schema)
    return found


def split_by_text(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield slices whose decoded columns have at most MAX_BATCH_BYTES, or that have one row."""
    widths = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            widths += lengths.fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(widths)
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + MAX_BATCH_BYTES, side="right")))
        yield batch.slice(start, end - start)
        start = end


def rows_per_batch(file: pq.ParquetFile, options: ReadOptions) -> int:
    """Return the number of rows with about BLOCK_BYTES of text, from the row group with the longest texts."""
    widest = 1
    for n in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(n)
        for m in range(group.num_columns):
            if group.column(m).path_in_schema == options.text_column and group.num_rows:
                widest = max(widest, group.column(m).total_uncompressed_size // group.num_rows)
    return max(1, min(MAX_BATCH_ROWS, BLOCK_BYTES // widest))
