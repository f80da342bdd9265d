"""Batching of texts by length, and computation of batches in threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_WORKERS = 16  # each holds the activations of a batch

Item = TypeVar("Item")
Result = TypeVar("Result")


def group_by_length(lengths: Sequence[int] | NDArray[np.integer], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of texts of similar length: the longest first, at most `tokens` per batch including
    padding.

    A batch is an array of indices into `lengths`; a text longer than `tokens` is a batch of its own.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + max(1, tokens // max(1, int(lengths[order[start]])))
        yield order[start:end]
        start = end


def pad_batch(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad rows of (T_i, ...) with zeros to (B, T, ...); return them with the mask (B, T), int64."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), mask


def map_in_threads(work: Callable[[Item], Result], items: Sequence[Item], device: str) -> list[Result]:
    """Apply `work` to every item, in order: on a CPU, to several items in parallel with fewer threads each.

    Threads that share a matrix product wait for each other in every layer; threads with different items
    don't. Torch's number of threads is the budget.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items), MAX_WORKERS) if device == "cpu" else 1
    if workers <= 1:
        return [work(item) for item in items]
    each = threads // workers
    try:
        with ThreadPoolExecutor(workers, "encoder", torch.set_num_threads, (each,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # part of this setting is global
