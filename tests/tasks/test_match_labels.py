"""Tests of test reviews from another source."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.tasks.match_labels import MatchLabelsConfig, match_labels
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from tests.tasks.labelled import texts_of, write_split

CONFIG = MatchLabelsConfig()

Build = Callable[..., Artifact]


@pytest.fixture
def reviews(store: Store) -> Artifact:
    """A split with the label values 0 and 1, named negative and positive."""
    return write_split(store)


@pytest.fixture
def match(build: Build, store: Store, reviews: Artifact) -> Callable[..., Artifact]:
    """Run the stage on a corpus with these labels; `names` are the source's class names."""

    def run(
        labels: list[str | None], texts: list[str] | None = None, names: list[str] | None = None
    ) -> Artifact:
        key = f"{len(list(store.root.glob('corpus/*')))}"
        folder = store.folder("corpus", key)
        folder.mkdir(parents=True)
        columns = {
            "text": texts or [f"new {row}" for row in range(len(labels))],
            "label": pa.array(labels, pa.string()),
        }
        pq.write_table(pa.table(columns), folder / "shard-00000.parquet", row_group_size=3)
        summary = Summary(
            rows_in=0, unit_in="", rows=0, unit="", facts={"label_names": names} if names else {}
        )
        corpus = Artifact(stage="corpus", key=key, folder=folder, summary=summary)
        return build(match_labels, corpus, reviews, config=CONFIG)

    return run


def numbers(artifact: Artifact) -> list[int]:
    return [
        label
        for path in artifact.files("test-*.parquet")
        for label in pq.read_table(path)["label"].to_pylist()
    ]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["0", "1", "1"], None, [0, 1, 1]),
        (["positive", "negative"], None, [1, 0]),
        (["0", "1"], ["negative", "positive"], [0, 1]),
        (["0", "1"], ["positive", "negative"], [1, 0]),  # another data set's order
        (["0", "1"], ["bad", "good"], [0, 1]),
        (["1", "1", "1"], None, [1, 1, 1]),
    ],
)
def test_labels_have_the_numbers_of_the_training_data(
    match: Callable[..., Artifact], labels: list[str], names: list[str] | None, expected: list[int]
) -> None:
    made = match(labels, names=names)
    assert numbers(made) == expected
    assert made.facts == {"labels": ["negative", "positive"], "test": len(labels)}


def test_unlabelled_and_training_reviews_are_dropped(
    match: Callable[..., Artifact], reviews: Artifact
) -> None:
    met = [*texts_of(reviews, "train")[:4], *texts_of(reviews, "validation")[:2]]
    made = match(["0", "1"] * 3 + ["0", "1", None, None], [*met, "film good", "film bad", "new", met[0]])
    assert texts_of(made, "test") == ["film good", "film bad"]
    assert (made.summary.rows_in, made.summary.rows) == (10, 2)
    assert made.summary.dropped == {"without a label": 2, "in the training data": 6}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            ["0", "7"],
            r"a test review has the label '7', but the training reviews only have 'negative', 'positive':",
        ),
        (["00"], "a test review has the label '00'"),
        (["good"], "a test review has the label 'good'"),
        (
            [None, None],
            r"no review of the test source can be used: 2 reviews without a label, 0 reviews",
        ),
    ],
)
def test_an_unusable_test_source_is_rejected(
    match: Callable[..., Artifact], labels: list[str | None], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        match(labels)


def test_a_test_source_of_training_texts_is_rejected(
    match: Callable[..., Artifact], reviews: Artifact
) -> None:
    with pytest.raises(ValueError, match="0 reviews without a label, 5 reviews in the training data"):
        match(["0"] * 5, texts_of(reviews, "train")[:5])
