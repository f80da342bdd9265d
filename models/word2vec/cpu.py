"""Skip-gram with negative sampling on the CPU: a compiled kernel that trains two tables in place.

The objective is eq. 4 of Mikolov et al. (2013); models/word2vec/reference.py defines the update exactly.

- A block of the grid (models/word2vec/grid.py) is processed one *run* at a time: up to `MAX_RUN` pairs of one
  target. Its contexts index the input table; its target and K noise words, shared by the whole run, index the
  output table. So a run of six pairs accesses 1 + K output rows instead of 6 (1 + K).
- The updates of a run's output rows are accumulated in copies and written at its end. Updating the rows in
  place lowers analogy accuracy. A noise word drawn twice is processed once, with weight 2.
- Contexts are processed in groups of four or two: a row is loaded once per group, dot products are computed
  in parallel, and one register holds eight or sixteen scores, errors or losses (1.6x).
- Rows are padded to multiples of 16 floats, so that no loop has a remainder.
- The rows of the next run, and contexts eight pairs ahead, are prefetched (1.15x with AVX-512, 1.4x with
  AVX2), the former column by column: prefetching more lines at once than the CPU has line fill buffers stalls
  it (with AVX2 1.07x, and 1.2x to 1.3x for rows of 300 floats).
- Threads train blocks that share no row. The noise is a function of the block's seed and the run's position
  in it, so the result does not depend on the number of threads.

models/word2vec/cpu_llvm.py has the arithmetic of a group of contexts.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit, types

from lexloom.models.word2vec.blocks import MAX_RUN
from lexloom.models.word2vec.cpu_llvm import LANES, prefetch_row, row_address, train_block
from lexloom.models.word2vec.splitmix import GOLDEN_GAMMA, mix


def padded_dim(dim: int) -> int:
    """Return the width of a table's row: `dim` rounded up to a multiple of 16."""
    return -(-dim // LANES) * LANES


# Numba's disk cache only checks this file, so this digest must change with cpu_llvm.py and MAX_RUN.
_BLOCK_DIGEST = "75000a854868"

# Noise words.

_COIN_SCALE = np.float32(2.0**-24)


@njit(nogil=True, cache=True)
def draw_negatives(seed: Any, position: Any, probability: Any, alias: Any, out: Any) -> None:
    """Fill `out` with the noise words of one run: a function of the arguments only.

    Args:
        seed: uint64, of the block.
        position: the index in the block of the run's first pair.
        probability, alias: (words,) float32 and uint16, an alias table (Walker 1977): a word is drawn
            uniformly, kept with its probability, and otherwise replaced by its alias.
        out: (K,) uint16.
    """
    state = mix(seed + np.uint64(position) * GOLDEN_GAMMA)
    words = np.uint64(len(probability))
    for k in range(len(out)):
        state += GOLDEN_GAMMA
        bits = mix(state)
        word = np.intp(((bits >> np.uint64(32)) * words) >> np.uint64(32))  # from the high half
        coin = np.float32(np.uint32(bits) >> np.uint32(8)) * _COIN_SCALE  # from the low half, in [0, 1)
        out[k] = word if coin < probability[word] else alias[word]


# The kernel.

_AHEAD = 8  # how many pairs ahead a context's row is prefetched


@njit(inline="always")
def _are_distinct(words: Any, first: Any, count: Any) -> Any:
    """Whether no word occurs twice; otherwise the later pair would have to see the earlier one's update."""
    for one in range(first, first + count - 1):
        for other in range(one + 1, first + count):
            if words[one] == words[other]:
                return False
    return True


def _array(dtype: Any, dimensions: int = 1, *, readonly: bool = True) -> Any:
    return types.Array(dtype, dimensions, "C", readonly=readonly)


_SIGNATURE = types.void(
    _array(types.float32, 2, readonly=False),  # input_parts
    _array(types.float32, 2, readonly=False),  # output_parts
    _array(types.uint16),  # all_targets
    _array(types.uint16),  # all_contexts
    _array(types.int64),  # bounds
    _array(types.int64),  # inputs_at
    _array(types.int64),  # outputs_at
    _array(types.float32, 2),  # probabilities
    _array(types.uint16, 2),  # aliases
    _array(types.int64),  # parts
    _array(types.int64),  # words
    _array(types.uint64),  # seeds
    types.float32,  # lr
    _array(types.float64, readonly=False),  # losses
)


@cache
def compile_kernel(stride: int, negatives: int) -> Callable[..., None]:
    """Compile the kernel for rows of `stride` floats and `negatives` noise words per run.

    The first call on a machine takes a second or two; later ones load the code from Numba's disk cache.
    """
    count = 1 + negatives

    # One function, since Numba's disk cache does not find a function whose closure has another one.
    @njit(_SIGNATURE, nogil=True, cache=True, error_model="numpy")
    def train_blocks(
        input_parts: Any,  # (parts, rows * stride)
        output_parts: Any,  # (parts, rows * stride)
        all_targets: Any,  # (pairs,)
        all_contexts: Any,  # (pairs,)
        bounds: Any,  # (blocks + 1,)
        inputs_at: Any,  # (blocks,), the index in `input_parts` of each block's input part
        outputs_at: Any,  # (blocks,), the index in `output_parts` of each block's output part
        probabilities: Any,  # (P, rows)
        aliases: Any,  # (P, rows)
        parts: Any,  # (blocks,), the number of each block's output part
        words: Any,  # (P,), of each part
        seeds: Any,  # (blocks,)
        lr: Any,
        losses: Any,  # (blocks,)
    ) -> None:
        """Train on blocks, one after another; write the sum of the losses of each."""
        output_ids = np.empty(count, np.uint16)  # the target and the noise words of a run
        rows = np.empty(count, np.int64)  # addresses of their rows
        next_ids = np.empty(count, np.uint16)  # the target and the noise words of the next run
        next_noise = next_ids[1:]
        next_rows = np.empty(count, np.int64)
        addresses = (rows, next_rows)
        weights = np.zeros(count + LANES, np.float32)  # the weight of each word
        zero_row = np.zeros(stride, np.float32)  # the row of words with weight 0
        copies = np.empty(count * stride, np.float32)  # of the output rows, until the end of the run
        for block in range(len(inputs_at)):
            vectors, outputs = input_parts[inputs_at[block]], output_parts[outputs_at[block]]
            targets = all_targets[bounds[block] : bounds[block + 1]]
            contexts = all_contexts[bounds[block] : bounds[block + 1]]
            part, seed = parts[block], seeds[block]
            probability, alias = probabilities[part, : words[part]], aliases[part, : words[part]]
            loss = 0.0
            stop, last = 0, len(targets)
            if last:
                next_ids[0] = targets[0]
                draw_negatives(seed, 0, probability, alias, next_noise)
                for j in range(count):
                    next_rows[j] = row_address(outputs, next_ids[j], stride)
            while stop < last:
                i = stop
                target, end = targets[i], min(i + MAX_RUN, last)
                while stop < end and targets[stop] == target:
                    stop += 1

                for j in range(count):
                    output_ids[j] = next_ids[j]
                    rows[j] = next_rows[j]
                    weights[j] = 1
                    for earlier in range(j):
                        if output_ids[earlier] == output_ids[j]:
                            rows[j] = zero_row.ctypes.data
                            weights[j] = 0
                            weights[earlier] += (
                                earlier > 0
                            )  # noise equal to the target is skipped, as in word2vec.c
                            break
                if stop < last:
                    next_ids[0] = targets[stop]
                    draw_negatives(seed, stop, probability, alias, next_noise)
                    for j in range(count):
                        next_rows[j] = row_address(outputs, next_ids[j], stride)

                is_first = True
                while i < stop:
                    for ahead in range(i + _AHEAD, min(i + _AHEAD + 4, stop + _AHEAD, last)):
                        prefetch_row(vectors, contexts[ahead], stride)

                    if i + 4 <= stop and _are_distinct(contexts, i, 4):
                        four = (contexts[i], contexts[i + 1], contexts[i + 2], contexts[i + 3])
                        is_last = i + 4 == stop
                        loss += train_block(
                            vectors, four, addresses, copies, weights, lr, is_first, is_last, count, stride
                        )
                        i += 4
                    elif i + 2 <= stop and _are_distinct(contexts, i, 2):
                        two = (contexts[i], contexts[i + 1])
                        is_last = i + 2 == stop
                        loss += train_block(
                            vectors, two, addresses, copies, weights, lr, is_first, is_last, count, stride
                        )
                        i += 2
                    else:
                        one = (contexts[i],)
                        is_last = i + 1 == stop
                        loss += train_block(
                            vectors, one, addresses, copies, weights, lr, is_first, is_last, count, stride
                        )
                        i += 1
                    is_first = False
            losses[block] = loss

    return train_blocks


# Threads.

LOSS_UNIT = 2.0**-20  # losses of blocks are multiples, so that their sums are exact in any order


class Step:
    """The blocks of one diagonal, which may not be finished."""

    def __init__(self, groups: Sequence[Future[None]], losses: np.ndarray) -> None:
        self._groups, self._losses = groups, losses

    def done(self) -> bool:
        return all(group.done() for group in self._groups)

    def wait(self, groups: int | None = None) -> None:
        """Wait until the first groups (all) no longer write to the tables; then raise an error of theirs."""
        waited = self._groups[:groups]
        wait(waited)
        for group in waited:
            group.result()

    def loss(self) -> float:
        """Wait for the step; return the sum of its pairs' losses, a multiple of `LOSS_UNIT`."""
        self.wait()
        return float(np.round(self._losses / LOSS_UNIT).sum() * LOSS_UNIT)


class BlockThreads:
    """Threads that train the blocks of one diagonal after the other.

    A diagonal's blocks are submitted in groups of adjacent input parts. A group waits only for the groups of
    the previous diagonal that used its rows, so no thread is idle at the end of a diagonal. Groups start in
    the order of submission, so those that a group waits for are never behind it.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="skipgram")
        self._groups_per_step = 4 * threads  # starting a group takes about 0.1 ms
        self._previous: list[tuple[int, int, Future[None]]] = []  # first and last + 1 block of each group
        self._previous_step = 0
        self.finished_at = 0.0

    def submit(
        self, train: Callable[[int, int], None], losses: np.ndarray, *, step: int, circular: bool
    ) -> Step:
        """Start `train(first, last)` on groups of the blocks of step number `step`.

        Block k depends on the blocks k and k + 1 of the step before. With `circular`, block 0 comes after the
        last one; otherwise the last block depends on the last one only. If the step does not follow the
        previous one, its blocks depend on all blocks.
        """
        follows = step == self._previous_step + 1
        self._previous_step = step
        blocks = len(losses)
        cuts = np.linspace(0, blocks, min(blocks, self._groups_per_step) + 1).astype(int).tolist()
        groups = []
        for first, last in pairwise(cuts):
            needed = [
                each
                for begin, end, each in self._previous
                if not follows
                or (begin <= last and first < end)
                or (circular and last == blocks and begin == 0)
            ]
            groups.append((first, last, self._pool.submit(self._run, train, first, last, needed)))
        self._previous = groups
        return Step([group for _, _, group in groups], losses)

    def _run(
        self, train: Callable[[int, int], None], first: int, last: int, needed: list[Future[None]]
    ) -> None:
        for each in needed:
            each.result()
        train(first, last)
        self.finished_at = time.perf_counter()
