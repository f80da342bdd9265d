"""Skip-gram with negative sampling on the CPU: a compiled kernel that trains two tables in place.

The objective is eq. 4 of Mikolov et al. (2013); models/sgns_reference.py says exactly which update is made.

- A batch is read one *run* at a time: the adjacent pairs of one target position. Its contexts are the inputs;
  its target and K noise words, shared by the whole run, are the outputs. So a run of six pairs touches 1 + K
  output rows, not 6 (1 + K). Sharing the noise between neighbouring targets too would be faster, but costs
  analogies.
- The run's output rows are copied into a tile, and their moves are summed in a second tile, which is added to
  the table at the end of the run. Changing the first tile in place would cost analogies.
- Rows are padded to whole vectors of 16 floats, so that no loop has a remainder, and the arithmetic is
  written in such vectors: LLVM's own vectoriser takes half of them on many processors (1.4x slower).
- The rows of the next run are prefetched while this one is computed (1.1x).
- Threads share the tables without locks (Hogwild, Niu et al. 2011). The noise is a function of the batch's
  seed and the run's position, so the number of threads changes nothing but the order in which rows are
  written.

Everything that is compiled stays in this file: Numba's on-disk cache notices a change in no other.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

_intrinsic: Any = intrinsic  # type checkers do not see that a caller leaves out the first argument

LANES = 16  # floats in a vector: one AVX-512 register, or two of AVX2, or four of NEON


def padded(dim: int) -> int:
    """The width of a table's row: `dim` rounded up to whole vectors."""
    return -(-dim // LANES) * LANES


# Vectors of 16 floats. LLVM splits them where the processor's registers are narrower.


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


_VECTOR = _Vector()
_LLVM_FLOAT = ir.FloatType()
_LLVM_VECTOR = ir.VectorType(_LLVM_FLOAT, LANES)
_LLVM_INT32 = ir.IntType(32)
_LLVM_BYTES = ir.IntType(8).as_pointer()


@register_model(_Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, numba_type: _Vector) -> None:
        super().__init__(manager, numba_type, _LLVM_VECTOR)


def _address(context: Any, builder: Any, array_type: Any, place: list[Any], pointer: Any) -> Any:
    array, offset = place
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), pointer)


@_intrinsic
def _load(_typing: Any, array: Any, _offset: Any) -> Any:
    """array[offset : offset + 16] of a flat float32 array, with no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments, _LLVM_VECTOR.as_pointer())
        vector = builder.load(address)
        vector.align = 4  # bytes: the tables promise no more than that of a float
        return vector

    return _VECTOR(array, types.intp), generate


@_intrinsic
def _store(_typing: Any, array: Any, _offset: Any, _vector: Any) -> Any:
    """array[offset : offset + 16] = vector, with no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, vector = arguments
        address = _address(context, builder, signature.args[0], place, _LLVM_VECTOR.as_pointer())
        builder.store(vector, address).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, _VECTOR), generate


@_intrinsic
def _prefetch(_typing: Any, array: Any, _offset: Any) -> Any:
    """Ask for the cache line of array[offset]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments, _LLVM_BYTES)
        shape = ir.FunctionType(ir.VoidType(), [_LLVM_BYTES, _LLVM_INT32, _LLVM_INT32, _LLVM_INT32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=shape)
        for_reading, into_every_level, data = _LLVM_INT32(0), _LLVM_INT32(3), _LLVM_INT32(1)
        builder.call(prefetch, [address, for_reading, into_every_level, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@_intrinsic
def _spread(_typing: Any, _value: Any) -> Any:
    """The vector whose 16 floats are all `value`."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        undefined = ir.Constant(_LLVM_VECTOR, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], _LLVM_INT32(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_LLVM_INT32, LANES), None))

    return _VECTOR(types.float32), generate


@_intrinsic
def _multiply_add(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """a * b + c, float by float."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        shape = ir.FunctionType(_LLVM_VECTOR, [_LLVM_VECTOR] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd.v16f32", fnty=shape), arguments)

    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), generate


@_intrinsic
def _total(_typing: Any, _vector: Any) -> Any:
    """The sum of a vector's 16 floats."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        shape = ir.FunctionType(_LLVM_FLOAT, [_LLVM_FLOAT, _LLVM_VECTOR])
        reduce = builder.module.declare_intrinsic("llvm.vector.reduce.fadd.v16f32", fnty=shape)
        return builder.call(reduce, [_LLVM_FLOAT(-0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(_VECTOR), generate


# The logistic function and the loss, by linear interpolation between tabulated points. The first and the last
# piece are the asymptotes and go on for ever, so that the loss of a very wrong score is right too.

_LIMIT = np.float32(16)  # where both functions are within 2e-7 of their asymptotes
_POINTS_PER_UNIT = np.float32(64)  # an error below 8e-6 between them
_GRID = np.arange(-16 * 64, 16 * 64 + 2) / 64
_SIGMOID = (1 / (1 + np.exp(-_GRID))).astype(np.float32)
_SIGMOID[:2], _SIGMOID[-2:] = 0, 1
_LOSS = np.log1p(np.exp(-_GRID)).astype(np.float32)
_LOSS[:2], _LOSS[-2:] = -_GRID[:2], 0


@njit(inline="always")
def _sigmoid_and_loss(score: Any) -> Any:
    """(sigmoid(score), -log sigmoid(score)), NaN for NaN."""
    inside = score if score > -_LIMIT else -_LIMIT  # NaN reads the first piece: never outside of the tables
    inside = inside if inside < _LIMIT else _LIMIT
    left = np.uintp(np.int32((inside + _LIMIT) * _POINTS_PER_UNIT))
    right = left + np.uintp(1)
    way = (score + _LIMIT) * _POINTS_PER_UNIT - np.float32(left)
    sigmoid = _SIGMOID[left] + way * (_SIGMOID[right] - _SIGMOID[left])
    loss = _LOSS[left] + way * (_LOSS[right] - _LOSS[left])
    return sigmoid, loss


# Noise words.

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_COIN = np.float32(2.0**-24)


@njit(inline="always")
def _mix(x: Any) -> Any:
    """The output function of SplitMix64 (Steele et al. 2014): a bijection that scatters its argument."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


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
    state = _mix(seed + np.uint64(position) * _GOLDEN)
    words = np.uint64(len(probability))
    for k in range(len(out)):
        state += _GOLDEN
        bits = _mix(state)
        word = np.intp(((bits >> np.uint64(32)) * words) >> np.uint64(32))  # the high half says which
        coin = np.float32(np.uint32(bits) >> np.uint32(8)) * _COIN  # the low half, in [0, 1)
        out[k] = word if coin < probability[word] else alias[word]


# The kernel.

_AHEAD = 8  # pairs: how early a context's row is prefetched
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}  # without nnan and ninf: diverged tables must be noticed


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
    types.float32,  # learning_rate
)


@cache
def compile_kernel(stride: int, negatives: int) -> Callable[..., float]:
    """The kernel for rows of `stride` floats and so many noise words a run, constants both to the compiler.

    The first call on a machine compiles for a second or two; later the code comes from Numba's cache on disk.
    """
    chosen_per_run = 1 + negatives

    @njit(_SIGNATURE, nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy")
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
        learning_rate: Any,
    ) -> Any:
        """Train on the pairs first .. last - 1, whole runs; returns the sum of their losses."""
        tile = chosen_per_run * stride
        rows = np.empty(tile, np.float32)  # the run's output rows, as they were at its start
        moves = np.empty(tile, np.float32)  # what the run will add to them
        steps = np.empty(chosen_per_run, np.float32)  # scores, then learning_rate * (label - sigmoid(score))
        chosen = np.empty(chosen_per_run, np.int32)  # the target and the noise words of this run
        upcoming = np.empty(chosen_per_run, np.int32)  # and of the next one
        upcoming_noise = upcoming[1:]
        loss = 0.0
        stop = first
        if first < last:
            upcoming[0] = targets[first]
            draw_negatives(seed, first, probability, alias, upcoming_noise)
        while stop < last:
            start = stop
            target = targets[start]
            while stop < last and targets[stop] == target:
                stop += 1

            for j in range(chosen_per_run):
                chosen[j] = upcoming[j]
            if stop < last:
                upcoming[0] = targets[stop]
                draw_negatives(seed, stop, probability, alias, upcoming_noise)
                for j in range(chosen_per_run):
                    for d in range(0, stride, LANES):
                        _prefetch(outputs, np.intp(upcoming[j]) * stride + d)

            for j in range(chosen_per_run):
                row = np.intp(chosen[j]) * stride
                for d in range(0, stride, LANES):
                    _store(rows, j * stride + d, _load(outputs, row + d))
                    _store(moves, j * stride + d, _spread(0.0))

            for i in range(start, stop):
                if i + _AHEAD < last:
                    row = np.intp(contexts[i + _AHEAD]) * stride
                    for d in range(0, stride, LANES):
                        _prefetch(vectors, row + d)

                context = np.intp(contexts[i]) * stride
                for j in range(chosen_per_run):
                    products = _spread(0.0)
                    for d in range(0, stride, LANES):
                        products = _multiply_add(
                            _load(vectors, context + d), _load(rows, j * stride + d), products
                        )
                    steps[j] = _total(products)

                sigmoid, pair_loss = _sigmoid_and_loss(steps[0])
                loss += pair_loss
                steps[0] = learning_rate * (np.float32(1) - sigmoid)
                for j in range(1, chosen_per_run):
                    if chosen[j] == target:
                        steps[j] = 0.0  # not noise: skipped, as in the original
                    else:
                        sigmoid, pair_loss = _sigmoid_and_loss(-steps[j])
                        loss += pair_loss
                        steps[j] = learning_rate * (sigmoid - np.float32(1))

                for d in range(0, stride, LANES):
                    vector = _load(vectors, context + d)
                    moved = vector
                    for j in range(chosen_per_run):
                        step = _spread(steps[j])
                        moved = _multiply_add(step, _load(rows, j * stride + d), moved)
                        _store(
                            moves, j * stride + d, _multiply_add(step, vector, _load(moves, j * stride + d))
                        )
                    _store(vectors, context + d, moved)

            for j in range(chosen_per_run):
                row = np.intp(chosen[j]) * stride
                for d in range(0, stride, LANES):
                    now = _load(outputs, row + d)  # not rows: a noise word may be drawn twice
                    _store(outputs, row + d, _multiply_add(_spread(1.0), _load(moves, j * stride + d), now))
        return loss

    return train


# The batch.


def split_at_runs(targets: np.ndarray, parts: int) -> list[int]:
    """`parts` + 1 bounds that cut a batch into nearly equal parts, never inside a run."""
    bounds = [0]
    for part in range(1, parts):
        bound = max(bounds[-1], len(targets) * part // parts)
        while 0 < bound < len(targets) and targets[bound] == targets[bound - 1]:
            bound += 1
        bounds.append(bound)
    return [*bounds, len(targets)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sgns")


def _check_ids(name: str, ids: np.ndarray, words: int) -> None:
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= words:
        offending = lowest if lowest < 0 else highest
        raise ValueError(
            f"The batch's {name} holds the id {offending}, but the vocabulary's ids are 0 to {words - 1}: "
            f"were the pairs made with another vocabulary?"
        )


def train_batch(
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
) -> float:
    """Train both tables in place on a batch; returns the loss summed over its pairs.

    With one thread the result is a function of the arguments, bit for bit; more race for the rows they share.

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
    if targets.ndim != 1 or targets.shape != contexts.shape:
        raise ValueError(
            f"target is {targets.shape} and context {contexts.shape}: both must be one flat array."
        )
    if targets.dtype != np.int32 or contexts.dtype != np.int32:
        raise ValueError(f"target is {targets.dtype} and context {contexts.dtype}: both must be int32.")
    if not len(targets):
        return 0.0
    _check_ids("target", targets, words)
    _check_ids("context", contexts, words)

    kernel = compile_kernel(stride, negatives)
    flat_vectors, flat_outputs = vectors.reshape(-1), outputs.reshape(-1)
    targets, contexts = (np.require(ids, requirements=["C", "A"]) for ids in (targets, contexts))
    batch_seed, rate = np.uint64(seed % 2**64), np.float32(learning_rate)

    def train(first: int, last: int) -> float:
        return kernel(
            flat_vectors, flat_outputs, targets, contexts, first, last, probability, alias, batch_seed, rate
        )

    bounds = split_at_runs(targets, threads)
    if threads == 1:
        return train(*bounds)
    return sum(_pool(threads).map(train, bounds[:-1], bounds[1:]))
