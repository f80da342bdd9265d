"""Skip-gram with negative sampling on the CPU: a compiled kernel that trains two tables in place.

The objective is eq. 4 of Mikolov et al. (2013); models/word2vec/reference.py says exactly which update is
made.

- A batch is read one *run* at a time: the adjacent pairs of one target position. Its contexts are the inputs;
  its target and K noise words, shared by the whole run, are the outputs. So a run of six pairs touches 1 + K
  output rows, not 6 (1 + K). Sharing the noise between neighbouring targets too would be faster, but costs
  analogies.
- The run's output rows are moved at its end: until then copies of them move. Changing the rows in place
  would cost analogies. A noise word that is drawn twice counts twice, so that no row stands there twice.
- Four contexts, or two, go through at a time: a row is loaded once for all of them, their dot products run
  side by side, and one register holds eight or sixteen scores, errors or losses (1.6x).
- Rows are padded to whole vectors of 16 floats, so that no loop has a remainder.
- The rows of the next run, and contexts eight pairs ahead, are prefetched (1.15x with AVX-512, 1.4x with
  AVX2), the former column by column: more lines at once than the processor can wait for would hold up all
  else (with AVX2 1.07x, and 1.2x to 1.3x at 300 floats a row).
- Threads share the tables without locks (Hogwild, Niu et al. 2011), but for the rows of the 128 most frequent
  words, which would be in the other processor's cache all the time: each thread has a copy of these, and now
  and then adds up how they moved (1.2x with AVX-512; with AVX2 no difference was seen). The noise is a
  function of the batch's seed and the run's position, so the number of threads changes nothing but the order
  in which rows are written, and when they are seen.

The arithmetic of a few pairs is in models/word2vec/cpu_llvm.py.
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


def padded(dim: int) -> int:
    """The width of a table's row: `dim` rounded up to whole vectors."""
    return -(-dim // LANES) * LANES


# Numba's disk cache only notices changes of this file, so this digest changes with cpu_llvm.py.
_BLOCK_DIGEST = "68beaeced5d0"

# Noise words.

_COIN = np.float32(2.0**-24)


@njit(nogil=True, cache=True)
def draw_negatives(seed: Any, position: Any, probability: Any, alias: Any, out: Any) -> None:
    """Fill `out` with the noise words of one run: a function of the arguments alone.

    Args:
        seed: uint64, the batch's.
        position: the index in the batch of the run's first pair.
        probability, alias: (V,) float32 and int32, an alias table (Walker 1977): a word is drawn evenly, and
            kept with its probability, else replaced by its alias.
        out: (K,) int32.
    """
    state = mix(seed + np.uint64(position) * GOLDEN_GAMMA)
    words = np.uint64(len(probability))
    for k in range(len(out)):
        state += GOLDEN_GAMMA
        bits = mix(state)
        word = np.intp(((bits >> np.uint64(32)) * words) >> np.uint64(32))  # the high half says which
        coin = np.float32(np.uint32(bits) >> np.uint32(8)) * _COIN  # the low half, in [0, 1)
        out[k] = word if coin < probability[word] else alias[word]


# The kernel.

_AHEAD = 8  # pairs: how early a context's row is prefetched


@njit(inline="always")
def _differ(words: Any, first: Any, count: Any) -> Any:
    """Whether no word stands twice: if one did, the later pair would have to see the earlier one's move."""
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
    types.float32,  # rate
    _TABLE,  # own_vectors
    _TABLE,  # own_outputs
)


@cache
def compile_kernel(stride: int, negatives: int) -> Callable[..., float]:
    """The kernel for rows of `stride` floats and so many noise words a run, constants both to the compiler.

    The first call on a machine compiles for a second or two; later the code comes from Numba's cache on disk.
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
        rate: Any,
        own_vectors: Any,  # (own * stride,)
        own_outputs: Any,  # (own * stride,)
    ) -> Any:
        """Train on the pairs first .. last - 1, whole runs; returns the sum of their losses.

        Of the first `own` words, the own tables are read and written in place of the others.
        """
        own = len(own_vectors) // stride
        inputs, results = (vectors, own_vectors), (outputs, own_outputs)
        chosen = np.empty(count, np.int32)  # the target and the noise words of a run
        rows = np.empty(count, np.int64)  # the addresses of their rows
        upcoming = np.empty(count, np.int32)  # the words of the next run
        upcoming_noise = upcoming[1:]
        upcoming_rows = np.empty(count, np.int64)
        addresses = (rows, upcoming_rows)
        weights = np.zeros(count + LANES, np.float32)  # how often each word counts
        nowhere = np.zeros(stride, np.float32)  # the row of those that do not
        moved = np.empty(count * stride, np.float32)  # the output rows, until the run is over
        loss = 0.0
        stop = first
        if first < last:
            upcoming[0] = targets[first]
            draw_negatives(seed, first, probability, alias, upcoming_noise)
            for j in range(count):
                upcoming_rows[j] = row_address(results, own, upcoming[j], stride)
        while stop < last:
            i = stop
            target = targets[i]
            while stop < last and targets[stop] == target:
                stop += 1

            for j in range(count):
                chosen[j] = upcoming[j]
                rows[j] = upcoming_rows[j]
                weights[j] = 1
                for earlier in range(j):
                    if chosen[earlier] == chosen[j]:
                        rows[j] = nowhere.ctypes.data
                        weights[j] = 0
                        weights[earlier] += earlier > 0  # the target is no noise: skipped, as in the original
                        break
            if stop < last:
                upcoming[0] = targets[stop]
                draw_negatives(seed, stop, probability, alias, upcoming_noise)
                for j in range(count):
                    upcoming_rows[j] = row_address(results, own, upcoming[j], stride)

            is_first = True
            while i < stop:
                for ahead in range(i + _AHEAD, min(i + _AHEAD + 4, stop + _AHEAD, last)):
                    prefetch_row(inputs, own, contexts[ahead], stride)

                if i + 4 <= stop and _differ(contexts, i, 4):
                    four = (contexts[i], contexts[i + 1], contexts[i + 2], contexts[i + 3])
                    is_last = i + 4 == stop
                    loss += train_block(
                        inputs, own, four, addresses, moved, weights, rate, is_first, is_last, count, stride
                    )
                    i += 4
                elif i + 2 <= stop and _differ(contexts, i, 2):
                    two = (contexts[i], contexts[i + 1])
                    is_last = i + 2 == stop
                    loss += train_block(
                        inputs, own, two, addresses, moved, weights, rate, is_first, is_last, count, stride
                    )
                    i += 2
                else:
                    one = (contexts[i],)
                    is_last = i + 1 == stop
                    loss += train_block(
                        inputs, own, one, addresses, moved, weights, rate, is_first, is_last, count, stride
                    )
                    i += 1
                is_first = False
        return loss

    return train


# The batch.

_OWN_ROWS = 128  # of the most frequent words, which come first
# Pairs that the other threads may have trained on, unseen in a thread's copies of these rows. Their moves add
# up to one long step, which overshoots where it is too long: four threads that did not care diverged.
_UNSEEN_PAIRS = 16_384
_ADDING_UP = Lock()


def split_at_runs(targets: np.ndarray, parts: int) -> list[int]:
    """`parts` + 1 bounds that cut a batch into nearly equal parts, never inside a run."""
    bounds = [0]
    for part in range(1, parts):
        bound = max(bounds[-1], len(targets) * part // parts)
        while 0 < bound < len(targets) and targets[bound] == targets[bound - 1]:
            bound += 1
        bounds.append(bound)
    return [*bounds, len(targets)]


def _copy(table: np.ndarray) -> np.ndarray:
    """Of a flat table, at the beginning of a cache line, as the rows of the tables stand."""
    line = LANES * table.itemsize
    memory = np.empty(table.size + LANES, np.float32)
    first = -memory.ctypes.data % line // table.itemsize
    memory[first : first + table.size] = table
    return memory[first : first + table.size]


@cache
def _team(threads: int) -> list[ThreadPoolExecutor]:
    """Threads that each work off what they are given in its order."""
    return [ThreadPoolExecutor(1, thread_name_prefix="sgns") for _ in range(threads)]


class PendingBatch:
    """A batch that may still be in training."""

    def __init__(self, losses: Sequence[Future[float]]) -> None:
        self._losses = losses

    def done(self) -> bool:
        return all(each.done() for each in self._losses)

    def wait(self) -> None:
        """Until nothing of it writes into the tables, even if a thread failed."""
        for each in self._losses:
            each.exception()  # waits, and does not raise

    def loss(self) -> float:
        """Waits for the batch; the losses of its pairs, summed."""
        self.wait()
        return sum(each.result() for each in self._losses)


def check_ids(name: str, ids: np.ndarray, words: int) -> None:
    """ValueError unless all name words of the vocabulary."""
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if lowest < 0 or highest >= words:
        offending = lowest if lowest < 0 else highest
        raise ValueError(
            f"The batch's {name} holds the id {offending}, but the vocabulary's ids are 0 to {words - 1}: "
            f"were the pairs made with another vocabulary?"
        )


def check_pairs(targets: np.ndarray, contexts: np.ndarray, words: int) -> None:
    """ValueError unless both are flat, int32, as long as each other, and name words of the vocabulary."""
    if targets.ndim != 1 or targets.shape != contexts.shape:
        raise ValueError(
            f"target is {targets.shape} and context {contexts.shape}: both must be one flat array."
        )
    if targets.dtype != np.int32 or contexts.dtype != np.int32:
        raise ValueError(f"target is {targets.dtype} and context {contexts.dtype}: both must be int32.")
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
    """Begin to train both tables in place on a batch; with one thread it is done on return.

    With one thread the result is a function of the arguments, bit for bit; more race for the rows they share.
    They take up the next batch without waiting for each other, so the tables are at rest only when all that
    was begun is done.

    Args:
        vectors, outputs: (V, stride) float32, the input and the output table; stride is a multiple of 16.
        targets, contexts: (pairs,) int32; the pairs of one target position stand together.
        probability, alias: (V,) float32 and int32: the noise as an alias table. Its ids are not checked here.
        negatives: noise words a run, K.

    Raises:
        ValueError: arrays do not fit each other, or an id is outside of the vocabulary. Nothing was changed.
    """
    words, stride = vectors.shape
    if outputs.shape != vectors.shape or probability.shape != (words,) or alias.shape != (words,):
        raise ValueError(
            f"The tables are {vectors.shape} and {outputs.shape}, the noise {probability.shape} and "
            f"{alias.shape}: all must have one row a word."
        )
    if stride % LANES:
        raise ValueError(f"A row has {stride} floats: pad it to a multiple of {LANES}.")
    if not all(table.flags.carray and table.dtype == np.float32 for table in (vectors, outputs)):
        raise ValueError("The tables are changed in place: they must be float32, contiguous and writeable.")
    check_pairs(targets, contexts, words)
    if not len(targets):
        return PendingBatch([])

    kernel = compile_kernel(stride, negatives)
    flat_vectors, flat_outputs = vectors.reshape(-1), outputs.reshape(-1)
    targets, contexts = (np.require(ids, requirements=["C", "A"]) for ids in (targets, contexts))
    batch_seed, rate = np.uint64(seed % 2**64), np.float32(learning_rate)

    shared = (flat_vectors, flat_outputs)

    def train(first: int, last: int, own_vectors: np.ndarray, own_outputs: np.ndarray) -> float:
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
            rate,
            own_vectors,
            own_outputs,
        )

    def train_beside_others(first: int, last: int) -> float:
        frequent = [table[: _OWN_ROWS * stride] for table in shared]
        loss = 0.0
        pieces = -(-(last - first) * (threads - 1) // _UNSEEN_PAIRS)
        for piece in pairwise(split_at_runs(targets[first:last], pieces)):
            with _ADDING_UP:
                before = [table.copy() for table in frequent]
            own = [_copy(table) for table in before]
            loss += train(first + piece[0], first + piece[1], *own)
            with _ADDING_UP:
                for table, copy, old in zip(frequent, own, before, strict=True):
                    table += copy - old
        return loss

    if threads == 1:
        done = Future[float]()
        done.set_result(train(0, len(targets), *(table[:0] for table in shared)))
        return PendingBatch([done])
    parts = zip(_team(threads), pairwise(split_at_runs(targets, threads)), strict=True)
    return PendingBatch([thread.submit(train_beside_others, *bounds) for thread, bounds in parts])
