"""Tests of the formats of word vectors, and of damaged files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gensim.models import KeyedVectors
from safetensors.torch import save_file

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.readers.embedding_files import find_vocabulary, read_table

WORDS = ["the", "New", "_York", "Köln", "“", "null", "1,5"]
MATRIX = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)


def lines(header: bool, end: str = "\n") -> str:
    text = f"{len(WORDS)} 5\n" if header else ""
    for word, vector in zip(WORDS, MATRIX.tolist(), strict=True):
        text += f"{word} {' '.join(map(repr, vector))}{end}"
    return text


def by_gensim(path: Path, binary: bool) -> None:
    vectors = KeyedVectors(5)
    vectors.add_vectors(WORDS, MATRIX)
    vectors.save_word2vec_format(str(path), binary=binary)


def as_npy(path: Path, order: str = "C") -> None:
    np.save(path, np.asarray(MATRIX, order=order))  # type: ignore[call-overload]
    path.with_suffix(".txt").write_text("\n".join(WORDS) + "\n")


def as_model(path: Path) -> None:
    path.parent.mkdir()
    WordVectors(WORDS, torch.from_numpy(MATRIX)).save(path.parent)


def as_lists(path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"token": WORDS, "vector": pa.array(MATRIX.tolist(), kind)}), path)


def as_columns(path: Path) -> None:
    columns = {f"d{place}": MATRIX[:, place] for place in range(5)}
    pq.write_table(pa.table({**columns, "index": WORDS}), path)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "GloVe text": ("t.txt", lambda path: path.write_text(lines(header=False))),
    "word2vec text": ("t.txt", lambda path: path.write_text(lines(header=True))),
    "word2vec.c text": ("t.vec", lambda path: path.write_text(lines(header=True, end=" \n"))),
    "GloVe with Windows line ends": ("t.txt", lambda path: path.write_bytes(lines(False, "\r\n").encode())),
    "gensim text": ("t.txt", lambda path: by_gensim(path, binary=False)),
    "gensim binary": ("t.bin", lambda path: by_gensim(path, binary=True)),
    "NumPy": ("t.npy", as_npy),
    "NumPy by columns": ("t.npy", lambda path: as_npy(path, "F")),
    "a model's folder": ("model/model.safetensors", as_model),
    "Parquet with lists": ("t.parquet", lambda path: as_lists(path, pa.list_(pa.float32()))),
    "Parquet with lists of a size": ("t.parquet", lambda path: as_lists(path, pa.list_(pa.float64(), 5))),
    "Parquet with columns": ("t.parquet", as_columns),
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_yield_the_same_words_and_vectors(name: str, tmp_path: Path) -> None:
    file, write = WRITERS[name]
    path = tmp_path / file
    write(path)
    words, matrix = read_table(path, find_vocabulary(path, None))
    assert words == WORDS
    np.testing.assert_allclose(matrix, MATRIX, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".json", ".txt", ".parquet"])
@pytest.mark.parametrize("kind", ["list", "ids"])
def test_all_vocabulary_formats_are_read(suffix: str, kind: str, tmp_path: Path) -> None:
    table = tmp_path / "t.npy"
    np.save(table, MATRIX)
    path = tmp_path / f"vocabulary{suffix}"
    ids = {word: row for row, word in sorted(enumerate(WORDS), key=lambda entry: entry[1])}
    if suffix == ".json":
        path.write_text(json.dumps(WORDS if kind == "list" else ids))
    elif suffix == ".txt":
        path.write_text("\n".join(WORDS) + ("\n" if kind == "list" else ""))
    else:
        pq.write_table(pa.table({"count": range(len(WORDS)), "index": WORDS}), path)
    assert read_table(table, find_vocabulary(table, None))[0] == WORDS
    named = path.rename(tmp_path / f"elsewhere{suffix}")
    assert read_table(table, find_vocabulary(table, named))[0] == WORDS


def test_words_with_spaces_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for first_line in ("", "3 2\n"):
        path.write_text(f"{first_line}a 1 2\n. . . 3 4\nb 5 6\n")
        words, matrix = read_table(path, None)
        assert (words, matrix.tolist()) == (["a", "b"], [[1, 2], [5, 6]])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a 1 2\nb 3\nc 4 5\n", "row 2: 1 number, but the previous rows have 2"),
        ("a 1 2\nb 3 4\nc 4 5 6\n", "row 3: 3 numbers, but the previous rows have 2"),
        ("3 2\na 1 2\nb 3 4\nc 5", "row 3: 1 number"),
        ("3 2\na 1 2\nb 3 4\n", "declares 3 words, but the file has 2"),
        (
            "3 4\na 1 2\nb 3 4\nc 5 6\n",
            "row 1: .* is not a word and 4 numbers, as declared in the first line",
        ),
        ("a 1 2\nb 3 nan\n", "row 2: the vector of 'b' has a number that is not finite"),
        ("a 1 2\nb -inf 4\n", "row 2: the vector of 'b' has a number that is not finite"),
        ("a 1 2\nb 1 x4\n", "row 2: 'x4' is not a number"),
        ("a 1 2\n\nb 3 4\n", "row 2: '' is not a number"),
        ("", "row 1: b'' is not a word and numbers"),
        ("just some text\n", "row 1: 'some' is not a number"),
    ],
)
def test_damaged_text_is_rejected_with_the_row(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"t.txt.*{complaint}"):
        read_table(path, None)


def test_text_that_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"a 1 2\n\xff\xfe 3 4\n")
    with pytest.raises(ValueError, match=r"t.txt.*(UTF-?8)"):
        read_table(path, None)


def test_a_truncated_binary_file_is_rejected_with_the_row(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    by_gensim(path, binary=True)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="row 7"):
        read_table(path, None)


def test_matrix_and_vocabulary_of_different_lengths_are_rejected(tmp_path: Path) -> None:
    as_npy(tmp_path / "t.npy")
    (tmp_path / "t.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"7 rows, but its vocabulary .*t.txt has 2 words"):
        read_table(tmp_path / "t.npy", tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        (np.zeros(5, np.float32), "float32 5, but it must be a matrix"),
        (np.zeros((0, 5), np.float32), "float32 0 x 5, but it must be a matrix"),
        (np.zeros((7, 5), np.int64), "int64 7 x 5, but it must be a matrix"),
        (np.array([[object()] * 5] * 7), "can't be read as .npy"),
    ],
)
def test_an_array_that_is_not_a_matrix_is_rejected(
    matrix: np.ndarray, complaint: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "t.npy", matrix, allow_pickle=True)
    (tmp_path / "t.txt").write_text("\n".join(WORDS))
    with pytest.raises(ValueError, match=complaint):
        read_table(tmp_path / "t.npy", tmp_path / "t.txt")


def test_truncated_npy_files_and_non_finite_numbers_are_rejected(tmp_path: Path) -> None:
    as_npy(path := tmp_path / "t.npy")
    broken = MATRIX.copy()
    broken[3, 2] = np.nan
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"can't be read as .npy"):
        read_table(path, tmp_path / "t.txt")
    np.save(path, broken)
    with pytest.raises(ValueError, match="row 4: the vector of 'Köln' has a number that is not finite"):
        read_table(path, tmp_path / "t.txt")


def test_safetensors_with_several_matrices_or_truncated_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.txt").write_text("\n".join(WORDS))
    path = tmp_path / "t.safetensors"
    save_file({"a": torch.ones(7, 5), "b": torch.ones(7, 5)}, path)
    with pytest.raises(ValueError, match=r"has 2 two-dimensional tensors \(a, b\)"):
        read_table(path, tmp_path / "vocabulary.txt")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"can't be read as .safetensors"):
        read_table(path, tmp_path / "vocabulary.txt")


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"word": ["a", "b"], "v": [[1.0, 2.0], [3.0]]}, "row 2: 1 number, but the first row has 2"),
        ({"word": ["a", "b"], "v": [[1.0, 2.0], None]}, "row 2: the vector is missing"),
        ({"word": ["a", "b"], "v": [[1.0, 2.0], [3.0, None]]}, "row 2: the vector of 'b'"),
        ({"word": ["a", None], "v": [[1.0], [2.0]]}, "row 2: the word is missing"),
        ({"v": [[1.0], [2.0]]}, "no text column"),
        ({"word": ["a", "b"]}, "needs one with lists of numbers"),
        ({"word": ["a", "b"], "x": [1.0, None]}, "row 2: the vector of 'b'"),
    ],
)
def test_parquet_without_words_and_vectors_is_rejected(
    columns: dict[str, list[object]], complaint: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=complaint):
        read_table(tmp_path / "t.parquet", None)


@pytest.mark.parametrize(
    ("name", "content"),
    [("v.json", "{"), ("v.json", '{"a": 0, "b": 2}'), ("v.json", "[1, 2]"), ("v.json", '{"a": "b"}')],
)
def test_a_malformed_vocabulary_is_rejected(name: str, content: str, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", MATRIX[:2])
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="vocabulary"):
        read_table(tmp_path / "t.npy", tmp_path / name)


def test_a_vocabulary_is_required_only_without_words_in_the_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is a matrix without words"):
        find_vocabulary(tmp_path / "t.npy", None)
    with pytest.raises(FileNotFoundError, match=r"v.json does not exist"):
        find_vocabulary(tmp_path / "t.npy", tmp_path / "v.json")
    (tmp_path / "v.csv").touch()
    with pytest.raises(ValueError, match=r"the vocabulary v.csv must be one of .json .txt .parquet"):
        find_vocabulary(tmp_path / "t.npy", tmp_path / "v.csv")
    with pytest.raises(ValueError, match="already has words"):
        find_vocabulary(tmp_path / "t.txt", tmp_path / "v.csv")
