"""Tests of tokens: the compiled lookup against a plain one, and counts of all words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexloom.tasks import tokens as tokens_module
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.tokens import TokensConfig, WordTable, tokens
from lexloom.tasks.vocabulary import VocabularyConfig, split_words, vocabulary
from tests.tasks.test_vocabulary import corpus_of

TEXTS = ["the cat and the dog", "rare words", "the dog", "", "a ant and"]


@pytest.fixture
def made(build: Callable[..., Artifact], tmp_path: Path) -> Artifact:
    corpus = corpus_of(tmp_path / "corpus", TEXTS)
    words = build(vocabulary, corpus, config=VocabularyConfig(min_count=2))  # the 3, and 2, dog 2
    return build(tokens, corpus, words, config=TokensConfig())


def rows(artifact: Artifact) -> list[list[int]]:
    return [row for path in artifact.files() for row in pq.read_table(path)["tokens"].to_pylist()]


def test_documents_are_encoded_in_order(made: Artifact) -> None:
    assert rows(made) == [[0, 1, 0, 2], [0, 2], [1]]


def test_all_words_are_counted(made: Artifact) -> None:
    summary = made.summary
    assert (summary.rows_in, summary.unit_in, summary.rows, summary.unit) == (12, "words", 7, "tokens")
    assert summary.dropped == {"out-of-vocabulary words": 5}
    assert made.facts == {"tokens": 7, "documents": 3, "emptied_documents": 2, "shards": 1}


def test_the_shards_have_the_documented_schema(made: Artifact) -> None:
    assert [path.name for path in made.files()] == ["shard-00000.parquet"]
    schema = pq.read_schema(made.files()[0])
    assert schema.names == ["tokens"]
    assert schema.field("tokens").type == pa.list_(pa.int32())


def test_shards_are_closed_at_their_size(
    build: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "SHARD_BYTES", 400)
    texts = [f"w{n % 10} w{n % 7} w1" for n in range(200)]
    corpus = corpus_of(tmp_path / "corpus", texts, row_group=10)
    words = build(vocabulary, corpus, config=VocabularyConfig(min_count=1))
    made = build(tokens, corpus, words, config=TokensConfig())
    assert len(made.files()) == made.facts["shards"] == 200 * 3 * 4 // 480
    spelled = pq.read_table(words.folder / "vocabulary.parquet")["word"].to_pylist()
    assert [" ".join(spelled[token] for token in row) for row in rows(made)] == texts


def test_a_vocabulary_of_another_corpus_is_rejected(build: Callable[..., Artifact], tmp_path: Path) -> None:
    words = build(vocabulary, corpus_of(tmp_path / "one", ["a b"] * 5), config=VocabularyConfig())
    with pytest.raises(
        ValueError, match="no word of the corpus is in the vocabulary: use the vocabulary of this"
    ):
        build(tokens, corpus_of(tmp_path / "two", ["c d"] * 5), words, config=TokensConfig())


WORDS = st.text(st.sampled_from("abcé漢"), min_size=1, max_size=3)
SPACES = st.text(st.sampled_from(" \t\n\r\v\f"), max_size=3)
DOCUMENTS = st.lists(st.lists(WORDS | SPACES, max_size=30).map(" ".join), min_size=1, max_size=8)


@settings(deadline=None)
@given(
    texts=DOCUMENTS,
    vocabulary=st.lists(WORDS, min_size=1, max_size=20, unique=True),
    skipped=st.integers(0, 3),
)
def test_the_lookup_equals_a_plain_split_and_lookup(
    texts: list[str], vocabulary: list[str], skipped: int
) -> None:
    encoded, unknown, empty = WordTable(pa.array(vocabulary)).encode(pa.array(texts).slice(skipped))
    ids = {word: number for number, word in enumerate(vocabulary)}
    words = [text.split() for text in texts[skipped:]]
    expected = [[ids[word] for word in document if word in ids] for document in words]
    assert encoded.to_pylist() == [document for document in expected if document]
    assert unknown == sum(word not in ids for document in words for word in document)
    assert empty == sum(not document for document in expected)


def test_the_lookup_equals_arrows() -> None:
    random = np.random.default_rng(0)
    vocabulary = pa.array([f"{number:x}" for number in range(50_000)])
    texts = pa.array([" ".join(f"{n:x}" for n in random.integers(0, 60_000, 500)) for _ in range(200)])
    encoded, unknown, _ = WordTable(vocabulary).encode(texts)
    found = pc.index_in(split_words(texts).values, value_set=vocabulary)
    assert encoded.values.equals(found.drop_null())
    assert unknown == found.null_count > 0


def test_hash_collisions_are_resolved() -> None:
    table = WordTable(pa.array(["one", "two"]))
    table._codes[:] = table._codes[table._slots == 0]  # as if all words had the code of "one"
    assert table.encode(pa.array(["one one"]))[0].to_pylist() == [[0, 0]]
    swapped = WordTable(pa.array(["one", "two"]))
    swapped._slots[swapped._slots >= 0] = 1 - swapped._slots[swapped._slots >= 0]
    encoded, unknown, _ = swapped.encode(pa.array(["one two"]))
    assert (encoded.to_pylist(), unknown) == ([], 2)
