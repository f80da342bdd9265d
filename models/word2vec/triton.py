"""Skip-gram with negative sampling on a GPU, in Triton: the kernel of models/word2vec/gpu.py.

A program (a group of threads) processes an equal share of a block's runs, which are adjacent, one after the
other. The launch is persistent: as many runs are in progress at any time as there are programs, and none of
them sees the others' unfinished updates. So the number of programs determines the staleness.

- The target's and the noise words' rows, and their accumulated updates, stay in registers for a whole run;
  the updates are added to the table at its end. A context's row is loaded while the previous pair is
  computed.
- The noise is drawn here as on the CPU: the same seed gives the same words.
- Rows are loaded bypassing the L1 cache, which does not see updates by other multiprocessors.
- All additions to the tables are atomic: no update is lost, but their order is undefined. With one program
  for each of many smaller blocks, no additions would need to be atomic; it has not been measured whether that
  is faster.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from lexloom.models.word2vec.gpu_batches import Pairs

_FLOATS_PER_WARP = 1 << 10  # of output rows; with their updates 64 registers per thread
_MAX_WARPS = 16
_RESIDENT_WARPS = 14  # per multiprocessor: the compiler reports 139 registers per thread for Hopper

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_COIN = tl.constexpr(2.0**-24)


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    """The output function of SplitMix64, on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _draw(
    seed: tl.tensor,
    position: tl.tensor,
    slot: tl.tensor,
    probability: tl.tensor,
    alias: tl.tensor,
    words: tl.tensor,
) -> tl.tensor:
    """The noise words of one run, (COUNT,) int32; slot k > 0 has the CPU's draw k - 1, slot 0 is unused."""
    state = _mix(seed + position.to(tl.uint64) * _GOLDEN)
    bits = _mix(state + slot.to(tl.uint64) * _GOLDEN)
    word = (((bits >> 32) * words.to(tl.uint64)) >> 32).to(tl.int32)
    coin = (bits.to(tl.uint32) >> 8).to(tl.float32) * _COIN
    return tl.where(coin < tl.load(probability + word), word, tl.load(alias + word))


@triton.jit(do_not_specialize=["runs", "words", "seed"])
def _train_runs(
    vectors: tl.tensor,  # (rows, STRIDE)
    outputs: tl.tensor,  # (rows, STRIDE)
    targets: tl.tensor,  # (pairs,)
    contexts: tl.tensor,  # (pairs,)
    starts: tl.tensor,  # (runs + 1,)
    probability: tl.tensor,  # (words,)
    alias: tl.tensor,  # (words,)
    losses: tl.tensor,  # (programs,)
    runs: tl.tensor,
    words: tl.tensor,
    seed: tl.uint64,
    learning_rate: tl.tensor,
    NEGATIVES: tl.constexpr,  # noqa: N803
    STRIDE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803 - 1 + NEGATIVES, rounded up to a power of two
    WIDTH: tl.constexpr,  # noqa: N803 - STRIDE, rounded up to a power of two
    WARPS: tl.constexpr,  # noqa: N803
) -> None:
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.arange(0, WIDTH)
    inside = column < STRIDE
    slot = tl.arange(0, COUNT)
    label = slot == 0
    loss = tl.zeros((), tl.float64)
    run, last = program * runs // programs, (program + 1) * runs // programs
    while run < last:  # not `for ... in range`, which fails in the interpreter with NumPy 2.4
        start, stop = tl.load(starts + run), tl.load(starts + run + 1)
        target = tl.load(targets + start)
        noise = _draw(seed, start, slot, probability, alias, words)
        output_ids = tl.where(label, target, noise).to(tl.int64)
        used = label | ((slot <= NEGATIVES) & (noise != target))
        pointers = outputs + output_ids[:, None] * STRIDE + column[None, :]  # (COUNT, WIDTH)
        mask = used[:, None] & inside[None, :]
        rows = tl.load(pointers, mask=mask, other=0.0, cache_modifier=".cg")
        updates = tl.zeros_like(rows)
        run_losses = tl.zeros((COUNT,), rows.dtype)

        context = tl.load(contexts + start).to(tl.int64)
        vector = tl.load(vectors + context * STRIDE + column, mask=inside, other=0.0, cache_modifier=".cg")
        pair = start
        while pair < stop:
            more = pair + 1 < stop
            next_context = tl.load(contexts + pair + 1, mask=more, other=0).to(tl.int64)
            next_vector = tl.load(
                vectors + next_context * STRIDE + column, mask=inside & more, other=0.0, cache_modifier=".cg"
            )
            scores = tl.sum(rows * vector[None, :], axis=1)  # (COUNT,)
            small = tl.exp(-tl.abs(scores))  # never overflows
            sigmoid = tl.where(scores < 0, small, 1.0) / (1.0 + small)
            signed = tl.where(label, -scores, scores)
            run_losses += tl.where(used, tl.maximum(signed, 0.0) + tl.log(1.0 + small), 0.0)
            steps = learning_rate * (tl.where(label, 1.0, 0.0) - sigmoid)
            update = tl.sum(steps[:, None] * rows, axis=0)  # (WIDTH,)
            updates += steps[:, None] * vector[None, :]
            tl.atomic_add(vectors + context * STRIDE + column, update, mask=inside, sem="relaxed")
            # the next context's row was loaded before this update; if it is the same row, use the updated one
            vector = tl.where(next_context == context, vector + update, next_vector)
            context = next_context
            pair += 1
            if WARPS > 1:  # otherwise a warp may reload a row before another has added its part of the update
                tl.debug_barrier()
        tl.atomic_add(pointers, updates, mask=mask, sem="relaxed")
        loss += tl.sum(run_losses, axis=0).to(tl.float64)
        run += 1
    tl.store(losses + program, loss)


def constants(negatives: int, stride: int) -> tuple[dict[str, int], int]:
    """Return the kernel's compile-time constants and a program's number of warps."""
    count, width = triton.next_power_of_2(1 + negatives), triton.next_power_of_2(stride)
    warps = max(1, count * width // _FLOATS_PER_WARP)
    fixed = {"NEGATIVES": negatives, "STRIDE": stride, "COUNT": count, "WIDTH": width, "WARPS": warps}
    return fixed, warps


def fits(negatives: int, stride: int) -> bool:
    """Whether a program's registers can hold a run's output rows and their updates."""
    return constants(negatives, stride)[1] <= _MAX_WARPS


def resident_programs(device: torch.device, negatives: int, stride: int) -> int:
    """Return how many programs the GPU's multiprocessors hold at once, limited by registers."""
    _, warps = constants(negatives, stride)
    return torch.cuda.get_device_properties(device).multi_processor_count * max(1, _RESIDENT_WARPS // warps)


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
    """Same as `lexloom.models.word2vec.gpu.train_batch`, for tables that satisfy `fits`."""
    stride = vectors.shape[1]
    fixed, warps = constants(negatives, stride)
    losses = torch.empty(programs, dtype=torch.float64, device=vectors.device)
    # Triton launches on torch's current device, which may not be the tables' device
    with torch.cuda.device(vectors.device) if vectors.is_cuda else nullcontext():
        _train_runs[(programs,)](
            vectors,
            outputs,
            *pairs,
            probability,
            alias,
            losses,
            len(pairs.starts) - 1,
            len(probability),
            seed % 2**64,
            learning_rate,
            **fixed,
            num_warps=warps,
        )
    return losses.sum()
