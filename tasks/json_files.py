"""JSON lines: by Arrow's parser, and by Python's where something is wrong, to say what and where."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from tasks.raw import Options, Raw, Where, at_line, check_columns, select
from tasks.streams import opened_text
from tasks.text_files import read_lines


def read_json_lines(path: Path, options: Options) -> Iterator[Raw]:
    """A JSON object a line; empty lines are passed over."""
    schema = None
    with opened_text(path, options.encoding) as (stream, tell):
        for lines, numbers, _ in read_lines(path, stream):
            kept = [(line, number) for line, number in zip(lines, numbers, strict=True) if line.strip()]
            if not kept:
                continue
            lines, places = [line for line, _ in kept], [number for _, number in kept]
            if schema is None:
                schema = schema_of(parse_line(lines[0], f"{path}, line {places[0]}"), options, path)
            batch = parse_fast(lines, schema)
            if batch is None:
                batch = parse_slowly(lines, schema, at_line(path, places))
            raw = select(batch, options, str(path), at_line(path, places), tell())
            raw.encoding = stream.encoding
            yield raw


def schema_of(record: dict[str, Any], options: Options, path: Path) -> pa.Schema:
    """What is wanted of every line, as the first line has it."""
    wanted = [(options.text_column, pa.string())]
    if options.label_column is not None:
        label = record.get(options.label_column)
        wanted.append((options.label_column, pa.string() if isinstance(label, str) else pa.int64()))
    check_columns([name for name, _ in wanted], list(record), str(path))
    return pa.schema(wanted)


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


def parse_slowly(lines: list[bytes], schema: pa.Schema, where: Where) -> pa.RecordBatch:
    """The same by Python's parser, with the precise place and reason of what is wrong."""
    records = [parse_line(line, where(row)) for row, line in enumerate(lines)]
    columns = []
    for field in schema:
        kind = str if field.type == pa.string() else int
        values = [record.get(field.name) for record in records]
        for row, value in enumerate(values):
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(
                    f"{where(row)}: {field.name!r} is {json.dumps(value)[:40]}, where"
                    f" {'text' if kind is str else 'a whole number'} belongs"
                )
        columns.append(
            pa.array([as_bytes(value) for value in values]) if kind is str else pa.array(values, pa.int64())
        )
    return pa.record_batch(columns, names=schema.names)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
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
