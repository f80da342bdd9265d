"""Training pairs and held-out pairs in the blocks of a grid, for benchmarks/word2vec_gpu.py."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from word_pairs import shuffled
from zipf import diagonals, draw_blocks

from lexloom.models.word2vec.alias import alias_tables
from lexloom.models.word2vec.grid import Grid
from lexloom.training.grid_stream import StoredEpisodes
from lexloom.training.trainable import Batch

HELD_OUT = 0.05  # of the pairs, the last ones of each block


class Corpus(NamedTuple):
    """Training pairs and held-out pairs, a batch per diagonal of each episode, and the noise.

    Attributes:
        weights: (V,) float64, of the noise distribution.
    """

    grid: Grid
    batches: list[Batch]
    held_out: list[Batch]
    weights: np.ndarray

    @property
    def pairs(self) -> int:
        return sum(len(batch["target"]) for batch in self.batches)

    def noise(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the alias table of an output part."""
        words = len(self.grid.words_of(part))
        probability, alias = alias_tables(self.weights, self.grid)
        return probability[part, :words], alias[part, :words]


def read_corpus(pairs: Path, noise: Path, limit: int) -> Corpus:
    """Return the first episodes of the shards, with at least `limit` pairs or all."""
    parts = len(list(pairs.glob("train-*.parquet")))
    if not parts:
        raise SystemExit(f"{pairs} holds no train-*.parquet: give the folder of a pairs artifact")
    weights = pq.read_table(noise)["probability"].to_numpy()
    grid = Grid(len(weights), parts)
    episodes = StoredEpisodes(pairs, "train", parts=parts, seed=0, shuffle=False)
    batches: list[Batch] = []
    found = 0
    for blocks in episodes.read(0, 0, range(parts)):
        batches += diagonals(blocks, grid)
        found += len(blocks.targets)
        if found >= limit:
            break
    return hold_out(grid, batches, weights)


def tiny_corpus() -> Corpus:
    grid = Grid(40, 2)
    return hold_out(grid, diagonals(draw_blocks(grid, 2000), grid), np.ones(40))


def hold_out(grid: Grid, batches: list[Batch], weights: np.ndarray) -> Corpus:
    """Divide the batches into training and held-out pairs."""
    kept, held_out = [], []
    for batch in batches:
        first, last = batch["bounds"][:-1], batch["bounds"][1:]
        middle = first + ((last - first) * (1 - HELD_OUT)).astype(int)
        kept.append(select(batch, first, middle))
        held_out.append(select(batch, middle, last))
    return Corpus(grid, kept, held_out, weights)


def select(batch: Batch, first: np.ndarray, last: np.ndarray) -> Batch:
    """Return the pairs first[k]:last[k] of each block k of a batch."""
    slices = [slice(*each) for each in zip(first.tolist(), last.tolist(), strict=True)]
    return {
        "target": np.concatenate([batch["target"][each] for each in slices]),
        "context": np.concatenate([batch["context"][each] for each in slices]),
        "bounds": np.concatenate([[0], np.cumsum(last - first)]),
    }


def word_pairs(corpus: Corpus, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the word ids of targets and contexts, of pairs drawn at random."""
    words = [corpus.grid.words_of(part) for part in range(corpus.grid.parts)]
    targets, contexts = [], []
    for number, batch in enumerate(corpus.batches):
        for part, (first, last) in enumerate(pairwise(batch["bounds"].tolist())):
            targets.append(words[(part + number) % corpus.grid.parts][batch["target"][first:last]])
            contexts.append(words[part][batch["context"][first:last]])
    return shuffled(np.concatenate(targets), np.concatenate(contexts), limit)
