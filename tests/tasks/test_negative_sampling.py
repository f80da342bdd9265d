"""Tests of the alias table: words are drawn in proportion to count^power."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lexloom.tasks.negative_sampling import NoiseConfig, alias_table, negative_sampling, read_noise
from lexloom.tasks.store.artifacts import Artifact, Summary


def shares_of(probability: np.ndarray, alias: np.ndarray) -> np.ndarray:
    """Return the distribution of an alias table, from each cell's own share and that of its alias."""
    shares = probability.astype(np.float64)
    np.add.at(shares, alias, 1.0 - probability.astype(np.float64))
    return shares / len(probability)


@settings(deadline=None)  # the first call compiles
@given(counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=200), power=st.floats(0, 1.5))
@example(counts=[1], power=0.75)
@example(counts=[10**12] + [1] * 100, power=1.0)
def test_the_alias_table_represents_the_distribution(counts, power):
    weights = np.array(counts, np.float64) ** power
    expected = weights / weights.sum()
    probability, alias = alias_table(expected)
    assert (probability.dtype, alias.dtype) == (np.float32, np.int32)
    assert np.abs(shares_of(probability, alias) - expected).max() < 1e-6
    assert ((probability >= 0) & (probability <= 1)).all()


def test_a_zipfian_vocabulary_is_represented_accurately():
    weights = (1e9 / np.arange(1, 200_001)) ** 0.75
    expected = weights / weights.sum()
    assert np.allclose(shares_of(*alias_table(expected)), expected, rtol=1e-5, atol=0)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Callable[[list[int]], Artifact]:
    def make(counts: list[int]) -> Artifact:
        words = pa.array([f"w{i}" for i in range(len(counts))])
        pq.write_table(pa.table({"word": words, "count": counts}), tmp_path / "vocabulary.parquet")
        summary = Summary(rows_in=0, unit_in="", rows=0, unit="")
        return Artifact(stage="vocabulary", key="v", folder=tmp_path, summary=summary)

    return make


def test_counts_are_raised_to_three_quarters(build, vocabulary):
    made = build(negative_sampling, vocabulary([16, 1]), config=NoiseConfig())  # 16^0.75 = 8
    assert shares_of(*read_noise(made)) == pytest.approx([8 / 9, 1 / 9], abs=1e-6)
    assert made.summary.rows == 2
    schema = pq.read_schema(made.folder / "noise.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("probability", "float"),
        ("alias", "int32"),
    ]


def test_power_zero_is_uniform(build, vocabulary):
    made = build(negative_sampling, vocabulary([1000, 10, 1]), config=NoiseConfig(power=0))
    assert shares_of(*read_noise(made)) == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_one_word_is_always_drawn(build, vocabulary):
    probability, alias = read_noise(build(negative_sampling, vocabulary([7]), config=NoiseConfig()))
    assert (probability.tolist(), alias.tolist()) == ([1.0], [0])


def test_a_negative_power_is_rejected():
    with pytest.raises(ValidationError):
        NoiseConfig(power=-1)
