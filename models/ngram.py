"""An n-gram language model with interpolated modified Kneser-Ney smoothing, the baseline of neural models.

Chen and Goodman (1999), "An Empirical Study of Smoothing Techniques for Language Modeling", section 3:

    p(w | context) = (count(context w) - D) / count(context) + gamma(context) p(w | context without its first)

with separate discounts D for counts of 1, 2 and 3 or more. The longest n-grams are counted by occurrences,
shorter ones by the number of distinct tokens that precede them; unigrams are interpolated with the uniform
distribution.

- Contexts form a trie that is searched backwards from the last token, so a query stops at the longest
  context that occurs in the training text, and each context has a link to its suffix.
- The probability of every n-gram that occurs is precomputed from that of its suffix. A query is then one
  lookup, or a product of gammas and one lookup.

Shapes: B queries, C tokens of context, V ids. Probabilities are float64.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # for texts too small to estimate them, as in KenLM

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """The contexts of one length, and the tokens that follow them.

    Attributes:
        contexts: (contexts,) sorted; parent * V + first token, where the parent is the index of the context
            without its first token in the level below. The empty context is [0].
        gammas: (contexts,) weights of the level below.
        grams: (grams,) sorted; context * V + token.
        probabilities: (grams,) of the token after the context, interpolated with all levels below.
    """

    contexts: Ids
    gammas: Floats
    grams: Ids
    probabilities: Floats


class KneserNey:
    """An n-gram language model of documents.

    Args:
        tokens: (n,) ids of all documents, concatenated.
        offsets: (documents + 1,) start of each document; the last is n.
        order: length of the longest n-grams, label included; 1 is a unigram model.
        size: V, the number of ids.
        boundary: the id that precedes each document, as often as needed. It is a context but not a label,
            unless it occurs in the documents too.

    Raises:
        ValueError: there are no tokens, an id is not in 0 to V - 1, or the order is below 1.
    """

    def __init__(
        self, tokens: ArrayLike, offsets: ArrayLike, *, order: int, size: int, boundary: int
    ) -> None:
        tokens, offsets = np.asarray(tokens), np.asarray(offsets)
        if order < 1:
            raise ValueError(f"the order is {order}: it must be at least 1")
        if len(tokens) == 0:
            raise ValueError("there are no tokens to count n-grams of")
        if min(tokens.min(), boundary) < 0 or max(tokens.max(), boundary) >= size:
            raise ValueError(
                f"the ids range from {min(tokens.min(), boundary)} to {max(tokens.max(), boundary)},"
                f" but must be in 0 to {size - 1}"
            )
        self.order, self.size = order, size
        contexts, index = context_trie(tokens, offsets, order, size, boundary)
        self.levels = smooth(contexts, gram_counts(contexts, index, tokens, size), size)
        self._best: dict[int, list[NDArray[np.int32]]] = {}  # by k, for each level's contexts

    def log_probabilities(self, contexts: NDArray[np.integer], labels: NDArray[np.integer]) -> Floats:
        """Natural logarithms, (B,), of each label's probability after its context.

        Args:
            contexts: (B, C) ids, the latest last; only the last order - 1 are used. -1 stands for an unknown
                token.
            labels: (B,) ids.
        """
        labels = labels.astype(np.int64)
        probabilities = np.full(len(labels), 1 / self.size)
        index = np.zeros(len(labels), np.int64)
        known = np.ones(len(labels), bool)
        for length, level in enumerate(self.levels):
            if length:
                index, known = self._extend(level, index, known, contexts, length)
            gram, occurs = find(level.grams, index * self.size + labels)
            backed_off = level.gammas[index] * probabilities
            here = np.where(occurs, level.probabilities[gram], backed_off)
            probabilities = np.where(known, here, probabilities)
        return np.log(probabilities)

    def best(self, contexts: NDArray[np.integer], k: int) -> Ids:
        """The k most probable labels, (B, k), after contexts (B, C); the most probable first, ties by id.

        The first call computes those of all contexts and caches them.

        Raises:
            ValueError: k is above V.
        """
        if k > self.size:
            raise ValueError(f"k is {k}: it must be at most {self.size}, the number of ids")
        if k not in self._best:
            self._best[k] = best_by_level(self.levels, self.size, k)
        index = np.zeros(len(contexts), np.int64)
        known = np.ones(len(contexts), bool)
        found = np.empty((len(contexts), k), np.int64)
        for length, (level, best) in enumerate(zip(self.levels, self._best[k], strict=True)):
            if length:
                index, known = self._extend(level, index, known, contexts, length)
            found[known] = best[index[known]]
        return found

    def _extend(
        self, level: Level, index: Ids, known: NDArray[np.bool_], contexts: NDArray[np.integer], length: int
    ) -> tuple[Ids, NDArray[np.bool_]]:
        """Return the indices of the contexts extended by one token to the left, and which of them occur."""
        if length > contexts.shape[1]:
            return np.zeros_like(index), np.zeros_like(known)
        token = contexts[:, -length].astype(np.int64)
        longer, occurs = find(level.contexts, index * self.size + token)
        return longer, known & occurs & (token >= 0)


def find(keys: Ids, wanted: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Return the index of each wanted key in the sorted keys, and whether it occurs (otherwise any index)."""
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return index, keys[index] == wanted


def context_trie(
    tokens: NDArray[np.integer], offsets: NDArray[np.integer], order: int, size: int, boundary: int
) -> tuple[list[Ids], Ids]:
    """Return the contexts of each length from 0 to order - 1, and the index of each token's longest one."""
    before = order - 1
    document = np.repeat(np.arange(1, len(offsets)), np.diff(offsets))  # (n,) counted from 1
    positions = np.arange(len(tokens)) + document * before
    padded = np.full(len(tokens) + (len(offsets) - 1) * before, boundary, np.int64)
    padded[positions] = tokens
    index = np.zeros(len(tokens), np.int64)
    contexts = [np.zeros(1, np.int64)]
    for length in range(1, order):
        keys, index = np.unique(index * size + padded[positions - length], return_inverse=True)
        contexts.append(keys)
    return contexts, index


def gram_counts(
    contexts: list[Ids], index: Ids, tokens: NDArray[np.integer], size: int
) -> list[tuple[Ids, Ids]]:
    """Return (n-grams, counts) by length from 1: occurrences, or distinct first tokens for shorter ones."""
    grams, counts = np.unique(index * size + tokens, return_counts=True)
    levels = [(grams, counts)]
    for longer in reversed(contexts[1:]):
        parents = longer[grams // size] // size
        grams, counts = np.unique(parents * size + grams % size, return_counts=True)
        levels.append((grams, counts))
    return levels[::-1]


def smooth(contexts: list[Ids], levels: list[tuple[Ids, Ids]], size: int) -> list[Level]:
    """Compute the levels' probabilities, from the shortest to the longest."""
    smoothed: list[Level] = []
    for keys, (grams, counts) in zip(contexts, levels, strict=True):
        discount = discounts(counts)[np.minimum(counts, 3)]
        context, token = np.divmod(grams, size)
        total = np.bincount(context, counts, len(keys))
        gammas = np.bincount(context, discount, len(keys)) / total
        if smoothed:
            shorter, _ = find(smoothed[-1].grams, keys[context] // size * size + token)
            below = smoothed[-1].probabilities[shorter]
        else:
            below = np.full(len(grams), 1 / size)
        probabilities = (counts - discount) / total[context] + gammas[context] * below
        smoothed.append(Level(keys, gammas, grams, probabilities))
    return smoothed


def discounts(counts: Ids) -> Floats:
    """Return D for counts of 0 (none), 1, 2 and 3 or more. (Chen and Goodman 1999, equation 26)"""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= discount <= count for count, discount in enumerate(found, 1)):
            return np.array([0.0, *found])
    return np.array([0.0, *FALLBACK_DISCOUNTS])


def best_by_level(levels: list[Level], size: int, k: int) -> list[NDArray[np.int32]]:
    """Find the k most probable tokens after each context of each level, (contexts, k)."""
    # of the uniform distribution: the first ids, since all are equal
    tokens, probabilities = np.arange(k)[None], np.full((1, k), 1 / size)
    found = []
    for level in levels:
        tokens, probabilities = best_after(
            level.contexts // size,
            level.gammas,
            np.searchsorted(level.grams, np.arange(len(level.contexts) + 1) * size),
            level.grams % size,
            level.probabilities,
            tokens,
            probabilities,
        )
        found.append(tokens.astype(np.int32))
    return found


@njit(cache=True)
def best_after(parents, gammas, starts, tokens, probabilities, below_tokens, below_probabilities):  # type: ignore[no-untyped-def]
    """Find the k most probable tokens after each context, (contexts, k), and their probabilities.

    They are among the tokens seen after the context and the k best after the shorter context: no other unseen
    token is better than the latter, and seen tokens only gain probability.
    """
    k = below_tokens.shape[1]
    best = np.empty((len(parents), k), np.int64)
    best_probabilities = np.empty((len(parents), k), np.float64)
    for context in range(len(parents)):
        filled = 0
        first, last = starts[context], starts[context + 1]
        for gram in range(first, last):
            filled = insert(
                best[context], best_probabilities[context], filled, tokens[gram], probabilities[gram]
            )
        for rank in range(k):
            token = below_tokens[parents[context], rank]
            gram = first + np.searchsorted(tokens[first:last], token)
            if gram == last or tokens[gram] != token:
                probability = gammas[context] * below_probabilities[parents[context], rank]
                filled = insert(best[context], best_probabilities[context], filled, token, probability)
    return best, best_probabilities


@njit(cache=True)
def insert(best, best_probabilities, filled, token, probability):  # type: ignore[no-untyped-def]
    """Insert a token into the `filled` best, if it is one of the k best; return their new number."""
    k = len(best)
    if filled == k and (probability, -token) <= (best_probabilities[k - 1], -best[k - 1]):
        return filled
    index = min(filled, k - 1)
    while index > 0 and (probability, -token) > (best_probabilities[index - 1], -best[index - 1]):
        best[index], best_probabilities[index] = best[index - 1], best_probabilities[index - 1]
        index -= 1
    best[index], best_probabilities[index] = token, probability
    return min(filled + 1, k)
