"""The (target, context) pairs of skip-gram, drawn from tokens as in word2vec.c.

Frequent words are subsampled first. Then every remaining word is a target once, and its contexts are the
words at most b positions away, with b drawn from 1..window for each target. Pairs do not cross documents.

All randomness is a function of (seed, document, position). Pairs that are stored once (tasks/pairs.py) and
pairs that are drawn anew in every training step (`SkipGrams`) come from the same compiled loops.

Mikolov et al. (2013), "Distributed Representations of Words and Phrases and their Compositionality".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from lexloom.models.word2vec.blocks import make_blocks
from lexloom.models.word2vec.grid import Blocks, Contexts, Grid
from lexloom.models.word2vec.splitmix import GOLDEN_GAMMA, hash_seed, mix

HALF = np.uint64(32)
THRESHOLD_ONE = 1 << 32  # the threshold of probability 1, compared with the upper half of a draw


def keep_thresholds(counts: NDArray[np.int64], subsample: float) -> NDArray[np.uint64]:
    """Return each word's probability of being kept, min(1, sqrt(t/f) + t/f), times 2^32.

    f is the word's relative frequency, and t is `subsample`. The formula is that of word2vec.c; the paper's,
    which drops a word with probability 1 - sqrt(t/f), is close to it.
    """
    if subsample == 0:
        return np.full(len(counts), THRESHOLD_ONE, np.uint64)
    ratio = (
        subsample * counts.sum() / np.maximum(counts, 1)
    )  # subwords that only occur in validation have count 0
    return (np.minimum(1.0, np.sqrt(ratio) + ratio) * THRESHOLD_ONE).astype(np.uint64)


def subsample(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    first_document: int,
    seed: int,
    thresholds: NDArray[np.uint64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the ids of the words that are kept, and the offsets of the documents in them."""
    kept, kept_offsets = np.empty(len(ids), np.int32), np.empty(len(offsets), np.int64)
    rows = keep_words(ids, offsets, first_document, seed, thresholds, kept, kept_offsets)
    return kept[:rows], kept_offsets


@njit(cache=True, inline="always")
def random_bits(stream: np.uint64, position: int) -> np.uint64:
    """64 random bits: number `position` of the SplitMix64 generator with the state `stream`."""
    return mix(stream + uint64(position) * GOLDEN_GAMMA)


@njit(cache=True, inline="always")
def document_stream(seed: int, document: int) -> np.uint64:
    return random_bits(random_bits(uint64(seed), 1), document)


@njit(nogil=True, cache=True)
def keep_words(  # type: ignore[no-untyped-def]
    ids, offsets, first_document, seed, thresholds, kept, kept_offsets
) -> int:
    """Copy the words that are kept into `kept`, fill `kept_offsets`, and return their number."""
    rows = 0
    for document in range(len(offsets) - 1):
        kept_offsets[document] = rows
        stream = document_stream(seed, first_document + document)
        for i in range(offsets[document], offsets[document + 1]):
            kept[rows] = ids[i]  # overwritten by the next word unless kept, which avoids a branch
            rows += (random_bits(stream, i - offsets[document]) >> HALF) < thresholds[ids[i]]
    kept_offsets[-1] = rows
    return rows


@njit(nogil=True, cache=True)
def draw_documents(documents, seed, threshold) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Draw each of the documents (given by number) with probability `threshold` / 2^32; (documents,) bool."""
    drawn = np.empty(len(documents), np.bool_)
    for i, document in enumerate(documents):
        drawn[i] = (random_bits(document_stream(seed, document), -2) >> HALF) < threshold
    return drawn


@njit(nogil=True, cache=True)
def draw_windows(offsets, first_document, seed, window, shrink, reach) -> None:  # type: ignore[no-untyped-def]
    """Fill `reach` with the window of each position as a target, after subsampling."""
    for document in range(len(offsets) - 1):
        # a separate stream, so that windows are independent of the draws of `keep_words`
        stream = random_bits(document_stream(seed, first_document + document), -1)
        for i in range(offsets[document], offsets[document + 1]):
            reach[i] = window
            if shrink:  # a draw's upper half, scaled to 1..window
                bits = random_bits(stream, i - offsets[document]) >> HALF
                reach[i] = 1 + int((bits * uint64(window)) >> HALF)


def check_ids(ids: NDArray[np.int32], words: int) -> None:
    """Raise a ValueError unless all ids are in a vocabulary of so many words."""
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if lowest < 0 or highest >= words:
        offending = lowest if lowest < 0 else highest
        raise ValueError(
            f"the tokens contain the id {offending}, but the vocabulary's ids are 0 to {words - 1}: rebuild"
            " the tokens with this vocabulary"
        )


@dataclass(frozen=True)
class SkipGrams:
    """How pairs are drawn from tokens.

    Attributes:
        keep_thresholds: (V,) uint64, see `keep_thresholds`.
        window: maximum distance of a context from its target, at most 65,535.
        shrink_window: draw each target's window from 1..window.
        seed: of all draws.
        held_out_share: share of the documents, drawn at random, that is held out for validation.
        grid: the parts of the vocabulary.
    """

    keep_thresholds: NDArray[np.uint64]
    window: int
    shrink_window: bool
    seed: int
    grid: Grid
    held_out_share: float = 0.0

    def held_out(self, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of these documents, given by number, is held out for validation."""
        return draw_documents(documents, self.seed, int(self.held_out_share * THRESHOLD_ONE))

    def draw(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        wanted: NDArray[np.bool_],
        *,
        first_document: int = 0,
        seed: int | None = None,
    ) -> Contexts:
        """Subsample the words of documents, and draw the windows of those that are kept.

        Args:
            ids: (words,) int32, below V.
            offsets: (documents + 1,) int64.
            wanted: (documents,), which documents to return. The draws do not depend on it.
            first_document: number of the first document.
            seed: replaces the own seed.
        """
        seed = self.seed if seed is None else seed
        kept, kept_offsets = subsample(ids, offsets, first_document, seed, self.keep_thresholds)
        reach = np.empty(len(kept), np.uint16)
        draw_windows(kept_offsets, first_document, seed, self.window, self.shrink_window, reach)
        if not wanted.all():
            lengths = np.diff(kept_offsets)
            selected = np.repeat(wanted, lengths)
            kept, reach = kept[selected], reach[selected]
            kept_offsets = np.concatenate([[0], np.cumsum(lengths[wanted])])
        return Contexts(self.grid.codes(kept), reach, kept_offsets, 0, len(kept))

    def draw_blocks(
        self, batch: Mapping[str, np.ndarray], seed: int, own: range, *, held_out: bool = False
    ) -> Blocks:
        """Draw the pairs of a batch's training documents, or of its held-out documents, in blocks.

        Args:
            batch: `tokens` int32, below V; and of each token the document `row` and the `position` in it,
                int64. Tokens are neighbours if they are adjacent in the batch and their positions are
                consecutive.
            seed: of this batch.
            own: the input parts.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        ids, row, position = batch["tokens"], batch["row"], batch["position"]
        check_ids(ids, self.grid.words)
        begins = np.ones(len(ids), np.bool_)  # of a document, or of a part of one
        begins[1:] = (row[1:] != row[:-1]) | (position[1:] != position[:-1] + 1)
        starts = np.flatnonzero(begins)
        wanted = self.held_out(row[starts]) == held_out
        own_seed = hash_seed(seed, ~self.seed) >> 1  # the numbers >= 0 are for the step's noise
        contexts = self.draw(ids, np.append(starts, len(ids)), wanted, seed=own_seed)
        return make_blocks([contexts], self.grid, window=self.window, own=own)

    def pairs_per_token(self, counts: NDArray[np.int64]) -> float:
        """Estimate the pairs per token of a text of long documents with these `counts` (V,)."""
        kept = float((counts * (self.keep_thresholds / THRESHOLD_ONE)).sum() / counts.sum())
        return kept * self.pairs_per_kept_token

    @property
    def pairs_per_kept_token(self) -> int:
        """The pairs per token that subsampling keeps, in a text of long documents."""
        return self.window + 1 if self.shrink_window else 2 * self.window
