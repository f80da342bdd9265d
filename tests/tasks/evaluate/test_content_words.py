"""Content words are distinguished from function words by their distribution in a text, in any language."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexloom.tasks.evaluate.content_words import CANDIDATES, content_words, count_frequent, residual_idf

WORDS = 400


def write(folder: Path, documents: list[np.ndarray]) -> list[Path]:
    rows = pa.array([document.tolist() for document in documents], pa.list_(pa.int32()))
    pq.write_table(pa.table({"tokens": rows}), folder / "shard-00000.parquet")
    return [folder / "shard-00000.parquet"]


def test_words_concentrated_in_passages_are_content_words(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    documents = []
    for topic in range(100):  # of 2,000 words each
        common = generator.integers(0, 100, 1000)  # the most frequent words
        spread = 100 + 2 * generator.integers(0, WORDS // 2, 800)  # even ids: function words
        about = 101 + 2 * (generator.integers(0, 20, 200) + 10 * (topic % 19))  # odd ids
        documents.append(generator.permutation(np.concatenate([common, spread, about])))
    counts = np.bincount(np.concatenate(documents), minlength=100 + WORDS)
    order = np.argsort(-counts, kind="stable")
    rank = np.argsort(order)
    files = write(tmp_path, [rank[document] for document in documents])
    found = content_words(files, counts[order])
    assert len(found) == 60  # 30% of the 200 words below the common ones
    assert all(order[word] >= 100 for word in found)
    assert np.mean(order[found] % 2 == 1) > 0.95
    assert sorted(found) == found.tolist()


def test_the_residual_is_log2_of_expected_over_observed_passages(tmp_path: Path) -> None:
    even = np.tile([0, 2], 5000)  # word 0 is in all of the 10 passages
    even[:200] = 1  # word 1 in the first one
    files = write(tmp_path, [even])
    occurrences = np.array([4900, 200])
    expected = 10 * (1 - np.exp(-occurrences / 10))
    assert residual_idf(files, 0, 2) == pytest.approx(np.log2(expected / [10, 1]))


def test_a_small_text_keeps_its_most_frequent_words(tmp_path: Path) -> None:
    files = write(tmp_path, [np.arange(3)])
    assert content_words(files, np.array([5, 4, 1])).tolist() == [0, 1, 2]
    assert len(content_words(files, np.full(5000, 3))) == CANDIDATES


@given(st.lists(st.integers(1, 60), min_size=1, max_size=400))
def test_content_words_are_frequent_if_enough_words_are(counts: list[int]) -> None:
    descending = np.array(sorted(counts, reverse=True))
    assert content_words([], descending).max() < count_frequent(descending) <= len(counts)


def test_all_words_count_as_frequent_if_few_are() -> None:
    counts = np.array([25, 20, *[5] * 8])
    assert count_frequent(counts) == 10
    assert content_words([], counts).tolist() == list(range(10))
