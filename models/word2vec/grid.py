"""The grid: the vocabulary in parts, and the pairs of an episode in blocks that can be trained in parallel.

The V words are dealt into P parts. The pairs of an *episode* (some millions) are sorted into P x P *blocks*
by the part of their context, which indexes the input table, and of their target, which indexes the output
table. The blocks (i, (i + d) mod P) of *diagonal* d share no row of either table, so any number of threads
and workers can train them at the same time without a lock, and the result does not depend on which of them
trains which block. An episode is trained diagonal by diagonal. Noise for an output part is drawn from the
words of that part.

Zhu et al. (2019), "GraphVite: A High-Performance CPU-GPU Hybrid System for Node Embedding", train node
embeddings on several GPUs in this way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 1 << 16  # of a part, so that a row's number within its part is a uint16
DEFAULT_PARTS, MAX_PARTS, MAX_PART_BITS = 16, 1024, 10  # there are P files and P x P blocks
MIN_ROWS = 64  # of a part by default, except for tiny vocabularies
# Longer episodes lower the scores of the vectors, and so do few episodes per epoch (benchmarks/LOG.md).
MIN_PAIRS_PER_WORD, PAIRS_PER_WORD, EPISODES = 40, 104, 12
MIN_EPISODE, MAX_EPISODE = 1 << 16, 1 << 25  # pairs; the maximum limits memory


@dataclass(frozen=True)
class Grid:
    """The division of a vocabulary, which is sorted by frequency, into parts of nearly equal weight.

    Words are dealt to the parts back and forth: for P = 4, words 0 to 7 belong to the parts 0 2 1 3 3 1 2 0.
    So word r is row r // P of its part. The last row of some parts is unused. Workers own ranges of
    adjacent parts. The order of the parts (van der Corput's) gives these ranges nearly equal weights as well.

    Raises:
        ValueError: there are fewer words than parts, no part, more than 1,024 parts, or more than 65,536
            words in a part.
    """

    words: int
    parts: int

    def __post_init__(self) -> None:
        least, most = max(1, -(-self.words // MAX_ROWS)), min(self.words, MAX_PARTS)
        if self.words > MAX_ROWS * MAX_PARTS:
            raise ValueError(
                f"the vocabulary has {self.words} words: at most {MAX_ROWS * MAX_PARTS} can be trained; raise"
                " min_count, or set max_size"
            )
        if not least <= self.parts <= most:
            raise ValueError(
                f"parts is {self.parts}: it must be between {least} and {most} for a vocabulary of"
                f" {self.words} words"
            )

    @property
    def rows(self) -> int:
        """Rows of a part in each table."""
        return -(-self.words // self.parts)

    def own(self, rank: int, world_size: int) -> range:
        """The input parts of worker `rank`.

        Raises:
            ValueError: there are more workers than parts.
        """
        if world_size > self.parts:
            raise ValueError(
                f"{world_size} workers can't share {self.parts} parts: use at most {self.parts} workers"
            )
        return range(self.parts * rank // world_size, self.parts * (rank + 1) // world_size)

    @cached_property
    def _dealt(self) -> NDArray[np.int64]:
        """The parts in the order in which words are dealt to them."""
        places = np.arange(self.parts)
        reversed_bits = sum((places >> bit & 1) << (MAX_PART_BITS - 1 - bit) for bit in range(MAX_PART_BITS))
        return np.argsort(np.argsort(reversed_bits))

    def words_of(self, part: int) -> NDArray[np.int64]:
        """The ids of a part's words, in the order of its rows."""
        groups, place = np.arange(self.rows), int(np.flatnonzero(self._dealt == part)[0])
        ids = groups * self.parts + np.where(groups % 2 == 0, place, self.parts - 1 - place)
        return ids[ids < self.words]

    def codes(self, ids: NDArray[np.integer]) -> NDArray[np.uint32]:
        """Encode words by part and row, as part << 16 | row."""
        group, place = np.divmod(ids, self.parts)
        part = self._dealt[np.where(group % 2 == 0, place, self.parts - 1 - place)]
        return (part << 16 | group).astype(np.uint32)


def default_parts(words: int) -> int:
    """Return the default number of parts: 16; fewer for few words, or a larger multiple of 8 for many."""
    if words > DEFAULT_PARTS * MAX_ROWS:
        return -(-words // (8 * MAX_ROWS)) * 8  # more parts would shorten the runs
    parts = DEFAULT_PARTS
    while parts > 1 and words < parts * MIN_ROWS:
        parts //= 2
    return parts


def default_episode(words: int, pairs: float) -> int:
    """Return the default number of pairs of an episode, for an epoch of so many pairs."""
    share = max(
        pairs / EPISODES, MIN_PAIRS_PER_WORD * words
    )  # large vocabularies need long episodes for speed
    return int(min(max(min(PAIRS_PER_WORD * words, share), MIN_EPISODE), MAX_EPISODE))


@dataclass(frozen=True)
class Contexts:
    """A range of text positions whose words are the contexts of pairs.

    Attributes:
        codes: (positions,) uint32, of the words (`Grid.codes`), after subsampling.
        reach: (positions,) uint16, the window of each position as a target.
        offsets: (documents + 1,) int64, of the documents in them.
        first, last: the range.
    """

    codes: NDArray[np.uint32]
    reach: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    first: int
    last: int

    def split(self, parts: int) -> Iterator["Contexts"]:
        """Split the range into `parts` ranges of nearly equal length."""
        bounds = np.linspace(self.first, self.last, parts + 1).astype(int).tolist()
        for first, last in pairwise(bounds):
            yield Contexts(self.codes, self.reach, self.offsets, first, last)


@dataclass(frozen=True)
class Blocks:
    """Pairs in blocks, in runs of at most `MAX_RUN` pairs of one target.

    Attributes:
        targets, contexts: (pairs,) uint16, row numbers within the parts.
        bounds: (inputs, P + 1) int64: the block of the i-th input part and output part j is
            bounds[i, j]:bounds[i, j + 1].
    """

    targets: NDArray[np.uint16]
    contexts: NDArray[np.uint16]
    bounds: NDArray[np.int64]
