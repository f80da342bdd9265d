"""Alias tables, of a distribution and of the parts of a grid, represent their distributions."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lexloom.models.word2vec.alias import alias_table, alias_tables
from lexloom.models.word2vec.grid import Grid


def shares_of(probability: np.ndarray, alias: np.ndarray) -> np.ndarray:
    """Return the distribution of an alias table, from each cell's own share and that of its alias."""
    shares = probability.astype(np.float64)
    np.add.at(shares, alias, 1.0 - probability.astype(np.float64))
    return shares / len(probability)


@settings(deadline=None)  # the first call compiles
@given(counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=200), power=st.floats(0, 1.5))
@example(counts=[1], power=0.75)
@example(counts=[10**12] + [1] * 100, power=1.0)
def test_alias_table_represents_the_distribution(counts, power):
    weights = np.array(counts, np.float64) ** power
    expected = weights / weights.sum()
    probability, alias = alias_table(expected)
    assert (probability.dtype, alias.dtype) == (np.float32, np.int32)
    assert np.abs(shares_of(probability, alias) - expected).max() < 1e-6
    assert ((probability >= 0) & (probability <= 1)).all()


def test_zipfian_vocabulary_is_represented_accurately():
    weights = (1e9 / np.arange(1, 200_001)) ** 0.75
    expected = weights / weights.sum()
    assert np.allclose(shares_of(*alias_table(expected)), expected, rtol=1e-5, atol=0)


def test_one_word_is_always_drawn():
    probability, alias = alias_table(np.ones(1))
    assert (probability.tolist(), alias.tolist()) == ([1.0], [0])


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.data())
def test_each_part_has_the_distribution_of_its_own_words(weights, data):
    grid = Grid(len(weights), data.draw(st.integers(1, len(weights))))
    probability, alias = alias_tables(np.array(weights), grid)
    assert probability.shape == alias.shape == (grid.parts, grid.rows)
    assert (probability.dtype, alias.dtype) == (np.float32, np.uint16)
    for part in range(grid.parts):
        ids = grid.words_of(part)
        own = np.array(weights)[ids]
        shares = shares_of(probability[part, : len(ids)], alias[part, : len(ids)])
        np.testing.assert_allclose(shares, own / own.sum(), atol=1e-6)
        assert (alias[part] < len(ids)).all()
        assert not probability[part, len(ids) :].any()


def test_largest_part_has_the_right_distribution():
    weights = 1 / (np.arange(131_072) + 2.7)
    probability, alias = alias_tables(weights, Grid(131_072, 2))
    for part in range(2):
        own = weights[Grid(131_072, 2).words_of(part)]
        np.testing.assert_allclose(shares_of(probability[part], alias[part]), own / own.sum(), rtol=1e-4)


def test_words_of_weight_zero_are_not_drawn():
    grid = Grid(6, 2)  # parts 0, 3, 4 and 1, 2, 5
    probability, alias = alias_tables(np.array([2.0, 0, 3, 0, 0, 1]), grid)
    assert shares_of(probability[0], alias[0]).tolist() == [1, 0, 0]
    assert shares_of(probability[1], alias[1]) == pytest.approx([0, 0.75, 0.25])


def test_part_whose_words_all_have_weight_zero_is_uniform():
    probability, alias = alias_tables(np.array([1.0, 0, 0, 0, 0]), Grid(5, 2))  # parts 0, 3, 4 and 1, 2
    assert shares_of(probability[0], alias[0]).tolist() == [1, 0, 0]
    assert shares_of(probability[1, :2], alias[1, :2]).tolist() == [0.5, 0.5]
