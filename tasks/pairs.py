"""Stores the (target, context) pairs that word2vec's skip-gram would draw from the text, in blocks of a grid.

models/word2vec/skipgram.py defines the pairs, and models/word2vec/grid.py parts, episodes and blocks. In mode
`streamed` this stage is skipped: training draws pairs of the same distribution from the tokens.

- All randomness is a function of (seed, document, position), and an episode is a fixed number of subsampled
  words, so the pairs and their order do not depend on threads or on the division of the tokens into shards,
  row groups and batches.
- While one episode is sorted, compressed and written by all threads, the words of the next one are read.
  Memory does not grow with the corpus, but with the episode (about 16 bytes per pair) and with the longest
  document (14 bytes per word).
- The Parquet files have no dictionary, and their values are split into byte streams: a row's number takes two
  of four bytes, so half of the streams are zero. With lz4, the files are smaller, and faster to write and
  read (benchmarks/pairs.py).
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.cpus import available_cpus
from lexloom.models.word2vec.blocks import make_blocks
from lexloom.models.word2vec.grid import (
    DEFAULT_PARTS,
    EPISODES,
    MAX_EPISODE,
    MAX_PARTS,
    MIN_PAIRS_PER_WORD,
    PAIRS_PER_WORD,
    Blocks,
    Contexts,
    Grid,
    default_episode,
    default_parts,
)
from lexloom.models.word2vec.skipgram import SkipGrams, keep_thresholds
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.shards import Compression
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import count_tokens, read_token_batches, training_files
from lexloom.tasks.vocabulary import read_vocabulary

SCHEMA = pa.schema([pa.field("target", pa.uint16(), False), pa.field("context", pa.uint16(), False)])
BLOCKS_SCHEMA = pa.schema([pa.field("pairs", pa.list_(pa.int64()), False)])


class SkipGramsConfig(BaseModel):
    """How (target, context) pairs are sampled from text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(
        5, ge=1, le=1000, description="Maximum distance between a target and its context, in words."
    )
    shrink_window: bool = Field(
        True,
        description="Sample each target's window size uniformly from 1 to window, as word2vec does; this"
        " gives nearby words more weight.",
    )
    subsample: float = Field(
        1e-3,
        ge=0,
        le=1,
        description="Subsampling threshold: words with a higher relative frequency are randomly dropped; 0"
        " disables subsampling.",
    )
    seed: int = Field(1, ge=0, lt=1 << 63, description="Random seed for subsampling and window sizes.")
    validation_share: float = Field(
        0.0, ge=0, le=0.5, description="Share of the documents that are randomly held out for validation."
    )
    parts: int | None = Field(
        None,
        ge=1,
        le=MAX_PARTS,
        description="Number of parts of the vocabulary, and the maximum number of workers: each worker trains"
        f" the words of its own parts. If not given, {DEFAULT_PARTS}, or more for a large vocabulary.",
    )
    pairs_per_episode: int | None = Field(
        None,
        ge=1,
        le=MAX_EPISODE,
        description="Number of consecutive pairs, approximately, that are sorted by parts and trained"
        f" together. If not given, a {EPISODES}th of the pairs, but {MIN_PAIRS_PER_WORD} to"
        f" {PAIRS_PER_WORD} per word. Longer"
        " episodes are faster with many workers, but lower the quality of the vectors.",
    )

    def grid(self, words: int) -> Grid:
        """Return the division of a vocabulary of so many words.

        Raises:
            ValueError: `parts` does not fit the vocabulary.
        """
        return Grid(words, self.parts or default_parts(words))

    def episode(self, counts: NDArray[np.int64]) -> int:
        """Return the number of pairs of an episode for words with these counts, (V,)."""
        return self.pairs_per_episode or default_episode(len(counts), self.expected_pairs(counts))

    def expected_pairs(self, counts: NDArray[np.int64]) -> float:
        """Return the approximate number of pairs of a text with these word counts, (V,)."""
        return float(counts.sum() * self.skipgrams(counts).pairs_per_token(counts))

    def skipgrams(self, counts: NDArray[np.int64]) -> SkipGrams:
        """Return what draws the pairs of words with these counts, (V,)."""
        return SkipGrams(
            keep_thresholds=keep_thresholds(counts, self.subsample),
            window=self.window,
            shrink_window=self.shrink_window,
            seed=self.seed,
            grid=self.grid(len(counts)),
            held_out_share=self.validation_share,
        )


class PairsConfig(SkipGramsConfig):
    """How pairs are sampled and stored."""

    mode: Annotated[Literal["stored", "streamed"], RunOnly()] = Field(
        "stored",
        description="'stored' writes all pairs once and reads them in every epoch; 'streamed' samples new"
        " pairs from the tokens in every epoch and stores nothing.",
        json_schema_extra={"flag": "pairs-mode"},
    )
    compression: Compression = Field(
        "lz4",
        description="Compression of stored pairs: lz4 is at least twice as fast to read, zstd takes about"
        " half the space.",
    )


def count_pairs(examples: Artifact, vocabulary: Artifact, config: PairsConfig) -> float:
    """Return the number of stored training pairs; if they are drawn from tokens, an estimate per epoch."""
    if config.mode == "stored":
        return float(cast(int, examples.facts["pairs"]))
    _, counts = read_vocabulary(vocabulary)
    return config.expected_pairs(counts)


@stage(version=3)
def pairs(tokens: Artifact, vocabulary: Artifact, config: PairsConfig, out: Path) -> Summary:
    """Write every (target, context) pair of the text to `train-*.parquet`, two uint16 columns.

    There is one shard for each input part, with one row group for each episode: the pairs whose context is in
    that part, in blocks by the part of their target. `blocks-train.parquet` has the lengths of the blocks:
    one row group for each episode, one row for each input part. The pairs of held-out documents are written
    to `validation-*.parquet` in the same way.

    Raises:
        ValueError: the vocabulary does not belong to the tokens or has too few words for the parts, or there
        is no pair to train on or to hold out.
    """
    _, counts = read_vocabulary(vocabulary)
    skipgrams = config.skipgrams(counts)
    positions_per_episode = -(-config.episode(counts) // skipgrams.pairs_per_kept_token)
    documents = words = kept_words = isolated = 0
    files = training_files(tokens)
    options = (skipgrams.grid, config.window, positions_per_episode, config.compression)
    with (
        EpisodeWriter(out, "train", *options) as writer,
        EpisodeWriter(out, "validation", *options) as held_out_writer,
        console.bar("pairs", total=count_tokens(files)) as bar,
    ):
        for ids, offsets in read_token_batches(files):
            check_ids(ids, len(counts), tokens)
            held_out = skipgrams.held_out(documents + np.arange(len(offsets) - 1))
            for wanted, episodes in ((~held_out, writer), (held_out, held_out_writer)):
                if wanted.any():
                    contexts = skipgrams.draw(ids, offsets, wanted, first_document=documents)
                    episodes.add(contexts)
                    kept_words += len(contexts.codes)
                    isolated += int(np.count_nonzero(np.diff(contexts.offsets) == 1))
            documents += len(offsets) - 1
            words += len(ids)
            bar.update(words, counted(writer.pairs, "pairs"))
    if not writer.pairs:
        raise ValueError(
            f"no pairs can be generated from {counted(documents, 'documents')} with"
            f" {counted(words, 'words')}: none keeps two words. Make the documents longer, lower min_count,"
            " or set --subsample 0"
        )
    if config.validation_share and not held_out_writer.pairs:
        raise ValueError(
            f"no pair is held out of {counted(documents, 'documents')}: raise validation_share, or set"
            " it to 0"
        )
    return Summary(
        rows_in=words,
        unit_in="words",
        rows=writer.pairs,
        unit="pairs",
        dropped={"dropped by subsampling": words - kept_words, "words without context": isolated},
        facts={
            "pairs": writer.pairs,
            "validation_pairs": held_out_writer.pairs,
            "positions": kept_words - isolated,
            "tokens": words,
            "documents": documents,
            "words": len(counts),
            "parts": skipgrams.grid.parts,
            "episodes": writer.episodes,
        },
    )


def check_ids(ids: NDArray[np.int32], words: int, tokens: Artifact) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < words:
        raise ValueError(
            f"{tokens.folder}: a token is not in the vocabulary of {counted(words, 'words')} (ids {ids.min()}"
            f" to {ids.max()}): rebuild the tokens with this vocabulary"
        )


class EpisodeWriter:
    """Collects text positions into episodes, and writes the pairs of which they are the contexts.

    Args:
        positions: of an episode; the last one may have fewer.

    Attributes:
        pairs, episodes: written so far.
    """

    def __init__(
        self, folder: Path, name: str, grid: Grid, window: int, positions: int, compression: Compression
    ) -> None:
        self._folder, self._name, self._grid, self._window = folder, name, grid, window
        self._positions, self._compression = positions, compression
        self._ranges: list[Contexts] = []
        self._collected = 0
        self.pairs = self.episodes = 0
        self._threads = available_cpus()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="pairs")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pairs-writer")
        self._written: Future[None] | None = None
        self._shards: list[pq.ParquetWriter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._wait()
        finally:
            self._writer.shutdown(cancel_futures=True)
            self._pool.shutdown(cancel_futures=True)
            for shard in self._shards:
                shard.close()

    def add(self, contexts: Contexts) -> None:
        """Add all positions; write the episodes that are complete."""
        first, end = contexts.first, contexts.last
        while first < end:
            last = min(end, first + self._positions - self._collected)
            self._ranges.append(Contexts(contexts.codes, contexts.reach, contexts.offsets, first, last))
            self._collected += last - first
            first = last
            if self._collected == self._positions:
                self._flush()

    def _flush(self) -> None:
        """Write the collected positions as an episode, in the background."""
        if not self._ranges:
            return
        ranges, self._ranges, self._collected = self._ranges, [], 0
        self._wait()
        self._written = self._writer.submit(self._write, ranges)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _write(self, ranges: list[Contexts]) -> None:
        blocks = make_blocks(ranges, self._grid, window=self._window, pool=self._pool, threads=self._threads)
        if not len(blocks.targets):
            return
        if not self._shards:
            names = [f"{self._name}-{part:05d}" for part in range(self._grid.parts)]
            self._shards = [self._open(name, SCHEMA) for name in names]
            self._shards.append(self._open(f"blocks-{self._name}", BLOCKS_SCHEMA))
        list(self._pool.map(lambda part: self._write_part(part, blocks), range(self._grid.parts)))
        lengths = pa.array(list(np.diff(blocks.bounds, axis=1)), pa.list_(pa.int64()))
        self._shards[-1].write_table(pa.table([lengths], schema=BLOCKS_SCHEMA))
        self.pairs += len(blocks.targets)
        self.episodes += 1

    def _open(self, name: str, schema: pa.Schema) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            self._folder / f"{name}.parquet",
            schema,
            compression=self._compression,
            use_dictionary=False,
            use_byte_stream_split=schema is SCHEMA,
            write_statistics=False,
        )

    def _write_part(self, part: int, blocks: Blocks) -> None:
        first, last = int(blocks.bounds[part, 0]), int(blocks.bounds[part, -1])
        if first == last:
            return
        columns = [pa.array(column[first:last]) for column in (blocks.targets, blocks.contexts)]
        self._shards[part].write_table(pa.table(columns, schema=SCHEMA), row_group_size=last - first)
