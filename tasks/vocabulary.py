"""The vocabulary: the words of a corpus with their counts, most frequent first.

Words are separated by white space. Arrow counts them in threads, one piece of the corpus at a time, and the
counts are merged incrementally. If there are too many distinct words for memory, counts are spilled to disk
in disjoint buckets and merged per bucket; the result is exact either way.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.normalization import IDEOGRAPHS_AND_KANA, SOUTH_EAST_ASIAN
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.shards import list_row_groups
from lexloom.tasks.store.stage import stage

MERGE_ROWS = 1 << 20  # pending rows before a merge
SPILL_ROWS = 1 << 21  # distinct words in memory
BUCKETS = 64
JSON_ROWS = 1 << 16

# runs of characters that are longer than nearly all Chinese or Japanese words, and Thai or similar words
UNSEGMENTED = rf"[{IDEOGRAPHS_AND_KANA}]{{5,}}|[{SOUTH_EAST_ASIAN}]{{16,}}"
MOSTLY = 0.5
SHOWN_CHARACTERS = 20

COUNTS = pa.schema([("word", pa.large_string()), ("count", pa.int64())])


class VocabularyConfig(BaseModel):
    """Which words are in the vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_count: int = Field(5, ge=1, description="Minimum count of a word; rarer words are ignored.")
    max_size: int | None = Field(
        None, ge=1, description="Maximum size of the vocabulary; the most frequent words are kept."
    )


@stage(version=2)
def vocabulary(corpus: Artifact, config: VocabularyConfig, out: Path) -> Summary:
    """Count words and write `vocabulary.parquet` (`word: string`, `count: int64`; the row is the id).

    Words are sorted by descending count, then by code points. `vocabulary.json` has the same as an object
    word -> id. Warns if most of the text has no spaces between words.

    Raises:
        ValueError: no word occurs `min_count` times.
    """
    spill = out / "spill"
    counts = WordCounts(spill)
    runs = UnsegmentedText()
    pieces = list_row_groups(corpus, "text")
    with (
        fan_out(lambda piece: count_words(piece.read()), pieces) as found,
        console.bar("vocabulary", total=len(pieces)) as bar,
    ):
        for done, (words, occurrences) in enumerate(found, start=1):
            counts.add(words, occurrences)
            runs.add(words, occurrences)
            bar.update(done, counted(counts.total, "words"))
    kept = counts.select_frequent(config.min_count)
    shutil.rmtree(spill, ignore_errors=True)
    if kept.num_rows == 0:
        word, most = counts.most_frequent
        if runs.share > MOSTLY:
            raise ValueError(runs.warning(corpus))
        raise ValueError(
            f"no word occurs at least {counted(config.min_count, 'times')}: the most frequent, {word!r},"
            f" occurs {counted(most, 'times')}; lower min_count or use more text"
        )
    if runs.share > MOSTLY:
        console.warn(runs.warning(corpus))
    kept = kept.sort_by([("count", "descending"), ("word", "ascending")])
    frequent = pc.sum(kept["count"]).as_py()
    kept = kept.slice(0, config.max_size)
    total = pc.sum(kept["count"]).as_py()
    pq.write_table(
        kept.cast(pa.schema([("word", pa.string()), ("count", pa.int64())])),
        out / "vocabulary.parquet",
        compression="zstd",
    )
    write_ids(kept["word"], out / "vocabulary.json")
    dropped = {
        "words below min_count": counts.total - frequent,
        "words beyond max_size": frequent - total,
    }
    return Summary(
        rows_in=counts.total,
        unit_in="words",
        rows=kept.num_rows,
        unit="distinct words",
        dropped={reason: count for reason, count in dropped.items() if count},
        notes={"characters in text without spaces": runs.characters},
        facts={
            "words": total,
            "distinct": counts.distinct,
            "coverage": round(total / counts.total, 6),
            **corpus.normalization,
        },
    )


def read_vocabulary(vocabulary: Artifact) -> tuple[pa.StringArray, np.ndarray]:
    """Read the words and their int64 counts, by id."""
    table = pq.read_table(vocabulary.folder / "vocabulary.parquet")
    return table["word"].combine_chunks(), table["count"].to_numpy()


def split_words(text: pa.StringArray) -> pa.ListArray:
    """Split every document into words at ASCII white space."""
    return pc.ascii_split_whitespace(pc.ascii_trim_whitespace(text))


def count_words(text: pa.StringArray) -> tuple[pa.StringArray, pa.Int64Array]:
    """Return the distinct words in order of appearance, and their counts."""
    counts = split_words(text).values.value_counts()
    return counts.field("values"), counts.field("counts")


class UnsegmentedText:
    """Measures how much text is in unsegmented clauses of scripts without spaces between words."""

    def __init__(self) -> None:
        self.characters = 0
        self._total = 0
        self._example = ""

    def add(self, words: pa.StringArray, counts: pa.Int64Array) -> None:
        """Add distinct words and their counts."""
        characters = pc.multiply(pc.utf8_length(words), counts)
        self._total += pc.sum(characters).as_py() or 0
        beyond_ascii = pc.invert(pc.string_is_ascii(words))
        words, characters = words.filter(beyond_ascii), characters.filter(beyond_ascii)
        found = pc.match_substring_regex(words, UNSEGMENTED)
        self.characters += pc.sum(characters.filter(found)).as_py() or 0
        if not self._example and found.true_count:
            self._example = words.filter(found)[0].as_py()

    @property
    def share(self) -> float:
        return self.characters / max(1, self._total)

    def warning(self, corpus: Artifact) -> str:
        """Return the warning about text without spaces."""
        where = corpus.facts.get("source", "the corpus")
        return (
            f"{self.share:.0%} of {where} has no spaces between words"
            f" ({self._example[:SHOWN_CHARACTERS]!r} counts as one word), as in Chinese, Japanese, Thai,"
            " Khmer, Lao or Burmese: use --segment characters, or segment the text before training"
        )


class WordCounts:
    """Sums the counts of words in bounded memory; further counts are written to the folder `spill`."""

    def __init__(self, spill: Path) -> None:
        self._spill = spill
        self._merged = COUNTS.empty_table()
        self._pending: list[pa.Table] = []
        self._rows_pending = 0
        self._buckets: list[pq.ParquetWriter] = []
        self.total = 0
        self.distinct = 0
        self.most_frequent = ("", 0)

    def add(self, words: pa.StringArray, counts: pa.Int64Array) -> None:
        self._pending.append(pa.table([words.cast(pa.large_string()), counts], schema=COUNTS))
        self._rows_pending += len(words)
        self.total += pc.sum(counts).as_py() or 0
        # merge when the pending rows outnumber the merged ones, so that each count is moved only a few times
        if self._rows_pending > max(MERGE_ROWS, self._merged.num_rows):
            self._merge()

    def select_frequent(self, min_count: int) -> pa.Table:
        """Return the words with at least `min_count` occurrences and their counts, unsorted."""
        self._merge()
        if not self._buckets:
            return self._select(self._merged, min_count)
        self._write_buckets()
        for writer in self._buckets:
            writer.close()
        return pa.concat_tables(
            self._select(sum_counts([pq.read_table(self._spill / f"{bucket}.parquet")]), min_count)
            for bucket in range(BUCKETS)
        )

    def _merge(self) -> None:
        self._merged = sum_counts([self._merged, *self._pending])
        self._pending, self._rows_pending = [], 0
        if self._merged.num_rows > SPILL_ROWS:
            self._write_buckets()

    def _write_buckets(self) -> None:
        if not self._buckets:
            self._spill.mkdir()
            self._buckets = [
                pq.ParquetWriter(self._spill / f"{bucket}.parquet", COUNTS, compression="zstd")
                for bucket in range(BUCKETS)
            ]
        bucket_of = pa.array(assign_buckets(self._merged["word"].combine_chunks()))
        for bucket, writer in enumerate(self._buckets):
            writer.write_table(self._merged.filter(pc.equal(bucket_of, bucket)))
        self._merged = COUNTS.empty_table()

    def _select(self, words: pa.Table, min_count: int) -> pa.Table:
        self.distinct += words.num_rows
        if words.num_rows:
            best = pc.index(words["count"], pc.max(words["count"])).as_py()
            word, count = words["word"][best].as_py(), words["count"][best].as_py()
            if count > self.most_frequent[1]:
                self.most_frequent = (word, count)
        return words.filter(pc.greater_equal(words["count"], min_count))


def sum_counts(tables: list[pa.Table]) -> pa.Table:
    """Sum the counts of each word, 3x faster than Arrow's group_by for many words."""
    table = pa.concat_tables(tables).combine_chunks()
    if table.num_rows == 0:
        return table
    words = table["word"].chunk(0).dictionary_encode()
    sums = np.zeros(len(words.dictionary), np.int64)
    np.add.at(sums, words.indices.to_numpy(), table["count"].to_numpy())
    return pa.table([words.dictionary, sums], schema=COUNTS)


def assign_buckets(words: pa.LargeStringArray) -> np.ndarray:
    """Assign each word (none is empty) to a bucket, 0 to BUCKETS - 1, by a weighted sum of its bytes."""
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int64)[words.offset : words.offset + len(words) + 1]
    letters = np.frombuffer(data, np.uint8)[starts[0] : starts[-1]]
    weights = np.random.default_rng(0).integers(0, 2**32, 256, dtype=np.uint64)
    return (np.add.reduceat(weights[letters], starts[:-1] - starts[0]) % BUCKETS).astype(np.uint8)


def write_ids(words: pa.ChunkedArray, path: Path) -> None:
    """Write {word: id} as JSON, a line per word, in pieces."""
    with path.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for start in range(0, len(words), JSON_ROWS):
            for number, word in enumerate(words.slice(start, JSON_ROWS).to_pylist(), start):
                file.write(f"{separator}{json.dumps(word, ensure_ascii=False)}: {number}")
                separator = ",\n"
        file.write("\n}\n")
