"""(target, context) pairs for skip-gram: what word2vec would draw from the text, written down once.

As in word2vec.c, frequent words are thinned out first, then every word that is left is a target once, and its
contexts are the words at most b places away, b drawn anew from 1..window. No pair crosses documents.

- All randomness is a function of (seed, document, position), so the pairs depend neither on threads nor on
  how the tokens are cut into shards, row groups or batches.
- Two threads: one reads tokens and makes pairs, one encodes and writes. A block of pairs is a row group;
  three blocks rotate, so memory is bounded whatever the corpus (a document is held whole: 28 bytes a word).
- No dictionary in the Parquet files. The pairs of a target are adjacent and its neighbours come again with
  the next target, which the compressions find by themselves: lz4 takes 2.58 bytes a pair without one and 2.64
  with one, and encodes 75M pairs/s instead of 50M (benchmarks/pairs.py).
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit, uint64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks import console
from tasks.artifacts import Artifact, Summary
from tasks.stage import stage
from tasks.vocabulary import read_vocabulary

ROWS_PER_GROUP = 1 << 19  # in every row group but a shard's last
BLOCKS = 3  # one that is filled, one that is written, one that waits
TOKENS_PER_BATCH = 1 << 20
MOST_DOCUMENTS_PER_BATCH = 1 << 16
READ_BYTES = 1 << 20

SCHEMA = pa.schema([pa.field("target", pa.int32(), False), pa.field("context", pa.int32(), False)])

# SplitMix64: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
HALF = np.uint64(32)
ALWAYS = 1 << 32  # a chance of one, on the scale of a draw's upper half


class PairsConfig(BaseModel):
    """How pairs are drawn from the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="a context is at most this many words away from its target",
        json_schema_extra={"position": 0},
    )
    shrink_window: bool = Field(
        default=True,
        description="draw each target's window from 1..window, as word2vec does: near words count more",
        json_schema_extra={"position": 1},
    )
    subsample: float = Field(
        default=1e-3,
        ge=0,
        le=1,
        description="words with a larger share of the text than this are thinned out; 0 keeps every word",
        json_schema_extra={"position": 2},
    )
    seed: int = Field(
        default=1,
        ge=0,
        lt=1 << 63,
        description="seed of subsampling and of the windows",
        json_schema_extra={"position": 3},
    )
    pairs_per_shard: int = Field(
        default=50_000_000,
        ge=1,
        description="rows of a Parquet shard; the last one has the rest",
        json_schema_extra={"position": 4},
    )
    compression: Literal["lz4", "zstd"] = Field(
        default="lz4",
        description="lz4 is read twice as fast, zstd takes about half the space",
        json_schema_extra={"position": 5},
    )
    validation_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="share of the documents, drawn at random, that are held out for validation",
        json_schema_extra={"position": 6},
    )


@stage(version=2)
def pairs(tokens: Artifact, vocabulary: Artifact, config: PairsConfig, out: Path) -> Summary:
    """Writes every (target, context) pair of the text to `train-*.parquet`, two int32 columns.

    Those of held-out documents go to `validation-*.parquet`. The order is that of the text, and all pairs of
    one target position are adjacent (they may straddle two shards). Every shard but the last has exactly
    `pairs_per_shard` rows, every row group but a shard's last `ROWS_PER_GROUP`. Raises ValueError where
    tokens and vocabulary don't belong together, and where not one pair can be made or held out.
    """
    _, counts = read_vocabulary(vocabulary)
    chances = keep_chances(counts, config.subsample)
    documents = words = kept_words = lonely = 0
    files = tokens.files("shard-*.parquet")
    total = sum(map(count_words, files))
    with (
        pair_writer(out, "train", config) as writer,
        pair_writer(out, "validation", config) as held_out_writer,
        console.bar("pairs", total=total) as bar,
    ):
        for ids, offsets in token_batches(files):
            check_ids(ids, len(counts), tokens)
            kept, kept_offsets = subsample(ids, offsets, documents, config.seed, chances)
            held_out = draw_documents(
                len(offsets) - 1, documents, config.seed, int(config.validation_share * ALWAYS)
            )
            make_pairs(kept, kept_offsets, documents, ~held_out, config, writer)
            if config.validation_share:
                make_pairs(kept, kept_offsets, documents, held_out, config, held_out_writer)
            documents += len(offsets) - 1
            words += len(ids)
            kept_words += len(kept)
            lonely += int(np.count_nonzero(np.diff(kept_offsets) == 1))
            bar.update(words, f"{writer.rows:,} pairs")
    if not writer.rows:
        raise ValueError(
            f"not one pair can be made of {documents:,} documents with {words:,} words: none keeps two words."
            " Make the documents longer, lower min_count of the vocabulary, or set subsample to 0"
        )
    if config.validation_share and not held_out_writer.rows:
        raise ValueError(
            f"not one pair is held out of {documents:,} documents: raise validation_share, or set it to 0"
        )
    return Summary(
        rows_in=words,
        unit_in="words",
        rows=writer.rows,
        unit="pairs",
        dropped={"subsampled": words - kept_words, "words without a neighbour": lonely},
        facts={
            "pairs": writer.rows,
            "validation_pairs": held_out_writer.rows,
            "positions": kept_words - lonely,
            "tokens": words,
            "documents": documents,
            "words": len(counts),
            "shards": writer.shards,
        },
    )


def keep_chances(counts: NDArray[np.int64], subsample: float) -> NDArray[np.uint64]:
    """A word's chance to be kept, min(1, sqrt(t/f) + t/f) with f its share of the text, times 2^32.

    The formula of word2vec.c (the paper's, 1 - sqrt(t/f) to be dropped, is close to it).
    """
    if subsample == 0:
        return np.full(len(counts), ALWAYS, np.uint64)
    ratio = subsample * counts.sum() / counts
    return (np.minimum(1.0, np.sqrt(ratio) + ratio) * ALWAYS).astype(np.uint64)


# reading


def count_words(path: Path) -> int:
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(i).column(0).num_values for i in range(metadata.num_row_groups))


def token_batches(files: list[Path]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """All documents in order, about `TOKENS_PER_BATCH` words at a time: (ids, offsets of the documents)."""
    for path in files:
        with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
            yield from batches_of(file)


def batches_of(file: pq.ParquetFile) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    for i in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(i)
        words_per_document = max(1, group.column(0).num_values // max(1, group.num_rows))
        batch_size = max(1, min(TOKENS_PER_BATCH // words_per_document, MOST_DOCUMENTS_PER_BATCH))
        for batch in file.iter_batches(batch_size, row_groups=[i], columns=["tokens"]):
            lists = batch.column(0)
            offsets = lists.offsets.to_numpy().astype(np.int64)
            yield lists.flatten().to_numpy(), offsets - offsets[0]


def check_ids(ids: NDArray[np.int32], words: int, tokens: Artifact) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < words:
        raise ValueError(
            f"{tokens.folder}: a token is not in the vocabulary of {words:,} words (ids {ids.min()} to"
            f" {ids.max()}): make the tokens again with this vocabulary"
        )


# drawing


def subsample(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    first_document: int,
    seed: int,
    chances: NDArray[np.uint64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The words that are kept, and where the documents begin among them."""
    kept, kept_offsets = np.empty(len(ids), np.int32), np.empty(len(offsets), np.int64)
    rows = keep_words(ids, offsets, first_document, seed, chances, kept, kept_offsets)
    return kept[:rows], kept_offsets


@njit(cache=True, inline="always")
def random_bits(stream: np.uint64, position: int) -> np.uint64:
    """64 random bits: number `position` of the SplitMix64 generator whose state is `stream`."""
    bits = stream + uint64(position) * GOLDEN_GAMMA
    bits = (bits ^ (bits >> uint64(30))) * MIX_1
    bits = (bits ^ (bits >> uint64(27))) * MIX_2
    return bits ^ (bits >> uint64(31))


@njit(cache=True, inline="always")
def document_stream(seed: int, document: int) -> np.uint64:
    return random_bits(random_bits(uint64(seed), 1), document)


@njit(nogil=True, cache=True)
def keep_words(  # type: ignore[no-untyped-def]
    ids, offsets, first_document, seed, chances, kept, kept_offsets
) -> int:
    """Copies the words that survive into `kept`, fills `kept_offsets`, and returns how many there are."""
    rows = 0
    for document in range(len(offsets) - 1):
        kept_offsets[document] = rows
        stream = document_stream(seed, first_document + document)
        for i in range(offsets[document], offsets[document + 1]):
            kept[rows] = ids[i]  # overwritten by the next word unless kept: no branch to mispredict
            rows += (random_bits(stream, i - offsets[document]) >> HALF) < chances[ids[i]]
    kept_offsets[-1] = rows
    return rows


@njit(nogil=True, cache=True)
def draw_documents(documents, first_document, seed, chance) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(documents,) bool: true with the chance `chance` / 2^32, drawn anew for every document."""
    drawn = np.empty(documents, np.bool_)
    for document in range(documents):
        stream = document_stream(seed, first_document + document)
        drawn[document] = (random_bits(stream, -2) >> HALF) < chance
    return drawn


@njit(nogil=True, cache=True)
def fill_block(  # type: ignore[no-untyped-def]
    kept, offsets, first_document, wanted, seed, window, shrink, cursor, targets, contexts, filled, limit
) -> int:
    """Writes pairs of the wanted documents behind row `filled` until `limit` is reached or the batch ends.

    `cursor` (document, position) says where to go on, and is moved. The last target's pairs are written
    whole, so up to 2 * window - 1 rows may lie beyond `limit`. Returns the new `filled`.
    """
    document, position = cursor
    while document < len(offsets) - 1:
        if not wanted[document]:
            document, position = document + 1, 0
            continue
        begin, end = offsets[document], offsets[document + 1]
        # a stream of its own: the draws of `keep_words` must not decide on the windows
        stream = random_bits(document_stream(seed, first_document + document), -1)
        for target in range(begin + position, end):
            if filled >= limit:
                cursor[0], cursor[1] = document, target - begin
                return filled
            reach = window
            if shrink:  # a draw's upper half, scaled to 1..window
                reach = 1 + int(((random_bits(stream, target - begin) >> HALF) * uint64(window)) >> HALF)
            for context in range(max(begin, target - reach), target):
                targets[filled], contexts[filled] = kept[target], kept[context]
                filled += 1
            for context in range(target + 1, min(end, target + reach + 1)):
                targets[filled], contexts[filled] = kept[target], kept[context]
                filled += 1
        document, position = document + 1, 0
    cursor[0], cursor[1] = document, 0
    return filled


def make_pairs(
    kept: NDArray[np.int32],
    offsets: NDArray[np.int64],
    first_document: int,
    wanted: NDArray[np.bool_],
    config: PairsConfig,
    writer: "PairWriter",
) -> None:
    """Makes the pairs of a batch's wanted documents, block by block, and hands full blocks to the writer."""
    cursor = np.zeros(2, np.int64)
    while cursor[0] < len(offsets) - 1:
        writer.filled = fill_block(
            *(kept, offsets, first_document, wanted, config.seed, config.window, config.shrink_window),
            *(cursor, *writer.block, writer.filled, writer.limit),
        )
        if writer.filled >= writer.limit:
            writer.flush()


# writing


class PairWriter:
    """Cuts a stream of pairs into row groups and shards of exact sizes, and writes them in a second thread.

    Fill `block` (targets, contexts) behind row `filled`, and call `flush` when `limit` rows are there. A
    block has room for one target's pairs more; what lies beyond the limit moves to the next block.
    """

    def __init__(self, out: Path, name: str, config: PairsConfig, thread: ThreadPoolExecutor) -> None:
        self._out, self._name, self._config, self._thread = out, name, config, thread
        rows = min(ROWS_PER_GROUP, config.pairs_per_shard) + 2 * config.window
        self._blocks = [(np.empty(rows, np.int32), np.empty(rows, np.int32)) for _ in range(BLOCKS)]
        self._written: list[Future[None] | None] = [None] * BLOCKS
        self._turn = 0
        self._file: pq.ParquetWriter | None = None
        self._flushed = 0
        self.filled = 0

    @property
    def block(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self._blocks[self._turn]

    @property
    def limit(self) -> int:
        """Rows that the present block may have: a row group, or what the shard still lacks."""
        return min(
            ROWS_PER_GROUP, self._config.pairs_per_shard - self._flushed % self._config.pairs_per_shard
        )

    @property
    def rows(self) -> int:
        return self._flushed + self.filled

    @property
    def shards(self) -> int:
        return -(-self.rows // self._config.pairs_per_shard)

    def flush(self) -> None:
        """Sends at most `limit` rows on their way, and turns to a block that is free."""
        rows = min(self.filled, self.limit)
        shard = self._flushed // self._config.pairs_per_shard
        targets, contexts = self.block
        self._written[self._turn] = self._thread.submit(self._write, shard, targets[:rows], contexts[:rows])
        self._turn = (self._turn + 1) % BLOCKS
        if (written := self._written[self._turn]) is not None:
            written.result()  # waits, and raises here what went wrong there
        beyond = self.filled - rows
        for old, new in zip((targets, contexts), self.block, strict=True):
            new[:beyond] = old[rows : rows + beyond]
        self._flushed += rows
        self.filled = beyond

    def finish(self) -> None:
        """Writes what is left and closes the last shard."""
        while self.filled:
            self.flush()
        for written in self._written:
            if written is not None:
                written.result()
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, shard: int, targets: NDArray[np.int32], contexts: NDArray[np.int32]) -> None:
        path = self._out / f"{self._name}-{shard:05d}.parquet"
        if self._file is None or not path.exists():
            self.close()
            self._file = pq.ParquetWriter(
                path,
                SCHEMA,
                compression=self._config.compression,
                use_dictionary=False,
                write_statistics=False,
            )
        table = pa.table([pa.array(targets), pa.array(contexts)], schema=SCHEMA)
        self._file.write_table(table, row_group_size=ROWS_PER_GROUP)


@contextmanager
def pair_writer(out: Path, name: str, config: PairsConfig) -> Iterator[PairWriter]:
    """A `PairWriter` whose shards are whole when the block ends; the last file is closed in any case."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pairs-writer") as thread:
        writer = PairWriter(out, name, config, thread)
        try:
            yield writer
            writer.finish()
        finally:
            thread.shutdown()
            writer.close()
