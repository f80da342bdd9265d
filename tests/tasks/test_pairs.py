"""Tests of stored pairs: word2vec's distribution, exact shard sizes, independent of the input shards."""

from collections import Counter
from collections.abc import Callable
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import lexloom.tasks.pairs
import lexloom.tasks.store.shards
import lexloom.tasks.tokens
from lexloom.models.word2vec.skipgram import SkipGrams
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.store.artifacts import Artifact, Summary
from tests.models.word2vec.test_skipgram import TEXT, assert_drawn_as_expected, expected_pairs, thresholds_of

PLAIN = {"shrink_window": False, "subsample": 0}
numbers = count()

texts = st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=8)


def artifact(folder: Path, stage: str) -> Artifact:
    folder.mkdir(parents=True)
    summary = Summary(rows_in=0, unit_in="", rows=0, unit="")
    return Artifact(stage=stage, key=folder.name, folder=folder, summary=summary)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Summary, list[tuple[int, int]], list[pq.ParquetFile]]]:
    """Run the stage on documents; return its summary, pairs and shards."""

    def run(
        documents: list[list[int]], shards: int = 1, row_group: int = 100, words: int = 10, **options: Any
    ) -> tuple[Summary, list[tuple[int, int]], list[pq.ParquetFile]]:
        folder = tmp_path / f"run-{next(numbers)}"
        tokens, vocabulary = artifact(folder / "tokens", "tokens"), artifact(folder / "words", "vocabulary")
        cuts = [len(documents) * i // shards for i in range(shards + 1)]
        for i in range(shards):
            rows = pa.array(documents[cuts[i] : cuts[i + 1]], pa.list_(pa.int32()))
            file = tokens.folder / f"shard-{i:05d}.parquet"
            pq.write_table(pa.table({"tokens": rows}), file, row_group_size=row_group)
        occurrences = Counter(word for document in documents for word in document)
        counts = pa.array([max(1, occurrences[word]) for word in range(words)], pa.int64())
        names = pa.array([f"w{word}" for word in range(words)])
        pq.write_table(pa.table({"word": names, "count": counts}), vocabulary.folder / "vocabulary.parquet")
        out = folder / "out"
        out.mkdir()
        summary = pairs.function(tokens, vocabulary, PairsConfig(**options), out)
        files = [pq.ParquetFile(path) for path in sorted(out.iterdir())]
        tables = [file.read() for file in files]
        found = [
            pair
            for table in tables
            for pair in zip(table["target"].to_pylist(), table["context"].to_pylist(), strict=True)
        ]
        return summary, found, files

    return run


def runs_by_hand(documents: list[list[int]], window: int) -> list[list[tuple[int, int]]]:
    """Return the pairs of every target, in order: all words within `window` positions, from left to right."""
    return [
        [(target, context) for context in document[max(0, i - window) : i] + document[i + 1 : i + 1 + window]]
        for document in documents
        for i, target in enumerate(document)
        if len(document) > 1
    ]


# which pairs


def test_a_hand_computed_sentence(make):
    _, found, _ = make([[0, 1, 2, 3], [4, 5]], window=2, **PLAIN)
    assert found == [
        *[(0, 1), (0, 2)],
        *[(1, 0), (1, 2), (1, 3)],
        *[(2, 0), (2, 1), (2, 3)],
        *[(3, 1), (3, 2)],
        *[(4, 5), (5, 4)],
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=texts, window=st.integers(1, 6), pairs_per_shard=st.integers(1, 40), shards=st.integers(1, 3)
)
def test_pairs_equal_a_plain_loop(make, documents, window, pairs_per_shard, shards):
    runs = runs_by_hand(documents, window)
    expected = [pair for run in runs for pair in run]
    if not expected:
        return
    summary, found, files = make(
        documents, shards, row_group=2, window=window, pairs_per_shard=pairs_per_shard, **PLAIN
    )
    assert found == expected  # the same pairs, hence the same runs, in the same order
    assert summary.rows == summary.facts["pairs"] == len(expected)
    assert summary.facts["positions"] == len(runs)
    assert summary.rows_in == sum(map(len, documents))
    assert summary.dropped["words without context"] == sum(len(document) == 1 for document in documents)
    sizes = [file.metadata.num_rows for file in files]
    assert all(size == pairs_per_shard for size in sizes[:-1])
    assert 1 <= sizes[-1] <= pairs_per_shard


def test_empty_documents_and_single_words_have_no_pairs(make):
    summary, found, _ = make([[], [7], [1, 2], [], [3]], **PLAIN)
    assert found == [(1, 2), (2, 1)]
    assert summary.dropped == {"dropped by subsampling": 0, "words without context": 2}
    assert (summary.rows_in, summary.facts["documents"], summary.facts["positions"]) == (4, 5, 2)


# what is drawn


def test_the_shrunk_window_is_uniform_and_centred(make):
    document = list(range(20_000))
    _, found, _ = make([document], words=20_000, window=4, subsample=0)
    reach = []
    for target, run in groupby(found, key=lambda pair: pair[0]):
        places = [context - target for _, context in run]
        if 4 <= target < len(document) - 4:
            width = max(places)
            assert places == [*range(-width, 0), *range(1, width + 1)]
            reach.append(width)
    seen = np.bincount(reach, minlength=5)[1:]
    assert np.allclose(seen / len(reach), 1 / 4, atol=4 * np.sqrt(1 / 4 * 3 / 4 / len(reach)))
    neighbours = np.corrcoef(reach[:-1], reach[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(len(reach))


def test_subsampling_follows_word2vecs_formula(make):
    threshold, occurrences = 0.02, {0: 60_000, 1: 30_000, 2: 8_000, 3: 2_000}
    text = np.repeat(list(occurrences), list(occurrences.values()))
    np.random.default_rng(0).shuffle(text)
    _, found, _ = make(text.reshape(100, -1).tolist(), words=4, window=1, subsample=threshold)
    # with window 1 a kept word is the target of two pairs, or of one at the ends of its document
    as_target = Counter(target for target, _ in found)
    for word, occurrence in occurrences.items():
        share = occurrence / len(text)
        chance = min(1.0, np.sqrt(threshold / share) + threshold / share)
        ends_of_documents = 100 / occurrence
        tolerance = 4 * np.sqrt(chance * (1 - chance) / occurrence) + ends_of_documents
        assert as_target[word] / 2 / occurrence == pytest.approx(chance, abs=tolerance)
    assert as_target[3] / 2 == pytest.approx(2_000, abs=100)  # a rare word is always kept


def test_windows_are_drawn_after_subsampling(make):
    # half the words of every document go; those that stay are neighbours though words stood between them
    documents = [[0, 1, 2, 3] * 50] * 20
    summary, found, _ = make(documents, words=4, window=1, subsample=0.04, shrink_window=False)
    kept = summary.rows_in - summary.dropped["dropped by subsampling"]
    assert 0.4 < kept / summary.rows_in < 0.8
    assert len(found) == 2 * kept - 2 * len(documents)


def test_stored_and_streamed_pairs_have_the_same_distribution(make):
    """tests/models/word2vec/test_skipgram.py tests the pairs that are drawn in training."""
    kept = thresholds_of(TEXT, 0.05) / (1 << 32)
    options = {"words": 4, "window": 3, "subsample": 0.05}
    found = [Counter(make(TEXT, seed=seed, **options)[1]) for seed in range(200)]
    assert_drawn_as_expected(found, expected_pairs(TEXT, kept, window=3))


def test_whole_documents_are_held_out_and_no_pair_is_lost(make):
    documents = [[i, i + 1, i, i + 1] for i in range(0, 2000, 2)]  # every document has words of its own
    options = {"words": 2000, "window": 2, **PLAIN}
    _, everything, _ = make(documents, **options)
    summary, found, files = make(documents, validation_share=0.2, shards=3, **options)
    assert [file.schema_arrow.names for file in files] == [["target", "context"]] * 2
    assert sorted(found) == sorted(everything)
    trained = {target // 2 for target in files[0].read()["target"].to_pylist()}
    held_out = {target // 2 for target in files[1].read()["target"].to_pylist()}
    assert not trained & held_out
    assert len(held_out) == pytest.approx(200, abs=40)
    streamed = SkipGrams(np.zeros(2000), 2, shrink_window=False, seed=1, held_out_share=0.2)
    assert held_out == set(np.flatnonzero(streamed.held_out(np.arange(1000))).tolist())
    assert summary.rows + summary.facts["validation_pairs"] == len(everything)


def test_a_share_that_holds_out_nothing_is_rejected(make):
    with pytest.raises(ValueError, match="no pairs are held out from 3 documents: raise validation_share"):
        make([[0, 1, 2]] * 3, validation_share=0.001, **PLAIN)


# the same, whatever the circumstances


def test_pairs_do_not_depend_on_shards_or_threads(make, monkeypatch):
    generator = np.random.default_rng(3)
    documents = [generator.integers(0, 10, generator.integers(0, 40)).tolist() for _ in range(300)]
    options = {"window": 3, "subsample": 0.01, "seed": 7}
    summary, expected, _ = make(documents, **options)
    assert 0 < summary.dropped["dropped by subsampling"] < summary.rows_in
    assert make(documents, shards=7, row_group=11, **options)[1] == expected
    monkeypatch.setattr(lexloom.tasks.tokens, "TOKENS_PER_BATCH", 64)
    monkeypatch.setattr(lexloom.tasks.pairs, "ROWS_PER_GROUP", 50)
    monkeypatch.setattr(lexloom.tasks.store.shards, "BLOCKS", 2)
    assert make(documents, shards=3, **options)[1] == expected


def test_another_seed_draws_other_pairs(make):
    documents = [list(range(10)) * 10]
    assert make(documents, seed=1)[1] == make(documents, seed=1)[1] != make(documents, seed=2)[1]


def test_equal_documents_have_different_draws(make):
    words = list(range(30))
    _, found, _ = make([words, words], words=30, subsample=0)
    half = next(i for i in range(1, len(found)) if (found[i - 1][0], found[i][0]) == (29, 0))
    assert found[:half] != found[half:]


# how they lie on disk


def test_row_groups_have_one_size_and_columns_are_int32(make, monkeypatch):
    monkeypatch.setattr(lexloom.tasks.pairs, "ROWS_PER_GROUP", 16)
    _, found, files = make([[0, 1, 2, 3, 4] * 20], pairs_per_shard=100, window=3, **PLAIN)
    for file in files:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert all(size == 16 for size in sizes[:-1])
        assert 1 <= sizes[-1] <= 16
        assert file.schema_arrow == pa.schema(
            [pa.field("target", pa.int32(), False), pa.field("context", pa.int32(), False)]
        )
    assert [file.metadata.num_rows for file in files] == [100] * (len(found) // 100) + [len(found) % 100]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressions_hold_the_same_pairs(make, compression):
    _, found, files = make([[0, 1, 2]], compression=compression, **PLAIN)
    assert len(found) == 6
    assert files[0].metadata.row_group(0).column(0).compression.lower() == compression


def test_a_document_may_be_longer_than_a_block(make, monkeypatch):
    monkeypatch.setattr(lexloom.tasks.pairs, "ROWS_PER_GROUP", 1000)
    document = (list(range(10)) * 2000)[:-3]
    _, found, _ = make([document], window=2, **PLAIN)
    assert len(found) == 4 * len(document) - 6
    assert found == [pair for run in runs_by_hand([document], 2) for pair in run]


# errors


def test_a_text_without_pairs_is_rejected_with_a_remedy(make):
    with pytest.raises(ValueError, match=r"no pairs can be .* from 3 documents with 2 words.*subsample"):
        make([[1], [], [2]], **PLAIN)


def test_tokens_of_another_vocabulary_are_rejected(make):
    with pytest.raises(ValueError, match="not in the vocabulary of 3 words"):
        make([[0, 1, 5]], words=3)


def test_a_failure_of_the_writing_thread_is_raised(make, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", fail)
    with pytest.raises(OSError, match="No space left"):
        make([[0, 1, 2]], **PLAIN)


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"subsample": -0.1}, {"subsample": 1.5}, {"pairs_per_shard": 0}, {"seed": -1}]
)
def test_options_out_of_bounds_are_rejected(options):
    with pytest.raises(ValidationError):
        PairsConfig(**options)
