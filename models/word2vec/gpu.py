"""Skip-gram with negative sampling on a GPU.

A launch trains one block of the grid (models/word2vec/grid.py), and a GPU trains its blocks one after
another. models/word2vec/reference.py defines the update exactly. Several runs of the block are processed in
parallel: each of a number of *programs* goes through its own share of the block, run by run, and does not see
the updates of a concurrent run before that run is finished. One program computes the reference's update;
several read stale rows (Hogwild, Niu et al. 2011), so results are not reproducible.

Triton's kernel is used if possible (models/word2vec/triton.py); `train_in_torch` computes the same in plain
torch on any device, for all programs in lockstep.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lexloom.models.word2vec.gpu_batches import Pairs

logger = logging.getLogger("lexloom.sgns_gpu")

# Noise words, the same as on the CPU. torch has no uint64 arithmetic; int64 wraps around to the same bits.


def _signed(bits: int) -> int:
    """The int64 with the same 64 bits."""
    return (bits + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIXERS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift x >> bits; torch's shift is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    for bits, factor in _MIXERS:
        x = (x ^ _shifted(x, bits)) * factor
    return x ^ _shifted(x, 31)


def draw_negatives(
    seed: int, positions: Tensor, probability: Tensor, alias: Tensor, negatives: int
) -> Tensor:
    """Draw the noise words of runs, the same as on the CPU.

    Args:
        seed: of the block.
        positions: (R,) int64, the index in the block of each run's first pair.
        probability, alias: (words,) float32 and int32, the alias table of the output part.

    Returns:
        (R, negatives) int64.
    """
    state = _mix(_signed(seed) + positions * _GOLDEN)  # (R,)
    draws = torch.arange(1, negatives + 1, device=positions.device)
    bits = _mix(state[:, None] + draws * _GOLDEN)  # (R, K)
    words = (_shifted(bits, 32) * len(probability)) >> 32
    coins = ((bits & 0xFFFFFFFF) >> 8).float() * 2.0**-24
    return torch.where(coins < probability[words], words, alias[words].long())


# Training.

# Maximum of programs x learning rate x outputs per run: the concurrent updates of all programs add up to one
# large step. At 300 the held-out loss increases, at 600 training may diverge (benchmarks/LOG.md).
_MAX_TOTAL_STEP = 200.0
_MAX_PROGRAMS = 2048  # without a kernel that determines how many a device can hold


@cache
def _load_kernel(device: str, negatives: int, stride: int) -> Any:
    """Import the Triton kernel if it supports such rows on the device."""
    if device != "cuda":
        return None
    try:
        from lexloom.models.word2vec import triton as sgns_triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        logger.warning("Triton is not installed: training on the GPU with plain torch, which is slower")
        return None
    if sgns_triton.fits(negatives, stride):
        return sgns_triton
    logger.warning(
        "rows of %d floats with %d negatives are too large for the Triton kernel: training on the GPU with"
        " plain torch, which is slower",
        stride,
        negatives,
    )
    return None


def default_programs(vectors: Tensor, negatives: int, learning_rate: float) -> int:
    """Return the number of programs that the device holds at once, limited to what training tolerates.

    `vectors`, (rows, stride), is a part of the table. There are no more programs than it has rows: the runs
    of a block have only so many different targets, and concurrent runs of one target add up their updates.
    """
    rows, stride = vectors.shape
    kernel = _load_kernel(vectors.device.type, negatives, stride)
    max_programs = kernel.resident_programs(vectors.device, negatives, stride) if kernel else _MAX_PROGRAMS
    step = learning_rate * (1 + negatives)
    return max(1, min(max_programs, rows, int(_MAX_TOTAL_STEP / step) if step else max_programs))


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
    """Train both parts in place on a block; return the loss summed over its pairs, float64 on the device.

    The Triton kernel runs asynchronously. Row numbers are not checked: one outside of the part causes an
    out-of-bounds write.

    Args:
        vectors, outputs: (rows, stride) float32 or float64, an input and an output part.
        probability, alias: (words,) float32 and int32, the alias table of the output part.
        negatives: noise words per run, K.
        programs: runs processed in parallel.
    """
    kernel = _load_kernel(vectors.device.type, negatives, vectors.shape[1])
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
    """`train_batch` without Triton: all programs process runs, and pairs in them, in lockstep."""
    targets, contexts, starts = pairs
    runs = len(starts) - 1
    bounds = torch.arange(programs + 1, device=starts.device) * runs // programs
    loss = torch.zeros((), dtype=torch.float64, device=vectors.device)
    for index in range(-(-runs // programs)):
        run = bounds[:-1] + index
        run = run[run < bounds[1:]]  # (P,)
        first, lengths = starts[run], starts[run + 1] - starts[run]
        target = targets[first].long()
        noise = draw_negatives(seed, first, probability, alias, negatives)
        output_ids = torch.cat([target[:, None], noise], 1)  # (P, 1 + K)
        used = output_ids != target[:, None]
        used[:, 0] = True
        rows = outputs[output_ids]  # (P, 1 + K, stride)
        updates = torch.zeros_like(rows)
        for offset in range(int(lengths.max())):
            active = offset < lengths  # (P,); finished runs get weight 0
            context = contexts[first + torch.where(active, offset, 0)].long()
            weights = (used & active[:, None]).to(rows.dtype)  # (P, 1 + K)
            vector = vectors[context]  # (P, stride)
            scores = torch.einsum("pcd,pd->pc", rows, vector)
            signed = scores.clone()
            signed[:, 0] *= -1.0  # the loss is softplus of these, its derivative sigmoid
            loss += (softplus(signed) * weights).sum(dtype=torch.float64)
            steps = -learning_rate * weights * torch.sigmoid(signed)
            steps[:, 0] *= -1.0
            vectors.index_add_(0, context, torch.einsum("pc,pcd->pd", steps, rows))
            updates += steps[:, :, None] * vector[:, None, :]
        outputs.index_add_(0, output_ids.flatten(), updates.flatten(0, 1))
    return loss
