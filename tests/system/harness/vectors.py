"""A training of word vectors whose examples are numbered by their content, so that a ledger can count them.

Block (i, j) of the grid has the pairs number 0 to BLOCK - 1 in each epoch: pair m has row m // ROWS as its
target and row m mod ROWS as its context. So a batch tells which examples it has, whatever the stream under
test says.
"""

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexloom.models.word2vec.trainable import Word2Vec
from lexloom.training.grid_stream import GridStream, StoredBlocks
from lexloom.training.job import Job
from lexloom.training.sync.config import SyncConfig
from tests.system.harness.ledger import Ledger

PARTS, ROWS, EPISODES, BLOCK = 8, 250, 5, 6_250
PAIRS = PARTS * PARTS * BLOCK


class Episodes:
    """Each has an equal share of every block."""

    def examples(self, epoch: int) -> NDArray[np.int64]:
        return np.full((EPISODES, PARTS), PARTS * BLOCK // EPISODES)

    def read(self, epoch: int, first: int, own: range) -> Generator[StoredBlocks]:
        size = BLOCK // EPISODES
        for episode in range(first, EPISODES):
            numbers = np.tile(np.arange(episode * size, (episode + 1) * size), len(own) * PARTS)
            targets, contexts = np.divmod(numbers, ROWS)
            starts = np.arange(len(own))[:, None] * PARTS + np.arange(PARTS + 1)
            yield StoredBlocks(targets.astype(np.uint16), contexts.astype(np.uint16), starts * size)


class NumberedLedger(Ledger):
    """Adds the column `row`, the number of each example, to the batches of one of `workers` workers."""

    def __init__(self, *arguments: Any, workers: int) -> None:
        super().__init__(*arguments)
        self.workers = workers

    def __call__(self, epoch: int, step: int, worker: int, batch: Mapping[str, np.ndarray]) -> None:
        own = np.array(owned(worker, self.workers))
        blocks = own * PARTS + (own + step) % PARTS
        rows = np.repeat(blocks, np.diff(batch["bounds"])) * BLOCK
        rows += batch["target"].astype(np.int64) * ROWS + batch["context"]
        super().__call__(epoch, step, worker, {**batch, "row": rows.astype(np.int32)})


def owned(rank: int, workers: int) -> range:
    return range(PARTS * rank // workers, PARTS * (rank + 1) // workers)


def make_vectors() -> Word2Vec:
    return Word2Vec(1.0 / np.arange(1, PARTS * ROWS + 1), dim=32, parts=PARTS, seed=1)


def open_stream(job: Job, rank: int, world_size: int, held_out: bool) -> GridStream:
    return GridStream(Episodes(), PARTS, owned(rank, world_size))


OPTIONS: dict[str, Any] = {
    "make_trainable": make_vectors,
    "columns": ("target", "context"),
    "open_stream": open_stream,
    "sync": SyncConfig("rotation"),
}
