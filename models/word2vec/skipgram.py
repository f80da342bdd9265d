"""The (target, context) pairs of skip-gram, drawn from tokens as word2vec.c does.

Frequent words are thinned out first, then every word that is left is a target once, and its contexts are the
words at most b places away, b drawn anew from 1..window. No pair crosses documents.

All randomness is a function of (seed, document, position). Pairs that are written down once (tasks/pairs.py)
and pairs that are drawn anew in every step of training (`SkipGrams`) come out of the same compiled loops.

Mikolov et al. (2013), "Distributed Representations of Words and Phrases and their Compositionality".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from lexloom.models.word2vec.splitmix import GOLDEN_GAMMA, mix

HALF = np.uint64(32)
ALWAYS = 1 << 32  # a chance of one, on the scale of a draw's upper half


def keep_probabilities(counts: NDArray[np.int64], subsample: float) -> NDArray[np.uint64]:
    """A word's chance to be kept, min(1, sqrt(t/f) + t/f) with f its share of the text, times 2^32.

    The formula of word2vec.c (the paper's, 1 - sqrt(t/f) to be dropped, is close to it).
    """
    if subsample == 0:
        return np.full(len(counts), ALWAYS, np.uint64)
    ratio = subsample * counts.sum() / np.maximum(counts, 1)  # a subword may be there for validation alone
    return (np.minimum(1.0, np.sqrt(ratio) + ratio) * ALWAYS).astype(np.uint64)


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
    return mix(stream + uint64(position) * GOLDEN_GAMMA)


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
def draw_documents(documents, seed, chance) -> np.ndarray:  # type: ignore[no-untyped-def]
    """For each of the documents, by number: true with the chance `chance` / 2^32. (documents,) bool."""
    drawn = np.empty(len(documents), np.bool_)
    for i, document in enumerate(documents):
        drawn[i] = (random_bits(document_stream(seed, document), -2) >> HALF) < chance
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


@dataclass(frozen=True)
class SkipGrams:
    """Pairs drawn from tokens as training goes, other ones in every step.

    Attributes:
        chances: (V,) uint64, every word's chance to be kept times 2^32 (`keep_probabilities`).
        window: a context is at most so many words away from its target.
        shrink_window: draw each target's window from 1..window.
        seed: of all that is drawn, together with the step's.
        held_out_share: of the documents, drawn at random, that are kept for validation.
    """

    chances: NDArray[np.uint64]
    window: int
    shrink_window: bool
    seed: int
    held_out_share: float = 0.0

    def held_out(self, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these documents, given by number, are kept for validation."""
        return draw_documents(documents, self.seed, int(self.held_out_share * ALWAYS))

    def draw(
        self, batch: Mapping[str, np.ndarray], seed: int, *, held_out: bool = False
    ) -> dict[str, NDArray[np.int32]]:
        """The pairs of a batch's documents: of those to train on, or of those that are held out.

        Args:
            batch: `tokens` int32, below V; and of each the document `row` and the `place` in it, int64. Words
                stand side by side in the text, and make pairs, where they do in the batch and their places
                follow each other.
            seed: of this batch.

        Returns:
            `target` and `context`, (pairs,) int32 each; a target position's pairs stand together.
        """
        ids, row, place = batch["tokens"], batch["row"], batch["place"]
        begins = np.ones(len(ids), np.bool_)  # of a document, or of a piece of one
        begins[1:] = (row[1:] != row[:-1]) | (place[1:] != place[:-1] + 1)
        starts = np.flatnonzero(begins)
        offsets = np.append(starts, len(ids))
        wanted = self.held_out(row[starts]) == held_out
        own_seed = int(random_bits(np.uint64(seed), ~self.seed)) >> 1  # the step's own draws its noise
        kept, kept_offsets = subsample(ids, offsets, 0, own_seed, self.chances)
        room = 2 * self.window * len(kept)
        targets, contexts = np.empty(room, np.int32), np.empty(room, np.int32)
        filled = fill_block(
            *(kept, kept_offsets, 0, wanted, own_seed, self.window, self.shrink_window),
            *(np.zeros(2, np.int64), targets, contexts, 0, room),
        )
        return {"target": targets[:filled], "context": contexts[:filled]}

    def pairs_per_token(self, counts: NDArray[np.int64]) -> float:
        """How many pairs a token of a text with these `counts` (V,) makes, in the mean of long documents."""
        kept = float((counts * (self.chances / ALWAYS)).sum() / counts.sum())
        return kept * (self.window + 1 if self.shrink_window else 2 * self.window)
