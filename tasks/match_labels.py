"""Test reviews from another source: labels as the model's numbers, without texts that it is trained on.

It runs before training, so that a source that can't judge the model is found before the model is made.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lexloom.tasks.display.formatting import counted
from lexloom.tasks.split import (
    PARTS,
    SCHEMA,
    UNLABELLED,
    batches,
    digests_of,
    label_values,
    labels_of,
    source_names,
)
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import stage

IN_TRAINING = "in the training data"
SHOWN_LABELS = 10


class MatchLabelsConfig(BaseModel):
    """No options: the labels' names are those of the split."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@stage(version=2)
def match_labels(corpus: Artifact, reviews: Artifact, config: MatchLabelsConfig, out: Path) -> Summary:
    """Writes test-00000.parquet: `text` and `label`, numbered as in the split `reviews`.

    Raises:
        ValueError: a label is none of the training's, or no labelled review is left.
    """
    numbers = Numbers(corpus, reviews)
    met = digests_met(reviews)
    unlabelled = seen = rows = 0
    with pq.ParquetWriter(out / "test-00000.parquet", SCHEMA, compression="zstd") as writer:
        for batch in batches(corpus.files(), ["text", "label"]):
            labels = numbers.of(batch["label"])
            unmet = ~np.isin(digests_of(batch), met)
            chosen = np.flatnonzero((labels >= 0) & unmet)
            unlabelled += int((labels < 0).sum())
            seen += int(((labels >= 0) & ~unmet).sum())
            rows += len(chosen)
            if len(chosen):
                columns = [batch["text"].take(chosen), pa.array(labels[chosen])]
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    if not rows:
        raise ValueError(
            f"no review of the test source can judge the model: {counted(unlabelled, 'reviews')} without a"
            f" label, {counted(seen, 'reviews')} in the training data; name another test source"
        )
    return Summary(
        rows_in=rows + unlabelled + seen,
        unit_in="reviews",
        rows=rows,
        unit="reviews",
        dropped={UNLABELLED: unlabelled, IN_TRAINING: seen},
        facts={"labels": labels_of(reviews), "test": rows},
    )


class Numbers:
    """The model's numbers for the labels of a test source.

    A label is found by what the test source calls it, if it has names; by its value in the training's source;
    or by the name that it has there.
    """

    def __init__(self, corpus: Artifact, reviews: Artifact) -> None:
        self._names = labels_of(reviews)
        by_name = {name: number for number, name in enumerate(self._names)}
        by_value = {value: number for number, value in enumerate(label_values(reviews))}
        theirs = source_names(corpus)
        self._numbers = by_name | by_value
        self._numbers |= {value: by_name[name] for value, name in theirs.items() if name in by_name}

    def of(self, labels: pa.StringArray) -> NDArray[np.int32]:
        """(N,): numbers, -1 where there is no label; ValueError where one is not among the training's."""
        coded = labels.dictionary_encode()
        values = coded.dictionary.to_pylist()
        if unknown := sorted(set(values) - self._numbers.keys()):
            shown = ", ".join(map(repr, self._names[:SHOWN_LABELS]))
            more = ", ..." if len(self._names) > SHOWN_LABELS else ""
            raise ValueError(
                f"a test review has the label {unknown[0]!r}, and the training's reviews only {shown}{more}:"
                " leave such test reviews out, or train on some"
            )
        numbers = np.array([*(self._numbers[value] for value in values), -1], np.int32)
        return numbers[coded.indices.fill_null(len(values)).to_numpy()]


def digests_met(reviews: Artifact) -> NDArray[np.uint64]:
    """Those of the texts that train the model, or choose among its states."""
    paths = [path for part in PARTS[:2] for path in reviews.files(f"{part}-*.parquet")]
    return np.concatenate([digests_of(batch) for batch in batches(paths, ["text"])])
