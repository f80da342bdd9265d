"""JSON lines, parsed by Arrow; on errors, Python's parser finds the line and the reason."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from lexloom.tasks.readers.labels import WHOLE_AS_DECIMAL, WRITTEN_AS_DECIMALS
from lexloom.tasks.readers.raw import (
    Locator,
    RawBatch,
    ReadOptions,
    as_text,
    at_line,
    check_columns,
    select,
    wanted_columns,
)
from lexloom.tasks.readers.streams import open_text
from lexloom.tasks.readers.text_files import read_lines

SHOWN_CHARACTERS = 40
LABEL_TYPES = (pa.int64(), pa.string(), pa.bool_())  # that Arrow's parser can expect


def read_json_lines(path: Path, options: ReadOptions) -> Iterator[RawBatch]:
    """Read one JSON object per line; empty lines are skipped, and missing keys are null."""
    columns = Columns(options, path)
    with open_text(path, options.encoding) as (stream, tell):
        for lines, numbers, _ in read_lines(path, stream):
            kept = [(line, number) for line, number in zip(lines, numbers, strict=True) if line.strip()]
            if not kept:
                continue
            lines, places = [line for line, _ in kept], [number for _, number in kept]
            batch = columns.parse(lines, at_line(path, places))
            raw = select(batch, options, str(path), at_line(path, places), tell())
            raw.encoding = stream.encoding
            raw.notes += columns.take_notes()
            yield raw
    columns.check()


class Columns:
    """Parses the wanted columns, which any line may lack, and labels of any type."""

    def __init__(self, options: ReadOptions, path: Path) -> None:
        self._path = path
        self._wanted = wanted_columns(options)
        self._has_labels = len(self._wanted) > 1
        self._label_types = list(LABEL_TYPES)  # the type of the previous lines comes first
        self._keys: list[str] | None = None  # of the first lines
        self._met: set[str] = set()
        self._notes = Counter[str]()

    def parse(self, lines: list[bytes], where: Locator) -> pa.RecordBatch:
        """Parse some lines into columns; raise ValueError with the line number if one is malformed."""
        for label_type in self._label_types if self._has_labels else self._label_types[:1]:
            schema = pa.schema(list(zip(self._wanted, [pa.string(), label_type], strict=False)))
            batch = parse_fast(lines, schema)
            if batch is not None:
                break
        else:
            batch = parse_slowly(lines, self._wanted, where, self._notes)
        if self._has_labels and batch[1].type != self._label_types[0]:
            self._label_types.sort(key=lambda kind: kind != batch[1].type)
        self._met |= {name for name in self._wanted if batch[name].null_count < len(batch)}
        if self._keys is None and len(self._met) < len(self._wanted):
            records = (parse_line(line, where(row)) for row, line in enumerate(lines))
            self._keys = list(dict.fromkeys(key for record in records for key in record))
        return batch

    def take_notes(self) -> Counter[str]:
        """Return the counts of altered labels since the last call."""
        notes, self._notes = self._notes, Counter()
        return notes

    def check(self) -> None:
        """At the end of the file, raise ValueError if no line has a wanted column."""
        if self._keys is not None:
            check_columns(
                [name for name in self._wanted if name not in self._met], self._keys, str(self._path)
            )


def parse_fast(lines: list[bytes], schema: pa.Schema) -> pa.RecordBatch | None:
    """Parse lines with Arrow; None if it finds an error, which `parse_slowly` then explains."""
    block = b"\n".join(lines)
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    return table.combine_chunks().to_batches()[0] if table.num_rows == len(lines) else None


def parse_slowly(
    lines: list[bytes], wanted: list[str], where: Locator, notes: Counter[str]
) -> pa.RecordBatch:
    """Parse lines with Python's parser, which reports the exact place and reason of an error.

    The first column is text; the second, if any, has labels of any type, as text.
    """
    records = [parse_line(line, where(row)) for row, line in enumerate(lines)]
    texts = []
    for row, record in enumerate(records):
        value = record.get(wanted[0])
        if value is not None and type(value) is not str:
            raise ValueError(f"{where(row)}: {wanted[0]!r} is {format_value(value)}, but it must be a string")
        texts.append(as_bytes(value))
    columns = [pa.array(texts, pa.binary())]
    for name in wanted[1:]:
        labels = [
            label_bytes(record.get(name), name, where, row, notes) for row, record in enumerate(records)
        ]
        columns.append(as_text(pa.array(labels, pa.binary()), name, where))
    return pa.record_batch(columns, names=wanted)


def label_bytes(value: Any, name: str, where: Locator, row: int, notes: Counter[str]) -> bytes | None:
    """Convert a label to text, as the line writes it; raise ValueError if it cannot be a label."""
    if isinstance(value, Number):
        whole = re.sub(WHOLE_AS_DECIMAL, r"\1", value)
        notes[WRITTEN_AS_DECIMALS] += whole != value
        return whole.encode()
    if isinstance(value, bool):
        return json.dumps(value).encode()
    if value is None or isinstance(value, str):
        return as_bytes(value)
    raise ValueError(
        f"{where(row)}: {name!r} is {format_value(value)}, but a label must be a string, a number or a"
        " boolean"
    )


def format_value(value: Any) -> str:
    """Format a JSON value for an error message, truncated to SHOWN_CHARACTERS."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return (value if isinstance(value, Number) else json.dumps(value))[:SHOWN_CHARACTERS]


class Number(str):
    """A number as it is written in the file, with any number of digits."""


def parse_constant(name: str) -> Number | None:
    """Read NaN, which pandas writes for missing values, as null; keep infinities as text."""
    return None if name == "NaN" else Number(name)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(
            line.decode("utf-8", "surrogateescape"),
            parse_int=Number,
            parse_float=Number,
            parse_constant=parse_constant,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}): a .jsonl file has one JSON object per line"
        ) from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is not a JSON object: a .jsonl file has one JSON object per line")
    return record


def as_bytes(text: str | None) -> bytes | None:
    """Encode as UTF-8; bytes of the file that were not valid UTF-8 are restored."""
    if text is None:
        return None
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
