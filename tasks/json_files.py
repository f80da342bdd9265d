"""JSON lines: by Arrow's parser, and by Python's where something is wrong, to say what and where."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from tasks.raw import LARGEST, Options, Raw, Where, as_text, at_line, check_columns, select, wanted_columns
from tasks.streams import opened_text
from tasks.text_files import read_lines

MOST_DIGITS = 40


def read_json_lines(path: Path, options: Options) -> Iterator[Raw]:
    """A JSON object a line; empty lines are passed over, and a key that a line lacks is null."""
    columns = Columns(options, path)
    with opened_text(path, options.encoding) as (stream, tell):
        for lines, numbers, _ in read_lines(path, stream):
            kept = [(line, number) for line, number in zip(lines, numbers, strict=True) if line.strip()]
            if not kept:
                continue
            lines, places = [line for line, _ in kept], [number for _, number in kept]
            batch = columns.parse(lines, at_line(path, places))
            raw = select(batch, options, str(path), at_line(path, places), tell())
            raw.encoding = stream.encoding
            yield raw
    columns.check()


class Columns:
    """The wanted columns of a file, whichever lines have them, and labels of either type."""

    def __init__(self, options: Options, path: Path) -> None:
        self._path = path
        self._wanted = wanted_columns(options)
        self._has_labels = len(self._wanted) > 1
        self._label_types = [pa.int64(), pa.string()]  # the type of the lines before comes first
        self._keys: list[str] | None = None  # of the first lines
        self._met: set[str] = set()

    def parse(self, lines: list[bytes], where: Where) -> pa.RecordBatch:
        """The columns of some lines; ValueError, with the line, where one is malformed."""
        for label_type in self._label_types if self._has_labels else self._label_types[:1]:
            schema = pa.schema(list(zip(self._wanted, [pa.string(), label_type], strict=False)))
            batch = parse_fast(lines, schema)
            if batch is not None:
                break
        else:
            batch = parse_slowly(lines, self._wanted, where)
        if self._has_labels and batch[1].type != self._label_types[0]:
            self._label_types.reverse()
        self._met |= {name for name in self._wanted if batch[name].null_count < len(batch)}
        if self._keys is None and len(self._met) < len(self._wanted):
            records = (parse_line(line, where(row)) for row, line in enumerate(lines))
            self._keys = list(dict.fromkeys(key for record in records for key in record))
        return batch

    def check(self) -> None:
        """At the end of the file: ValueError where no line has a column."""
        if self._keys is not None:
            check_columns(
                [name for name in self._wanted if name not in self._met], self._keys, str(self._path)
            )


def parse_fast(lines: list[bytes], schema: pa.Schema) -> pa.RecordBatch | None:
    """Arrow's parser; None where it finds anything odd, for `parse_slowly` to say what."""
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


def parse_slowly(lines: list[bytes], wanted: list[str], where: Where) -> pa.RecordBatch:
    """The same by Python's parser, with the precise place and reason of what is wrong.

    The first column is text; the second, if there is one, has the type of its first value.
    """
    records = [parse_line(line, where(row)) for row, line in enumerate(lines)]
    arrays = []
    for name in wanted:
        values = [record.get(name) for record in records]
        first = next((value for value in values if value is not None), None)
        kind = str if name == wanted[0] or isinstance(first, str) else int
        for row, value in enumerate(values):
            if isinstance(value, HugeInteger) or (type(value) is int and not -LARGEST <= value <= LARGEST):
                raise ValueError(
                    f"{where(row)}: {name!r} is an integer beyond 64 bits ({str(value)[:20]}...): write it as"
                    " text"
                )
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(
                    f"{where(row)}: {name!r} is {json.dumps(value)[:40]}, where"
                    f" {'text' if kind is str else 'a whole number'} belongs"
                )
        if kind is str:
            text = pa.array([as_bytes(value) for value in values], pa.binary())
            arrays.append(text if name == wanted[0] else as_text(text, name, where))
        else:
            arrays.append(pa.array(values, pa.int64()))
    return pa.record_batch(arrays, names=wanted)


class HugeInteger(str):
    """An integer's digits, too many to be made a number of."""


def parse_integer(digits: str) -> "int | HugeInteger":
    return int(digits) if len(digits) <= MOST_DIGITS else HugeInteger(digits)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"), parse_int=parse_integer)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): a .jsonl file has one JSON object a line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no JSON object: a .jsonl file has one object a line, with its columns")
    return record


def as_bytes(text: str | None) -> bytes | None:
    """UTF-8, or the bytes that stood in the file where it was none; lone surrogates become such bytes."""
    if text is None:
        return None
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
