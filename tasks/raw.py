"""Documents as they stand in a source: batches of bytes and labels, and how they become text.

Every reader yields `Raw` batches of a few MB, each with a way to say where a document stands. `select` takes
the columns out of a table, `decode` makes text of the bytes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from tasks.csv_dialects import Dialect
from tasks.encodings import UTF_8, guess_narrow, is_utf_8
from tasks.labels import class_names, from_values, without_blanks

BLOCK_BYTES = 1 << 22
SAMPLE_ROWS, SAMPLE_BYTES = 64, 1 << 12  # by which an encoding is guessed
SHOWN_COLUMNS = 50

InvalidText = Literal["refuse", "replace", "drop"]
Documents = Literal["line", "paragraph", "file"]
Where = Callable[[int], str]


@dataclass(frozen=True)
class Options:
    """What to read: the columns, and what a document of a .txt is."""

    text_column: str = "text"
    label_column: str | None = None
    documents: Documents = "line"
    csv: Dialect = field(default_factory=Dialect)
    encoding: str | None = None  # of text without a byte order mark; None is UTF-8
    constants: dict[str, str | None] = field(default_factory=dict)  # columns that a file's folders give


@dataclass
class Raw:
    """Documents as they stand in a source."""

    text: pa.Array  # binary, large or not; null where there is no text
    labels: pa.Array | None
    where: Where  # the n-th document's place, in words
    position: int  # bytes of the source read so far
    label_names: list[str] | None = None  # of labels that are numbers, from 0 on
    encoding: str = UTF_8  # what the text was before it became UTF-8
    unfinished: bool = False  # the last document goes on in the next batch
    notes: Counter[str] = field(default_factory=Counter)  # what was met on the way

    @classmethod
    def without_documents(cls, position: int, note: str) -> "Raw":
        return cls(pa.array([], pa.binary()), None, lambda row: "", position, notes=Counter([note]))

    def first(self, rows: int) -> "Raw":
        """The first `rows` documents."""
        if rows >= len(self.text):
            return self
        labels = None if self.labels is None else self.labels[:rows]
        return replace(self, text=self.text[:rows], labels=labels, unfinished=False)


def at_line(path: Path, numbers: Sequence[int]) -> Where:
    return lambda row: f"{path}, line {numbers[row]}"


def at_row(path: Path | str, first: int) -> Where:
    return lambda row: f"{path}, row {first + row}"


# columns


def wanted_columns(options: Options) -> list[str]:
    """Those that a file itself must have."""
    label = None if options.label_column in options.constants else options.label_column
    return [name for name in (options.text_column, label) if name is not None]


def check_columns(wanted: list[str], there: list[str], source: str) -> None:
    for name in wanted:
        if name not in there:
            names = ", ".join(map(repr, there[:SHOWN_COLUMNS])) or "none"
            more = f" and {len(there) - SHOWN_COLUMNS:,} more" if len(there) > SHOWN_COLUMNS else ""
            raise ValueError(f"{source} has no column {name!r}: it has {names}{more}")
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
    if options.label_column is None or options.label_column in options.constants:
        return Raw(text, constant_labels(options, len(text)), where, position)
    names = class_names(batch.schema, options.label_column)
    values = batch.column(options.label_column)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_text(values.type) or is_bytes(values.type):
        return Raw(text, as_text(values, options.label_column, where), where, position, names)
    found = from_values(values, names)
    if found is None:
        raise ValueError(
            f"column {options.label_column!r} of {source} is {values.type}: a label is text, a number or a"
            " boolean"
        )
    labels, notes = found
    return Raw(text, labels, where, position, names, notes=notes)


def as_text(labels: pa.Array, column: str, where: Where) -> pa.Array:
    """Labels of text or bytes, null where they are blank; ValueError where one is not UTF-8."""
    try:
        return without_blanks(labels.cast(pa.string()))
    except pa.ArrowInvalid:
        for row, label in enumerate(labels.to_pylist()):
            try:
                (label or b"").decode()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{where(row)}: {column!r} is not UTF-8: convert the file, or name its encoding with"
                    " --text-encoding"
                ) from None
        raise


def constant_labels(options: Options, rows: int) -> pa.Array | None:
    """The label that a file's folders give, for each of its rows."""
    if options.label_column not in options.constants:
        return None
    return pa.array([options.constants[options.label_column]] * rows, pa.string())


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


# bytes to text

NUL = b"\0"
WITH_NUL = "NUL bytes"
FEW = 0.1  # share of the documents that may be dropped or altered without a loss to speak of


def decode(raw: Raw, invalid: InvalidText) -> tuple[pa.StringArray, Counter[str]]:
    """(text, null where there is none or where it is dropped; what was wrong with how many documents).

    NUL bytes are invalid too: no text has them, and text of two bytes a letter that is read as UTF-8 does.
    ValueError, with the place, where invalid text is to be refused.
    """
    data = raw.text.cast(pa.binary())
    try:
        text = data.cast(pa.string())
    except pa.ArrowInvalid:
        text = None
    if text is not None and not pc.any(pc.match_substring(data, NUL)).as_py():
        return text, Counter()
    values: list[Any] = data.to_pylist()
    met: Counter[str] = Counter()
    broken: list[int] = []
    for row, value in enumerate(values):
        if value is None:
            continue
        try:
            values[row] = value.decode()
            if NUL not in value:
                continue
            met[WITH_NUL] += 1
        except UnicodeDecodeError:
            met[not_in(raw)] += 1
        broken.append(row)
        text = value.decode("utf-8", "replace").replace("\0", "\ufffd")
        values[row] = text if invalid == "replace" else None
    if invalid == "refuse":
        share = len(broken) / max(1, len(values) - data.null_count)
        sample = b"\n".join(data[row].as_py()[:SAMPLE_BYTES] for row in broken[:SAMPLE_ROWS])
        guess = guess_narrow(sample) if is_utf_8(raw.encoding) else None
        raise ValueError(complaint(raw, broken[0], data[broken[0]].as_py(), guess, share))
    return pa.array(values, pa.string()), met


def not_in(raw: Raw) -> str:
    return f"not {'UTF-8' if is_utf_8(raw.encoding) else raw.encoding}"


def complaint(raw: Raw, row: int, value: bytes, guess: str | None, share: float) -> str:
    """What is wrong with a document, and the flag that helps; dropping most of the text is no help."""
    few = ", or set --invalid-utf8 to 'replace' or 'drop'" if share < FEW else ""
    where = raw.where(row)
    try:
        value.decode()
        return (
            f"{where}, byte {value.index(NUL) + 1}: a NUL byte, which no text has: remove it, or convert the"
            f" file{few}"
        )
    except UnicodeDecodeError as error:
        byte, found = error.start + 1, f"{not_in(raw)} (0x{value[error.start]:02x})"
    if guess is None:
        return (
            f"{where}, byte {byte}: {found}: convert the file, or name its encoding with --text-encoding{few}"
        )
    return f"{where}, byte {byte}: {found}: if it is {guess}, as it seems, say --text-encoding {guess}{few}"
