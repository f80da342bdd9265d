"""Tables of word vectors in files: a word and its vector a row, in the formats that people have them in.

    .txt .vec      word2vec's or GloVe's text: a word and its numbers a line
    .bin           word2vec's binary format
    .npy           a matrix; the words of its rows in a vocabulary file beside it
    .safetensors   the same; a model's folder will do
    .parquet       a column of words, and one of lists of numbers or a column for each number

A vocabulary file is .txt (a word a line), .json (a list, or word -> row) or .parquet (its first column of
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
NO_NUMBER = re.compile(r"Row #(\d+): CSV conversion error to \w+: invalid value '(.*)'")
ROWS_AT_ONCE = 1 << 16

Matrix = NDArray[np.floating]


def vocabulary_of(table: Path, named: Path | None) -> Path | None:
    """The vocabulary file of a table whose format has no words; None where the format has them."""
    if table.suffix not in (".npy", ".safetensors"):
        if named is not None:
            raise ValueError(f"{table.name} holds its words itself: leave the vocabulary {named} out")
        return None
    if named is not None:
        if not named.is_file():
            raise FileNotFoundError(f"the vocabulary {named} is not there: correct its path")
        if named.suffix not in VOCABULARIES:
            raise ValueError(f"a vocabulary is read from {' '.join(VOCABULARIES)}, not from {named.name}")
        return named
    beside = [
        path
        for suffix in VOCABULARIES
        for path in (table.with_suffix(suffix), table.with_name(f"vocabulary{suffix}"))
        if path.is_file()
    ]
    if not beside:
        raise FileNotFoundError(
            f"{table} is a matrix without words: name the vocabulary of its rows, or put"
            f" {table.with_suffix('.json').name} or vocabulary.json beside it"
        )
    return beside[0]


def read_table(path: Path, vocabulary: Path | None) -> tuple[list[str], Matrix]:
    """The words of a table and their vectors, (words, dim), all finite.

    `vocabulary` is that of an .npy or .safetensors file. ValueError, with the row, for what is damaged.
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
        assert vocabulary is not None  # vocabulary_of
        matrix = read_npy(path) if path.suffix == ".npy" else read_safetensors(path)
        words = read_words(vocabulary)
        if len(words) != len(matrix):
            raise ValueError(
                f"{path} has {counted(len(matrix), 'rows')}, but its vocabulary {vocabulary} has"
                f" {len(words):,} words: they do not belong together"
            )
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        finite = np.isfinite(matrix[start : start + ROWS_AT_ONCE]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(
                f"{path}, row {row + 1}: the vector of {words[row]!r} has a number that is not finite: export"
                " it again"
            )
    return words, matrix


def read_binary(path: Path) -> tuple[list[str], Matrix]:
    vectors = WordVectors.load_word2vec(path, binary=True)
    return vectors.words, vectors.vectors.numpy()


def read_text(path: Path) -> tuple[list[str], Matrix]:
    """word2vec's text format, whose first line counts words and numbers, and GloVe's, which has no such line.

    A word with spaces in it, of which some tables of GloVe have a few, is no token: its line is left out.
    """
    promised, dim, ends_with_space = first_lines(path)
    left_out: list[int] = []
    damaged: list[str] = []

    def on_misfit(row: csv.InvalidRow) -> str:
        if row.actual_columns > row.expected_columns and not is_number(row.text.split(" ")[1]):
            left_out.append(row.number)
            return "skip"
        numbers = row.actual_columns - 1 - ends_with_space
        damaged.append(
            f"row {row.number - bool(promised)}: {counted(numbers, 'numbers')} where the rows before have"
            f" {dim}"
        )
        return "error"

    columns = ["word", *map(str, range(dim)), *([""] if ends_with_space else [])]
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=int(bool(promised))),
            csv.ParseOptions(
                delimiter=" ",
                quote_char=False,
                escape_char=False,
                ignore_empty_lines=False,
                invalid_row_handler=on_misfit,
            ),
            csv.ConvertOptions(
                column_types={"word": pa.string(), **{str(each): pa.float32() for each in range(dim)}},
                null_values=[],
                include_columns=columns[: 1 + dim],
            ),
        )
    except pa.ArrowInvalid as error:
        said = NO_NUMBER.search(str(error))
        if said and not damaged:
            damaged.append(f"row {int(said[1]) - bool(promised)}: {said[2]!r} is no number")
        what = damaged[0] if damaged else str(error)
        raise ValueError(f"{path}, {what}: the file is cut off or damaged, export it again") from error
    there = table.num_rows + len(left_out)
    if promised and there != promised:
        raise ValueError(
            f"{path}: the first line promises {counted(promised, 'words')}, but has {there:,}: the file is"
            " cut off, export it again"
        )
    matrix = np.empty((table.num_rows, dim), np.float32)
    for place in range(dim):
        matrix[:, place] = table.column(1 + place).to_numpy()
    return table.column(0).to_pylist(), matrix


def first_lines(path: Path) -> tuple[int | None, int, bool]:
    """Of a text table: how many words it promises, the numbers a word, and whether lines end with a space,
    as word2vec.c and fastText write them."""
    promised, dim = None, None
    with path.open("rb") as file:
        line = file.readline(LONGEST_LINE)
        fields = line.split()
        if len(fields) == 2 and all(map(bytes.isdigit, fields)):
            promised, dim = map(int, fields)
            line = file.readline(LONGEST_LINE)
    fields = line.rstrip(b"\r\n").split(b" ")
    ends_with_space = fields[-1] == b""
    found = len(fields) - 1 - ends_with_space
    if found < 1 or dim not in (None, found):
        expected = "numbers" if dim is None else f"{dim} numbers, as the first line says"
        raise ValueError(f"{path}, row 1: {line[:40]!r} is not a word and {expected}: is this a text format?")
    return promised, found, ends_with_space


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
    return checked(matrix, path, path.name)


def read_safetensors(path: Path) -> Matrix:
    try:
        with safe_open(path, framework="np") as file:
            tables = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118
            if len(tables) != 1:
                raise ValueError(
                    f"{path} has {len(tables)} tables ({', '.join(tables)}): one is needed, of a row a word"
                )
            return checked(file.get_tensor(tables[0]), path, tables[0])
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as .safetensors ({error}): export it again") from error


def checked(matrix: NDArray[np.generic], path: Path, name: str) -> Matrix:
    if matrix.ndim != 2 or 0 in matrix.shape or not np.issubdtype(matrix.dtype, np.floating):
        shape = " x ".join(map(str, matrix.shape))
        raise ValueError(
            f"{path}: {name} is {matrix.dtype} {shape}, and not a table of numbers, a row a word"
        )
    return matrix  # type: ignore[return-value]


def read_parquet(path: Path) -> tuple[list[str], Matrix]:
    """A column of text, and a column of lists of numbers, or all the columns of numbers in their order."""
    table = read_arrow(path)
    words = text_column(table, path)
    lists = [field.name for field in table.schema if is_list(field.type)]
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    if len(lists) == 1:
        column = table.column(lists[0]).combine_chunks()
        if column.null_count:
            raise ValueError(f"{path}, row {column.is_null().index(True).as_py() + 1}: no vector")
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            row = int((lengths != lengths[0]).argmax())
            raise ValueError(
                f"{path}, row {row + 1}: {counted(lengths[row], 'numbers')} where the first row has"
                f" {lengths[0]}"
            )
        values = column.flatten().cast(pa.float32()).fill_null(float("nan"))
        return words, values.to_numpy(zero_copy_only=False).reshape(len(words), -1)
    if lists or not numbers:
        raise ValueError(f"{path} has the columns {table.schema.names}: one with lists of numbers is needed")
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
                raise ValueError(f"{path}, row {row}: no word in the column {field.name}")
            return words
    raise ValueError(f"{path} has no column of text, but {table.schema.names}: where are the words?")


def read_words(path: Path) -> list[str]:
    """The words of a vocabulary file, by row."""
    if path.suffix == ".parquet":
        return text_column(read_arrow(path), path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return text.removesuffix("\n").split("\n")
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the vocabulary {path} can't be read ({error}): write it again") from error
    if isinstance(content, dict):
        words = sorted(content, key=lambda word: content[word])
        if [content[word] for word in words] == list(range(len(words))):
            return words
    elif isinstance(content, list) and all(isinstance(word, str) for word in content):
        return content
    raise ValueError(f"the vocabulary {path} is neither a list of words nor word -> row, from 0 on")
