"""Stores the (target, context) pairs that word2vec's skip-gram would draw from the text.

models/word2vec/skipgram.py defines the pairs. In mode `streamed` this stage is skipped: training draws pairs
of the same distribution from the tokens.

- All randomness is a function of (seed, document, position), so the pairs do not depend on threads or on the
  division of the tokens into shards, row groups and batches.
- Two threads: one reads tokens and makes pairs, one encodes and writes
  (`lexloom.tasks.store.shards.BlockWriter`). Memory does not grow with the corpus, but with the longest
  document: 28 bytes per word.
- The Parquet files have no dictionary. Adjacent pairs share words, which the compression exploits by itself:
  lz4 needs 2.58 bytes per pair without a dictionary and 2.64 with one, and encodes 75M pairs/s instead of 50M
  (benchmarks/pairs.py).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.word2vec.skipgram import (
    THRESHOLD_ONE,
    draw_documents,
    fill_block,
    keep_thresholds,
    subsample,
)
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.shards import BlockWriter, Compression, block_writer
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import count_tokens, read_token_batches, training_files
from lexloom.tasks.vocabulary import read_vocabulary

ROWS_PER_GROUP = 1 << 19  # in each row group except the last of a shard

SCHEMA = pa.schema([pa.field("target", pa.int32(), False), pa.field("context", pa.int32(), False)])


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


class PairsConfig(SkipGramsConfig):
    """How pairs are sampled and stored."""

    mode: Annotated[Literal["stored", "streamed"], RunOnly()] = Field(
        "stored",
        description="'stored' writes all pairs once and reads them in every epoch; 'streamed' samples new"
        " pairs from the tokens in every epoch and stores nothing.",
        json_schema_extra={"flag": "pairs-mode"},
    )
    pairs_per_shard: int = Field(50_000_000, ge=1, description="Number of stored pairs per Parquet shard.")
    compression: Compression = Field(
        "lz4",
        description="Compression of stored pairs: lz4 is at least twice as fast to read, zstd takes about"
        " half the space.",
    )


@stage(version=2)
def pairs(tokens: Artifact, vocabulary: Artifact, config: PairsConfig, out: Path) -> Summary:
    """Write every (target, context) pair of the text to `train-*.parquet`, two int32 columns.

    The pairs of held-out documents are written to `validation-*.parquet`. Pairs are in the order of the text,
    and the pairs of one target position are adjacent, possibly across two shards. Every shard except the last
    has `pairs_per_shard` rows, and every row group except a shard's last `ROWS_PER_GROUP`.

    Raises:
        ValueError: the vocabulary does not belong to the tokens, or there is no pair to train on or to hold
        out.
    """
    _, counts = read_vocabulary(vocabulary)
    thresholds = keep_thresholds(counts, config.subsample)
    documents = words = kept_words = isolated = 0
    files = training_files(tokens)
    shards: dict[str, Any] = {
        "rows_per_group": ROWS_PER_GROUP,
        "rows_per_shard": config.pairs_per_shard,
        "compression": config.compression,
        "spare": 2 * config.window,
    }
    with (
        block_writer(out, SCHEMA, name="train", **shards) as writer,
        block_writer(out, SCHEMA, name="validation", **shards) as held_out_writer,
        console.bar("pairs", total=count_tokens(files)) as bar,
    ):
        for ids, offsets in read_token_batches(files):
            check_ids(ids, len(counts), tokens)
            kept, kept_offsets = subsample(ids, offsets, documents, config.seed, thresholds)
            held_out = draw_documents(
                documents + np.arange(len(offsets) - 1),
                config.seed,
                int(config.validation_share * THRESHOLD_ONE),
            )
            make_pairs(kept, kept_offsets, documents, ~held_out, config, writer)
            if config.validation_share:
                make_pairs(kept, kept_offsets, documents, held_out, config, held_out_writer)
            documents += len(offsets) - 1
            words += len(ids)
            kept_words += len(kept)
            isolated += int(np.count_nonzero(np.diff(kept_offsets) == 1))
            bar.update(words, counted(writer.rows, "pairs"))
    if not writer.rows:
        raise ValueError(
            f"no pairs can be generated from {counted(documents, 'documents')} with"
            f" {counted(words, 'words')}: no document keeps two words. Use longer"
            " documents, lower min_count, or set --subsample 0"
        )
    if config.validation_share and not held_out_writer.rows:
        raise ValueError(
            f"no pairs are held out from {counted(documents, 'documents')}: raise validation_share, or set"
            " it to 0"
        )
    return Summary(
        rows_in=words,
        unit_in="words",
        rows=writer.rows,
        unit="pairs",
        dropped={"dropped by subsampling": words - kept_words, "words without context": isolated},
        facts={
            "pairs": writer.rows,
            "validation_pairs": held_out_writer.rows,
            "positions": kept_words - isolated,
            "tokens": words,
            "documents": documents,
            "words": len(counts),
            "shards": writer.shards,
        },
    )


def check_ids(ids: NDArray[np.int32], words: int, tokens: Artifact) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < words:
        raise ValueError(
            f"{tokens.folder}: a token is not in the vocabulary of {counted(words, 'words')} (ids {ids.min()}"
            f" to {ids.max()}): rebuild the tokens with this vocabulary"
        )


def make_pairs(
    kept: NDArray[np.int32],
    offsets: NDArray[np.int64],
    first_document: int,
    wanted: NDArray[np.bool_],
    config: PairsConfig,
    writer: BlockWriter,
) -> None:
    """Make the pairs of the wanted documents of a batch, and flush the writer's full blocks."""
    cursor = np.zeros(2, np.int64)
    while cursor[0] < len(offsets) - 1:
        writer.filled = fill_block(
            *(kept, offsets, first_document, wanted, config.seed, config.window, config.shrink_window),
            *(cursor, *writer.block, writer.filled, writer.limit),
        )
        if writer.filled >= writer.limit:
            writer.flush()
