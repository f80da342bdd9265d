"""Word vectors: nearest neighbours, analogies, and file formats."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models import KeyedVectors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lexloom.models.normalization import Normalization
from lexloom.models.word2vec.vectors import UnknownWordError, WordVectors, save_word2vec_counts


def random_vectors(words: int, dim: int = 20) -> WordVectors:
    matrix = torch.randn(words, dim, generator=torch.Generator().manual_seed(0))
    return WordVectors([f"word{i}" for i in range(words)], matrix)


# Neighbours


@pytest.mark.parametrize("k", [40, 3])
def test_neighbours_equal_a_naive_search(monkeypatch, k):
    monkeypatch.setattr(
        "lexloom.models.word2vec.vectors._QUERY_BLOCK", 7
    )  # so that the blocks do not divide the whole
    monkeypatch.setattr("lexloom.models.word2vec.vectors._GROUP", 4)
    monkeypatch.setattr("lexloom.models.word2vec.vectors._SPAN", 24)
    monkeypatch.setattr("lexloom.models.word2vec.vectors._SCORES", 7 * 8)
    monkeypatch.setattr("lexloom.models.word2vec.vectors._GATHERED_FLOATS", 2 * 3 * 4 * 20)
    vectors = random_vectors(100)
    unit = vectors.vectors.double() / vectors.vectors.double().norm(dim=1, keepdim=True)
    for word, found in zip(vectors.words, vectors.neighbours(vectors.words, k=k), strict=True):
        cosines = {
            other: float(unit[vectors.words.index(word)] @ unit[i])
            for i, other in enumerate(vectors.words)
            if other != word
        }
        naive = sorted(cosines, key=cosines.__getitem__, reverse=True)[:k]
        assert [neighbour for neighbour, _ in found] == naive
        assert [score for _, score in found] == pytest.approx([cosines[n] for n in naive], abs=1e-6)


def test_empty_vocabulary_has_no_neighbours():
    assert WordVectors([], torch.empty(0, 4)).neighbours_of(torch.ones(2, 4)) == [[], []]


def test_neighbours_are_limited_to_the_other_words():
    vectors = random_vectors(4)
    assert len(vectors.neighbours(["word2"], k=10)[0]) == 3
    assert len(vectors.neighbours_of(vectors.vectors[:1], k=10)[0]) == 4
    assert vectors.neighbours([], k=10) == []
    with pytest.raises(ValueError, match="k is 0"):
        vectors.neighbours(["word2"], k=0)


def test_similarity_ignores_vector_length():
    vectors = random_vectors(50)
    (found,) = vectors.neighbours_of(3.0 * vectors["word7"][None], k=1)
    assert found == [("word7", pytest.approx(1.0))]
    with pytest.raises(ValueError, match=r"\(Q, 20\)"):
        vectors.neighbours_of(torch.zeros(2, 19))


def test_zero_vector_has_zero_similarity():
    vectors = WordVectors(["zero", "one", "two"], np.array([[0, 0], [1, 0], [-1, 0]]))
    assert vectors.neighbours(["one"]) == [[("zero", 0.0), ("two", -1.0)]]


def test_analogy_uses_unit_vectors():
    # king - man + woman, in the plane of (royal, female); the lengths differ, and only the directions count
    vectors = WordVectors(
        ["man", "woman", "king", "queen", "stone"],
        np.array([[0.1, -1], [0.3, 3], [2, -2], [5, 5], [-1, 0]], dtype=np.float32),
    )
    best, *others = vectors.analogy("man", "king", "woman")
    assert best[0] == "queen"
    assert [word for word, _ in others] == ["stone"]  # the three asked about are left out

    def unit(word: str) -> np.ndarray:
        return vectors[word].numpy() / np.linalg.norm(vectors[word].numpy())

    query = unit("king") - unit("man") + unit("woman")
    assert best[1] == pytest.approx(query @ unit("queen") / np.linalg.norm(query), abs=1e-6)


def test_unknown_word_error_suggests_similar_spellings():
    vectors = WordVectors(["cinema", "actor", "film"], np.eye(3))
    with pytest.raises(UnknownWordError) as unknown:
        vectors.neighbours(["actor", "cinemas"])
    assert str(unknown.value) == "'cinemas' is not in the vocabulary of 3 words; similar words: cinema"
    assert isinstance(unknown.value, KeyError)
    with pytest.raises(UnknownWordError, match=r"'Film' is not in the vocabulary .* similar words: film$"):
        vectors["Film"]
    with pytest.raises(UnknownWordError, match=r"^'xyz' is not in the vocabulary of 3 words$"):
        vectors["xyz"]
    assert "film" in vectors
    assert "xyz" not in vectors
    assert len(vectors) == 3


@pytest.mark.parametrize(
    ("words", "matrix", "sentence"),
    [
        (["a", "b"], np.zeros((3, 2)), r"2 words do not match vectors of shape \(3, 2\)"),
        (["a", "b"], np.zeros(2), r"shape \(2,\)"),
        (["a", "b", "a"], np.zeros((3, 2)), "'a' occurs twice"),
        (["a", "b"], np.array([[0, 1], [np.nan, 0]]), r"'b' \(row 1\) is not finite"),
    ],
)
def test_mismatched_words_and_vectors_are_rejected(words, matrix, sentence):
    with pytest.raises(ValueError, match=sentence):
        WordVectors(words, matrix)


# Files

WORDS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \n"), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
    unique=True,
)


@st.composite
def word_vectors(draw) -> WordVectors:
    words = draw(WORDS)
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return WordVectors(
        words, draw(hnp.arrays(np.float32, (len(words), draw(st.integers(1, 4))), elements=numbers))
    )


def assert_same(read: WordVectors, written: WordVectors) -> None:
    assert read.words == written.words
    assert torch.equal(read.vectors, written.vectors)


@given(word_vectors())
def test_safetensors_round_trip_is_exact(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("model")
    vectors.save(folder)
    assert_same(WordVectors.load(folder), vectors)


@given(word_vectors(), st.booleans())
def test_word2vec_round_trip_is_exact(tmp_path_factory, vectors, binary):
    path = tmp_path_factory.mktemp("word2vec") / "vectors"
    vectors.save_word2vec(path, binary=binary)
    assert_same(WordVectors.load_word2vec(path, binary=binary), vectors)


@pytest.mark.parametrize("binary", [True, False])
def test_gensim_reads_written_files(tmp_path, binary):
    vectors = random_vectors(50)
    vectors.words[7] = "слово"
    vectors.save_word2vec(tmp_path / "vectors", binary=binary)
    read = KeyedVectors.load_word2vec_format(str(tmp_path / "vectors"), binary=binary)
    assert read.index_to_key == vectors.words
    np.testing.assert_array_equal(read.vectors, vectors.vectors.numpy())


@pytest.mark.parametrize("binary", [True, False])
def test_gensim_reads_counts_with_either_format(tmp_path, binary):
    vectors = WordVectors(["слово", "#hash", *random_vectors(48).words], random_vectors(50).vectors)
    counts = [900 - word**2 // 3 for word in range(50)]
    vectors.save_word2vec(tmp_path / "vectors", binary=binary)
    save_word2vec_counts(vectors.words, counts, tmp_path / "counts")
    read = KeyedVectors.load_word2vec_format(
        str(tmp_path / "vectors"), fvocab=str(tmp_path / "counts"), binary=binary
    )
    assert [read.get_vecattr(word, "count") for word in vectors.words] == counts
    theirs = [word for word, _ in read.most_similar("слово", topn=5)]
    assert theirs == [word for word, _ in vectors.neighbours(["слово"], 5)[0]]


@pytest.mark.parametrize("word", ["no\u00a0break", "\u3000", "a\x1cb", "line\u2028"])
def test_counts_of_words_with_white_space_are_rejected(tmp_path, word):
    with pytest.raises(ValueError, match=r"\(row 2\) contains white space"):
        save_word2vec_counts(["film", word], [2, 1], tmp_path / "counts")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("binary", [True, False])
def test_files_of_gensim_are_read(tmp_path, binary):
    written = KeyedVectors(20)
    written.add_vectors(["слово", *random_vectors(49).words], random_vectors(50).vectors.numpy())
    written.save_word2vec_format(str(tmp_path / "vectors"), binary=binary)
    read = WordVectors.load_word2vec(tmp_path / "vectors", binary=binary)
    assert read.words == written.index_to_key
    np.testing.assert_array_equal(read.vectors.numpy(), written.vectors)


@pytest.mark.parametrize("ends", ["\n", " \n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_text_may_have_trailing_spaces_and_line_breaks(tmp_path, ends, last):
    text = ends.join(["2 3", "film 1 -2.5 3e-1", "actor 0 0 1"]) + ends * last
    (tmp_path / "vectors.txt").write_bytes(text.encode())
    read = WordVectors.load_word2vec(tmp_path / "vectors.txt", binary=False)
    assert read.words == ["film", "actor"]
    np.testing.assert_array_equal(read.vectors, np.array([[1, -2.5, 0.3], [0, 0, 1]], dtype=np.float32))


@pytest.mark.parametrize("between", [b"", b"\n"])
def test_binary_may_have_line_breaks_between_rows(tmp_path, between):
    numbers = np.arange(6, dtype="<f4")
    rows = b"film " + numbers[:3].tobytes() + between + b"actor " + numbers[3:].tobytes() + between
    (tmp_path / "vectors.bin").write_bytes(b"2 3\n" + rows)
    read = WordVectors.load_word2vec(tmp_path / "vectors.bin", binary=True)
    assert read.words == ["film", "actor"]
    np.testing.assert_array_equal(read.vectors, numbers.reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not '<words> <dimensions>'"),
        (b"film 1 2 3\n", "not '<words> <dimensions>'"),
        (b"2 0\na\nb\n", "announces 2 words of 0 numbers"),
        (b"999999999 300\nfilm 1 2\n", "announces 999999999 words .* only 9 bytes follow"),
        (b"2 3\nfilm 1 2 3\nactor 1 2\n", "row 2: 2 numbers, but the first line announces 3"),
        (b"3 2\nfilm 1 2\nactor 3 4\n", "row 3: 0 numbers"),
        (b"1 2\nfilm 1 2\nactor 3 4\n", "row 2: the file continues after the first line's 1 words"),
        (b"1 2\nfilm 1 x\n", "row 1: could not convert string to float: b'x'"),
        (b"2 2\nfilm 1 2\nactor nan 2\n", "row 2: the vector of 'actor' has a number that is not finite"),
        (b"1 2\nfilm 1e39 2\n", "row 1: .* not finite"),
        (b"1 2\nfi\xfflm 1 2\n", "row 1: .* is not UTF-8"),
        (b"2 1\nfilm 1\nfilm 2\n", "'film' occurs twice"),
    ],
)
def test_malformed_text_is_rejected_with_its_row(tmp_path, content, sentence):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as refused:
        WordVectors.load_word2vec(path, binary=False)
    assert str(path) in str(refused.value)


ONES = np.ones(3, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not '<words> <dimensions>'"),
        (b"2 3\na " + ONES + b"b " + ONES[:-1], "only 27 bytes follow"),
        (b"2 3\nlong " + ONES + b"\nb " + ONES[:-1], "row 2: the file ends before the first line's 2 words"),
        (b"1 3\na " + ONES + b"b " + ONES, "row 2: the file continues after the first line's 1 words"),
        (b"1 3\na " + ONES[:8] + np.array(np.inf, dtype="<f4").tobytes(), "row 1: .* not finite"),
        (b"1 3\n\xff\xfe " + ONES, "row 1: .* is not UTF-8"),
    ],
)
def test_malformed_binary_is_rejected_with_its_row(tmp_path, content, sentence):
    path = tmp_path / "vectors.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as refused:
        WordVectors.load_word2vec(path, binary=True)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("word", ["new york", "line\nbreak", "", "\ud800"])
def test_unwritable_word_is_rejected_before_writing(tmp_path, word, binary):
    with pytest.raises(ValueError, match=r"\(row 2\) can't be written in word2vec's format"):
        WordVectors(["film", word], np.eye(2)).save_word2vec(tmp_path / "vectors", binary=binary)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("vocabulary", "sentence"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "does not map words to ids"),
        ('{"a": 0, "b": "c"}', "does not map words to ids"),
        ('{"a": 0, "b": 2}', "ids are not 0 to 1: save"),
        ('{"a": 0}', r"1 words do not match vectors of shape \(2, 2\)"),
    ],
)
def test_damaged_vocabulary_is_rejected(tmp_path, vocabulary, sentence):
    WordVectors(["a", "b"], np.eye(2)).save(tmp_path)
    (tmp_path / "vocabulary.json").write_text(vocabulary)
    with pytest.raises(ValueError, match=sentence):
        WordVectors.load(tmp_path)


def test_damaged_or_missing_model_is_rejected(tmp_path):
    WordVectors(["a", "b"], np.eye(2)).save(tmp_path)
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == {"a": 0, "b": 1}
    model_file = tmp_path / "model.safetensors"
    model_file.write_bytes(model_file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"model\.safetensors has no tensor 'vectors'"):
        WordVectors.load(tmp_path)
    model_file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        WordVectors.load(tmp_path)


def test_saved_files_are_readable_by_others(tmp_path: Path) -> None:
    WordVectors(["a"], torch.ones(1, 2)).save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044 == 0o044


# words as they are asked for


def test_words_are_normalized_like_the_training_text(tmp_path: Path) -> None:
    words = ["наташа", "o'neill", "co-op", "café", "mp3"]
    WordVectors(words, torch.eye(5)).save(tmp_path)
    description = {"model": "word2vec", "normalization": Normalization().model_dump()}
    (tmp_path / "config.json").write_text(json.dumps(description))
    vectors = WordVectors.load(tmp_path)
    asked = ["Наташа", "O’Neill", "<b>Co</b>-op!", "CAFE\u0301", " MP3,"]
    assert [vectors.spelling(word) for word in asked] == words
    assert all(word in vectors for word in asked)
    assert torch.equal(vectors["Наташа"], torch.eye(5)[0])
    assert vectors.neighbours(asked, 2) == vectors.neighbours(words, 2)
    assert vectors.analogy(*asked[:3], 2) == vectors.analogy("наташа", "o'neill", "co-op", 2)
    for word, said in (
        ("New York", r"this model splits 'New York' into 2 words \(new, york\)"),
        ("1984!", "this model's normalization removes all of '1984!'"),
        ("Natasha", "'natasha' is not in the vocabulary of 5 words"),
    ):
        with pytest.raises(UnknownWordError, match=said):
            vectors[word]


def test_words_are_not_normalized_without_rules(tmp_path: Path) -> None:
    WordVectors(["peace"], torch.ones(1, 2)).save(tmp_path)
    vectors = WordVectors.load(tmp_path)
    assert "Peace" not in vectors
    with pytest.raises(UnknownWordError, match=r"'Peace' is not in the vocabulary .* similar words: peace"):
        vectors["Peace"]
