"""Pairs of a block of the grid on a device: cut into runs, and prefetched to a GPU.

Shapes: pairs of a block; runs of a block, a run being up to `MAX_RUN` adjacent pairs of one target.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lexloom.models.word2vec.blocks import MAX_RUN


class Pairs(NamedTuple):
    """The pairs of a block on the device."""

    targets: Tensor  # (pairs,) int32
    contexts: Tensor  # (pairs,) int32
    starts: Tensor  # (runs + 1,) int64: the first pair of each run, and the number of pairs


def find_runs(targets: Tensor, contexts: Tensor) -> Pairs:
    """Find the runs of pairs that are on the device. On a GPU the host waits for the number of runs."""
    pairs = len(targets)
    begins = torch.ones(pairs + 1, dtype=torch.bool, device=targets.device)
    begins[1:-1] = targets[1:] != targets[:-1]
    positions = torch.arange(pairs, device=targets.device)
    changes = torch.where(begins[:-1], positions, 0).cummax(0).values  # the last change of target
    begins[:-1] |= (positions - changes) % MAX_RUN == 0
    return Pairs(targets, contexts, begins.nonzero().squeeze(1))


def from_numpy(array: np.ndarray) -> Tensor:
    """Convert to a tensor, without a copy if the array is contiguous and writeable."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class BatchPrefetcher:
    """Sends the pairs of blocks to a device.

    On a GPU a separate stream is used: while one block is trained, the next is copied and cut into runs. The
    host waits rather than get two blocks ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._previous: torch.cuda.Event | None = None  # after all work queued before the last block

    def __call__(self, targets: np.ndarray, contexts: np.ndarray) -> Pairs:
        """Send `targets` and `contexts`, (pairs,) int32."""
        columns = [from_numpy(ids) for ids in (targets, contexts)]
        if self._stream is None:
            return find_runs(*(column.to(self._device) for column in columns))
        training = torch.cuda.current_stream(self._device)
        if self._previous is not None:
            self._previous.synchronize()
        self._previous = training.record_event()
        with torch.cuda.stream(self._stream):
            pairs = find_runs(
                *(column.pin_memory().to(self._device, non_blocking=True) for column in columns)
            )
        training.wait_stream(self._stream)
        for tensor in pairs:
            tensor.record_stream(training)  # otherwise its memory would be reused too early
        return pairs
