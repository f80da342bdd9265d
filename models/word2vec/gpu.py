"""Skip-gram with negative sampling on a GPU: batches are sent ahead, and trained on where the tables are.

models/word2vec/reference.py says exactly which update is made. Several runs are under way at once: each of a
number of programs goes through its own part of the batch, run by run, and does not see the moves of a run
beside it before that run is done. One program makes the reference's update; with more of them the rows that
they read are stale, as among the CPU's threads (Hogwild, Niu et al. 2011).

Triton's kernel does it where it can (models/word2vec/triton.py); `train_in_torch` does the same in plain
torch, for all programs in step, on any device.
"""

import logging
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

logger = logging.getLogger("lexloom.sgns_gpu")

# Noise words: the same as the CPU's. torch has no arithmetic on uint64; int64 wraps around to the same bits.


def _signed(bits: int) -> int:
    """The int64 of the same 64 bits."""
    return (bits + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIXERS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits, zeros moving in, where torch moves the sign in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    for bits, factor in _MIXERS:
        x = (x ^ _shifted(x, bits)) * factor
    return x ^ _shifted(x, 31)


def draw_negatives(
    seed: int, positions: Tensor, probability: Tensor, alias: Tensor, negatives: int
) -> Tensor:
    """The noise words of some runs, the same as on the CPU.

    Args:
        seed: the batch's.
        positions: (R,) int64, the index in the batch of each run's first pair.
        probability, alias: (V,) float32 and int32, the noise as an alias table.

    Returns:
        (R, negatives) int64.
    """
    state = _mix(_signed(seed) + positions * _GOLDEN)  # (R,)
    draws = torch.arange(1, negatives + 1, device=positions.device)
    bits = _mix(state[:, None] + draws * _GOLDEN)  # (R, K)
    words = (_shifted(bits, 32) * len(probability)) >> 32
    coins = ((bits & 0xFFFFFFFF) >> 8).float() * 2.0**-24
    return torch.where(coins < probability[words], words, alias[words].long())


# Batches on their way.


class Pairs(NamedTuple):
    """A batch on the device."""

    targets: Tensor  # (pairs,) int32
    contexts: Tensor  # (pairs,) int32
    starts: Tensor  # (runs + 1,) int64: where each run begins, and where the last one ends


def find_runs(targets: Tensor, contexts: Tensor) -> Pairs:
    """Pairs that are on their device already. On a GPU the host waits for the number of runs."""
    begins = torch.ones(len(targets) + 1, dtype=torch.bool, device=targets.device)
    begins[1:-1] = targets[1:] != targets[:-1]
    return Pairs(targets, contexts, begins.nonzero().squeeze(1))


def from_numpy(array: np.ndarray) -> Tensor:
    """Without a copy if torch can take it: it wants whole arrays, and to be allowed to write."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class Feed:
    """Sends batches to a device. To a GPU they go on a stream of their own: while one batch is trained on,
    the next is copied there and cut into runs. The host waits rather than run two batches ahead."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._before: torch.cuda.Event | None = None  # all that was asked of the GPU before the last batch

    def __call__(self, targets: np.ndarray, contexts: np.ndarray) -> Pairs:
        """targets, contexts: (pairs,) int32."""
        columns = [from_numpy(ids) for ids in (targets, contexts)]
        if self._stream is None:
            return find_runs(*(column.to(self._device) for column in columns))
        training = torch.cuda.current_stream(self._device)
        if self._before is not None:
            self._before.synchronize()
        self._before = training.record_event()
        with torch.cuda.stream(self._stream):
            pairs = find_runs(
                *(column.pin_memory().to(self._device, non_blocking=True) for column in columns)
            )
        training.wait_stream(self._stream)
        for tensor in pairs:
            tensor.record_stream(training)  # else its memory would be given to the next batch too early
        return pairs


# Training.

# Programs x learning rate x outputs of a run: the programs do not see each other's moves, which together make
# one long step. At 300 held-out loss grows, at 600 training may diverge (benchmarks/LOG.md).
_LONGEST_STEP = 200.0
_MOST_PROGRAMS = 2048  # where no kernel says how many a device holds


@cache
def _kernel(device: str, negatives: int, stride: int) -> Any:
    """lexloom.models.word2vec.triton, if it can train such rows there; imported when it is needed."""
    if device != "cuda":
        return None
    try:
        from lexloom.models.word2vec import triton as sgns_triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        logger.warning("Triton is not installed: the GPU trains by torch's own operations, which is slower")
        return None
    if sgns_triton.fits(negatives, stride):
        return sgns_triton
    logger.warning(
        "Rows of %d floats with %d negatives are more than Triton's kernel holds: the GPU trains by torch's"
        " own operations, which is slower",
        stride,
        negatives,
    )
    return None


def default_programs(vectors: Tensor, negatives: int, learning_rate: float) -> int:
    """As many as are at work on the table's device at once, but no more than training bears."""
    words, stride = vectors.shape
    kernel = _kernel(vectors.device.type, negatives, stride)
    most = kernel.resident_programs(vectors.device, negatives, stride) if kernel else _MOST_PROGRAMS
    step = learning_rate * (1 + negatives)
    return max(1, min(most, words, int(_LONGEST_STEP / step) if step else most))


def train_batch(
    vectors: Tensor,
    outputs: Tensor,
    pairs: Pairs,
    probability: Tensor,
    alias: Tensor,
    *,
    negatives: int,
    learning_rate: float,
    seed: int,
    programs: int,
) -> Tensor:
    """Train both tables in place on a batch; returns the loss summed over its pairs, float64 on the device.

    Triton's kernel waits for nothing. No id is checked: one outside of the vocabulary writes where it should
    not.

    Args:
        vectors, outputs: (V, stride) float32 or float64, the input and the output table.
        probability, alias: (V,) float32 and int32: the noise as an alias table.
        negatives: noise words a run, K.
        programs: runs under way at once.
    """
    kernel = _kernel(vectors.device.type, negatives, vectors.shape[1])
    train = kernel.train_batch if kernel else train_in_torch
    return train(
        vectors,
        outputs,
        pairs,
        probability,
        alias,
        negatives=negatives,
        learning_rate=learning_rate,
        seed=seed,
        programs=max(1, min(programs, len(pairs.starts) - 1)),
    )


def train_in_torch(
    vectors: Tensor,
    outputs: Tensor,
    pairs: Pairs,
    probability: Tensor,
    alias: Tensor,
    *,
    negatives: int,
    learning_rate: float,
    seed: int,
    programs: int,
) -> Tensor:
    """`train_batch` without Triton: the programs take their next run, and in it their next pair, in step."""
    targets, contexts, starts = pairs
    runs = len(starts) - 1
    bounds = torch.arange(programs + 1, device=starts.device) * runs // programs
    loss = torch.zeros((), dtype=torch.float64, device=vectors.device)
    for turn in range(-(-runs // programs)):
        run = bounds[:-1] + turn
        run = run[run < bounds[1:]]  # (P,)
        first, lengths = starts[run], starts[run + 1] - starts[run]
        target = targets[first].long()
        noise = draw_negatives(seed, first, probability, alias, negatives)
        chosen = torch.cat([target[:, None], noise], 1)  # (P, 1 + K)
        used = chosen != target[:, None]
        used[:, 0] = True
        rows = outputs[chosen]  # (P, 1 + K, stride)
        moves = torch.zeros_like(rows)
        for place in range(int(lengths.max())):
            live = place < lengths  # (P,): the others' runs are over, and weigh nothing
            context = contexts[first + torch.where(live, place, 0)].long()
            weights = (used & live[:, None]).to(rows.dtype)  # (P, 1 + K)
            vector = vectors[context]  # (P, stride)
            scores = torch.einsum("pcd,pd->pc", rows, vector)
            signed = scores.clone()
            signed[:, 0] *= -1.0  # the loss is softplus of these, its slope sigmoid
            loss += (softplus(signed) * weights).sum(dtype=torch.float64)
            steps = -learning_rate * weights * torch.sigmoid(signed)
            steps[:, 0] *= -1.0
            vectors.index_add_(0, context, torch.einsum("pc,pcd->pd", steps, rows))
            moves += steps[:, :, None] * vector[:, None, :]
        outputs.index_add_(0, chosen.flatten(), moves.flatten(0, 1))
    return loss
