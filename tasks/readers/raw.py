"""Undecoded documents of a source: batches of bytes and labels, and their conversion to text.

Every reader yields `RawBatch` batches of a few MB, each with a function that locates a document in the
source. `select` extracts the columns of a table, and `decode` converts bytes to text.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from lexloom.tasks.readers.charsets import UTF_8, guess_narrow, is_utf_8
from lexloom.tasks.readers.csv_dialects import Dialect
from lexloom.tasks.readers.labels import class_names, from_values, without_blanks

BLOCK_BYTES = 1 << 22
SAMPLE_ROWS, SAMPLE_BYTES = 64, 1 << 12  # used to guess an encoding
SHOWN_COLUMNS = 50

InvalidText = Literal["refuse", "replace", "drop"]
Documents = Literal["line", "paragraph", "file"]
Locator = Callable[[int], str]


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source: columns, document unit, CSV dialect and encoding."""

    text_column: str = "text"
    label_column: str | None = None
    documents: Documents = "line"
    csv: Dialect = field(default_factory=Dialect)
    encoding: str | None = None  # of text without a byte order mark; None is UTF-8
    constants: dict[str, str | None] = field(
        default_factory=dict
    )  # columns whose value is given by the file's folders


@dataclass
class RawBatch:
    """A batch of undecoded documents."""

    text: pa.Array  # binary or large_binary; null if there is no text
    labels: pa.Array | None
    where: Locator  # describes the location of the n-th document
    position: int  # bytes of the source read so far
    label_names: list[str] | None = None  # class names of numeric labels, from 0
    encoding: str = UTF_8  # the original encoding of the text
    unfinished: bool = False  # the last document continues in the next batch
    notes: Counter[str] = field(default_factory=Counter)  # counts to report

    @classmethod
    def without_documents(cls, position: int, note: str) -> "RawBatch":
        return cls(pa.array([], pa.binary()), None, lambda row: "", position, notes=Counter([note]))

    def first(self, rows: int) -> "RawBatch":
        """Return the first `rows` documents."""
        if rows >= len(self.text):
            return self
        labels = None if self.labels is None else self.labels[:rows]
        return replace(self, text=self.text[:rows], labels=labels, unfinished=False)


def at_line(path: Path, numbers: Sequence[int]) -> Locator:
    return lambda row: f"{path}, line {numbers[row]}"


def at_row(path: Path | str, first: int) -> Locator:
    return lambda row: f"{path}, row {first + row}"


# columns


def wanted_columns(options: ReadOptions) -> list[str]:
    """List the columns that the file itself must have."""
    label = None if options.label_column in options.constants else options.label_column
    return [name for name in (options.text_column, label) if name is not None]


def check_columns(wanted: list[str], columns: list[str], source: str) -> None:
    """Raise ValueError if a wanted column is missing or occurs twice."""
    for name in wanted:
        if name not in columns:
            names = ", ".join(map(repr, columns[:SHOWN_COLUMNS])) or "none"
            more = f" and {len(columns) - SHOWN_COLUMNS:,} more" if len(columns) > SHOWN_COLUMNS else ""
            raise ValueError(f"{source} has no column {name!r}: it has {names}{more}")
        if columns.count(name) > 1:
            raise ValueError(f"{source} has {columns.count(name)} columns named {name!r}: rename all but one")


def select(
    batch: pa.RecordBatch, options: ReadOptions, source: str, where: Locator, position: int
) -> RawBatch:
    """Select the text and label columns; raise ValueError if one is missing or has the wrong type."""
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
    if options.label_column is None or options.label_column in options.constants:
        return RawBatch(text, constant_labels(options, len(text)), where, position)
    names = class_names(batch.schema, options.label_column)
    values = batch.column(options.label_column)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_text(values.type) or is_bytes(values.type):
        return RawBatch(text, as_text(values, options.label_column, where), where, position, names)
    found = from_values(values, names)
    if found is None:
        raise ValueError(
            f"column {options.label_column!r} of {source} is {values.type}: a label must be a string, a"
            " number or a boolean"
        )
    labels, notes = found
    return RawBatch(text, labels, where, position, names, notes=notes)


def as_text(labels: pa.Array, column: str, where: Locator) -> pa.Array:
    """Convert text or binary labels to strings, blank ones to null; raise ValueError if one is not UTF-8."""
    try:
        return without_blanks(labels.cast(pa.string()))
    except pa.ArrowInvalid:
        for row, label in enumerate(labels.to_pylist()):
            try:
                (label or b"").decode()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{where(row)}: {column!r} is not UTF-8: convert the file, or set its encoding with"
                    " --text-encoding"
                ) from None
        raise


def constant_labels(options: ReadOptions, rows: int) -> pa.Array | None:
    """Repeat the label given by a file's folders for each row; None if there is none."""
    if options.label_column not in options.constants:
        return None
    return pa.array([options.constants[options.label_column]] * rows, pa.string())


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


# bytes to text

NUL = b"\0"
NUL_BYTES = "NUL bytes"
FEW_INVALID_SHARE = 0.1  # maximum share of invalid documents for which dropping or replacing is suggested


def decode(raw: RawBatch, invalid: InvalidText) -> tuple[pa.StringArray, Counter[str]]:
    """Decode a batch; return the text (null if missing or dropped) and the counts of invalid documents.

    NUL bytes count as invalid: they usually mean that UTF-16 text was read as UTF-8. Raises ValueError with
    the location if invalid text is refused.
    """
    data = raw.text.cast(pa.binary())
    try:
        text = data.cast(pa.string())
    except pa.ArrowInvalid:
        text = None
    if text is not None and not pc.any(pc.match_substring(data, NUL)).as_py():
        return text, Counter()
    values: list[Any] = data.to_pylist()
    counts: Counter[str] = Counter()
    broken: list[int] = []
    for row, value in enumerate(values):
        if value is None:
            continue
        try:
            values[row] = value.decode()
            if NUL not in value:
                continue
            counts[NUL_BYTES] += 1
        except UnicodeDecodeError:
            counts[describe_invalid(raw)] += 1
        broken.append(row)
        text = value.decode("utf-8", "replace").replace("\0", "\ufffd")
        values[row] = text if invalid == "replace" else None
    if invalid == "refuse":
        share = len(broken) / max(1, len(values) - data.null_count)
        sample = b"\n".join(data[row].as_py()[:SAMPLE_BYTES] for row in broken[:SAMPLE_ROWS])
        guess = guess_narrow(sample) if is_utf_8(raw.encoding) else None
        raise ValueError(complaint(raw, broken[0], data[broken[0]].as_py(), guess, share))
    return pa.array(values, pa.string()), counts


def describe_invalid(raw: RawBatch) -> str:
    return f"not {'UTF-8' if is_utf_8(raw.encoding) else raw.encoding}"


def complaint(raw: RawBatch, row: int, value: bytes, guess: str | None, share: float) -> str:
    """Return the error message for an invalid document; suggest dropping only if few are invalid."""
    few = ", or set --invalid-utf8 to 'replace' or 'drop'" if share < FEW_INVALID_SHARE else ""
    where = raw.where(row)
    try:
        value.decode()
        return (
            f"{where}, byte {value.index(NUL) + 1}: a NUL byte, which text can't contain: remove it, or"
            f" convert the file{few}"
        )
    except UnicodeDecodeError as error:
        byte, found = error.start + 1, f"{describe_invalid(raw)} (0x{value[error.start]:02x})"
    if guess is None:
        return (
            f"{where}, byte {byte}: {found}: convert the file, or set its encoding with --text-encoding{few}"
        )
    return f"{where}, byte {byte}: {found}, probably {guess}: set --text-encoding {guess}{few}"
