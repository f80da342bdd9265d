"""Skip-gram with negative sampling on the CPU: a compiled kernel that trains two tables in place.

The objective is eq. 4 of Mikolov et al. (2013); models/word2vec/reference.py defines the update exactly.

- A batch is processed one *run* at a time: the adjacent pairs of one target position. Its contexts index the
  input table; its target and K noise words, shared by the whole run, index the output table. So a run of six
  pairs accesses 1 + K output rows instead of 6 (1 + K). Sharing the noise between neighbouring targets too
  would be faster, but lowers analogy accuracy.
- The updates of a run's output rows are accumulated in copies and written at its end. Updating the rows in
  place lowers analogy accuracy. A noise word drawn twice is processed once, with weight 2.
- Contexts are processed in blocks of four or two: a row is loaded once per block, dot products are computed
  in parallel, and one register holds eight or sixteen scores, errors or losses (1.6x).
- Rows are padded to multiples of 16 floats, so that no loop has a remainder.
- The rows of the next run, and contexts eight pairs ahead, are prefetched (1.15x with AVX-512, 1.4x with
  AVX2), the former column by column: prefetching more lines at once than the CPU has line fill buffers stalls
  it (with AVX2 1.07x, and 1.2x to 1.3x for rows of 300 floats).
- Threads share the tables without locks (Hogwild, Niu et al. 2011), except for the rows of the 128 most
  frequent words (hot rows), whose cache lines would move between cores all the time. Each thread has private
  copies of these, and adds their updates to the tables from time to time (1.2x with AVX-512; no difference
  with AVX2). The noise is a function of the batch's seed and the run's position, so the number of threads
  only affects the order in which rows are written, and when updates become visible.

models/word2vec/cpu_llvm.py has the arithmetic of a block.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numba import njit, types

from lexloom.models.word2vec.cpu_llvm import LANES, prefetch_row, row_address, train_block
from lexloom.models.word2vec.splitmix import GOLDEN_GAMMA, mix


def padded_dim(dim: int) -> int:
    """Return the width of a table's row: `dim` rounded up to a multiple of 16."""
    return -(-dim // LANES) * LANES


# Numba's disk cache only checks this file, so this digest must change with cpu_llvm.py.
_BLOCK_DIGEST = "697b5969d423"

# Noise words.

_COIN_SCALE = np.float32(2.0**-24)


@njit(nogil=True, cache=True)
def draw_negatives(seed: Any, position: Any, probability: Any, alias: Any, out: Any) -> None:
    """Fill `out` with the noise words of one run: a function of the arguments only.

    Args:
        seed: uint64, of the batch.
        position: the index in the batch of the run's first pair.
        probability, alias: (V,) float32 and int32, an alias table (Walker 1977): a word is drawn uniformly,
            kept with its probability, and otherwise replaced by its alias.
        out: (K,) int32.
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


def _read_only(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", readonly=True)


_TABLE = types.Array(types.float32, 1, "C")
_SIGNATURE = types.float64(
    _TABLE,  # vectors
    _TABLE,  # outputs
    _read_only(types.int32),  # targets
    _read_only(types.int32),  # contexts
    types.intp,  # first
    types.intp,  # last
    _read_only(types.float32),  # probability
    _read_only(types.int32),  # alias
    types.uint64,  # seed
    types.float32,  # lr
    _TABLE,  # private_vectors
    _TABLE,  # private_outputs
)


@cache
def compile_kernel(stride: int, negatives: int) -> Callable[..., float]:
    """Compile the kernel for rows of `stride` floats and `negatives` noise words per run.

    The first call on a machine takes a second or two; later ones load the code from Numba's disk cache.
    """
    count = 1 + negatives

    @njit(_SIGNATURE, nogil=True, cache=True, error_model="numpy")
    def train(
        vectors: Any,  # (V * stride,)
        outputs: Any,  # (V * stride,)
        targets: Any,  # (pairs,)
        contexts: Any,  # (pairs,)
        first: Any,
        last: Any,
        probability: Any,  # (V,)
        alias: Any,  # (V,)
        seed: Any,
        lr: Any,
        private_vectors: Any,  # (n_hot * stride,)
        private_outputs: Any,  # (n_hot * stride,)
    ) -> Any:
        """Train on the pairs first .. last - 1, complete runs; return the sum of their losses.

        The rows of the first `n_hot` words are read and written in the private tables.
        """
        n_hot = len(private_vectors) // stride
        inputs, output_tables = (vectors, private_vectors), (outputs, private_outputs)
        output_ids = np.empty(count, np.int32)  # the target and the noise words of a run
        rows = np.empty(count, np.int64)  # addresses of their rows
        next_ids = np.empty(count, np.int32)  # the target and the noise words of the next run
        next_noise = next_ids[1:]
        next_rows = np.empty(count, np.int64)
        addresses = (rows, next_rows)
        weights = np.zeros(count + LANES, np.float32)  # the weight of each word
        zero_row = np.zeros(stride, np.float32)  # the row of words with weight 0
        copies = np.empty(count * stride, np.float32)  # of the output rows, until the end of the run
        loss = 0.0
        stop = first
        if first < last:
            next_ids[0] = targets[first]
            draw_negatives(seed, first, probability, alias, next_noise)
            for j in range(count):
                next_rows[j] = row_address(output_tables, n_hot, next_ids[j], stride)
        while stop < last:
            i = stop
            target = targets[i]
            while stop < last and targets[stop] == target:
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
                    next_rows[j] = row_address(output_tables, n_hot, next_ids[j], stride)

            is_first = True
            while i < stop:
                for ahead in range(i + _AHEAD, min(i + _AHEAD + 4, stop + _AHEAD, last)):
                    prefetch_row(inputs, n_hot, contexts[ahead], stride)

                if i + 4 <= stop and _are_distinct(contexts, i, 4):
                    four = (contexts[i], contexts[i + 1], contexts[i + 2], contexts[i + 3])
                    is_last = i + 4 == stop
                    loss += train_block(
                        inputs, n_hot, four, addresses, copies, weights, lr, is_first, is_last, count, stride
                    )
                    i += 4
                elif i + 2 <= stop and _are_distinct(contexts, i, 2):
                    two = (contexts[i], contexts[i + 1])
                    is_last = i + 2 == stop
                    loss += train_block(
                        inputs, n_hot, two, addresses, copies, weights, lr, is_first, is_last, count, stride
                    )
                    i += 2
                else:
                    one = (contexts[i],)
                    is_last = i + 1 == stop
                    loss += train_block(
                        inputs, n_hot, one, addresses, copies, weights, lr, is_first, is_last, count, stride
                    )
                    i += 1
                is_first = False
        return loss

    return train


# The batch.

_HOT_ROWS = 128  # of the most frequent words, which have the lowest ids
# Maximum number of pairs that other threads train on before a thread's copies of the hot rows are merged. The
# sum of many unseen updates overshoots: without this limit, four threads diverged.
_MAX_UNSEEN_PAIRS = 16_384
_MERGE_LOCK = Lock()


def split_at_runs(targets: np.ndarray, parts: int) -> list[int]:
    """Return `parts` + 1 bounds that split a batch into nearly equal parts, at the ends of runs."""
    bounds = [0]
    for part in range(1, parts):
        bound = max(bounds[-1], len(targets) * part // parts)
        while 0 < bound < len(targets) and targets[bound] == targets[bound - 1]:
            bound += 1
        bounds.append(bound)
    return [*bounds, len(targets)]


def _aligned_copy(table: np.ndarray) -> np.ndarray:
    """Copy a flat table, aligned to a cache line like the rows of the tables."""
    line = LANES * table.itemsize
    memory = np.empty(table.size + LANES, np.float32)
    first = -memory.ctypes.data % line // table.itemsize
    memory[first : first + table.size] = table
    return memory[first : first + table.size]


@cache
def _thread_pools(threads: int) -> list[ThreadPoolExecutor]:
    """Single-thread executors, each of which processes its tasks in order."""
    return [ThreadPoolExecutor(1, thread_name_prefix="sgns") for _ in range(threads)]


class PendingBatch:
    """A batch whose training may not be finished."""

    def __init__(self, losses: Sequence[Future[float]]) -> None:
        self._futures = losses

    def done(self) -> bool:
        return all(each.done() for each in self._futures)

    def wait(self) -> None:
        """Wait until the batch no longer writes to the tables, even if a thread failed."""
        for each in self._futures:
            each.exception()  # waits without raising

    def loss(self) -> float:
        """Wait for the batch; return the sum of its pairs' losses."""
        self.wait()
        return sum(each.result() for each in self._futures)


def check_ids(name: str, ids: np.ndarray, words: int) -> None:
    """Raise a ValueError unless all ids are in the vocabulary."""
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if lowest < 0 or highest >= words:
        offending = lowest if lowest < 0 else highest
        raise ValueError(
            f"the batch's {name} column contains the id {offending}, but the vocabulary's ids are 0 to "
            f"{words - 1}: use the vocabulary from which the pairs were built"
        )


def check_pairs(targets: np.ndarray, contexts: np.ndarray, words: int) -> None:
    """Raise a ValueError unless both are 1-dimensional, int32, of equal length, and in the vocabulary."""
    if targets.ndim != 1 or targets.shape != contexts.shape:
        raise ValueError(
            f"target has the shape {targets.shape} and context {contexts.shape}: both must be (pairs,)"
        )
    if targets.dtype != np.int32 or contexts.dtype != np.int32:
        raise ValueError(f"target is {targets.dtype} and context {contexts.dtype}: both must be int32")
    check_ids("target", targets, words)
    check_ids("context", contexts, words)


def start_batch(
    vectors: np.ndarray,
    outputs: np.ndarray,
    targets: np.ndarray,
    contexts: np.ndarray,
    probability: np.ndarray,
    alias: np.ndarray,
    *,
    negatives: int,
    learning_rate: float,
    seed: int,
    threads: int = 1,
) -> PendingBatch:
    """Start training both tables in place on a batch; with one thread, return when it is finished.

    With one thread the result is a function of the arguments, bit for bit; several threads race for the rows
    they share. They start the next batch without waiting for each other, so the tables are only consistent
    when all pending batches are finished.

    Args:
        vectors, outputs: (V, stride) float32, the input and the output table; stride is a multiple of 16.
        targets, contexts: (pairs,) int32; the pairs of one target position are adjacent.
        probability, alias: (V,) float32 and int32: the noise as an alias table, whose ids are not checked.
        negatives: noise words per run, K.

    Raises:
        ValueError: shapes do not match, or an id is not in the vocabulary. Nothing is changed then.
    """
    words, stride = vectors.shape
    if outputs.shape != vectors.shape or probability.shape != (words,) or alias.shape != (words,):
        raise ValueError(
            f"the tables are {vectors.shape} and {outputs.shape}, the noise {probability.shape} and "
            f"{alias.shape}: all must have one row per word"
        )
    if stride % LANES:
        raise ValueError(f"a row has {stride} floats: pad rows to a multiple of {LANES}")
    if not all(table.flags.carray and table.dtype == np.float32 for table in (vectors, outputs)):
        raise ValueError("the tables must be float32, contiguous and writeable")
    check_pairs(targets, contexts, words)
    if not len(targets):
        return PendingBatch([])

    kernel = compile_kernel(stride, negatives)
    flat_vectors, flat_outputs = vectors.reshape(-1), outputs.reshape(-1)
    targets, contexts = (np.require(ids, requirements=["C", "A"]) for ids in (targets, contexts))
    batch_seed, lr = np.uint64(seed % 2**64), np.float32(learning_rate)

    shared = (flat_vectors, flat_outputs)

    def train(first: int, last: int, private_vectors: np.ndarray, private_outputs: np.ndarray) -> float:
        return kernel(
            flat_vectors,
            flat_outputs,
            targets,
            contexts,
            first,
            last,
            probability,
            alias,
            batch_seed,
            lr,
            private_vectors,
            private_outputs,
        )

    def train_with_private_rows(first: int, last: int) -> float:
        frequent = [table[: _HOT_ROWS * stride] for table in shared]
        loss = 0.0
        pieces = -(-(last - first) * (threads - 1) // _MAX_UNSEEN_PAIRS)
        for piece in pairwise(split_at_runs(targets[first:last], pieces)):
            with _MERGE_LOCK:
                before = [table.copy() for table in frequent]
            private = [_aligned_copy(table) for table in before]
            loss += train(first + piece[0], first + piece[1], *private)
            with _MERGE_LOCK:
                for table, copy, old in zip(frequent, private, before, strict=True):
                    table += copy - old
        return loss

    if threads == 1:
        done = Future[float]()
        done.set_result(train(0, len(targets), *(table[:0] for table in shared)))
        return PendingBatch([done])
    parts = zip(_thread_pools(threads), pairwise(split_at_runs(targets, threads)), strict=True)
    return PendingBatch([thread.submit(train_with_private_rows, *bounds) for thread, bounds in parts])
