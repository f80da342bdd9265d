"""The division of the vocabulary into parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexloom.models.word2vec.grid import MAX_PARTS, MAX_ROWS, Grid, default_episode, default_parts


@given(st.integers(1, 500), st.data())
def test_each_word_has_one_row(words, data):
    grid = Grid(words, data.draw(st.integers(1, words)))
    ids = np.arange(words)
    codes = grid.codes(ids)
    assert len(np.unique(codes)) == words
    for part in range(grid.parts):
        own = grid.words_of(part)
        assert (codes[own] == (part << 16 | np.arange(len(own)))).all()
        assert grid.rows - 1 <= len(own) <= grid.rows
    assert sum(len(grid.words_of(part)) for part in range(grid.parts)) == words


def test_words_are_dealt_back_and_forth():
    grid = Grid(10, 4)
    assert [grid.words_of(part).tolist() for part in range(4)] == [[0, 7, 8], [2, 5], [1, 6, 9], [3, 4]]


def test_parts_of_natural_text_have_nearly_equal_weight():
    counts = 1 / (np.arange(60_000) + 2.7)
    grid = Grid(60_000, 8)
    weights = np.sqrt(counts)  # about what subsampling leaves
    shares = np.array([weights[grid.words_of(part)].sum() for part in range(8)]) / weights.sum()
    assert shares == pytest.approx(1 / 8, rel=0.01)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_own_parts_of_nearly_equal_weight(workers):
    weights = np.sqrt(1 / (np.arange(60_000) + 2.7))
    grid = Grid(60_000, 12)
    owned = [
        [weights[grid.words_of(part)].sum() for part in grid.own(rank, workers)] for rank in range(workers)
    ]
    assert np.sum(owned, 1) == pytest.approx(weights.sum() / workers, rel=0.003)


@given(st.integers(1, 64), st.integers(1, 64))
def test_each_part_has_one_owner(parts, workers):
    grid = Grid(100, parts)
    if workers > parts:
        with pytest.raises(ValueError, match=f"{workers} workers can't share {parts} parts"):
            grid.own(0, workers)
        return
    owned = [grid.own(rank, workers) for rank in range(workers)]
    assert [part for own in owned for part in own] == list(range(parts))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize(
    ("words", "parts", "least"), [(5, 6, 1), (5, 0, 1), (0, 1, 1), (MAX_ROWS + 1, 1, 2), (200_000, 3, 4)]
)
def test_unsuitable_number_of_parts_is_rejected(words, parts, least):
    with pytest.raises(
        ValueError, match=f"parts is {parts}: it must be between {least} and {min(words, MAX_PARTS)} "
    ):
        Grid(words, parts)


def test_codes_hold_the_largest_number_of_parts():
    grid = Grid(100_000, MAX_PARTS)
    assert (grid.codes(np.arange(100_000)) >> 16).max() == MAX_PARTS - 1
    with pytest.raises(ValueError, match="parts is 1025: it must be between 2 and 1024"):
        Grid(100_000, MAX_PARTS + 1)


def test_too_large_vocabulary_is_rejected():
    words = MAX_ROWS * MAX_PARTS + 1
    with pytest.raises(ValueError, match=f"has {words} words: at most 67108864 can be trained"):
        Grid(words, default_parts(words))


@given(st.integers(1, 10_000_000))
def test_default_parts_fit_every_vocabulary(words):
    parts = default_parts(words)
    assert Grid(words, parts).rows <= MAX_ROWS
    assert parts % 8 == 0 or parts < 8


@pytest.mark.parametrize(
    ("words", "pairs", "episode"),
    [
        (10, 1_000, 1 << 16),  # not more episodes than are worth it
        (12_000, 8_400_000, 700_000),  # twelve episodes
        (60_000, 100_000_000, 6_240_000),  # 104 pairs per word
        (500_000, 100_000_000, 20_000_000),  # 40 pairs per word
        (2_500_000, 480_000_000, 1 << 25),  # as much as memory holds
    ],
)
def test_default_episodes_follow_the_vocabulary_and_the_text(words, pairs, episode):
    assert default_episode(words, pairs) == episode


def test_large_vocabularies_have_more_parts():
    sizes = (1, 100, 1_000, 10_000, 60_000, 500_000, 2_500_000)
    parts = [default_parts(words) for words in sizes]
    assert parts == sorted(parts)
    assert parts[0] == 1
    assert parts[-1] == 40
