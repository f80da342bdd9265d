"""The stored pairs of a `pairs` artifact as word ids."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexloom.models.word2vec.grid import Grid
from lexloom.training.grid_stream import Blocks, StoredEpisodes


def read_word_pairs(folder: Path, grid: Grid) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Yield the targets and the contexts of each episode, (pairs,) each, in the order of its blocks."""
    episodes = StoredEpisodes(folder, "train", parts=grid.parts, seed=0, shuffle=False)
    for blocks in episodes.read(0, 0, range(grid.parts)):
        yield word_ids(blocks, grid)


def word_ids(blocks: Blocks, grid: Grid) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the targets and the contexts of all P x P blocks, (pairs,) each."""
    words = [grid.words_of(part) for part in range(grid.parts)]
    targets, contexts = (np.empty(len(blocks.targets), np.int32) for _ in range(2))
    for i, bounds in enumerate(blocks.bounds.tolist()):
        contexts[bounds[0] : bounds[-1]] = words[i][blocks.contexts[bounds[0] : bounds[-1]]]
        for j in range(grid.parts):
            block = slice(bounds[j], bounds[j + 1])
            targets[block] = words[j][blocks.targets[block]]
    return targets, contexts


def shuffled(targets: np.ndarray, contexts: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `limit` of the pairs, drawn at random."""
    order = np.random.default_rng(0).permutation(len(targets))[:limit]
    return targets[order], contexts[order]
