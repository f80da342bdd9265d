"""The inner loop of the skip-gram CPU kernel: a block of contexts of a run against all of its outputs.

It is written in LLVM IR, since the code of LLVM's own vectorizer takes 1.5 times as long. All vectors have
the width of a register: segments of rows, and scores, errors and losses. cpu.py defines runs and blocks.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_literal_intrinsic: Any = intrinsic(prefer_literal=True)  # Any: callers omit the first argument

LANES = 16  # floats in a cache line; rows are multiples of it


def _has_avx512() -> bool:
    with suppress(RuntimeError):  # LLVM cannot tell on every system
        return bool(binding.get_host_cpu_features().get("avx512f"))
    return False


_WIDE = _has_avx512()
_WIDTH = 16 if _WIDE else 8  # floats in a register: AVX-512, or AVX2 (two of NEON)
_ACCUMULATORS = 24 if _WIDE else 8  # dot products computed together: as many as fit in registers
_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_VECTOR = ir.VectorType(_FLOAT, _WIDTH)
_INTEGERS = ir.VectorType(_INT32, _WIDTH)

# exp2(x) - 1 over x, on [-1/2, 1/2], and log(1 + x) over x, on [0, 1]: polynomials, lowest power first
_EXP2 = (0.6931472, 0.24022651, 0.05550411, 0.009618129, 0.0013333558, 0.00015403530)
_LOG1P = (
    *(0.99999978, -0.49997175, 0.33271928, -0.24474774),
    *(0.17687477, -0.10685003, 0.0434939, -0.00837115),
)
_ROUNDING = 1.5 * 2.0**23  # adding it to a small number leaves the nearest integer in the lowest bits
_LARGEST = 80.0  # exp(-80) is still a normal number, and 1 + exp(-80) is 1


class _Emitter:
    """Emits LLVM instructions for vectors of a row's columns, and of scores."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def vector(self, numbers: Sequence[float]) -> Any:
        return ir.Constant(_VECTOR, [float(np.float32(number)) for number in numbers])

    def splat(self, number: float) -> Any:
        return self.vector([number] * _WIDTH)

    def zeros(self) -> Any:
        return self.splat(0.0)

    def row_pointer(self, table: Any, number: Any, stride: int) -> Any:
        """Return the address of row `number`, an unsigned integer, of a table."""
        wide = self.builder.zext(number, _INT64) if number.type.width < 64 else number
        return self.builder.gep(table, [self.builder.mul(wide, _INT64(stride))])

    def pointer(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())

    def load(self, base: Any, offset: Any, kind: Any = _VECTOR) -> Any:
        """Load the vector at base[offset]; the tables are only guaranteed to have a float's alignment."""
        vector = self.builder.load(self.pointer(base, offset, kind))
        vector.align = 4  # bytes
        return vector

    def store(self, base: Any, offset: Any, vector: Any) -> None:
        self.builder.store(vector, self.pointer(base, offset, vector.type)).align = 4

    def prefetch(self, row: Any, column: Any) -> None:
        """Prefetch the cache line of row[column] for writing."""
        shape = ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
        prefetch = self.builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=shape)
        for_writing, into_every_level, cached = _INT32(1), _INT32(3), _INT32(1)
        address = self.builder.bitcast(self.builder.gep(row, [column]), _BYTES)
        self.builder.call(prefetch, [address, for_writing, into_every_level, cached])

    def opaque(self, value: Any) -> Any:
        """Return the value itself as one unknown to the optimizer, which then keeps the code that uses it in
        place.

        With few registers, LLVM would otherwise unroll loops to share loads, and delay sums until after the
        next loop, which spills registers (1.2x). With many registers its code is good.
        """
        if _WIDE:
            return value
        shape = ir.FunctionType(value.type, [value.type])
        return self.builder.asm(shape, "", "=r,0", [value], side_effect=True)

    def call(self, name: str, *vectors: Any) -> Any:
        kind = vectors[0].type
        shape = ir.FunctionType(kind, [kind] * len(vectors))
        return self.builder.call(
            self.builder.module.declare_intrinsic(f"llvm.{name}.v{kind.count}f32", fnty=shape), vectors
        )

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.call("fma", a, b, c)

    def polynomial(self, coefficients: Sequence[float], x: Any) -> Any:
        total = self.splat(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.multiply_add(total, x, self.splat(coefficient))
        return total

    def shuffle(self, vector: Any, order: Sequence[int]) -> Any:
        return self.shuffle_two(vector, ir.Constant(vector.type, ir.Undefined), order)

    def shuffle_two(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        """Select lanes of a, and after its last lane those of b."""
        mask = ir.Constant(ir.VectorType(_INT32, len(order)), list(order))
        return self.builder.shuffle_vector(a, b, mask)

    def broadcast(self, scalar: Any) -> Any:
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, scalar, _INT32(0)), [0] * _WIDTH)

    def sum_lanes(self, vector: Any) -> Any:
        """Sum the lanes of a vector."""
        shape = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        add = self.builder.module.declare_intrinsic(f"llvm.vector.reduce.fadd.v{_WIDTH}f32", fnty=shape)
        return self.builder.call(add, [_FLOAT(-0.0), vector], fastmath=("reassoc",))

    def sum_each(self, vectors: Sequence[Any]) -> Any:
        """Sum up to _WIDTH vectors: the sum of vectors[i] is in lane _LANE_OF[i]; other lanes are undefined.

        Pairs of vectors are folded in halves into one vector: 2 shuffles and an addition per pair, where
        summing one vector at a time takes 4 and 4.
        """
        left: list[Any] = [*vectors, *[None] * (_WIDTH - len(vectors))]
        half = _WIDTH // 2
        while half:
            pairs = zip(left[: len(left) // 2], left[len(left) // 2 :], strict=True)
            left = [None if a is None else self.fold_halves(a, b, half) for a, b in pairs]
            half //= 2
        return left[0]

    def fold_halves(self, a: Any, b: Any, half: int) -> Any:
        """For each segment of 2 * half lanes of both vectors, return the sum of its halves."""
        other = ir.Constant(a.type, ir.Undefined) if b is None else b
        low = [lane if lane % (2 * half) < half else lane + _WIDTH - half for lane in range(_WIDTH)]
        high = [lane + half for lane in low]
        return self.builder.fadd(self.shuffle_two(a, other, low), self.shuffle_two(a, other, high))

    def loop_over_columns(
        self, stride: int, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Emit a loop over columns.

        `body` takes the first of _WIDTH columns and the carried vectors, and returns the new carried vectors.
        """
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        column, *vectors = [builder.phi(_INT64), *(builder.phi(_VECTOR) for _ in carried)]
        results = body(column, vectors)
        following = builder.add(column, _INT64(_WIDTH))
        for phi, first, later in zip(
            [column, *vectors], [_INT64(0), *carried], [following, *results], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, builder.block)
        end = self.opaque(_INT64(stride))
        builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
        builder.position_at_end(after)
        return list(results)

    def error_and_loss(self, x: Any) -> tuple[Any, Any]:
        """Return (1 - sigmoid(x), -log sigmoid(x)), with an error of at most 2e-7; NaN for NaN."""
        builder = self.builder
        size = self.call("fabs", x)
        inside = builder.select(
            builder.fcmp_ordered(">", size, self.splat(_LARGEST)), self.splat(_LARGEST), size
        )
        power = builder.fmul(inside, self.splat(-1 / np.log(2)))
        shifted = builder.fadd(power, self.splat(_ROUNDING))
        rest = builder.fsub(power, builder.fsub(shifted, self.splat(_ROUNDING)))
        exponent = builder.add(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [127] * _WIDTH))
        scale = builder.bitcast(builder.shl(exponent, ir.Constant(_INTEGERS, [23] * _WIDTH)), _VECTOR)
        one = self.splat(1.0)
        small = builder.fmul(self.multiply_add(self.polynomial(_EXP2, rest), rest, one), scale)  # exp(-|x|)
        large_error = builder.fdiv(one, builder.fadd(one, small))
        is_negative = builder.fcmp_ordered("<", x, self.splat(0.0))
        error = builder.select(is_negative, large_error, builder.fmul(small, large_error))
        loss = builder.fmul(self.polynomial(_LOG1P, small), small)
        return error, builder.fadd(loss, builder.select(is_negative, size, self.splat(0.0)))


def _lane_of() -> list[int]:
    """Return the lane of each vector's sum in the result of _Emitter.sum_each."""
    lanes = [0] * _WIDTH
    for number in range(_WIDTH):
        half, left, index = _WIDTH // 2, _WIDTH, number
        while half:
            lanes[number] += half * (index >= left // 2)
            index, left, half = index % (left // 2), left // 2, half // 2
    return lanes


_LANE_OF = _lane_of()


class _Block(_Emitter):
    """Emits the training on a block of distinct contexts of a run.

    Args:
        contexts: addresses of the contexts' rows in the input table.
        output_rows: addresses of the rows of the run's target and noise words in the output table.
        next_rows: those of the next run.
    """

    def __init__(
        self, builder: Any, contexts: list[Any], output_rows: list[Any], next_rows: list[Any], stride: int
    ) -> None:
        super().__init__(builder)
        self.contexts, self.stride = contexts, stride
        self.output_rows, self.next_rows = output_rows, next_rows
        self.group = max(1, _ACCUMULATORS // len(contexts))  # outputs whose scores are computed together
        # at least, since every vector may have unused lanes
        room = len(output_rows) * (self.group * len(contexts) + _WIDTH)
        self.steps_at, self.losses_at = (cgutils.alloca_once(builder, _FLOAT, size=room) for _ in range(2))

    def train(self, copies: Any, weights: Any, lr: Any, is_first: Any, is_last: Any) -> Any:
        """Update the contexts' rows and the outputs (or their `copies`); return the sum of the losses."""
        builder, slots, filled = self.builder, dict[tuple[int, int], int](), 0
        steps, losses = self.opaque(self.steps_at), self.opaque(self.losses_at)
        for first in range(0, len(self.output_rows), self.group):
            outputs = range(first, min(first + self.group, len(self.output_rows)))
            pairs = [(i, j) for i in range(len(self.contexts)) for j in outputs]
            products = self.products(pairs)
            for start in range(0, len(pairs), _WIDTH):
                some = pairs[start : start + _WIDTH]
                step, loss = self.steps(some, products[start : start + _WIDTH], weights, lr)
                self.store(steps, _INT64(filled), step)
                self.store(losses, _INT64(filled), loss)
                slots |= {pair: filled + lane for pair, lane in zip(some, _LANE_OF, strict=False)}
                filled += _WIDTH
        loss = self.zeros()
        for start in range(0, filled, _WIDTH):
            loss = builder.fadd(loss, self.load(losses, _INT64(start)))
        with builder.if_else(is_first) as (then, otherwise):
            for branch, begins in ((then, True), (otherwise, False)):
                with branch, builder.if_else(is_last) as (at_last, before):
                    for inner, ends in ((at_last, True), (before, False)):
                        with inner:
                            self.update_rows(slots, copies, begins, ends)
        return self.sum_lanes(loss)

    def products(self, pairs: list[tuple[int, int]]) -> list[Any]:
        """Return a vector for each pair, whose lanes sum to the dot product."""

        def add(column: Any, sums: list[Any]) -> list[Any]:
            contexts = [self.load(row, column) for row in self.contexts]
            outputs = {j: self.load(self.output_rows[j], column) for j in {j: None for _, j in pairs}}
            return [
                self.multiply_add(contexts[i], outputs[j], total)
                for (i, j), total in zip(pairs, sums, strict=True)
            ]

        return self.loop_over_columns(self.stride, [self.zeros()] * len(pairs), add)

    def steps(
        self, pairs: list[tuple[int, int]], products: list[Any], weights: Any, lr: Any
    ) -> tuple[Any, Any]:
        """Return the pairs' lr * weight * (label - sigmoid(score)), and the losses, 0 in unused lanes."""
        first = min(j for _, j in pairs)
        signs, order, used = [0.0] * _WIDTH, [0] * _WIDTH, [0] * _WIDTH
        for lane, (_, j) in zip(_LANE_OF, pairs, strict=False):
            signs[lane], order[lane], used[lane] = 1.0 if j == 0 else -1.0, j - first, 1
        sign = self.vector(signs)
        weight = self.shuffle(self.load(weights, _INT64(first)), order)
        error, loss = self.error_and_loss(self.builder.fmul(self.sum_each(products), sign))
        step = self.builder.fmul(self.builder.fmul(error, sign), self.builder.fmul(lr, weight))
        mask = ir.Constant(ir.VectorType(ir.IntType(1), _WIDTH), used)
        return step, self.builder.select(mask, self.builder.fmul(loss, weight), self.splat(0.0))

    def update_rows(self, slots: dict[tuple[int, int], int], copies: Any, begins: bool, ends: bool) -> None:
        """Update the contexts' rows and copies of the outputs' rows.

        Outputs are read from their rows at the beginning of a run and written to them at its end; otherwise
        they are read from and written to `copies`. At the beginning of a run the next run's rows are
        prefetched column by column: prefetching more lines at once than the CPU has line fill buffers stalls
        it.
        """

        def update_columns(column: Any, _: list[Any]) -> list[Any]:
            for row in self.next_rows if begins else []:
                self.prefetch(row, column)
            before = [self.load(row, column) for row in self.contexts]
            after = list(before)
            steps = self.opaque(self.steps_at)
            for j, row in enumerate(self.output_rows):
                output = self.load(row, column)
                offset = self.builder.add(_INT64(j * self.stride), column)
                copy = output if begins else self.load(copies, offset)
                for i, vector in enumerate(before):
                    step = self.broadcast(self.builder.load(self.builder.gep(steps, [_INT64(slots[i, j])])))
                    after[i] = self.multiply_add(step, output, after[i])
                    copy = self.multiply_add(step, vector, copy)
                self.store(*((row, column) if ends else (copies, offset)), copy)
            for row, vector in zip(self.contexts, after, strict=True):
                self.store(row, column, vector)
            return []

        self.loop_over_columns(self.stride, [], update_columns)


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Return the address of an array's first element."""
    return context.make_array(kind)(context, builder, array).data


def _addresses(context: Any, builder: Any, kind: Any, arrays: Any) -> tuple[Any, Any]:
    """Return the addresses of the first elements of two arrays of one type, in a tuple."""
    first, second = (builder.extract_value(arrays, i) for i in (0, 1))
    return _address(context, builder, kind.dtype, first), _address(context, builder, kind.dtype, second)


# Intrinsics for compiled code. `vectors` and `table` are (rows * stride,); ids are unsigned. `count` and
# `stride` must be constants.


@_literal_intrinsic
def train_block(
    _typing: Any,
    vectors: Any,
    contexts: Any,  # a tuple of distinct ids
    # (count,) int64 each: distinct addresses of the rows of the run's target and noise words; and those
    # of the next run, or of any rows
    outputs: Any,
    copies: Any,  # (count * stride,), copies of the outputs between the run's first and last block
    weights: Any,  # (count + 16,), of the outputs
    lr: Any,
    is_first: Any,
    is_last: Any,
    count: Any,
    stride: Any,
) -> Any:
    """Train on a block of contexts of a run; return the sum of their losses."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        inputs, width = _address(context, builder, vectors, arguments[0]), stride.literal_value
        copies_at = _address(context, builder, copies, arguments[3])
        weights_at = _address(context, builder, weights, arguments[4])
        words = [builder.extract_value(arguments[1], i) for i in range(len(contexts))]
        output_rows, next_rows = (
            [
                builder.inttoptr(builder.load(builder.gep(rows, [_INT64(j)])), _FLOAT.as_pointer())
                for j in range(count.literal_value)
            ]
            for rows in _addresses(context, builder, outputs, arguments[2])
        )
        rows = [_Emitter(builder).row_pointer(inputs, word, width) for word in words]
        block = _Block(builder, rows, output_rows, next_rows, width)
        return block.train(copies_at, weights_at, block.broadcast(arguments[5]), arguments[6], arguments[7])

    return types.float32(
        vectors, contexts, outputs, copies, weights, lr, is_first, is_last, count, stride
    ), generate


@_literal_intrinsic
def row_address(_typing: Any, table: Any, word: Any, stride: Any) -> Any:
    """Return the address of the word's row as an integer."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        table_at = _address(context, builder, table, arguments[0])
        row = _Emitter(builder).row_pointer(table_at, arguments[1], stride.literal_value)
        return builder.ptrtoint(row, _INT64)

    return types.int64(table, word, stride), generate


@_literal_intrinsic
def prefetch_row(_typing: Any, table: Any, word: Any, stride: Any) -> Any:
    """Prefetch the cache lines of the word's row for writing."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        table_at = _address(context, builder, table, arguments[0])
        emitter = _Emitter(builder)
        row = emitter.row_pointer(table_at, arguments[1], stride.literal_value)
        for column in range(0, stride.literal_value, LANES):
            emitter.prefetch(row, _INT64(column))
        return context.get_dummy_value()

    return types.void(table, word, stride), generate
