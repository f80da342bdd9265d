"""The inner part of skip-gram's kernel: some contexts of a run against all of its outputs.

By LLVM's instructions, since what the compiler's own vectoriser makes of such loops takes half as long again.
All vectors are a register wide: stretches of rows, and scores, errors and losses.

models/word2vec/cpu.py is what uses it, and says what a run is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# type checkers do not see that a caller leaves out the first argument
_literal_intrinsic: Any = intrinsic(prefer_literal=True)

LANES = 16  # floats in a cache line, which rows are whole numbers of

_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
_WIDTH = 16 if _WIDE else 8  # floats in a register: AVX-512's, or AVX2's (two of NEON's)
_ACCUMULATORS = 24 if _WIDE else 8  # dot products in flight: as many as registers hold beside their factors
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
_ROUNDING = 1.5 * 2.0**23  # added to a small number, it leaves the nearest integer in the lowest bits
_LARGEST = 80.0  # exp(-80) is still a normal number, and 1 + exp(-80) is 1


class _Emitter:
    """Emits LLVM's instructions for vectors: of a row's columns, and of scores."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def vector(self, numbers: Sequence[float]) -> Any:
        return ir.Constant(_VECTOR, [float(np.float32(number)) for number in numbers])

    def full(self, number: float) -> Any:
        return self.vector([number] * _WIDTH)

    def zeros(self) -> Any:
        return self.full(0.0)

    def row(self, tables: tuple[Any, Any], own: Any, number: Any, stride: int) -> Any:
        """The address of a word's row: in the thread's own table if it is one of the first `own`."""
        shared, mine = tables
        wide = self.builder.sext(number, _INT64) if number.type.width < 64 else number
        table = self.builder.select(self.builder.icmp_signed("<", wide, own), mine, shared)
        return self.builder.gep(table, [self.builder.mul(wide, _INT64(stride))])

    def place(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())

    def load(self, base: Any, offset: Any, kind: Any = _VECTOR) -> Any:
        """The numbers from base[offset] on; the tables promise no more than a float's alignment."""
        vector = self.builder.load(self.place(base, offset, kind))
        vector.align = 4  # bytes
        return vector

    def store(self, base: Any, offset: Any, vector: Any) -> None:
        self.builder.store(vector, self.place(base, offset, vector.type)).align = 4

    def prefetch(self, row: Any, column: Any) -> None:
        """Asks for the cache line of row[column], which will be written."""
        shape = ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
        prefetch = self.builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=shape)
        for_writing, into_every_level, cached = _INT32(1), _INT32(3), _INT32(1)
        address = self.builder.bitcast(self.builder.gep(row, [column]), _BYTES)
        self.builder.call(prefetch, [address, for_writing, into_every_level, cached])

    def hidden(self, value: Any) -> Any:
        """The value itself, which the compiler does not know: it must leave what is done with it in place.

        Where registers are few it would unroll loops to share what they load, put off sums until after the
        next loop, and keep them all at hand meanwhile (together 1.2x). Where they are many it does well.
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
        total = self.full(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.multiply_add(total, x, self.full(coefficient))
        return total

    def lanes(self, vector: Any, order: Sequence[int]) -> Any:
        return self.two_lanes(vector, ir.Constant(vector.type, ir.Undefined), order)

    def two_lanes(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        """Lanes of a, and after the last of them of b."""
        mask = ir.Constant(ir.VectorType(_INT32, len(order)), list(order))
        return self.builder.shuffle_vector(a, b, mask)

    def spread(self, scalar: Any) -> Any:
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        return self.lanes(self.builder.insert_element(undefined, scalar, _INT32(0)), [0] * _WIDTH)

    def total(self, vector: Any) -> Any:
        """The sum of the lanes."""
        shape = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        add = self.builder.module.declare_intrinsic(f"llvm.vector.reduce.fadd.v{_WIDTH}f32", fnty=shape)
        return self.builder.call(add, [_FLOAT(-0.0), vector], fastmath=("reassoc",))

    def totals(self, vectors: Sequence[Any]) -> Any:
        """Sums of up to _WIDTH vectors: that of vectors[i] in lane _LANE_OF[i]; other lanes are undefined.

        Halves are folded onto each other, two vectors in one: 2 shuffles and an addition for a pair of them,
        where one sum at a time takes 4 and 4.
        """
        left: list[Any] = [*vectors, *[None] * (_WIDTH - len(vectors))]
        half = _WIDTH // 2
        while half:
            pairs = zip(left[: len(left) // 2], left[len(left) // 2 :], strict=True)
            left = [None if a is None else self.folded(a, b, half) for a, b in pairs]
            half //= 2
        return left[0]

    def folded(self, a: Any, b: Any, half: int) -> Any:
        """Of each of the two vectors' stretches of 2 * half lanes, the sum of its halves."""
        other = ir.Constant(a.type, ir.Undefined) if b is None else b
        low = [lane if lane % (2 * half) < half else lane + _WIDTH - half for lane in range(_WIDTH)]
        high = [lane + half for lane in low]
        return self.builder.fadd(self.two_lanes(a, other, low), self.two_lanes(a, other, high))

    def over_columns(
        self, stride: int, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """A loop: `body` gets the first of some columns, and the carried vectors, and returns these."""
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
        end = self.hidden(_INT64(stride))
        builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
        builder.position_at_end(after)
        return list(results)

    def error_and_loss(self, x: Any) -> tuple[Any, Any]:
        """(1 - sigmoid(x), -log sigmoid(x)), to 2e-7; NaN for NaN."""
        builder = self.builder
        size = self.call("fabs", x)
        inside = builder.select(
            builder.fcmp_ordered(">", size, self.full(_LARGEST)), self.full(_LARGEST), size
        )
        power = builder.fmul(inside, self.full(-1 / np.log(2)))
        shifted = builder.fadd(power, self.full(_ROUNDING))
        rest = builder.fsub(power, builder.fsub(shifted, self.full(_ROUNDING)))
        exponent = builder.add(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [127] * _WIDTH))
        scale = builder.bitcast(builder.shl(exponent, ir.Constant(_INTEGERS, [23] * _WIDTH)), _VECTOR)
        one = self.full(1.0)
        small = builder.fmul(self.multiply_add(self.polynomial(_EXP2, rest), rest, one), scale)  # exp(-|x|)
        large_error = builder.fdiv(one, builder.fadd(one, small))
        wrong = builder.fcmp_ordered("<", x, self.full(0.0))
        error = builder.select(wrong, large_error, builder.fmul(small, large_error))
        loss = builder.fmul(self.polynomial(_LOG1P, small), small)
        return error, builder.fadd(loss, builder.select(wrong, size, self.full(0.0)))


def _lane_of() -> list[int]:
    """Where _Emitter.totals leaves each vector's sum."""
    lanes = [0] * _WIDTH
    for number in range(_WIDTH):
        half, left, place = _WIDTH // 2, _WIDTH, number
        while half:
            lanes[number] += half * (place >= left // 2)
            place, left, half = place % (left // 2), left // 2, half // 2
    return lanes


_LANE_OF = _lane_of()


class _Block(_Emitter):
    """Emits the training on some different contexts of a run.

    Args:
        contexts: addresses of their rows in the input table.
        chosen: addresses of the rows of the run's target and noise words in the output table.
        upcoming: those of the next run's.
    """

    def __init__(
        self, builder: Any, contexts: list[Any], chosen: list[Any], upcoming: list[Any], stride: int
    ) -> None:
        super().__init__(builder)
        self.contexts, self.chosen, self.upcoming, self.stride = contexts, chosen, upcoming, stride
        self.group = max(1, _ACCUMULATORS // len(contexts))  # outputs whose scores are computed together
        room = len(chosen) * (
            self.group * len(contexts) + _WIDTH
        )  # at least: every vector may have spare lanes
        self.steps_at, self.losses_at = (cgutils.alloca_once(builder, _FLOAT, size=room) for _ in range(2))

    def train(self, moved: Any, weights: Any, rate: Any, is_first: Any, is_last: Any) -> Any:
        """Moves the contexts' vectors, and, with what is `moved`, the outputs'; returns the losses' sum."""
        builder, places, filled = self.builder, dict[tuple[int, int], int](), 0
        steps, losses = self.hidden(self.steps_at), self.hidden(self.losses_at)
        for first in range(0, len(self.chosen), self.group):
            outputs = range(first, min(first + self.group, len(self.chosen)))
            pairs = [(i, j) for i in range(len(self.contexts)) for j in outputs]
            products = self.products(pairs)
            for start in range(0, len(pairs), _WIDTH):
                some = pairs[start : start + _WIDTH]
                step, loss = self.steps(some, products[start : start + _WIDTH], weights, rate)
                self.store(steps, _INT64(filled), step)
                self.store(losses, _INT64(filled), loss)
                places |= {pair: filled + lane for pair, lane in zip(some, _LANE_OF, strict=False)}
                filled += _WIDTH
        loss = self.zeros()
        for start in range(0, filled, _WIDTH):
            loss = builder.fadd(loss, self.load(losses, _INT64(start)))
        with builder.if_else(is_first) as (then, otherwise):
            for branch, begins in ((then, True), (otherwise, False)):
                with branch, builder.if_else(is_last) as (at_last, before):
                    for inner, ends in ((at_last, True), (before, False)):
                        with inner:
                            self.move(places, moved, begins, ends)
        return self.total(loss)

    def products(self, pairs: list[tuple[int, int]]) -> list[Any]:
        """Of each pair, a vector whose lanes add up to the dot product."""

        def add(column: Any, sums: list[Any]) -> list[Any]:
            contexts = [self.load(row, column) for row in self.contexts]
            outputs = {j: self.load(self.chosen[j], column) for j in {j: None for _, j in pairs}}
            return [
                self.multiply_add(contexts[i], outputs[j], total)
                for (i, j), total in zip(pairs, sums, strict=True)
            ]

        return self.over_columns(self.stride, [self.zeros()] * len(pairs), add)

    def steps(
        self, pairs: list[tuple[int, int]], products: list[Any], weights: Any, rate: Any
    ) -> tuple[Any, Any]:
        """rate * weight * (label - sigmoid(score)), in the pairs' lanes; and the losses, elsewhere 0."""
        first = min(j for _, j in pairs)
        signs, order, used = [0.0] * _WIDTH, [0] * _WIDTH, [0] * _WIDTH
        for lane, (_, j) in zip(_LANE_OF, pairs, strict=False):
            signs[lane], order[lane], used[lane] = 1.0 if j == 0 else -1.0, j - first, 1
        sign = self.vector(signs)
        weight = self.lanes(self.load(weights, _INT64(first)), order)
        error, loss = self.error_and_loss(self.builder.fmul(self.totals(products), sign))
        step = self.builder.fmul(self.builder.fmul(error, sign), self.builder.fmul(rate, weight))
        mask = ir.Constant(ir.VectorType(ir.IntType(1), _WIDTH), used)
        return step, self.builder.select(mask, self.builder.fmul(loss, weight), self.full(0.0))

    def move(self, places: dict[tuple[int, int], int], moved: Any, begins: bool, ends: bool) -> None:
        """Moves the contexts' rows, and copies of the outputs': from their rows if the run begins, to them if
        it ends, and else from and to `moved`. A run that begins asks for the next one's rows, column by
        column: more lines at once than the processor can wait for would hold up all else.
        """

        def over(column: Any, _: list[Any]) -> list[Any]:
            for row in self.upcoming if begins else []:
                self.prefetch(row, column)
            before = [self.load(row, column) for row in self.contexts]
            after = list(before)
            steps = self.hidden(self.steps_at)
            for j, row in enumerate(self.chosen):
                output = self.load(row, column)
                place = self.builder.add(_INT64(j * self.stride), column)
                copy = output if begins else self.load(moved, place)
                for i, vector in enumerate(before):
                    step = self.spread(self.builder.load(self.builder.gep(steps, [_INT64(places[i, j])])))
                    after[i] = self.multiply_add(step, output, after[i])
                    copy = self.multiply_add(step, vector, copy)
                self.store(*((row, column) if ends else (moved, place)), copy)
            for row, vector in zip(self.contexts, after, strict=True):
                self.store(row, column, vector)
            return []

        self.over_columns(self.stride, [], over)


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Of an array's first number."""
    return context.make_array(kind)(context, builder, array).data


def _addresses(context: Any, builder: Any, kind: Any, arrays: Any) -> tuple[Any, Any]:
    """Of the first numbers of two arrays of one type, in a tuple."""
    first, second = (builder.extract_value(arrays, i) for i in (0, 1))
    return _address(context, builder, kind.dtype, first), _address(context, builder, kind.dtype, second)


# What compiled code calls. `vectors` or `tables` are a table that threads share, (V * stride,), and a
# thread's own copy of its first rows, (own * stride,). `count` and `stride` must be constants.


@_literal_intrinsic
def train_block(
    _typing: Any,
    vectors: Any,
    own: Any,
    contexts: Any,  # a tuple of different ids
    # (count,) int64 each: addresses of the rows of the run's target and noise words, which differ; and of the
    # next run's, or of any rows
    outputs: Any,
    moved: Any,  # (count * stride,), where the outputs are kept from the run's first block to its last
    weights: Any,  # (count + 16,), how often each output counts
    rate: Any,
    is_first: Any,
    is_last: Any,
    count: Any,
    stride: Any,
) -> Any:
    """Trains on some contexts of a run; returns their losses' sum."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        inputs, width = _addresses(context, builder, vectors, arguments[0]), stride.literal_value
        copies, factors = (
            _address(context, builder, kind, arguments[i]) for kind, i in ((moved, 4), (weights, 5))
        )
        words = [builder.extract_value(arguments[2], i) for i in range(len(contexts))]
        chosen, upcoming = (
            [
                builder.inttoptr(builder.load(builder.gep(rows, [_INT64(j)])), _FLOAT.as_pointer())
                for j in range(count.literal_value)
            ]
            for rows in _addresses(context, builder, outputs, arguments[3])
        )
        rows = [_Emitter(builder).row(inputs, arguments[1], word, width) for word in words]
        block = _Block(builder, rows, chosen, upcoming, width)
        return block.train(copies, factors, block.spread(arguments[6]), arguments[7], arguments[8])

    return types.float32(
        vectors, own, contexts, outputs, moved, weights, rate, is_first, is_last, count, stride
    ), generate


@_literal_intrinsic
def row_address(_typing: Any, tables: Any, own: Any, word: Any, stride: Any) -> Any:
    """Of the word's row, as an integer."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        tables_at = _addresses(context, builder, tables, arguments[0])
        row = _Emitter(builder).row(tables_at, arguments[1], arguments[2], stride.literal_value)
        return builder.ptrtoint(row, _INT64)

    return types.int64(tables, own, word, stride), generate


@_literal_intrinsic
def prefetch_row(_typing: Any, tables: Any, own: Any, word: Any, stride: Any) -> Any:
    """Asks for the cache lines of the word's row, which will be written."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        tables_at = _addresses(context, builder, tables, arguments[0])
        emitter = _Emitter(builder)
        row = emitter.row(tables_at, arguments[1], arguments[2], stride.literal_value)
        for column in range(0, stride.literal_value, LANES):
            emitter.prefetch(row, _INT64(column))
        return context.get_dummy_value()

    return types.void(tables, own, word, stride), generate
