"""Tests of the split of labelled reviews into parts."""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lexloom.tasks import split as module
from lexloom.tasks.split import PARTS, SEGMENTS, SplitConfig, label_values, read_label_names, split
from lexloom.tasks.store.artifacts import Artifact, Store, Summary

FILM = 5  # reviews of one film lie side by side

Build = Callable[..., Artifact]
Value = str | None


def corpus(store: Store, texts: list[str], labels: list[Value] | None, row_group: int = 64) -> Artifact:
    columns = {"text": texts} if labels is None else {"text": texts, "label": labels}
    folder = store.folder("corpus", f"{len(list(store.root.glob('corpus/*')))}")
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "shard-00000.parquet", row_group_size=row_group)
    nothing = Summary(rows_in=0, unit_in="", rows=0, unit="")
    return Artifact(stage="corpus", key=folder.name, folder=folder, summary=nothing)


def sorted_reviews(each: int = 500) -> tuple[list[str], list[Value]]:
    """Return reviews sorted by label, with texts such as `film 7 review 3`."""
    texts = [f"film {row // FILM} review {row % FILM}" for row in range(2 * each)]
    return texts, ["0"] * each + ["1"] * each


def rows(artifact: Artifact, part: str) -> list[tuple[str, int]]:
    tables = [pq.read_table(path) for path in artifact.files(f"{part}-*.parquet")]
    return [row for t in tables for row in zip(t["text"].to_pylist(), t["label"].to_pylist(), strict=True)]


def films(artifact: Artifact, part: str) -> set[str]:
    return {text.split()[1] for text, _ in rows(artifact, part)}


def test_parts_are_balanced_disjoint_and_complete(store: Store, build: Build) -> None:
    texts, labels = sorted_reviews()
    made = build(split, corpus(store, texts, labels), config=SplitConfig())
    found = {part: rows(made, part) for part in PARTS}
    assert {part: Counter(label for _, label in found[part]) for part in PARTS} == {
        "train": {0: 400, 1: 400},
        "validation": {0: 50, 1: 50},
        "test": {0: 50, 1: 50},
    }
    numbered = [(text, int(label or -1)) for text, label in zip(texts, labels, strict=True)]
    assert sorted(row for part in PARTS for row in found[part]) == sorted(numbered)
    assert made.facts["train"] == 800


def test_no_film_is_in_two_parts(store: Store, build: Build) -> None:
    """Segments of 50 reviews end at film boundaries (5 reviews each), so no film is split."""
    made = build(split, corpus(store, *sorted_reviews()), config=SplitConfig())
    train, validation, test = (films(made, part) for part in PARTS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_held_out_reviews_are_spread_over_the_source(store: Store, build: Build) -> None:
    """Some reviews of each tenth are held out, since a source may combine several."""
    made = build(split, corpus(store, *sorted_reviews()), config=SplitConfig())
    tenths = Counter(int(film) * FILM // (500 // SEGMENTS) for film in films(made, "test"))
    assert set(tenths) == set(range(2 * SEGMENTS))


def test_rows_are_shuffled_by_the_seed(store: Store, build: Build) -> None:
    source = corpus(store, *sorted_reviews())
    one, other = (build(split, source, config=SplitConfig(seed=seed)) for seed in (1, 2))
    labels = [label for _, label in rows(one, "train")]
    changes = sum(label != following for label, following in pairwise(labels))
    assert 300 < changes < 500  # of 799 neighbours, about half
    assert rows(one, "train") != rows(other, "train")
    assert sorted(rows(one, "test")) == sorted(rows(other, "test"))


def test_many_shards_hold_the_same_rows(store: Store, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    source = corpus(store, *sorted_reviews())
    whole = build(split, source, config=SplitConfig(seed=1))
    monkeypatch.setattr(module, "SHARD_BYTES", 4000)
    cut = build(split, source, config=SplitConfig(seed=2))
    assert len(cut.files("train-*.parquet")) > 3
    for part in PARTS:
        assert sorted(rows(cut, part)) == sorted(rows(whole, part))


def test_held_out_duplicates_are_dropped(store: Store, build: Build) -> None:
    texts, labels = sorted_reviews()
    texts[49] = texts[0]  # test, as train
    texts[44] = texts[1]  # validation, as train
    texts[99] = texts[94]  # test, as validation
    texts[2] = texts[3]  # both in train: they may stay
    made = build(split, corpus(store, texts, labels), config=SplitConfig())
    assert made.summary.dropped["held-out duplicates"] == 3
    assert [made.facts[part] for part in PARTS] == [800, 99, 98]


def test_a_limit_is_spread_evenly_over_labels(store: Store, build: Build) -> None:
    texts, labels = sorted_reviews()
    made = build(split, corpus(store, texts, labels), config=SplitConfig(limit=200))
    assert Counter(label for part in PARTS for _, label in rows(made, part)) == {0: 100, 1: 100}
    assert made.summary.dropped["beyond the limit"] == 800
    used = sorted(int(film) for part in PARTS for film in films(made, part))
    assert used[0] == 0
    assert used[-1] == 199


def test_label_names_are_read_from_the_data(store: Store, build: Build) -> None:
    texts, _ = sorted_reviews()
    words: list[Value] = [("sad", "glad", "mad")[row // 334] for row in range(1000)]
    made = build(split, corpus(store, texts, words), config=SplitConfig())
    assert read_label_names(made) == label_values(made) == ["glad", "mad", "sad"]
    label_of = dict(zip(texts, words, strict=True))
    assert all(label_of[text] == read_label_names(made)[label] for text, label in rows(made, "train"))


def test_numeric_labels_are_sorted_and_can_be_named(store: Store, build: Build) -> None:
    texts, _ = sorted_reviews()
    stars: list[Value] = [("10", "9", "2", "-1")[row // 250] for row in range(1000)]
    source = corpus(store, texts, stars)
    assert read_label_names(build(split, source, config=SplitConfig())) == ["-1", "2", "9", "10"]
    names = ["awful", "poor", "good", "great"]
    named = build(split, source, config=SplitConfig(label_names=names))
    assert (read_label_names(named), label_values(named)) == (names, ["-1", "2", "9", "10"])
    with pytest.raises(ValueError, match="must be 4 different names"):
        build(split, source, config=SplitConfig(label_names=["bad", "good"]))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["-1", "-2", "10", "9"], ["-2", "-1", "9", "10"]),
        (["+1", "-1"], ["-1", "+1"]),
        (["4", "3.5", "10"], ["3.5", "4", "10"]),
        (
            ["100000000000000000000", "99999999999999999999"],
            ["99999999999999999999", "100000000000000000000"],
        ),
        (["1e3", "2"], ["1e3", "2"]),
        (["9", "10", "nine"], ["10", "9", "nine"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
    ],
)
def test_labels_are_sorted_numerically_or_alphabetically(labels: list[str], expected: list[str]) -> None:
    assert module.sort_labels(labels) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0", "1"], ["bad", "fair"]),
        (["0", "2"], ["bad", "good"]),
        (["0", "3"], ["0", "3"]),
        (["-1", "1"], ["-1", "1"]),
        (["00", "1"], ["00", "1"]),
        (["bad", "x"], ["bad", "x"]),
    ],
)
def test_class_names_of_the_source_are_used_if_complete(
    store: Store, build: Build, values: list[Value], expected: list[str]
) -> None:
    texts, _ = sorted_reviews()
    source = corpus(store, texts, [values[row // 500] for row in range(1000)])
    source.summary.facts["label_names"] = ["bad", "fair", "good"]
    assert read_label_names(build(split, source, config=SplitConfig())) == expected
    names = ["a", "b"]
    made = build(split, source, config=SplitConfig(label_names=names))
    assert (read_label_names(made), label_values(made)) == (names, values)


def test_unlabelled_reviews_are_dropped(store: Store, build: Build) -> None:
    texts, labels = sorted_reviews()
    labels[::100] = [None] * 10
    made = build(split, corpus(store, texts, labels), config=SplitConfig())
    assert made.summary.dropped["without a label"] == 10
    assert made.summary.rows == 990


def test_reading_labels_takes_little_memory(store: Store) -> None:
    """12 bytes per review, twice during concatenation; as Python integers they would take 50."""
    reviews = 50_000
    source = corpus(store, ["text"] * reviews, [str(row % 7) for row in range(reviews)], row_group=500)
    tracemalloc.start()
    try:
        known, labels, digests, size = module.read_labels(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (known, len(labels), len(digests)) == ([*"0123456"], reviews, reviews)
    assert size >= 4 * reviews
    assert peak < 40 * reviews


def test_a_part_with_share_zero_has_no_files(store: Store, build: Build) -> None:
    source = corpus(store, *sorted_reviews())
    made = build(split, source, config=SplitConfig(test_share=0))
    assert [made.facts[part] for part in PARTS] == [900, 100, 0]
    assert not made.files("test-*.parquet")
    whole = build(split, source, config=SplitConfig(test_share=0, validation_share=0))
    assert [made.name for made in whole.files()] == ["train-00000.parquet"]
    assert whole.summary.rows == 1000


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "the corpus has no label: set the label column with --label-column"),
        (["1"] * 1000, "all reviews have the label '1': a classifier needs at least two"),
        ([None] * 1000, "none of 1,000 reviews has a label"),
        (["0"] * 998 + ["1"] * 2, r"the label '1' has no review in the train part \(2 reviews in total\)"),
        ([str(n) for n in range(1001)], r"1,001 different labels \('0', '1', ...\): check the label column"),
        (["1", "9" * 5000] * 500, r"a label has 5,000 characters \(9{20}\.\.\.\), .* check the label column"),
    ],
)
def test_unusable_labels_are_rejected(
    store: Store, build: Build, labels: list[Value] | None, says: str
) -> None:
    texts = [f"text {row}" for row in range(1000 if labels is None else len(labels))]
    with pytest.raises(ValueError, match=says):
        build(split, corpus(store, texts, labels), config=SplitConfig())


def test_shares_must_leave_training_data() -> None:
    with pytest.raises(ValidationError, match="leave no training data"):
        SplitConfig(validation_share=0.5, test_share=0.5)


def test_at_least_one_review_is_held_out(store: Store, build: Build) -> None:
    labels: list[Value] = ["0"] * 3 + ["1"] * 15
    made = build(split, corpus(store, [f"text {row}" for row in range(18)], labels), config=SplitConfig())
    assert [Counter(label for _, label in rows(made, part)) for part in PARTS] == [
        {0: 1, 1: 11},
        {0: 1, 1: 2},
        {0: 1, 1: 2},
    ]


def test_the_normalization_is_passed_on(store: Store, tmp_path: Path) -> None:
    texts, labels = sorted_reviews(20)
    reviews = corpus(store, texts, labels)
    reviews.facts["normalization"] = {"lower": False}
    (out := tmp_path / "out").mkdir()
    assert split.function(reviews, SplitConfig(), out).facts["normalization"] == {"lower": False}
