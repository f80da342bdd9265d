"""Reads tables of word vectors: each row has a word and its vector.

    .txt .vec      the text formats of word2vec and GloVe: a word and its numbers per line
    .bin           word2vec's binary format
    .npy           a matrix; a vocabulary file next to it has the words of the rows
    .safetensors   the same; also a model's folder
    .parquet       a column of words, and a column of lists of numbers or a column per number

A vocabulary file is .txt (a word per line), .json (a list, or word -> row) or .parquet (its first column of
text).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv
from safetensors import SafetensorError, safe_open

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.formatting import counted

FORMATS = (".txt", ".vec", ".bin", ".npy", ".safetensors", ".parquet")
VOCABULARIES = (".json", ".txt", ".parquet")
LONGEST_LINE = 1 << 20  # bytes
INVALID_NUMBER = re.compile(r"Row #(\d+): CSV conversion error to \w+: invalid value '(.*)'")
ROWS_AT_ONCE = 1 << 16

Matrix = NDArray[np.floating]


def find_vocabulary(table: Path, named: Path | None) -> Path | None:
    """Find the vocabulary file of a table; None if the table's format includes the words."""
    if table.suffix not in (".npy", ".safetensors"):
        if named is not None:
            raise ValueError(f"{table.name} already has words: omit the vocabulary {named}")
        return None
    if named is not None:
        if not named.is_file():
            raise FileNotFoundError(f"the vocabulary {named} does not exist: correct its path")
        if named.suffix not in VOCABULARIES:
            raise ValueError(f"the vocabulary {named.name} must be one of {' '.join(VOCABULARIES)}")
        return named
    candidates = [
        path
        for suffix in VOCABULARIES
        for path in (table.with_suffix(suffix), table.with_name(f"vocabulary{suffix}"))
        if path.is_file()
    ]
    if not candidates:
        raise FileNotFoundError(
            f"{table} is a matrix without words: set the vocabulary of its rows, or put"
            f" {table.with_suffix('.json').name} or vocabulary.json next to it"
        )
    return candidates[0]


def read_table(path: Path, vocabulary: Path | None) -> tuple[list[str], Matrix]:
    """Read the words of a table and their vectors, (words, dim).

    `vocabulary` has the words of an .npy or .safetensors file. Raises ValueError with the row if the file is
    damaged or a number is not finite.
    """
    readers: dict[str, Callable[[Path], tuple[list[str], Matrix]]] = {
        ".txt": read_text,
        ".vec": read_text,
        ".bin": read_binary,
        ".parquet": read_parquet,
    }
    if path.suffix in readers:
        words, matrix = readers[path.suffix](path)
    else:
        assert vocabulary is not None  # find_vocabulary
        matrix = read_npy(path) if path.suffix == ".npy" else read_safetensors(path)
        words = read_words(vocabulary)
        if len(words) != len(matrix):
            raise ValueError(
                f"{path} has {counted(len(matrix), 'rows')}, but its vocabulary {vocabulary} has"
                f" {len(words):,} words: use the matching vocabulary"
            )
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        finite = np.isfinite(matrix[start : start + ROWS_AT_ONCE]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(
                f"{path}, row {row + 1}: the vector of {words[row]!r} has a number that is not finite: export"
                " the file again"
            )
    return words, matrix


def read_binary(path: Path) -> tuple[list[str], Matrix]:
    vectors = WordVectors.load_word2vec(path, binary=True)
    return vectors.words, vectors.vectors.numpy()


def read_text(path: Path) -> tuple[list[str], Matrix]:
    """Read word2vec's text format, whose first line has the numbers of words and dimensions, or GloVe's
    without it.

    Lines whose word contains spaces are skipped, since no token does; some tables of GloVe have a few.
    """
    declared, dim, ends_with_space = read_header(path)
    skipped: list[int] = []
    damaged: list[str] = []

    def handle_invalid_row(row: csv.InvalidRow) -> str:
        if row.actual_columns > row.expected_columns and not is_number(row.text.split(" ")[1]):
            skipped.append(row.number)
            return "skip"
        numbers = row.actual_columns - 1 - ends_with_space
        damaged.append(
            f"row {row.number - bool(declared)}: {counted(numbers, 'numbers')}, but the previous rows have"
            f" {dim}"
        )
        return "error"

    columns = ["word", *map(str, range(dim)), *([""] if ends_with_space else [])]
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=int(bool(declared))),
            csv.ParseOptions(
                delimiter=" ",
                quote_char=False,
                escape_char=False,
                ignore_empty_lines=False,
                invalid_row_handler=handle_invalid_row,
            ),
            csv.ConvertOptions(
                column_types={"word": pa.string(), **{str(each): pa.float32() for each in range(dim)}},
                null_values=[],
                include_columns=columns[: 1 + dim],
            ),
        )
    except pa.ArrowInvalid as error:
        match = INVALID_NUMBER.search(str(error))
        if match and not damaged:
            damaged.append(f"row {int(match[1]) - bool(declared)}: {match[2]!r} is not a number")
        reason = damaged[0] if damaged else str(error)
        raise ValueError(f"{path}, {reason}: the file is truncated or damaged: export it again") from error
    rows = table.num_rows + len(skipped)
    if declared and rows != declared:
        raise ValueError(
            f"{path}: the first line declares {counted(declared, 'words')}, but the file has {rows:,}: the"
            " file is"
            " truncated: export it again"
        )
    matrix = np.empty((table.num_rows, dim), np.float32)
    for place in range(dim):
        matrix[:, place] = table.column(1 + place).to_numpy()
    return table.column(0).to_pylist(), matrix


def read_header(path: Path) -> tuple[int | None, int, bool]:
    """Read the declared number of words (if any), the dimension, and whether lines end with a space.

    word2vec.c and fastText write a space at the end of each line.
    """
    declared, dim = None, None
    with path.open("rb") as file:
        line = file.readline(LONGEST_LINE)
        fields = line.split()
        if len(fields) == 2 and all(map(bytes.isdigit, fields)):
            declared, dim = map(int, fields)
            line = file.readline(LONGEST_LINE)
    fields = line.rstrip(b"\r\n").split(b" ")
    ends_with_space = fields[-1] == b""
    found = len(fields) - 1 - ends_with_space
    if found < 1 or dim not in (None, found):
        expected = "numbers" if dim is None else f"{dim} numbers, as declared in the first line"
        raise ValueError(f"{path}, row 1: {line[:40]!r} is not a word and {expected}: check the format")
    return declared, found, ends_with_space


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_npy(path: Path) -> Matrix:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read as .npy ({error}): export it again") from error
    return check_matrix(matrix, path, path.name)


def read_safetensors(path: Path) -> Matrix:
    try:
        with safe_open(path, framework="np") as file:
            tables = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118
            if len(tables) != 1:
                raise ValueError(
                    f"{path} has {len(tables)} two-dimensional tensors ({', '.join(tables)}), but it must"
                    " have one, with a row per word"
                )
            return check_matrix(file.get_tensor(tables[0]), path, tables[0])
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as .safetensors ({error}): export it again") from error


def check_matrix(matrix: NDArray[np.generic], path: Path, name: str) -> Matrix:
    if matrix.ndim != 2 or 0 in matrix.shape or not np.issubdtype(matrix.dtype, np.floating):
        shape = " x ".join(map(str, matrix.shape))
        raise ValueError(
            f"{path}: {name} is {matrix.dtype} {shape}, but it must be a matrix of floating-point numbers"
            " with a row per word"
        )
    return matrix  # type: ignore[return-value]


def read_parquet(path: Path) -> tuple[list[str], Matrix]:
    """Read the text column and the column of lists of numbers, or else all columns of numbers in order."""
    table = read_arrow(path)
    words = text_column(table, path)
    lists = [field.name for field in table.schema if is_list(field.type)]
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    if len(lists) == 1:
        column = table.column(lists[0]).combine_chunks()
        if column.null_count:
            raise ValueError(f"{path}, row {column.is_null().index(True).as_py() + 1}: the vector is missing")
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            row = int((lengths != lengths[0]).argmax())
            raise ValueError(
                f"{path}, row {row + 1}: {counted(lengths[row], 'numbers')}, but the first row has"
                f" {lengths[0]}"
            )
        values = column.flatten().cast(pa.float32()).fill_null(float("nan"))
        return words, values.to_numpy(zero_copy_only=False).reshape(len(words), -1)
    if lists or not numbers:
        raise ValueError(
            f"{path} has the columns {table.schema.names}, but it needs one with lists of numbers"
        )
    columns = [table.column(name).fill_null(float("nan")).to_numpy() for name in numbers]
    return words, np.stack(columns, axis=1).astype(np.float32)


def read_arrow(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} can't be read as Parquet ({str(error).splitlines()[0]})") from error


def is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def text_column(table: pa.Table, path: Path) -> list[str]:
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            words: list[str] = table.column(field.name).to_pylist()
            if None in words:
                row = next(row for row, word in enumerate(words, 1) if word is None)
                raise ValueError(f"{path}, row {row}: the word is missing in the column {field.name}")
            return words
    raise ValueError(f"{path} has no text column for the words, only {table.schema.names}")


def read_words(path: Path) -> list[str]:
    """Read the words of a vocabulary file, by row."""
    if path.suffix == ".parquet":
        return text_column(read_arrow(path), path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return text.removesuffix("\n").split("\n")
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the vocabulary {path} can't be read ({error}): export it again") from error
    if isinstance(content, dict):
        words = sorted(content, key=lambda word: content[word])
        if [content[word] for word in words] == list(range(len(words))):
            return words
    elif isinstance(content, list) and all(isinstance(word, str) for word in content):
        return content
    raise ValueError(
        f"the vocabulary {path} must be a list of words, or an object word -> row with rows from 0"
    )
