"""Reads CSV tables with Arrow, after detecting the dialect and checking it on the whole file."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from lexloom.tasks.readers import csv_dialects
from lexloom.tasks.readers.csv_dialects import GROWTH, DetectedDialect, QuoteRewriter, find_dialect
from lexloom.tasks.readers.labels import from_cells
from lexloom.tasks.readers.raw import (
    BLOCK_BYTES,
    Locator,
    RawBatch,
    ReadOptions,
    as_text,
    at_row,
    check_columns,
    select,
    wanted_columns,
)
from lexloom.tasks.readers.streams import open_text


def read_csv(path: Path, options: ReadOptions) -> Iterator[RawBatch]:
    """Read a table with a header line; quoted cells may contain line breaks."""

    @contextmanager
    def content() -> Iterator[Any]:
        with open_text(path, options.encoding) as (stream, _):
            yield stream

    columns = wanted_columns(options)
    found = find_dialect(content, path, options.csv, columns)
    if found is None:
        return
    check_columns(columns, found.names, str(path))
    rows = 0
    with open_text(path, options.encoding) as (stream, tell):
        for batch in table(stream, found, options):
            where = at_row(path, rows + 2)  # as in a spreadsheet, the header is row 1
            rows += batch.num_rows
            batch, notes = with_labels(batch, options, where)
            raw = select(batch, options, str(path), where, tell())
            raw.encoding, raw.notes = stream.encoding, notes
            yield raw
    if rows != found.rows:
        raise ValueError(f"{path} has {found.rows:,} rows, but {rows:,} were read: set {csv_dialects.FLAGS}")


def with_labels(
    batch: pa.RecordBatch, options: ReadOptions, where: Locator
) -> tuple[pa.RecordBatch, Counter[str]]:
    """Convert the labels to strings, blank cells to null; raise ValueError if a label is not UTF-8."""
    name = options.label_column
    if name is None or name not in batch.schema.names:
        return batch, Counter()
    labels, notes = from_cells(as_text(batch[name], name, where))
    return batch.set_column(batch.schema.get_field_index(name), name, labels), notes


def table(stream: Any, found: DetectedDialect, options: ReadOptions) -> Iterator[pa.RecordBatch]:
    """Yield the wanted columns, as bytes, in batches."""
    columns = wanted_columns(options)
    rewritten = found.escape is not None and found.quote is not None
    longest = (
        found.longest * GROWTH if rewritten else found.longest
    )  # a row and its line ending must fit into one block of Arrow
    return pyarrow.csv.open_csv(
        QuoteRewriter(stream, found) if rewritten else stream,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=max(BLOCK_BYTES, longest + 2)),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=found.delimiter,
            quote_char=found.quote or False,
            escape_char=False if rewritten else (found.escape or False),
            newlines_in_values=True,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.binary())
        ),
    )
