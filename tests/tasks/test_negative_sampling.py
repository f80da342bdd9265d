"""The noise distribution: count^power."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling, read_noise
from lexloom.tasks.store.artifacts import Artifact, Summary


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
    assert read_noise(made) == pytest.approx([8 / 9, 1 / 9])
    assert (made.summary.rows_in, made.summary.rows) == (2, 2)


@pytest.mark.parametrize(
    ("power", "expected"), [(0, [1 / 3, 1 / 3, 1 / 3]), (1, [0.6, 0.3, 0.1]), (2, [36 / 46, 9 / 46, 1 / 46])]
)
def test_power_changes_the_distribution(build, vocabulary, power, expected):
    made = build(negative_sampling, vocabulary([6, 3, 1]), config=NoiseConfig(power=power))
    assert read_noise(made) == pytest.approx(expected)


def test_one_word_is_always_drawn(build, vocabulary):
    assert read_noise(build(negative_sampling, vocabulary([7]), config=NoiseConfig())).tolist() == [1.0]


def test_large_counts_do_not_overflow(build, vocabulary):
    made = build(negative_sampling, vocabulary([1 << 62, 1 << 61]), config=NoiseConfig(power=2))
    assert read_noise(made) == pytest.approx([0.8, 0.2])


def test_negative_power_is_rejected():
    with pytest.raises(ValidationError):
        NoiseConfig(power=-1)
