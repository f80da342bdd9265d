"""Prepares test reviews from another source: numbers their labels, and drops texts of the training data.

The stage runs before training, so that an unusable test source is reported before the model is trained.
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
    digest_texts,
    label_values,
    read_batches,
    read_label_names,
    read_source_names,
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
    """Write test-00000.parquet: `text` and `label`, numbered as in the split `reviews`.

    Raises:
        ValueError: a label does not occur in the training data, or no labelled review remains.
    """
    numbers = LabelNumbers(corpus, reviews)
    known = digest_training_texts(reviews)
    unlabelled = duplicates = rows = 0
    with pq.ParquetWriter(out / "test-00000.parquet", SCHEMA, compression="zstd") as writer:
        for batch in read_batches(corpus.files(), ["text", "label"]):
            labels = numbers.of(batch["label"])
            is_new = ~np.isin(digest_texts(batch), known)
            chosen = np.flatnonzero((labels >= 0) & is_new)
            unlabelled += int((labels < 0).sum())
            duplicates += int(((labels >= 0) & ~is_new).sum())
            rows += len(chosen)
            if len(chosen):
                columns = [batch["text"].take(chosen), pa.array(labels[chosen])]
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    if not rows:
        raise ValueError(
            f"no review of the test source can be used: {counted(unlabelled, 'reviews')} without a"
            f" label, {counted(duplicates, 'reviews')} in the training data; use another test source"
        )
    return Summary(
        rows_in=rows + unlabelled + duplicates,
        unit_in="reviews",
        rows=rows,
        unit="reviews",
        dropped={UNLABELLED: unlabelled, IN_TRAINING: duplicates},
        facts={"labels": read_label_names(reviews), "test": rows},
    )


class LabelNumbers:
    """Maps the labels of a test source to the model's label numbers.

    A label is matched by its name in the test source (if the source has names), by its value in the training
    source, or by its name there.
    """

    def __init__(self, corpus: Artifact, reviews: Artifact) -> None:
        self._names = read_label_names(reviews)
        by_name = {name: number for number, name in enumerate(self._names)}
        by_value = {value: number for number, value in enumerate(label_values(reviews))}
        value_names = read_source_names(corpus)
        self._numbers = by_name | by_value
        self._numbers |= {value: by_name[name] for value, name in value_names.items() if name in by_name}

    def of(self, labels: pa.StringArray) -> NDArray[np.int32]:
        """Return the numbers of labels, (N,), -1 for null; raise ValueError for an unknown label."""
        coded = labels.dictionary_encode()
        values = coded.dictionary.to_pylist()
        if unknown := sorted(set(values) - self._numbers.keys()):
            label_list = ", ".join(map(repr, self._names[:SHOWN_LABELS]))
            more = ", ..." if len(self._names) > SHOWN_LABELS else ""
            raise ValueError(
                f"a test review has the label {unknown[0]!r}, but the training reviews only have"
                f" {label_list}{more}:"
                " remove such test reviews, or add training reviews with this label"
            )
        numbers = np.array([*(self._numbers[value] for value in values), -1], np.int32)
        return numbers[coded.indices.fill_null(len(values)).to_numpy()]


def digest_training_texts(reviews: Artifact) -> NDArray[np.uint64]:
    """Compute the digests of the texts in the training and validation parts."""
    paths = [path for part in PARTS[:2] for path in reviews.files(f"{part}-*.parquet")]
    return np.concatenate([digest_texts(batch) for batch in read_batches(paths, ["text"])])
