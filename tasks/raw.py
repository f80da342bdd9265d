"""Documents as they stand in a source: batches of bytes and labels, and how they become text.

Every reader yields `Raw` batches of a few MB, each with a way to say where a document stands. `select` takes
the columns out of a table, `decode` makes text of the bytes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from tasks.csv_dialects import Dialect

BLOCK_BYTES = 1 << 22
HUB_METADATA = b"huggingface"  # in the schema of a data set of the Hugging Face hub

InvalidText = Literal["refuse", "replace", "drop"]
Documents = Literal["line", "paragraph"]
Where = Callable[[int], str]


@dataclass(frozen=True)
class Options:
    """What to read: the columns, and what a document of a .txt is."""

    text_column: str = "text"
    label_column: str | None = None
    documents: Documents = "line"
    csv: Dialect = field(default_factory=Dialect)
    encoding: str | None = None  # of text without a byte order mark; None is UTF-8


@dataclass
class Raw:
    """Documents as they stand in a source."""

    text: pa.Array  # binary, large or not; null where there is no text
    labels: pa.Array | None
    where: Where  # the n-th document's place, in words
    position: int  # bytes of the source read so far
    label_names: list[str] | None = None  # of labels that are numbers, from 0 on


def at_line(path: Path, numbers: Sequence[int]) -> Where:
    return lambda row: f"{path}, line {numbers[row]}"


def at_row(path: Path | str, first: int) -> Where:
    return lambda row: f"{path}, row {first + row}"


# columns


def wanted_columns(options: Options) -> list[str]:
    return [name for name in (options.text_column, options.label_column) if name is not None]


def check_columns(wanted: list[str], there: list[str], source: str) -> None:
    for name in wanted:
        if name not in there:
            raise ValueError(
                f"{source} has no column {name!r}: it has {', '.join(map(repr, there)) or 'none'}"
            )
        if there.count(name) > 1:
            raise ValueError(f"{source} has {there.count(name)} columns {name!r}: rename all but one of them")


def select(batch: pa.RecordBatch, options: Options, source: str, where: Where, position: int) -> Raw:
    """The text as bytes and the labels; ValueError, by name, where a column is of another type."""
    check_columns(wanted_columns(options), batch.schema.names, source)
    text = batch.column(options.text_column)
    if pa.types.is_dictionary(text.type):
        text = text.dictionary_decode()
    if pa.types.is_null(text.type):
        text = text.cast(pa.binary())
    if not (is_text(text.type) or is_bytes(text.type)):
        raise ValueError(
            f"column {options.text_column!r} of {source} is {text.type}, not text: name another column"
        )
    if options.label_column is None:
        return Raw(text, None, where, position)
    labels = batch.column(options.label_column)
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if pa.types.is_integer(labels.type):
        labels = labels.cast(pa.int64())
    elif is_text(labels.type):
        labels = labels.cast(pa.string())
    else:
        raise ValueError(
            f"column {options.label_column!r} of {source} is {labels.type}; a label is a whole number or text"
        )
    return Raw(text, labels, where, position, class_names(batch.schema, options.label_column))


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """What a label column's numbers are called, where the data set says so (the hub's in their metadata)."""
    try:
        described = json.loads(schema.metadata[HUB_METADATA])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return described if isinstance(described, list) and all(isinstance(n, str) for n in described) else None


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


# bytes to text


def decode(raw: Raw, invalid: InvalidText) -> tuple[pa.StringArray, int]:
    """(text, null where there is none or where it is dropped; how many documents were not UTF-8)."""
    data = raw.text.cast(pa.binary())
    try:
        return data.cast(pa.string()), 0
    except pa.ArrowInvalid:
        pass
    values, broken = data.to_pylist(), 0
    for row, value in enumerate(values):
        if value is None:
            continue
        try:
            values[row] = value.decode()
        except UnicodeDecodeError as error:
            if invalid == "refuse":
                raise ValueError(
                    f"{raw.where(row)}, byte {error.start + 1}: not UTF-8 (0x{value[error.start]:02x}): "
                    "convert the file, or set invalid_utf8 to 'replace' or 'drop'"
                ) from None
            values[row] = value.decode("utf-8", "replace") if invalid == "replace" else None
            broken += 1
    return pa.array(values, pa.string()), broken
