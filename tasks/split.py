"""Labelled reviews, split into train, validation and test: parts that share no text, and hardly a film.

Labelled data lies sorted more often than not: all of one class together, and reviews of one film side by
side. Held out at random, a film would be in two parts at once, and a classifier that remembers films would
score too well. So what is held out is the end of each tenth of each class's rows (tenths, so that a source
made of several is held out from each), and only then are rows shuffled. So parts share no reviews of a film,
but for those of a film that straddles a border. A held-out text that the training part has too, letter for
letter, falls away.

Bounded memory: labels, parts, shards and digests of all texts (some 30 bytes a review), one shard at a time.
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
STRETCHES = 10
SHARD_BYTES = 1 << 26  # of text, about
ROW_GROUP = 512  # reviews: what later stages work on at a time
MOST_LABELS = 1000
MOST_CHARACTERS = 200  # of a label
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
UNLABELLED = "without a label"
LEFT_OUT = -1
SCHEMA = pa.schema([("text", pa.string()), ("label", pa.int32())])


class SplitConfig(BaseModel):
    """Shares of validation and test reviews, and the names of the labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation_share: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the reviews used to select the best model and to stop early; with 0 the last"
        " model is kept.",
    )
    test_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the reviews on which the final model is evaluated."
    )
    limit: int | None = Field(
        None, ge=1, description="Use at most this many reviews, in proportion to the sizes of the labels."
    )
    label_names: list[str] | None = Field(
        None,
        description="Names of the labels, in their order (ascending numbers, or alphabetical); if not given,"
        " the names in the source.",
    )
    seed: int = Field(1, ge=0, description="Random seed of the order of the reviews.")

    @model_validator(mode="after")
    def something_is_left_to_train(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} and test_share {self.test_share} leave nothing to"
                " train on: lower them"
            )
        return self


@stage(version=2)
def split(corpus: Artifact, config: SplitConfig, out: Path) -> Summary:
    """Writes train-*, validation-* and test-*.parquet: `text`, and `label`: int32, a label's number.

    The labels' names, in the order of their numbers, are the fact `labels`; as they were in the corpus, the
    fact `label_values`.

    Raises:
        ValueError: there are no labels, fewer than two different ones, or too few reviews of one.
    """
    known, labels, digests, size = read_labels(corpus)
    names = named(known, config.label_names or names_in(corpus, known), len(labels))
    unlabelled = int((labels == LEFT_OUT).sum())
    parts = assign(labels, names, config)
    unused = int((parts == LEFT_OUT).sum()) - unlabelled
    twice = seen_below(parts, digests)
    parts[twice] = LEFT_OUT
    refuse_empty(parts, labels, names, config)
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
            "held-out duplicates": int(twice.sum()),
        },
        facts={**counts, "labels": names, "label_values": known, **corpus.normalization},
    )


def read_labels(
    corpus: Artifact,
) -> tuple[list[str], NDArray[np.int32], NDArray[np.uint64], int]:
    """The labels met, in order; each row's number among them or LEFT_OUT; each text's digest; all bytes."""
    met: dict[str, int] = {}  # label -> its place in order of appearance
    places, digests, size = [np.empty(0, np.int32)], [np.empty(0, np.uint64)], 0
    for batch in batches(corpus.files(), ["text", "label"]):
        coded = batch["label"].dictionary_encode()
        here = [met.setdefault(label, len(met)) for label in coded.dictionary.drop_null().to_pylist()]
        found = coded.indices.fill_null(len(here)).to_numpy()
        places.append(np.array([*here, LEFT_OUT], np.int32)[found])
        digests.append(digests_of(batch))
        size += batch["text"].nbytes
    known = in_order(met)
    number = {label: index for index, label in enumerate(known)}
    numbers = np.array([*(number[label] for label in met), LEFT_OUT], np.int32)  # LEFT_OUT is the last place
    return known, numbers[np.concatenate(places)], np.concatenate(digests), size


def in_order(labels: Iterable[str]) -> list[str]:
    """Numbers ascending, if all labels are some; else by the alphabet."""
    labels = sorted(labels)
    if all(map(NUMBER.fullmatch, labels)):
        labels.sort(key=Decimal)  # which, unlike int, takes any number of digits
    return labels


def digests_of(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """(N,): by which two texts are told to be the same, letter for letter."""
    texts = batch["text"].cast(pa.binary()).to_pylist()
    return np.array([xxhash.xxh3_64_intdigest(text) for text in texts], np.uint64)


def labels_of(artifact: Artifact) -> list[str]:
    """The labels' names, in the order of their numbers; of a split, and of what is made from it."""
    return cast("list[str]", artifact.facts["labels"])


def label_values(reviews: Artifact) -> list[str]:
    """The labels as they were in the corpus, in the order of their numbers."""
    return cast("list[str]", reviews.facts["label_values"])


def batches(paths: Sequence[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The shards' row groups, in order."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            if missing := set(columns) - set(file.schema_arrow.names):
                raise ValueError(
                    f"the corpus has no {', '.join(sorted(missing))}: name the column of the labels with"
                    " --label-column"
                )
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns).combine_chunks().to_batches()[0]


def names_in(corpus: Artifact, known: Sequence[str]) -> list[str] | None:
    """What the source calls the labels, where it has a name for each of them."""
    names = source_names(corpus)
    return [names[label] for label in known] if known and names.keys() >= set(known) else None


def source_names(corpus: Artifact) -> dict[str, str]:
    """label -> what the corpus' source calls it."""
    names = cast("list[str]", corpus.facts.get("label_names", []))
    return {str(number): name for number, name in enumerate(names)}


def named(known: Sequence[str], given: list[str] | None, reviews: int) -> list[str]:
    """The labels' names; ValueError where the labels can't be a classifier's."""
    if not known:
        raise ValueError(f"there is no label among {counted(reviews, 'reviews')}: is it the right column?")
    for label in known:
        if len(label) > MOST_CHARACTERS:
            raise ValueError(
                f"a label has {counted(len(label), 'characters')} ({label[:20]}...), where {MOST_CHARACTERS}"
                " are the most: is it the right column?"
            )
    if len(known) == 1:
        raise ValueError(
            f"all reviews have the label {known[0]!r}: a classifier needs two different ones at least"
        )
    if len(known) > MOST_LABELS:
        raise ValueError(
            f"there are {len(known):,} different labels ({known[0]!r}, {known[1]!r}, ...): is it the right"
            " column?"
        )
    if given is None:
        return [str(value) for value in known]
    if len(given) != len(known) or len(set(given)) != len(given):
        raise ValueError(f"label_names {given} must be {len(known)} different names, one for each of {known}")
    return list(given)


def assign(labels: NDArray[np.int32], names: list[str], config: SplitConfig) -> NDArray[np.int8]:
    """Each row's part: an index into PARTS, or LEFT_OUT."""
    parts = np.full(len(labels), LEFT_OUT, np.int8)
    labelled = int((labels != LEFT_OUT).sum())
    use = 1.0 if config.limit is None else min(1.0, config.limit / labelled)
    for label in range(len(names)):
        rows = np.flatnonzero(labels == label)
        wanted = round(use * len(rows))
        rows = rows[np.linspace(0, len(rows) - 1, wanted).round().astype(int)]
        least = min([share for share in (config.validation_share, config.test_share) if share], default=1)
        # a short class is cut into fewer stretches, so that each holds out a row of every part
        for stretch in np.array_split(rows, max(1, min(STRETCHES, int(len(rows) * least)))):
            test = at_least_one(config.test_share, len(stretch))
            held_out = test + at_least_one(config.validation_share, len(stretch))
            part = np.zeros(len(stretch), np.int8)
            part[len(stretch) - min(held_out, len(stretch)) :] = PARTS.index("validation")
            part[len(stretch) - min(test, len(stretch)) :] = PARTS.index("test")
            parts[stretch] = part
    return parts


def at_least_one(share: float, rows: int) -> int:
    return max(1, round(share * rows)) if share else 0


def seen_below(parts: NDArray[np.int8], digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """The held-out rows whose text is in a part before theirs: test's in validation, either's in train."""
    seen = np.zeros(len(parts), bool)
    for index in range(1, len(PARTS)):
        before = digests[(parts >= 0) & (parts < index)]
        seen |= (parts == index) & np.isin(digests, before)
    return seen


def refuse_empty(
    parts: NDArray[np.int8], labels: NDArray[np.int32], names: list[str], config: SplitConfig
) -> None:
    """ValueError where a label is missing from a part that the config asks for."""
    for index, part in enumerate(PARTS):
        if not (1.0, config.validation_share, config.test_share)[index]:
            continue
        for label, name in enumerate(names):
            if not ((parts == index) & (labels == label)).any():
                reviews = int((labels == label).sum())
                raise ValueError(
                    f"the label {name!r} has no review in the {part} part ({counted(reviews, 'reviews')} in"
                    " all): find more of them, leave the label out, or hold out another share"
                )


def write_parts(
    corpus: Artifact,
    parts: NDArray[np.int8],
    labels: NDArray[np.int32],
    out: Path,
    shards: int,
    seed: int,
) -> None:
    """Each part's rows in random order: rows are dealt to shards at random, then each shard is shuffled."""
    generator = np.random.default_rng(seed)
    shard_of = generator.integers(0, shards, len(parts))
    for index, part in enumerate(PARTS):
        if not (parts == index).any():
            continue
        paths = [out / f"{part}-{shard:05d}.parquet" for shard in range(shards)]
        writers = [pq.ParquetWriter(path, SCHEMA, compression="zstd") for path in paths]
        start = 0
        for batch in batches(corpus.files(), ["text"]):
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
