"""Selects the content words of a text, without a stop-word list for its language.

Content words are concentrated in the passages that are about them; function words are spread evenly. Residual
inverse document frequency (Church & Gale, 1995) measures this: how much rarer the passages with a word are
than they would be if its occurrences were independent (Poisson).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexloom.tasks.tokens import read_token_batches

PASSAGE = 1000  # words
SAMPLE = 20_000 * PASSAGE  # from the beginning of the text
COMMON = 1e-3  # relative frequency above which words are skipped: word2vec's usual subsampling threshold
MIN_COUNT = 20  # of a word whose vector is shown
CANDIDATES = 1000
ALIKE = 100  # words of similar frequency that are compared, since the residual depends on frequency
CONTENT_SHARE = 0.3  # of the words of similar frequency


def content_words(files: list[Path], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ids of the most frequent content words, ascending.

    If too few words have MIN_COUNT occurrences, there is nothing to compare, and the most frequent words are
    returned. All ids are below `count_frequent(counts)`.

    Args:
        files: the token shards of the text.
        counts: the number of occurrences of each word, (V,), in descending order.
    """
    first = int(np.count_nonzero(counts > COMMON * counts.sum()))
    last = min(int(np.count_nonzero(counts >= MIN_COUNT)), first + CANDIDATES)
    if last - first < ALIKE:
        return np.arange(min(count_frequent(counts), CANDIDATES))
    residual = residual_idf(files, first, last)
    kept = []
    for start in range(0, last - first, ALIKE):
        alike = residual[start : start + ALIKE]
        kept.append(first + start + np.flatnonzero(alike >= np.quantile(alike, 1 - CONTENT_SHARE)))
    return np.concatenate(kept)


def count_frequent(counts: NDArray[np.int64]) -> int:
    """Return the number of words that occur MIN_COUNT times; of all words if fewer than ALIKE do."""
    frequent = int(np.count_nonzero(counts >= MIN_COUNT))
    return frequent if frequent >= ALIKE else len(counts)


def residual_idf(files: list[Path], first: int, last: int) -> NDArray[np.float64]:
    """Return the residual inverse document frequency of the words `first` to `last` - 1 over passages."""
    size = last - first
    occurrences, containing = np.zeros(size, np.int64), np.zeros(size, np.int64)
    position = 0
    for ids, _ in read_token_batches(files):
        places = np.flatnonzero((ids >= first) & (ids < last))
        words = ids[places] - first
        occurrences += np.bincount(words, minlength=size)
        # a passage that continues in the next batch counts twice
        containing += np.bincount(
            np.unique((position + places) // PASSAGE * size + words) % size, minlength=size
        )
        position += len(ids)
        if position >= SAMPLE:
            break
    passages = max(1, position / PASSAGE)
    expected = -passages * np.expm1(-occurrences / passages)  # passages with the word, if independent
    residual: NDArray[np.float64] = np.log2(np.maximum(1, expected) / np.maximum(1, containing))
    return residual
