"""The n-gram that a neural language model has to beat: interpolated, modified Kneser-Ney smoothing.

Chen and Goodman (1999), "An Empirical Study of Smoothing Techniques for Language Modeling", section 3:

    p(w | context) = (count(context w) - D) / count(context) + gamma(context) p(w | context without its first)

with one discount D for counts of 1, 2 and 3 or more; the longest n-grams are counted as they occur, a shorter
one by the number of distinct tokens that stand before it; below single tokens lies the uniform distribution.

- Contexts form a trie that is walked from the latest token to the left, so a query ends where the training
  text has no longer context, and each context knows the shorter one by which it is smoothed.
- The probability of every n-gram that occurs is computed once, from its shorter one. A query is then one look
  up, or a product of gammas and one look up.

Shapes: B queries, C tokens of context, V ids. Probabilities are float64.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where a text is too small to estimate them; KenLM takes the same

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """The contexts of one length, and the tokens that follow them.

    Attributes:
        contexts: (contexts,) sorted; parent * V + first token, where the parent is the place of the context
            without its first token in the level below. The empty context is [0].
        gammas: (contexts,) the weight of the level below.
        grams: (grams,) sorted; context * V + token.
        probabilities: (grams,) of the token after the context, all levels below included.
    """

    contexts: Ids
    gammas: Floats
    grams: Ids
    probabilities: Floats


class KneserNey:
    """An n-gram language model of some documents.

    Args:
        tokens: (n,) ids of all documents, one after the other.
        offsets: (documents + 1,) where each begins; the last is n.
        order: length of the longest n-grams, label included; 1 is the unigram.
        size: V, the number of ids.
        boundary: the id that stands before the first token of a document, as often as needed. It is a context
            and no label, unless it occurs in the documents too.

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
            raise ValueError("an n-gram can't be counted from no tokens at all")
        if min(tokens.min(), boundary) < 0 or max(tokens.max(), boundary) >= size:
            raise ValueError(
                f"the ids go from {min(tokens.min(), boundary)} to {max(tokens.max(), boundary)},"
                f" but there are {size} of them (0 to {size - 1})"
            )
        self.order, self.size = order, size
        contexts, place = context_trie(tokens, offsets, order, size, boundary)
        self.levels = smoothed(contexts, gram_counts(contexts, place, tokens, size), size)
        self._best: dict[int, list[NDArray[np.int32]]] = {}  # by k: of each level's contexts

    def log_probabilities(self, contexts: NDArray[np.integer], labels: NDArray[np.integer]) -> Floats:
        """Natural logarithms, (B,), of each label's probability after its context.

        Args:
            contexts: (B, C) ids, the latest last; only the last order - 1 count. -1 stands for "not known".
            labels: (B,) ids.
        """
        labels = labels.astype(np.int64)
        probabilities = np.full(len(labels), 1 / self.size)
        place = np.zeros(len(labels), np.int64)
        known = np.ones(len(labels), bool)
        for length, level in enumerate(self.levels):
            if length:
                place, known = self._longer(level, place, known, contexts, length)
            gram, occurs = find(level.grams, place * self.size + labels)
            smoothed_below = level.gammas[place] * probabilities
            here = np.where(occurs, level.probabilities[gram], smoothed_below)
            probabilities = np.where(known, here, probabilities)
        return np.log(probabilities)

    def best(self, contexts: NDArray[np.integer], k: int) -> Ids:
        """The k most probable labels, (B, k), of contexts (B, C); the most probable first, ties by id.

        Those of all contexts are worked out at the first call, and kept.

        Raises:
            ValueError: k is above V.
        """
        if k > self.size:
            raise ValueError(f"there are no {k} best of {self.size} ids")
        if k not in self._best:
            self._best[k] = best_by_level(self.levels, self.size, k)
        place = np.zeros(len(contexts), np.int64)
        known = np.ones(len(contexts), bool)
        found = np.empty((len(contexts), k), np.int64)
        for length, (level, best) in enumerate(zip(self.levels, self._best[k], strict=True)):
            if length:
                place, known = self._longer(level, place, known, contexts, length)
            found[known] = best[place[known]]
        return found

    def _longer(
        self, level: Level, place: Ids, known: NDArray[np.bool_], contexts: NDArray[np.integer], length: int
    ) -> tuple[Ids, NDArray[np.bool_]]:
        """From the places of contexts to those that begin one token earlier, and which of them occur."""
        if length > contexts.shape[1]:
            return np.zeros_like(place), np.zeros_like(known)
        token = contexts[:, -length].astype(np.int64)
        longer, occurs = find(level.contexts, place * self.size + token)
        return longer, known & occurs & (token >= 0)


def find(keys: Ids, wanted: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Where each wanted key stands among the sorted keys, and whether it does (else the place is any)."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def context_trie(
    tokens: NDArray[np.integer], offsets: NDArray[np.integer], order: int, size: int, boundary: int
) -> tuple[list[Ids], Ids]:
    """All contexts that occur, by length from 0 to order - 1, and the place of each token's longest one."""
    before = order - 1
    document = np.repeat(np.arange(1, len(offsets)), np.diff(offsets))  # (n,) counted from 1
    positions = np.arange(len(tokens)) + document * before
    padded = np.full(len(tokens) + (len(offsets) - 1) * before, boundary, np.int64)
    padded[positions] = tokens
    place = np.zeros(len(tokens), np.int64)
    contexts = [np.zeros(1, np.int64)]
    for length in range(1, order):
        keys, place = np.unique(place * size + padded[positions - length], return_inverse=True)
        contexts.append(keys)
    return contexts, place


def gram_counts(
    contexts: list[Ids], place: Ids, tokens: NDArray[np.integer], size: int
) -> list[tuple[Ids, Ids]]:
    """(n-grams, their counts) by length from 1: occurrences of the longest, distinct beginnings of others."""
    grams, counts = np.unique(place * size + tokens, return_counts=True)
    levels = [(grams, counts)]
    for longer in reversed(contexts[1:]):
        parents = longer[grams // size] // size
        grams, counts = np.unique(parents * size + grams % size, return_counts=True)
        levels.append((grams, counts))
    return levels[::-1]


def smoothed(contexts: list[Ids], levels: list[tuple[Ids, Ids]], size: int) -> list[Level]:
    """The levels with their probabilities, from the shortest to the longest."""
    made: list[Level] = []
    for keys, (grams, counts) in zip(contexts, levels, strict=True):
        discount = discounts(counts)[np.minimum(counts, 3)]
        context, token = np.divmod(grams, size)
        total = np.bincount(context, counts, len(keys))
        gammas = np.bincount(context, discount, len(keys)) / total
        if made:
            shorter, _ = find(made[-1].grams, keys[context] // size * size + token)
            below = made[-1].probabilities[shorter]
        else:
            below = np.full(len(grams), 1 / size)
        probabilities = (counts - discount) / total[context] + gammas[context] * below
        made.append(Level(keys, gammas, grams, probabilities))
    return made


def discounts(counts: Ids) -> Floats:
    """D for counts of 0 (none), 1, 2 and 3 or more. (Chen and Goodman 1999, equation 26)"""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= discount <= count for count, discount in enumerate(found, 1)):
            return np.array([0.0, *found])
    return np.array([0.0, *FALLBACK_DISCOUNTS])


def best_by_level(levels: list[Level], size: int, k: int) -> list[NDArray[np.int32]]:
    """The k best tokens after each context of each level, (contexts, k)."""
    # of the uniform distribution: the first ids, as good as any others
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
    """The k best tokens after each context, (contexts, k), and their probabilities.

    They are among the tokens seen after it and the k best of the shorter context: of those not seen, none is
    better than these, and those that are seen only gain.
    """
    k = below_tokens.shape[1]
    best = np.empty((len(parents), k), np.int64)
    chances = np.empty((len(parents), k), np.float64)
    for context in range(len(parents)):
        filled = 0
        first, last = starts[context], starts[context + 1]
        for gram in range(first, last):
            filled = insert(best[context], chances[context], filled, tokens[gram], probabilities[gram])
        for rank in range(k):
            token = below_tokens[parents[context], rank]
            gram = first + np.searchsorted(tokens[first:last], token)
            if gram == last or tokens[gram] != token:
                chance = gammas[context] * below_probabilities[parents[context], rank]
                filled = insert(best[context], chances[context], filled, token, chance)
    return best, chances


@njit(cache=True)
def insert(best, chances, filled, token, chance):  # type: ignore[no-untyped-def]
    """Puts a token in its place among the `filled` best, if it is one; returns how many there are then."""
    k = len(best)
    if filled == k and (chance, -token) <= (chances[k - 1], -best[k - 1]):
        return filled
    place = min(filled, k - 1)
    while place > 0 and (chance, -token) > (chances[place - 1], -best[place - 1]):
        best[place], chances[place] = best[place - 1], chances[place - 1]
        place -= 1
    best[place], chances[place] = token, chance
    return min(filled + 1, k)
