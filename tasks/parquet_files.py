"""Parquet files, a few MB of rows at a time."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from tasks.raw import BLOCK_BYTES, Options, Raw, at_row, check_columns, select, wanted_columns
from tasks.streams import opened, split_name

MAX_BATCH_ROWS = 1 << 14


def read_parquet(path: Path, options: Options) -> Iterator[Raw]:
    """The text column (and the label's), a few MB of rows at a time."""
    _, compression = split_name(path)
    if compression is None:
        yield from read_parquet_file(path, path, options)
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as plain:  # Parquet is read from its end
        with opened(path) as (stream, _):
            shutil.copyfileobj(stream, plain, BLOCK_BYTES)
        plain.flush()
        yield from read_parquet_file(Path(plain.name), path, options)


def read_parquet_file(plain: Path, path: Path, options: Options) -> Iterator[Raw]:
    columns = wanted_columns(options)
    size = path.stat().st_size
    with pq.ParquetFile(plain) as file:
        check_columns(columns, file.schema_arrow.names, str(path))
        read, total = 0, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(rows_per_batch(file, options), columns=columns, use_threads=False):
            first, read = read + 1, read + batch.num_rows
            yield select(batch, options, str(path), at_row(path, first), size * read // total)


def rows_per_batch(file: pq.ParquetFile, options: Options) -> int:
    """So many rows that a batch has about BLOCK_BYTES of text, by the widest row group."""
    widest = 1
    for n in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(n)
        for m in range(group.num_columns):
            if group.column(m).path_in_schema == options.text_column and group.num_rows:
                widest = max(widest, group.column(m).total_uncompressed_size // group.num_rows)
    return max(1, min(MAX_BATCH_ROWS, BLOCK_BYTES // widest))
