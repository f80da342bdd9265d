"""Reads documents out of text, JSON lines, CSV and Parquet files, and says precisely what is wrong with them.

Every reader yields `Raw` batches of a few MB: the documents as bytes, as they stand in the file, and a way to
say where each of them stands. `decode` makes text of them.
"""

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SUPPORTED = f"supported are {', '.join(FORMATS)}, each also as {' or '.join(COMPRESSIONS)}"

BLOCK_BYTES = 1 << 22
MAX_RECORD_BYTES = 1 << 27  # a line or paragraph is held in memory whole
MAX_CSV_RECORD_BYTES = 1 << 25  # Arrow's CSV reader allocates blocks of this size
MAX_BATCH_ROWS = 1 << 14
HUB_METADATA = b"huggingface"  # in the schema of a data set of the Hugging Face hub
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

InvalidText = Literal["refuse", "replace", "drop"]
Documents = Literal["line", "paragraph"]
Where = Callable[[int], str]


@dataclass(frozen=True)
class Options:
    """What to read: the columns, and what a document of a .txt is."""

    text_column: str = "text"
    label_column: str | None = None
    documents: Documents = "line"


@dataclass
class Raw:
    """Documents as they stand in a source."""

    text: pa.Array  # binary, large or not; null where there is no text
    labels: pa.Array | None
    where: Where  # the n-th document's place, in words
    position: int  # bytes of the source read so far
    label_names: list[str] | None = None  # of labels that are numbers, from 0 on


def is_supported(path: Path) -> bool:
    return split_name(path)[0] in FORMATS


def split_name(path: Path) -> tuple[str, str | None]:
    """(format, compression) by the file's name: `x.jsonl.gz` is ('.jsonl', 'gzip')."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), COMPRESSIONS[suffix]
    return suffix, None


def read(path: Path, options: Options) -> Iterator[Raw]:
    """The documents of one file, in order. ValueError or OSError where it can't be read."""
    kind, _ = split_name(path)
    readers = {".txt": read_text, ".jsonl": read_json_lines, ".csv": read_csv, ".parquet": read_parquet}
    with damage(path):
        yield from readers[kind](path, options)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Arrow's errors about broken files, as one sentence with the file's name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, no rights: says so itself
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or cut short ({reason}): copy or download it again") from error


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """(the file's content, decompressed; how many bytes of the file were read so far)."""
    _, compression = split_name(path)
    with pa.OSFile(str(path)) as file:
        stream = pa.CompressedInputStream(file, compression) if compression else file
        yield stream, file.tell


# text


def read_text(path: Path, options: Options) -> Iterator[Raw]:
    """A document a line, or a paragraph (lines up to an empty one)."""
    if options.label_column is not None:
        raise ValueError(
            f"{path} is plain text and has no column {options.label_column!r}: leave out the label column"
        )
    with opened(path) as (stream, tell):
        blocks: Iterator[tuple[list[bytes], Sequence[int]]] = read_lines(path, stream)
        if options.documents == "paragraph":
            blocks = group_paragraphs(path, blocks)
        for documents, numbers in blocks:
            yield Raw(pa.array(documents, pa.binary()), None, at_line(path, numbers), tell())


def at_line(path: Path, numbers: Sequence[int]) -> Where:
    return lambda row: f"{path}, line {numbers[row]}"


def read_lines(path: Path, stream: Any) -> Iterator[tuple[list[bytes], Sequence[int]]]:
    """Blocks of whole lines, without their ends, with their numbers in the file (from 1)."""
    number, rest = 1, b""
    while block := stream.read(BLOCK_BYTES):
        if number == 1 and not rest:
            block = block.removeprefix(BYTE_ORDER_MARK)
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            lines = whole.replace(b"\r\n", b"\n").removesuffix(b"\r").split(b"\n")
            yield lines, range(number, number + len(lines))
            number += len(lines)
        check_length(path, number, len(rest))
    if rest:
        yield [rest], range(number, number + 1)


def group_paragraphs(
    path: Path, blocks: Iterator[tuple[list[bytes], Sequence[int]]]
) -> Iterator[tuple[list[bytes], Sequence[int]]]:
    """Joins lines into paragraphs: (the paragraphs, the number of each one's first line)."""
    paragraph: list[bytes] = []
    length = first = 0
    for lines, numbers in blocks:
        paragraphs, starts = [], []
        for number, line in zip(numbers, lines, strict=True):
            if line.strip():
                if not paragraph:
                    first, length = number, 0
                paragraph.append(line)
                length += len(line)
            elif paragraph:
                paragraphs.append(b"\n".join(paragraph))
                starts.append(first)
                paragraph = []
        if paragraph:
            check_length(path, first, length)
        yield paragraphs, starts
    if paragraph:
        yield [b"\n".join(paragraph)], [first]


def check_length(path: Path, number: int, length: int) -> None:
    if length > MAX_RECORD_BYTES:
        raise ValueError(
            f"{path}, line {number}: a document here is longer than {MAX_RECORD_BYTES >> 20} MB: break it"
            " into lines (or paragraphs) that are documents"
        )


# JSON lines


def read_json_lines(path: Path, options: Options) -> Iterator[Raw]:
    """A JSON object a line; empty lines are passed over."""
    schema = None
    with opened(path) as (stream, tell):
        for lines, numbers in read_lines(path, stream):
            kept = [(line, number) for line, number in zip(lines, numbers, strict=True) if line.strip()]
            if not kept:
                continue
            lines, places = [line for line, _ in kept], [number for _, number in kept]
            if schema is None:
                schema = schema_of(parse_line(lines[0], f"{path}, line {places[0]}"), options, path)
            batch = parse_fast(lines, schema)
            if batch is None:
                batch = parse_slowly(lines, schema, at_line(path, places))
            yield select(batch, options, str(path), at_line(path, places), tell())


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


# CSV


def read_csv(path: Path, options: Options) -> Iterator[Raw]:
    """A table with a line of column names; cells may hold line breaks in quotes."""
    bad_rows: list[str] = []

    def refuse(row: Any) -> str:
        bad_rows.append(
            f"{path}, row {row.number}: {row.actual_columns} columns where the first line names"
            f" {row.expected_columns}: check its quotes and commas"
        )
        return "error"

    columns = wanted_columns(options)
    first_row = 2  # as a spreadsheet counts: the names are row 1
    with opened(path) as (stream, tell):
        try:
            check_columns(columns, csv_columns(path), str(path))
            reader = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=MAX_CSV_RECORD_BYTES),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=columns, column_types={options.text_column: pa.binary()}
                ),
            )
            for batch in reader:
                yield select(batch, options, str(path), at_row(path, first_row), tell())
                first_row += batch.num_rows
        except pa.ArrowInvalid as error:
            if bad_rows:
                raise ValueError(bad_rows[0]) from error
            if "straddl" in str(error):
                raise ValueError(
                    f"{path}, after row {first_row}: a row is longer than {MAX_CSV_RECORD_BYTES >> 20} MB, or"
                    " an opened quote is never closed: check its quotes, or break the text into shorter rows"
                ) from error
            raise ValueError(
                f"{path} is no CSV table that can be read ({error}): check its quotes"
            ) from error


def csv_columns(path: Path) -> list[str]:
    """The names in a CSV file's first line."""
    with opened(path) as (stream, _):
        block = stream.read(BLOCK_BYTES)
    if not block.strip():
        return []
    header = next(csv.reader(block.decode("utf-8-sig", "replace").splitlines()))
    return list(header)


def at_row(path: Path | str, first: int) -> Where:
    return lambda row: f"{path}, row {first + row}"


# Parquet


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


# columns


def wanted_columns(options: Options) -> list[str]:
    return [name for name in (options.text_column, options.label_column) if name is not None]


def check_columns(wanted: list[str], there: list[str], source: str) -> None:
    for name in wanted:
        if name not in there:
            raise ValueError(
                f"{source} has no column {name!r}: it has {', '.join(map(repr, there)) or 'none'}"
            )


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
