"""The vocabulary: every word of a corpus with its count, most frequent first.

Words are what stands between spaces of the normalised text. Arrow counts them piece by piece in threads; the
counts are merged as they come. Where a corpus has more distinct words than fit, they are spilled to disk in
buckets that share no word, and merged bucket by bucket: the result is exact either way.
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

MERGE_ROWS = 1 << 20  # counts that may wait to be merged
SPILL_ROWS = 1 << 21  # distinct words held in memory
BUCKETS = 64
JSON_ROWS = 1 << 16

# runs that are longer than nearly all words of Chinese and Japanese, and of Thai and others
UNSEGMENTED = rf"[{IDEOGRAPHS_AND_KANA}]{{5,}}|[{SOUTH_EAST_ASIAN}]{{16,}}"
MOSTLY = 0.5
SHOWN_CHARACTERS = 20

COUNTS = pa.schema([("word", pa.large_string()), ("count", pa.int64())])


class VocabularyConfig(BaseModel):
    """Which words get an id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_count: int = Field(5, ge=1, description="Ignore words that occur less often than this.")
    max_size: int | None = Field(None, ge=1, description="Keep at most this many words, the most frequent.")


@stage(version=2)
def vocabulary(corpus: Artifact, config: VocabularyConfig, out: Path) -> Summary:
    """Counts words: `vocabulary.parquet` (`word: string`, `count: int64`; the id is the row), and as JSON.

    `vocabulary.json` is one object, word -> id. Most frequent first, ties in order of code points.
    Warns if most of the text has no spaces between words.
    Raises ValueError if no word occurs `min_count` times.
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
    kept = counts.at_least(config.min_count)
    shutil.rmtree(spill, ignore_errors=True)
    if kept.num_rows == 0:
        word, most = counts.most_frequent
        if runs.share > MOSTLY:
            raise ValueError(runs.sentence(corpus))
        raise ValueError(
            f"no word occurs {counted(config.min_count, 'times')}: the most frequent, {word!r}, occurs"
            f" {counted(most, 'times')}; lower min_count or read more text"
        )
    if runs.share > MOSTLY:
        console.warn(runs.sentence(corpus))
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
    """(words, their counts as int64), by id."""
    table = pq.read_table(vocabulary.folder / "vocabulary.parquet")
    return table["word"].combine_chunks(), table["count"].to_numpy()


def split_words(text: pa.StringArray) -> pa.ListArray:
    """The words of every document: what stands between ASCII white space."""
    return pc.ascii_split_whitespace(pc.ascii_trim_whitespace(text))


def count_words(text: pa.StringArray) -> tuple[pa.StringArray, pa.Int64Array]:
    """(distinct words in order of appearance, how often each occurs)."""
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

    def sentence(self, corpus: Artifact) -> str:
        """The warning: what is wrong, where, and what to do."""
        where = corpus.facts.get("source", "the corpus")
        return (
            f"{self.share:.0%} of {where} has no spaces between words"
            f" ({self._example[:SHOWN_CHARACTERS]!r} counts as one word), as in Chinese, Japanese, Thai,"
            " Khmer, Lao or Burmese: use --segment characters, or segment the text before training"
        )


class WordCounts:
    """Sums counts of words in bounded memory; `spill` is where to put what does not fit."""

    def __init__(self, spill: Path) -> None:
        self._spill = spill
        self._merged = COUNTS.empty_table()
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._buckets: list[pq.ParquetWriter] = []
        self.total = 0
        self.distinct = 0
        self.most_frequent = ("", 0)

    def add(self, words: pa.StringArray, counts: pa.Int64Array) -> None:
        self._waiting.append(pa.table([words.cast(pa.large_string()), counts], schema=COUNTS))
        self._rows_waiting += len(words)
        self.total += pc.sum(counts).as_py() or 0
        # merging when as much waits as is merged already: every count is moved a few times at most
        if self._rows_waiting > max(MERGE_ROWS, self._merged.num_rows):
            self._merge()

    def at_least(self, min_count: int) -> pa.Table:
        """All words that occur so often, with their counts, in no particular order."""
        self._merge()
        if not self._buckets:
            return self._select(self._merged, min_count)
        self._write_buckets()
        for writer in self._buckets:
            writer.close()
        return pa.concat_tables(
            self._select(add_up([pq.read_table(self._spill / f"{bucket}.parquet")]), min_count)
            for bucket in range(BUCKETS)
        )

    def _merge(self) -> None:
        self._merged = add_up([self._merged, *self._waiting])
        self._waiting, self._rows_waiting = [], 0
        if self._merged.num_rows > SPILL_ROWS:
            self._write_buckets()

    def _write_buckets(self) -> None:
        if not self._buckets:
            self._spill.mkdir()
            self._buckets = [
                pq.ParquetWriter(self._spill / f"{bucket}.parquet", COUNTS, compression="zstd")
                for bucket in range(BUCKETS)
            ]
        bucket_of = pa.array(buckets(self._merged["word"].combine_chunks()))
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


def add_up(tables: list[pa.Table]) -> pa.Table:
    """One row a word, with the sum of its counts (three times as fast as Arrow's group_by on many words)."""
    table = pa.concat_tables(tables).combine_chunks()
    if table.num_rows == 0:
        return table
    words = table["word"].chunk(0).dictionary_encode()
    sums = np.zeros(len(words.dictionary), np.int64)
    np.add.at(sums, words.indices.to_numpy(), table["count"].to_numpy())
    return pa.table([words.dictionary, sums], schema=COUNTS)


def buckets(words: pa.LargeStringArray) -> np.ndarray:
    """A bucket from 0 to BUCKETS - 1 for every word (none of them empty), by its letters in any order."""
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int64)[words.offset : words.offset + len(words) + 1]
    letters = np.frombuffer(data, np.uint8)[starts[0] : starts[-1]]
    weights = np.random.default_rng(0).integers(0, 2**32, 256, dtype=np.uint64)
    return (np.add.reduceat(weights[letters], starts[:-1] - starts[0]) % BUCKETS).astype(np.uint8)


def write_ids(words: pa.ChunkedArray, path: Path) -> None:
    """{word: id} as JSON, a line a word, written piece by piece."""
    with path.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for start in range(0, len(words), JSON_ROWS):
            for number, word in enumerate(words.slice(start, JSON_ROWS).to_pylist(), start):
                file.write(f"{separator}{json.dumps(word, ensure_ascii=False)}: {number}")
                separator = ",\n"
        file.write("\n}\n")
