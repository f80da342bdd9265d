"""Words by Zipf's law, and their skip-gram pairs in the blocks of a grid, for benchmarks without a text."""

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from lexloom.models.cpus import available_cpus
from lexloom.models.word2vec.blocks import MAX_RUN, make_blocks
from lexloom.models.word2vec.grid import Blocks, Grid
from lexloom.models.word2vec.skipgram import SkipGrams, keep_thresholds
from lexloom.training.grid_stream import GridStream
from lexloom.training.trainable import Batch

SHIFT = 2.7  # Mandelbrot's
WINDOW, SUBSAMPLE = 5, 1e-3
TEXT, DOCUMENT = 1_000_000_000, 200  # words


def zipf_shares(words: int) -> NDArray[np.float64]:
    """Return the words' probabilities, (words,), in falling order."""
    weights = 1 / (np.arange(words) + SHIFT)
    return weights / weights.sum()


def draw_words(cumulated: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.int32]:
    """Draw word ids, (count,) int32, given the cumulated probabilities, (words,)."""
    drawn = np.searchsorted(cumulated, random.random(count), side="right")
    return np.minimum(drawn, len(cumulated) - 1).astype(np.int32)  # the sum may be below 1


def draw_blocks(grid: Grid, pairs: int) -> Blocks:
    """Draw about so many pairs, as from a text with subsampling and randomly reduced windows."""
    shares = zipf_shares(grid.words)
    counts = np.maximum(shares * TEXT, 1).astype(np.int64)
    skipgrams = SkipGrams(keep_thresholds(counts, SUBSAMPLE), WINDOW, shrink_window=True, seed=1, grid=grid)
    documents = max(1, round(pairs / skipgrams.pairs_per_token(counts) / DOCUMENT))
    ids = draw_words(np.cumsum(shares), documents * DOCUMENT, np.random.default_rng(1))
    offsets = np.arange(documents + 1) * DOCUMENT
    contexts = skipgrams.draw(ids, offsets, np.ones(documents, np.bool_))
    return make_blocks([contexts], grid, window=WINDOW, threads=available_cpus())


class Episode:
    """One episode in memory, as `Episodes` of a `GridStream`."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def examples(self, epoch: int) -> NDArray[np.int64]:
        lengths = np.diff(self._blocks.bounds, axis=1)  # (P, P)
        i = np.arange(len(lengths))
        return np.array([[lengths[i, (i + d) % len(lengths)].sum() for d in i]])

    def read(self, epoch: int, first: int, own: range) -> Generator[Blocks]:
        yield self._blocks


def diagonals(blocks: Blocks, grid: Grid) -> list[Batch]:
    """Return the batches of an episode, one for each diagonal."""
    stream = GridStream(Episode(blocks), grid.parts, range(grid.parts), shuffle=False)
    return list(stream.read(stream.epoch(0)))


def count_runs(batches: list[Batch]) -> int:
    """Count the runs of a target's pairs."""
    runs = 0
    for batch in batches:
        begins = np.ones(len(batch["target"]), np.bool_)
        begins[1:] = np.diff(batch["target"]) != 0
        begins[batch["bounds"][:-1][np.diff(batch["bounds"]) > 0]] = True
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=len(begins))
        runs += int((-(-lengths // MAX_RUN)).sum())
    return runs
