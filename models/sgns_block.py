"""The inner part of skip-gram's kernel: some contexts of a run against all of its outputs.

By LLVM's instructions, since what the compiler's own vectoriser makes of such loops takes twice as long. Rows
are read a register at a time; scores, errors and losses are computed sixteen at a time on every processor.

models/sgns_cpu.py is what uses it, and says what a run is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

# type checkers do not see that a caller leaves out the first argument
_literal_intrinsic: Any = intrinsic(prefer_literal=True)

LANES = 16  # floats in a cache line, which rows are whole numbers of; and scores in a vector

_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
_WIDTH = 16 if _WIDE else 8  # floats of a row in a register: AVX-512's, or AVX2's (two of NEON's)
_ACCUMULATORS = 24 if _WIDE else 8  # dot products in flight: as many as registers hold beside their factors
_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_COLUMNS = ir.VectorType(_FLOAT, _WIDTH)
_INTEGERS = ir.VectorType(_INT32, LANES)

# exp2(x) - 1 over x, on [-1/2, 1/2], and log(1 + x) over x, on [0, 1]: polynomials, lowest power first
_EXP2 = (0.6931472, 0.24022651, 0.05550411, 0.009618129, 0.0013333558, 0.00015403530)
_LOG1P = (
    *(0.99999978, -0.49997175, 0.33271928, -0.24474774),
    *(0.17687477, -0.10685003, 0.0434939, -0.00837115),
)
_ROUNDING = 1.5 * 2.0**23  # added to a small number, it leaves the nearest integer in the lowest bits
_LARGEST = 80.0  # exp(-80) is still a normal number, and 1 + exp(-80) is 1


class _Emitter:
    """Emits LLVM's instructions for vectors: of a row's columns, and of sixteen scores."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def vector(self, numbers: Sequence[float]) -> Any:
        return ir.Constant(_VECTOR, [float(np.float32(number)) for number in numbers])

    def full(self, number: float) -> Any:
        return self.vector([number] * LANES)

    def zeros(self) -> Any:
        """Of a row's columns."""
        return ir.Constant(_COLUMNS, [0.0] * _WIDTH)

    def row(self, tables: tuple[Any, Any], own: Any, number: Any, stride: int) -> Any:
        """The address of a word's row: in the thread's own table if it is one of the first `own`."""
        shared, mine = tables
        wide = self.builder.sext(number, _INT64) if number.type.width < 64 else number
        table = self.builder.select(self.builder.icmp_signed("<", wide, own), mine, shared)
        return self.builder.gep(table, [self.builder.mul(wide, _INT64(stride))])

    def place(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())

    def load(self, base: Any, offset: Any, kind: Any = _COLUMNS) -> Any:
        """The numbers from base[offset] on; the tables promise no more than a float's alignment."""
        vector = self.builder.load(self.place(base, offset, kind))
        vector.align = 4  # bytes
        return vector

    def store(self, base: Any, offset: Any, vector: Any) -> None:
        self.builder.store(vector, self.place(base, offset, vector.type)).align = 4

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
        return self.lanes(self.builder.insert_element(undefined, scalar, _INT32(0)), [0] * LANES)

    def total(self, vector: Any) -> Any:
        """The sum of the lanes."""
        shape = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        add = self.builder.module.declare_intrinsic("llvm.vector.reduce.fadd.v16f32", fnty=shape)
        return self.builder.call(add, [_FLOAT(-0.0), vector], fastmath=("reassoc",))

    def totals(self, vectors: Sequence[Any]) -> Any:
        """The sums of up to 16 vectors: that of vectors[i] in lane _LANE_OF[i]. Other lanes are undefined.

        Halves are folded onto each other, two vectors in one: 2 shuffles and an addition for a pair of them,
        where one sum at a time takes 4 and 4.
        """
        left: list[Any] = [*vectors, *[None] * (LANES - len(vectors))]
        half = LANES // 2
        while half:
            pairs = zip(left[: len(left) // 2], left[len(left) // 2 :], strict=True)
            left = [None if a is None else self.folded(a, b, half) for a, b in pairs]
            half //= 2
        return left[0]

    def folded(self, a: Any, b: Any, half: int) -> Any:
        """Sixteen lanes: of each of the two vectors' stretches of 2 * half lanes, the sum of its halves."""
        other = ir.Constant(a.type, ir.Undefined) if b is None else b
        if a.type.count == half:  # nothing to add yet
            return self.two_lanes(a, other, range(LANES))
        low = [lane if lane % (2 * half) < half else lane + LANES - half for lane in range(LANES)]
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
        column, *vectors = [builder.phi(_INT64), *(builder.phi(_COLUMNS) for _ in carried)]
        results = body(column, vectors)
        following = builder.add(column, _INT64(_WIDTH))
        for phi, first, later in zip(
            [column, *vectors], [_INT64(0), *carried], [following, *results], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, builder.block)
        end = _INT64(stride)
        if not _WIDE:  # unrolled, loops would share what they load: more than registers hold (1.3x)
            end = builder.asm(ir.FunctionType(_INT64, [_INT64]), "", "=r,0", [end], side_effect=False)
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
        exponent = builder.add(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [127] * LANES))
        scale = builder.bitcast(builder.shl(exponent, ir.Constant(_INTEGERS, [23] * LANES)), _VECTOR)
        one = self.full(1.0)
        small = builder.fmul(self.multiply_add(self.polynomial(_EXP2, rest), rest, one), scale)  # exp(-|x|)
        large_error = builder.fdiv(one, builder.fadd(one, small))
        wrong = builder.fcmp_ordered("<", x, self.full(0.0))
        error = builder.select(wrong, large_error, builder.fmul(small, large_error))
        loss = builder.fmul(self.polynomial(_LOG1P, small), small)
        return error, builder.fadd(loss, builder.select(wrong, size, self.full(0.0)))


def _lane_of() -> list[int]:
    """Where _Emitter.totals leaves each vector's sum."""
    lanes = [0] * LANES
    for number in range(LANES):
        half, left, place = LANES // 2, LANES, number
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
    """

    def __init__(self, builder: Any, contexts: list[Any], chosen: list[Any], stride: int) -> None:
        super().__init__(builder)
        self.contexts, self.chosen, self.stride = contexts, chosen, stride

    def train(self, moves: Any, weights: Any, rate: Any) -> Any:
        """Moves the contexts' vectors, and adds to `moves`; returns the losses' sum."""
        loss, steps = (
            self.full(0.0),
            dict[tuple[int, int], Any](),
        )  # (context, output): a vector full of its step
        group = max(1, _ACCUMULATORS // len(self.contexts))
        for first in range(0, len(self.chosen), group):
            outputs = range(first, min(first + group, len(self.chosen)))
            pairs = [(i, j) for i in range(len(self.contexts)) for j in outputs]
            products = self.products(pairs)
            for start in range(0, len(pairs), LANES):
                some = pairs[start : start + LANES]
                vector, losses = self.steps(some, products[start : start + LANES], weights, rate)
                loss = self.builder.fadd(loss, losses)
                steps |= {pair: self.lanes(vector, [_LANE_OF[n]] * _WIDTH) for n, pair in enumerate(some)}
        self.over_columns(self.stride, [], lambda column, _: self.move(column, steps, moves))
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
        signs, order, used = [0.0] * LANES, [0] * LANES, [0] * LANES
        for lane, (_, j) in zip(_LANE_OF, pairs, strict=False):
            signs[lane], order[lane], used[lane] = 1.0 if j == 0 else -1.0, j - first, 1
        sign = self.vector(signs)
        weight = self.lanes(self.load(weights, _INT64(first), _VECTOR), order)
        error, loss = self.error_and_loss(self.builder.fmul(self.totals(products), sign))
        step = self.builder.fmul(self.builder.fmul(error, sign), self.builder.fmul(rate, weight))
        mask = ir.Constant(ir.VectorType(ir.IntType(1), LANES), used)
        return step, self.builder.select(mask, self.builder.fmul(loss, weight), self.full(0.0))

    def move(self, column: Any, steps: dict[tuple[int, int], Any], moves: Any) -> list[Any]:
        before = [self.load(row, column) for row in self.contexts]
        after = list(before)
        for j, row in enumerate(self.chosen):
            output = self.load(row, column)
            place = self.builder.add(_INT64(j * self.stride), column)
            move = self.load(moves, place)
            for i, vector in enumerate(before):
                after[i] = self.multiply_add(steps[i, j], output, after[i])
                move = self.multiply_add(steps[i, j], vector, move)
            self.store(moves, place, move)
        for row, vector in zip(self.contexts, after, strict=True):
            self.store(row, column, vector)
        return []


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Of an array's first number."""
    return context.make_array(kind)(context, builder, array).data


def _addresses(context: Any, builder: Any, kind: Any, arrays: Any) -> tuple[Any, Any]:
    """Of the first numbers of two arrays of one type, in a tuple."""
    first, second = (builder.extract_value(arrays, i) for i in (0, 1))
    return _address(context, builder, kind.dtype, first), _address(context, builder, kind.dtype, second)


# What compiled code calls. `vectors` and `outputs` are each a table that threads share, (V * stride,), and a
# thread's own copy of its first rows, (own * stride,). `count` and `stride` must be constants.


@_literal_intrinsic
def train_block(
    _typing: Any,
    vectors: Any,
    contexts: Any,  # a tuple of different ids
    outputs: Any,
    chosen: Any,  # (count,) ids: the target and the noise words
    own: Any,
    moves: Any,  # (count * stride,), which are added to
    weights: Any,  # (count + 16,), 0 for noise that does not count
    rate: Any,
    count: Any,
    stride: Any,
) -> Any:
    """Trains on some contexts of a run; returns their losses' sum."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emitter, width = _Emitter(builder), stride.literal_value
        inputs, results = (
            _addresses(context, builder, kind, arguments[i]) for kind, i in ((vectors, 0), (outputs, 2))
        )
        noise, sums, factors = (
            _address(context, builder, kind, arguments[i])
            for kind, i in ((chosen, 3), (moves, 5), (weights, 6))
        )
        words = [builder.extract_value(arguments[1], i) for i in range(len(contexts))]
        others = [builder.load(builder.gep(noise, [_INT64(j)])) for j in range(count.literal_value)]
        block = _Block(
            builder,
            [emitter.row(inputs, arguments[4], word, width) for word in words],
            [emitter.row(results, arguments[4], word, width) for word in others],
            width,
        )
        return block.train(sums, factors, block.spread(arguments[7]))

    return types.float32(
        vectors, contexts, outputs, chosen, own, moves, weights, rate, count, stride
    ), generate


@_literal_intrinsic
def add_row(_typing: Any, tables: Any, own: Any, word: Any, moves: Any, number: Any, stride: Any) -> Any:
    """Adds the row `number` of `moves` to the word's row; it becomes zero."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emitter, width = _Emitter(builder), stride.literal_value
        row = emitter.row(
            _addresses(context, builder, tables, arguments[0]), arguments[1], arguments[2], width
        )
        moved = builder.gep(
            _address(context, builder, moves, arguments[3]), [builder.mul(arguments[4], _INT64(width))]
        )

        def add(column: Any, _: list[Any]) -> list[Any]:
            emitter.store(row, column, builder.fadd(emitter.load(row, column), emitter.load(moved, column)))
            emitter.store(moved, column, emitter.zeros())
            return []

        emitter.over_columns(width, [], add)
        return context.get_dummy_value()

    return types.void(tables, own, word, moves, number, stride), generate


@_literal_intrinsic
def prefetch_row(_typing: Any, tables: Any, own: Any, word: Any, stride: Any) -> Any:
    """Asks for the cache lines of the word's row, which will be written."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        tables_at = _addresses(context, builder, tables, arguments[0])
        row = _Emitter(builder).row(tables_at, arguments[1], arguments[2], stride.literal_value)
        shape = ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=shape)
        for_writing, into_every_level, cached = _INT32(1), _INT32(3), _INT32(1)
        for column in range(0, stride.literal_value, LANES):
            address = builder.bitcast(builder.gep(row, [_INT64(column)]), _BYTES)
            builder.call(prefetch, [address, for_writing, into_every_level, cached])
        return context.get_dummy_value()

    return types.void(tables, own, word, stride), generate
