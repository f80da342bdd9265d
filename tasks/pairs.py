"""(target, context) pairs for skip-gram: what word2vec would draw from the text, written down once.

As in word2vec.c, frequent words are thinned out first, then every word that is left is a target once, and its
contexts are the words at most b places away, b drawn anew from 1..window. No pair crosses documents.

- All randomness is a function of (seed, document, position), so the pairs depend neither on threads nor on
  how the tokens are cut into shards, row groups or batches.
- Two threads: one reads tokens and makes pairs, one encodes and writes (`tasks.shards.BlockWriter`). Memory
  is bounded whatever the corpus (a document is held whole: 28 bytes a word).
- No dictionary in the Parquet files. The pairs of a target are adjacent and its neighbours come again with
  the next target, which the compressions find by themselves: lz4 takes 2.58 bytes a pair without one and 2.64
  with one, and encodes 75M pairs/s instead of 50M (benchmarks/pairs.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit, uint64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks import console
from tasks.artifacts import Artifact, Summary
from tasks.shards import BlockWriter, Compression, block_writer
from tasks.stage import stage
from tasks.tokens import count_tokens, token_batches, training_files
from tasks.vocabulary import read_vocabulary

ROWS_PER_GROUP = 1 << 19  # in every row group but a shard's last

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
    compression: Compression = Field(
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
    ratio = subsample * counts.sum() / np.maximum(counts, 1)  # a subword may be there for validation alone
    return (np.minimum(1.0, np.sqrt(ratio) + ratio) * ALWAYS).astype(np.uint64)


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
    writer: BlockWriter,
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
