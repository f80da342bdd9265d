"""JSON lines, parsed by Arrow; on errors, Python's parser finds the line and the reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from tasks.raw import LARGEST, Options, Raw, Where, as_text, at_line, check_columns, select, wanted_columns
from tasks.streams import open_text
from tasks.text_files import read_lines

MOST_DIGITS = 40


def read_json_lines(path: Path, options: Options) -> Iterator[Raw]:
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
            yield raw
    columns.check()


class Columns:
    """Parses the wanted columns, which any line may lack, and labels of either type."""

    def __init__(self, options: Options, path: Path) -> None:
        self._path = path
        self._wanted = wanted_columns(options)
        self._has_labels = len(self._wanted) > 1
        self._label_types = [pa.int64(), pa.string()]  # the type of the previous lines comes first
        self._keys: list[str] | None = None  # of the first lines
        self._met: set[str] = set()

    def parse(self, lines: list[bytes], where: Where) -> pa.RecordBatch:
        """Parse some lines into columns; raise ValueError with the line number if one is malformed."""
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


def parse_slowly(lines: list[bytes], wanted: list[str], where: Where) -> pa.RecordBatch:
    """Parse lines with Python's parser, which reports the exact place and reason of an error.

    The first column is text; the second, if any, has the type of its first value.
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
                    f"{where(row)}: {name!r} is an integer of more than 64 bits ({str(value)[:20]}...): write"
                    " it as a string"
                )
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(
                    f"{where(row)}: {name!r} is {json.dumps(value)[:40]}, but it must be"
                    f" {'a string' if kind is str else 'an integer'}"
                )
        if kind is str:
            text = pa.array([as_bytes(value) for value in values], pa.binary())
            arrays.append(text if name == wanted[0] else as_text(text, name, where))
        else:
            arrays.append(pa.array(values, pa.int64()))
    return pa.record_batch(arrays, names=wanted)


class HugeInteger(str):
    """The digits of an integer that is too long to parse."""


def parse_integer(digits: str) -> "int | HugeInteger":
    return int(digits) if len(digits) <= MOST_DIGITS else HugeInteger(digits)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"), parse_int=parse_integer)
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
