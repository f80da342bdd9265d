"""Splits labelled reviews into train, validation and test parts that share no text and hardly any subject.

Labelled data is often sorted by class, with reviews of one film next to each other. A random split would put
a film into several parts, and a classifier that memorizes films would score too high. Therefore the end of
each tenth of each class's rows is held out before shuffling (tenths, so that every part of a combined source
contributes). Only films at a boundary are in two parts. A held-out text that is identical to a training text
is dropped.

Memory is bounded by about 30 bytes per review (label, part, shard and digest) and one shard.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import stage

PARTS = ("train", "validation", "test")
SEGMENTS = 10
SHARD_BYTES = 1 << 26  # approximate bytes of text
ROW_GROUP = 512  # reviews; later stages process one row group at a time
MAX_LABELS = 1000
MAX_LABEL_LENGTH = 200  # characters
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
UNLABELLED = "without a label"
UNUSED = -1
SCHEMA = pa.schema([("text", pa.string()), ("label", pa.int32())])


class SplitConfig(BaseModel):
    """Shares of validation and test reviews, and the names of the labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the reviews held out to select the best checkpoint and for early stopping; with"
        " 0, the last model is kept.",
    )
    test_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the reviews held out to evaluate the final model."
    )
    limit: int | None = Field(
        None, ge=1, description="Maximum number of reviews to use; each label keeps its share."
    )
    label_names: list[str] | None = Field(
        None,
        description="Names of the labels, in the order of the labels (numeric or alphabetical); if not given,"
        " the source's names.",
    )
    seed: int = Field(1, ge=0, description="Random seed for shuffling the reviews.")

    @model_validator(mode="after")
    def check_shares(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} and test_share {self.test_share} leave no training"
                " data: lower them"
            )
        return self


@stage(version=2)
def split(corpus: Artifact, config: SplitConfig, out: Path) -> Summary:
    """Write train-*, validation-* and test-*.parquet: `text`, and `label`, an int32 label number.

    The fact `labels` has the label names by number, `label_values` the labels as they were in the corpus.

    Raises:
        ValueError: there are fewer than two different labels, or too few reviews with one of them.
    """
    known, labels, digests, size = read_labels(corpus)
    names = name_labels(known, config.label_names or find_source_names(corpus, known), len(labels))
    unlabelled = int((labels == UNUSED).sum())
    parts = assign_parts(labels, names, config)
    unused = int((parts == UNUSED).sum()) - unlabelled
    duplicates = find_duplicates(parts, digests)
    parts[duplicates] = UNUSED
    check_parts(parts, labels, names, config)
    write_parts(corpus, parts, labels, out, max(1, -(-size // SHARD_BYTES)), config.seed)
    counts = {part: int((parts == index).sum()) for index, part in enumerate(PARTS)}
    return Summary(
        rows_in=len(labels),
        unit_in="reviews",
        rows=sum(counts.values()),
        unit="reviews",
        dropped={
            UNLABELLED: unlabelled,
            "beyond the limit": unused,
            "held-out duplicates": int(duplicates.sum()),
        },
        facts={**counts, "labels": names, "label_values": known, **corpus.normalization},
    )


def read_labels(
    corpus: Artifact,
) -> tuple[list[str], NDArray[np.int32], NDArray[np.uint64], int]:
    """Read the sorted labels, each row's label number or UNUSED, the digests of the texts, and their size."""
    found: dict[str, int] = {}  # label -> its index in order of appearance
    places, digests, size = [np.empty(0, np.int32)], [np.empty(0, np.uint64)], 0
    for batch in read_batches(corpus.files(), ["text", "label"]):
        coded = batch["label"].dictionary_encode()
        here = [found.setdefault(label, len(found)) for label in coded.dictionary.drop_null().to_pylist()]
        codes = coded.indices.fill_null(len(here)).to_numpy()
        places.append(np.array([*here, UNUSED], np.int32)[codes])
        digests.append(digest_texts(batch))
        size += batch["text"].nbytes
    known = sort_labels(found)
    number = {label: index for index, label in enumerate(known)}
    numbers = np.array([*(number[label] for label in found), UNUSED], np.int32)  # UNUSED is the last index
    return known, numbers[np.concatenate(places)], np.concatenate(digests), size


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Sort labels in ascending order if all are numbers, else alphabetically."""
    labels = sorted(labels)
    if all(map(NUMBER.fullmatch, labels)):
        labels.sort(key=Decimal)  # unlike int, it accepts any number of digits
    return labels


def digest_texts(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """Compute the digests of the texts, (N,) uint64."""
    texts = batch["text"].cast(pa.binary()).to_pylist()
    return np.array([xxhash.xxh3_64_intdigest(text) for text in texts], np.uint64)


def read_label_names(artifact: Artifact) -> list[str]:
    """Return the label names by number, of a split or of an artifact made from it."""
    return cast("list[str]", artifact.facts["labels"])


def label_values(reviews: Artifact) -> list[str]:
    """Return the labels as they were in the corpus, by number."""
    return cast("list[str]", reviews.facts["label_values"])


def read_batches(paths: Sequence[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the row groups of the shards, in order; raise ValueError if a column is missing."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            if missing := set(columns) - set(file.schema_arrow.names):
                raise ValueError(
                    f"the corpus has no {', '.join(sorted(missing))}: set the label column with"
                    " --label-column"
                )
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns).combine_chunks().to_batches()[0]


def find_source_names(corpus: Artifact, known: Sequence[str]) -> list[str] | None:
    """Return the source's names of the labels; None unless it has a name for each."""
    names = read_source_names(corpus)
    return [names[label] for label in known] if known and names.keys() >= set(known) else None


def read_source_names(corpus: Artifact) -> dict[str, str]:
    """Return label -> name, from the corpus' source."""
    names = cast("list[str]", corpus.facts.get("label_names", []))
    return {str(number): name for number, name in enumerate(names)}


def name_labels(known: Sequence[str], given: list[str] | None, reviews: int) -> list[str]:
    """Return the label names; raise ValueError if no classifier can be trained on these labels."""
    if not known:
        raise ValueError(f"none of {counted(reviews, 'reviews')} has a label: check the label column")
    for label in known:
        if len(label) > MAX_LABEL_LENGTH:
            raise ValueError(
                f"a label has {counted(len(label), 'characters')} ({label[:20]}...), but the maximum"
                f" is {MAX_LABEL_LENGTH}: check the label column"
            )
    if len(known) == 1:
        raise ValueError(
            f"all reviews have the label {known[0]!r}: a classifier needs at least two different labels"
        )
    if len(known) > MAX_LABELS:
        raise ValueError(
            f"there are {len(known):,} different labels ({known[0]!r}, {known[1]!r}, ...): check the label"
            " column"
        )
    if given is None:
        return [str(value) for value in known]
    if len(given) != len(known) or len(set(given)) != len(given):
        raise ValueError(f"label_names {given} must be {len(known)} different names, one for each of {known}")
    return list(given)


def assign_parts(labels: NDArray[np.int32], names: list[str], config: SplitConfig) -> NDArray[np.int8]:
    """Assign each row to a part: an index into PARTS, or UNUSED."""
    parts = np.full(len(labels), UNUSED, np.int8)
    labelled = int((labels != UNUSED).sum())
    use = 1.0 if config.limit is None else min(1.0, config.limit / labelled)
    for label in range(len(names)):
        rows = np.flatnonzero(labels == label)
        wanted = round(use * len(rows))
        rows = rows[np.linspace(0, len(rows) - 1, wanted).round().astype(int)]
        least = min([share for share in (config.validation_share, config.test_share) if share], default=1)
        # a small class has fewer segments, so that every segment holds out at least one row per part
        for segment in np.array_split(rows, max(1, min(SEGMENTS, int(len(rows) * least)))):
            test = at_least_one(config.test_share, len(segment))
            held_out = test + at_least_one(config.validation_share, len(segment))
            part = np.zeros(len(segment), np.int8)
            part[len(segment) - min(held_out, len(segment)) :] = PARTS.index("validation")
            part[len(segment) - min(test, len(segment)) :] = PARTS.index("test")
            parts[segment] = part
    return parts


def at_least_one(share: float, rows: int) -> int:
    return max(1, round(share * rows)) if share else 0


def find_duplicates(parts: NDArray[np.int8], digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Find held-out rows whose text is also in an earlier part: test in validation, and both in train."""
    duplicates = np.zeros(len(parts), bool)
    for index in range(1, len(PARTS)):
        before = digests[(parts >= 0) & (parts < index)]
        duplicates |= (parts == index) & np.isin(digests, before)
    return duplicates


def check_parts(
    parts: NDArray[np.int8], labels: NDArray[np.int32], names: list[str], config: SplitConfig
) -> None:
    """Raise ValueError if a label is missing from a requested part."""
    for index, part in enumerate(PARTS):
        if not (1.0, config.validation_share, config.test_share)[index]:
            continue
        for label, name in enumerate(names):
            if not ((parts == index) & (labels == label)).any():
                reviews = int((labels == label).sum())
                raise ValueError(
                    f"the label {name!r} has no review in the {part} part ({counted(reviews, 'reviews')} in"
                    " total): add reviews with this label, remove the label, or change the shares"
                )


def write_parts(
    corpus: Artifact,
    parts: NDArray[np.int8],
    labels: NDArray[np.int32],
    out: Path,
    shards: int,
    seed: int,
) -> None:
    """Write each part in random order: assign rows to shards at random, then shuffle each shard."""
    generator = np.random.default_rng(seed)
    shard_of = generator.integers(0, shards, len(parts))
    for index, part in enumerate(PARTS):
        if not (parts == index).any():
            continue
        paths = [out / f"{part}-{shard:05d}.parquet" for shard in range(shards)]
        writers = [pq.ParquetWriter(path, SCHEMA, compression="zstd") for path in paths]
        start = 0
        for batch in read_batches(corpus.files(), ["text"]):
            here = slice(start, start + batch.num_rows)
            for shard in range(shards):
                rows = np.flatnonzero((parts[here] == index) & (shard_of[here] == shard))
                if len(rows):
                    chosen = [batch["text"].take(rows), pa.array(labels[here][rows])]
                    writers[shard].write_batch(pa.record_batch(chosen, schema=SCHEMA))
            start += batch.num_rows
        for path, writer in zip(paths, writers, strict=True):
            writer.close()
            table = pq.read_table(path)
            if not table.num_rows:
                path.unlink()
                continue
            shuffled = table.take(generator.permutation(table.num_rows))
            pq.write_table(shuffled, path, compression="zstd", row_group_size=ROW_GROUP)
