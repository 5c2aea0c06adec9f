"""SIMD vectors for Numba kernels, as wide as a vector register of this CPU.

``VECTOR_BYTES`` and ``REGISTERS`` describe the instruction set that Numba compiles for: 64 bytes
and 32 registers with AVX-512, 32 and 16 with AVX2, 16 and 32 on AArch64, 16 and 16 otherwise. For
tests, the environment variable ``MINICNN_VECTOR_BYTES`` sets another width: LLVM splits vectors
that the CPU does not support. All other sizes derive from these two numbers. The order of a sum
does not depend on them, so results are bit-identical for any width.

A vector is an opaque Numba value, represented by an LLVM vector. The operations are named functions
and do not change Numba's operators.

Vectors are read and written through pointers, as in C: ``p = pointer(array, i)`` points to element
`i` of the flattened array, for any number of dimensions; ``p[3]`` is the third element after it,
and ``pointer(p, n)`` points to the n-th. Bounds are not checked, and the array must outlive the
pointer. A helper that takes pointers is compiled once for all ranks, read-only or not. Addresses
are computed from the data pointer of the array with LLVM's `getelementptr` only: arithmetic on
integer addresses can be miscompiled if Numba links the kernel again from its cache.

=====================================  ============================================================
`pointer`, `lanes`                     pointers into arrays; the number of elements of a vector
`load`, `store`, `broadcast`           load and store complete vectors; one element in all lanes
`load_some`, `store_some`              the same for the first lanes only, at the end of a row
`splat`, `fma`, `add`, `sub`, `relu`   arithmetic
`where_positive`                       the gradient of ReLU
`largest_of_four`                      2x2 max pooling with ReLU, and the index of the maximum
`transpose`                            a square block of vectors
`linear`                               a constant matrix times a column of vectors
`tile`                                 a tile of a matrix product, in registers
`where_equal`, `compress`              select elements by tag; pack the nonzero elements
`gather`                               sums over lists of (offset, value), in registers
=====================================  ============================================================

The code of `tile` and `gather` is generated for the literal sizes in a call: ``tile(6, 2, ...)``
uses twelve accumulators.
"""

import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, codegen, types
from numba.extending import intrinsic, models, register_model


def _width() -> int:
    """Return the number of bytes of a vector on this CPU, or as set in the environment."""
    text = os.environ.get("MINICNN_VECTOR_BYTES")
    if text is not None:
        if text not in ("16", "32", "64"):
            raise ValueError(f"MINICNN_VECTOR_BYTES must be 16, 32 or 64, got {text!r}")
        return int(text)
    features = numba.config.CPU_FEATURES
    names = (codegen.get_host_cpu_features() if features is None else features).split(",")
    return 64 if "+avx512f" in names else 32 if "+avx2" in names else 16


VECTOR_BYTES = _width()
REGISTERS = 32 if VECTOR_BYTES == 64 or platform.machine() in ("aarch64", "arm64") else 16
LANES = VECTOR_BYTES // 4  # of float32
VECTORS = 2  # per row of a tile of a matrix product
PANEL = VECTORS * LANES  # columns of float32 in a tile
ROWS = (REGISTERS - VECTORS - 1) // VECTORS  # of a tile, so that sums, a row of B and one of A fit
ZEROED = 4  # written by `largest_of_four` if ReLU is zero, instead of 0 to 3

_INDEX = ir.IntType(64)


class Vector(types.Type):
    """The Numba type of a vector of `dtype`, float32 or float64."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _llvm_type(vector))


# Code generation of the operations ----------------------------------------------------------------


def _llvm_type(vector: Vector) -> ir.VectorType:
    element = ir.FloatType() if vector.dtype.bitwidth == 32 else ir.DoubleType()
    return ir.VectorType(element, vector.lanes)


def _index(number: int) -> ir.Constant:
    return ir.Constant(_INDEX, number)


def _same(type_: ir.VectorType, number: float) -> ir.Constant:
    """Return a constant vector with the same number in all lanes."""
    return ir.Constant(type_, [number] * type_.count)


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _same(ir.VectorType(ir.IntType(32), lanes), 0))


def _at(builder: Any, base: Any, index: Any, type_: Any) -> Any:
    """Return ``base + index`` as a pointer to a vector of the given type."""
    return builder.bitcast(builder.gep(base, [index]), type_.as_pointer())


def _load(builder: Any, vector: Vector, base: Any, index: Any) -> Any:
    place = _at(builder, base, index, _llvm_type(vector))
    return builder.load(place, align=vector.dtype.bitwidth // 8)


def _store(builder: Any, value: Any, base: Any, index: Any) -> None:
    place = _at(builder, base, index, value.type)
    builder.store(value, place, align=_align(value.type))


def _align(type_: ir.VectorType) -> int:
    bits = {"float": 32, "double": 64}.get(str(type_.element))
    return (bits or type_.element.width) // 8


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Emit x * y + z with a single rounding."""
    return _call(builder, "llvm.fma", x.type, x.type, [x, y, z])


def _call(builder: Any, name: str, vector: Any, result: Any, arguments: Sequence[Any]) -> Any:
    """Emit a call of an LLVM intrinsic for a vector type."""
    kind = {"float": "f32", "double": "f64"}.get(str(vector.element)) or str(vector.element)
    masked = ".p0" if name.startswith("llvm.masked") else ""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]),
        f"{name}.v{vector.count}{kind}{masked}",
    )
    return builder.call(function, arguments)


def _mask(builder: Any, lanes: int, count: Any) -> Any:
    """Emit a mask of the first `count` lanes, or of all if there are fewer."""
    numbers = ir.Constant(ir.VectorType(_INDEX, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, count, lanes))


def _load_some(builder: Any, vector: Vector, base: Any, index: Any, count: Any) -> Any:
    """Emit a load of the first `count` lanes; the others are zero."""
    type_ = _llvm_type(vector)
    align = ir.Constant(ir.IntType(32), _align(type_))
    mask, zero = _mask(builder, vector.lanes, count), _same(type_, 0.0)
    place = _at(builder, base, index, type_)
    return _call(builder, "llvm.masked.load", type_, type_, [place, align, mask, zero])


def _store_masked(builder: Any, value: Any, base: Any, index: Any, count: Any) -> None:
    """Emit a store of the first `count` lanes."""
    align = ir.Constant(ir.IntType(32), _align(value.type))
    place, mask = _at(builder, base, index, value.type), _mask(builder, value.type.count, count)
    arguments = [value, place, align, mask]
    _call(builder, "llvm.masked.store", value.type, ir.VoidType(), arguments)


def _store_some(builder: Any, value: Any, base: Any, index: Any, count: Any) -> None:
    """Emit a store of the first `count` lanes, unmasked if these are all lanes."""
    full = builder.icmp_signed(">=", count, _index(value.type.count))
    with builder.if_else(full) as (whole, part):
        with whole:
            _store(builder, value, base, index)
        with part:
            _store_masked(builder, value, base, index, count)


def _loop(builder: Any, count: Any, values: Sequence[Any], body: Callable[..., Any]) -> list[Any]:
    """Emit a loop with `count` iterations, and return the final values.

    ``body(i, values)`` emits one iteration and returns the new values, which stay in registers (as
    phi nodes).
    """
    before = builder.block
    head, inside, end = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    i, current = builder.phi(_INDEX), [builder.phi(value.type) for value in values]
    builder.cbranch(builder.icmp_signed("<", i, count), inside, end)
    builder.position_at_end(inside)
    following = [*body(i, current), builder.add(i, _index(1))]
    for phi, first, next_ in zip([*current, i], [*values, _index(0)], following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, builder.block)
    _keep_rolled(builder, builder.branch(head))
    builder.position_at_end(end)
    return current


def _keep_rolled(builder: Any, jump: Any) -> None:
    """Tell LLVM not to unroll the loop that this jump closes: a long body does not benefit."""
    module = builder.module
    advice = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = module.add_metadata([advice, _index(len(module.metadata))])
    loop.operands = (loop, advice)  # a loop is identified by a self-referencing node
    jump.set_metadata("llvm.loop", loop)


# Pointers, loads and stores -----------------------------------------------------------------------


@intrinsic
def pointer(typingctx, base, index):
    """Return a pointer to element `index` of an array, or `index` elements after a pointer."""

    def generate(context, builder, signature, arguments):
        start, offset = arguments
        if isinstance(base, types.Array):
            start = context.make_array(base)(context, builder, start).data
        return builder.gep(start, [offset])

    return types.CPointer(base.dtype)(base, types.int64), generate


@intrinsic
def lanes(typingctx, place):
    """Return the number of elements in a vector, a compile-time constant, for a pointer's type."""
    lanes = Vector(place.dtype).lanes
    return types.int64(place), lambda context, builder, signature, arguments: _index(lanes)


@intrinsic
def load(typingctx, source, index):
    """Return the vector that starts at ``source[index]``."""
    vector = Vector(source.dtype)

    def generate(context, builder, signature, arguments):
        return _load(builder, vector, *arguments)

    return vector(source, types.int64), generate


@intrinsic
def load_some(typingctx, source, index, count):
    """Return a vector of `count` elements from ``source[index]`` on, padded with zeros."""
    vector = Vector(source.dtype)

    def generate(context, builder, signature, arguments):
        return _load_some(builder, vector, *arguments)

    return vector(source, types.int64, types.int64), generate


@intrinsic
def store(typingctx, vector, target, index):
    """Write a vector to memory from ``target[index]`` on."""

    def generate(context, builder, signature, arguments):
        _store(builder, *arguments)
        return context.get_dummy_value()

    return types.void(vector, target, types.int64), generate


@intrinsic
def store_some(typingctx, vector, target, index, count):
    """Write the first `count` lanes, or all if there are fewer, from ``target[index]`` on."""

    def generate(context, builder, signature, arguments):
        _store_some(builder, *arguments)
        return context.get_dummy_value()

    return types.void(vector, target, types.int64, types.int64), generate


@intrinsic
def broadcast(typingctx, source, index):
    """Return a vector with ``source[index]`` in all lanes."""
    vector = Vector(source.dtype)

    def generate(context, builder, signature, arguments):
        scalar = builder.load(builder.gep(arguments[0], [arguments[1]]))
        return _splat(builder, scalar, vector.lanes)

    return vector(source, types.int64), generate


@intrinsic
def splat(typingctx, x):
    """Return a vector with the number x in all lanes."""
    vector = Vector(x)

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], vector.lanes)

    return vector(x), generate


# Arithmetic ---------------------------------------------------------------------------------------


@intrinsic
def fma(typingctx, x, y, z):
    """Return ``x * y + z`` with a single rounding."""
    return x(x, x, x), lambda context, builder, signature, arguments: _fma(builder, *arguments)


@intrinsic
def add(typingctx, x, y):
    """Return ``x + y``."""
    return x(x, x), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def sub(typingctx, x, y):
    """Return ``x - y``."""
    return x(x, x), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def relu(typingctx, x):
    """Return ``max(x, 0)``; NaN stays NaN."""

    def generate(context, builder, signature, arguments):
        zero = _same(arguments[0].type, 0.0)
        negative = builder.fcmp_ordered("<=", arguments[0], zero)
        return builder.select(negative, zero, arguments[0])

    return x(x), generate


@intrinsic
def where_positive(typingctx, x, y):
    """Return y in the lanes where x > 0, and 0 in the others."""

    def generate(context, builder, signature, arguments):
        zero = _same(arguments[0].type, 0.0)
        positive = builder.fcmp_ordered(">", arguments[0], zero)
        return builder.select(positive, arguments[1], zero)

    return x(x, x), generate


@intrinsic
def largest_of_four(typingctx, x0, x1, x2, x3, bias, y, code, count):
    """Write relu(max(x0, x1, x2, x3) + bias) to y, and the index of the maximum to code.

    The code is the index of the first largest element, or `ZEROED` if ReLU is zero; one byte per
    lane. NaN is the largest. Only the first `count` lanes are written.
    """

    def generate(context, builder, signature, arguments):
        *values, shift, target, codes, some = arguments
        code_type = ir.VectorType(ir.IntType(8), x0.lanes)

        def larger(x, y):  # y if it is larger or NaN, else x
            better = builder.or_(
                builder.fcmp_ordered(">", y[0], x[0]), builder.fcmp_unordered("uno", y[0], y[0])
            )
            return tuple(builder.select(better, b, a) for a, b in zip(x, y, strict=True))

        first, second, third, last = ((v, _same(code_type, i)) for i, v in enumerate(values))
        value, winner = larger(larger(first, second), larger(third, last))
        value = builder.fadd(value, shift)
        zero = _same(value.type, 0.0)
        negative = builder.fcmp_ordered("<=", value, zero)
        value = builder.select(negative, zero, value)
        winner = builder.select(negative, _same(code_type, ZEROED), winner)
        _store_some(builder, value, target, _index(0), some)
        _store_some(builder, winner, codes, _index(0), some)
        return context.get_dummy_value()

    return types.void(x0, x0, x0, x0, x0, y, code, types.int64), generate


@intrinsic
def transpose(typingctx, source, source_row, target, target_row):
    """Copy a square block with rows and columns exchanged.

    The block has as many rows as a vector has lanes. The strides of the rows are in elements.
    """
    vector = Vector(source.dtype)

    def generate(context, builder, signature, arguments):
        source_, source_row_, target_, target_row_ = arguments
        lanes = vector.lanes

        def row(stride, number):
            return builder.mul(stride, _index(number))

        rows = [_load(builder, vector, source_, row(source_row_, i)) for i in range(lanes)]
        # Exchange blocks of 1, 2, 4, ... lanes between rows that are as far apart.
        size = 1
        while size < lanes:
            low = [i + (lanes - size if i & size else 0) for i in range(lanes)]
            high = [i + (lanes if i & size else size) for i in range(lanes)]
            for i in range(lanes):
                if not i & size:
                    pair = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (
                        builder.shuffle_vector(
                            *pair, ir.Constant(ir.VectorType(ir.IntType(32), lanes), chosen)
                        )
                        for chosen in (low, high)
                    )
            size *= 2
        for i, value in enumerate(rows):
            _store(builder, value, target_, row(target_row_, i))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


def linear(matrix: Sequence[Sequence[float]], before: bool, after: bool) -> Any:
    """Return a function that writes a constant matrix times a column of vectors.

    It is called as ``function(source, step, target, target_step)``, with the distances between
    vectors. If `before`, the input vectors 1 and 2, 3 and 4, ... are replaced by their sum and
    difference before the product. If `after`, the output vectors are replaced in the same way.
    """

    @intrinsic
    def multiply_line(typingctx, source, step, target, target_step):
        def generate(context, builder, signature, arguments):
            source_, step_, target_, target_step_ = arguments
            places = (builder.mul(step_, _index(i)) for i in range(len(matrix[0])))
            lines = [_load(builder, Vector(source.dtype), source_, place) for place in places]
            if before:
                _butterflies(builder, lines)
            lines = [_combination(builder, row, lines) for row in matrix]
            if after:
                _butterflies(builder, lines)
            for i, line in enumerate(lines):
                _store(builder, line, target_, builder.mul(target_step_, _index(i)))
            return context.get_dummy_value()

        return types.void(source, types.int64, target, types.int64), generate

    return multiply_line


def _butterflies(builder: Any, lines: list[Any]) -> None:
    """Replace the vectors 1 and 2, 3 and 4, ... by their sums and differences."""
    for i in range(1, len(lines) - 1, 2):
        pair = lines[i], lines[i + 1]
        lines[i : i + 2] = builder.fadd(*pair), builder.fsub(*pair)


def _combination(builder: Any, factors: Sequence[float], lines: Sequence[Any]) -> Any:
    """Emit the sum of factor * line, starting with the terms with a factor of 1."""
    terms = [(factor, line) for factor, line in zip(factors, lines, strict=True) if factor]
    terms.sort(key=lambda term: term[0] != 1)
    (factor, total), *rest = terms
    if factor != 1:
        total = builder.fmul(_same(total.type, factor), total)
    for factor, line in rest:
        if factor == 1:
            total = builder.fadd(total, line)
        else:
            total = _fma(builder, _same(line.type, factor), line, total)
    return total


# Products in registers ----------------------------------------------------------------------------


def _products(
    builder: Any, vector: Vector, rows: Sequence[Any], a: Any, a_step: Any, b: Any, b_step: Any,
    depth: Any, sums: Sequence[Any],
) -> tuple[Any, list[Any]]:
    """Emit sum[r][v] += a[rows[r] + k a_step] * B[k][v] for all k; return the end of B and sums.

    The number of vectors of B is the number of sums per row of A.
    """
    vectors = len(sums) // len(rows)

    def step(k, values):
        place, line, *totals = values
        b_ = [_load(builder, vector, line, _index(v * vector.lanes)) for v in range(vectors)]
        for r, row in enumerate(rows):
            x = _splat(builder, builder.load(builder.gep(place, [row])), vector.lanes)
            for v in range(vectors):
                totals[r * vectors + v] = _fma(builder, x, b_[v], totals[r * vectors + v])
        return [builder.gep(place, [a_step]), builder.gep(line, [b_step]), *totals]

    _, end, *totals = _loop(builder, depth, [a, b, *sums], step)
    return end, totals


def _if_else(builder: Any, condition: Any, *emits: Callable[[], Sequence[Any]]) -> list[Any]:
    """Emit both branches, and return the values of the branch that is taken (phi nodes), if any."""
    ends = []
    with builder.if_else(condition) as ways:
        for way, emit in zip(ways, emits, strict=True):
            with way:
                ends.append((emit(), builder.block))
    chosen = []
    for pair in zip(*(values for values, _ in ends), strict=True):
        if pair[0] is not None:  # None is the value of a store
            phi = builder.phi(pair[0].type)
            for value, (_, block) in zip(pair, ends, strict=True):
                phi.add_incoming(value, block)
            chosen.append(phi)
    return chosen


def _row_numbers(builder: Any, count: int, height: Any) -> list[Any]:
    """Emit the row numbers min(r, height - 1) for r = 0, ..., count - 1."""
    last = builder.sub(height, _index(1))
    below = [builder.icmp_signed("<", _index(r), last) for r in range(1, count)]
    rows = enumerate(below, 1)
    return [_index(0), *(builder.select(is_below, _index(r), last) for r, is_below in rows)]


@intrinsic(prefer_literal=True)
def tile(
    typingctx, rows, vectors, a, a_row, a_col, a_round, b, b_row, s, s_row, c, c_row, height, width,
    depth, rounds, adds,
):
    """Write C = S + A B for a tile of `rows` x `vectors` vectors of C, which are literals.

    A is read through two strides. Its columns are in `rounds` groups of `depth` columns, and each
    group starts `a_round` elements after the previous one. The rows of B, S and C are contiguous,
    and `b_row`, `s_row` and `c_row` elements apart. Only `height` rows and `width` columns of the
    tile are inside C. Nothing outside is read or written: rows below the last row of A repeat it.
    If `adds`, the result is added to C.
    """
    count, across = rows.literal_value, vectors.literal_value
    vector = Vector(c.dtype)

    def generate(context, builder, signature, arguments):
        (_, _, a_, a_row_, a_col_, a_round_, b_, b_row_, s_, s_row_, c_, c_row_, height_, width_,
         depth_, rounds_, adds_) = arguments
        numbers = _row_numbers(builder, count, height_)

        def places(stride):
            for number in numbers:
                start = builder.mul(stride, number)
                for v in range(across):
                    yield builder.add(start, _index(v * vector.lanes)), v

        def each(whole, part):
            """Emit both variants: for the full width, and for a narrower block."""
            full = builder.icmp_signed(">=", width_, _index(across * vector.lanes))
            return _if_else(builder, full, whole, part)

        def left(v):
            return builder.sub(width_, _index(v * vector.lanes))

        def read(base, stride, finish):
            return each(
                lambda: finish([_load(builder, vector, base, at) for at, _ in places(stride)]),
                lambda: finish([_load_some(builder, vector, base, at, left(v))
                                for at, v in places(stride)]),
            )

        def add_sums(values):  # directly after the loads, which saves registers
            return [builder.fadd(*pair) for pair in zip(values, sums, strict=True)]

        sums = read(s_, s_row_, list)
        lines = [builder.mul(a_row_, number) for number in numbers]

        def next_round(u, values):
            place, line, *totals = values
            line, totals = _products(
                builder, vector, lines, place, a_col_, line, b_row_, depth_, totals
            )
            return [builder.gep(place, [a_round_]), line, *totals]

        _, _, *sums = _loop(builder, rounds_, [a_, b_, *sums], next_round)
        sums = _if_else(builder, adds_, lambda: read(c_, c_row_, add_sums), lambda: sums)
        targets = list(zip(sums, places(c_row_), strict=True))
        each(
            lambda: [_store(builder, x, c_, at) for x, (at, _) in targets],
            lambda: [_store_masked(builder, x, c_, at, left(v)) for x, (at, v) in targets],
        )
        return context.get_dummy_value()

    i, adds = types.int64, types.boolean
    return types.void(rows, vectors, a, i, i, i, b, i, s, i, c, i, i, i, i, i, adds), generate


# Sums over lists in registers ---------------------------------------------------------------------

# Sizes (rows, vectors) of the blocks of `gather`, by the number of registers.
_APART = {
    32: ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (3, 1), (3, 2), (3, 3), (3, 4), (3, 6),
         (5, 1), (5, 2), (5, 5)),
    16: ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (3, 1), (3, 2), (3, 3), (3, 4), (2, 6),
         (5, 1), (5, 2), (2, 5)),
}
_OVERLAPPING = {32: ((1, 3), (1, 5), (1, 6), (1, 10), (3, 3), (3, 6)),
                16: ((1, 3), (1, 5), (1, 6), (1, 10), (3, 3))}


def _gathers() -> list[tuple[int, int, int]]:
    """Return the supported sizes (rows, vectors, shift) of blocks with sums in registers."""
    apart = [(rows, vectors, vectors) for rows, vectors in _APART[REGISTERS]]
    return apart + [(rows, v, 2 - v % 2) for rows, v in _OVERLAPPING[REGISTERS]]


def gather_blocks(rows: int, vectors: int, shift: int) -> list[tuple[int, int, int, int]]:
    """Split rows of vectors into blocks for `gather`: (first row, rows, first vector, vectors).

    Blocks are ordered from right to left. If targets overlap, the terms of each element are then
    added in the order of the lists.
    """
    known = [size for size in _gathers() if (size[1] == size[2]) == (shift >= vectors)]
    most = max(size[1] for size in known)
    width = -(-vectors // -(-vectors // most))  # of nearly equal parts
    blocks = []
    for v in reversed(range(0, vectors, width)):
        across, row = min(width, vectors - v), 0
        while row < rows:
            height = max(r for r, size, _ in known if size == across and r <= rows - row)
            blocks.append((row, height, v, across))
            row += height
    return blocks


def _add_to(builder: Any, vector: Vector, target: Any, row: Any, sums: Sequence[Any]) -> None:
    """Emit target[r * row + v] += sum[r][v] for rows of vectors."""
    for r, line in enumerate(sums):
        place = builder.gep(target, [builder.mul(row, _index(r))])
        for v, total in enumerate(line):
            index = _index(v * vector.lanes)
            before = _load(builder, vector, place, index)
            _store(builder, builder.fadd(before, total), place, index)


def _gather(
    builder: Any, vector: Vector, size: tuple[int, int, int], source: Any, row: Any,
    lists: Sequence[Any], count: Any, target: Any, step: Any, target_row: Any,
) -> None:
    """Emit the code of `gather` for one block size."""
    rows, vectors, shift = size
    offsets, values, begins, ends = lists
    lines = [builder.gep(source, [builder.mul(row, _index(r))]) for r in range(rows)]
    zero = _same(_llvm_type(vector), 0.0)

    def add_list(k, kept):
        begin = builder.load(builder.gep(begins, [k]))
        end = builder.load(builder.gep(ends, [k]))

        def add_item(e, sums):
            item = builder.add(begin, e)
            offset = builder.sext(builder.load(builder.gep(offsets, [item])), _INDEX)
            value = _splat(builder, builder.load(builder.gep(values, [item])), vector.lanes)
            bases = [builder.gep(line, [offset]) for line in lines]
            loaded = [_load(builder, vector, base, _index(v * vector.lanes))
                      for base in bases for v in range(vectors)]
            return [_fma(builder, value, *pair) for pair in zip(loaded, sums, strict=True)]

        start = [x for r in range(rows) for x in (*kept[r :: rows], *[zero] * shift)]
        sums = _loop(builder, builder.sub(end, begin), start, add_item)
        by_row = [sums[r * vectors : (r + 1) * vectors] for r in range(rows)]
        place = builder.gep(target, [builder.mul(step, k)])
        _add_to(builder, vector, place, target_row, [line[:shift] for line in by_row])
        left = zip(*(line[shift:] for line in by_row), strict=True)
        return [total for column in left for total in column]

    kept = _loop(builder, count, [zero] * (rows * (vectors - shift)), add_list)
    place = builder.gep(target, [builder.mul(step, count)])
    _add_to(builder, vector, place, target_row, [kept[r::rows] for r in range(rows)])


@intrinsic(prefer_literal=True)
def gather(
    typingctx, rows, vectors, shift, source, row, lists, count, target, step, target_row
):
    """Add sums over lists to blocks of vectors of the target: list k to the block at k * step.

    With lists = (offsets, values, begins, ends), for all rows r and vectors v of a block, and all
    items e from begins[k] to ends[k] of list k:

        target[k * step + r * target_row + v] += values[e] * source[offsets[e] + r * row + v]

    The block size is one that `gather_blocks` returns. If it is not a literal, code for all sizes
    is emitted. If `shift` is less than `vectors`, `step` is `shift` vectors, so the blocks overlap.
    The overlapping parts are then summed in registers before they are added to the target.
    """
    vector, literals = Vector(source.dtype), (rows, vectors, shift)

    def generate(context, builder, signature, arguments):
        *size, source_, row_, lists_, count_, target_, step_, target_row_ = arguments
        unpacked = cgutils.unpack_tuple(builder, lists_, 4)
        operands = source_, row_, unpacked, count_, target_, step_, target_row_
        if all(isinstance(number, types.IntegerLiteral) for number in literals):
            known = tuple(number.literal_value for number in literals)
            _gather(builder, vector, known, *operands)
            return context.get_dummy_value()
        end = builder.append_basic_block()
        key = size[0]
        for number in size[1:]:
            key = builder.add(builder.shl(key, _index(8)), number)
        switch = builder.switch(key, end)
        for known in _gathers():
            way = builder.append_basic_block()
            switch.add_case(_index((known[0] << 16) + (known[1] << 8) + known[2]), way)
            builder.position_at_end(way)
            _gather(builder, vector, known, *operands)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    i = types.int64
    return types.void(*literals, source, i, lists, i, target, i, i), generate


def _load_integers(builder: Any, source: Any, lanes: int) -> Any:
    """Emit a load of one int32 for each lane of a vector."""
    integers = ir.VectorType(ir.IntType(32), lanes)
    return builder.load(_at(builder, source, _index(0), integers), align=_align(integers))


@intrinsic
def where_equal(typingctx, x, tags, number):
    """Return x in the lanes whose int32 tag is equal to `number`, and zero in the others."""

    def generate(context, builder, signature, arguments):
        value, tags_, number_ = arguments
        number_ = builder.trunc(number_, ir.IntType(32))
        equal = builder.icmp_signed("==", _load_integers(builder, tags_, x.lanes),
                                    _splat(builder, number_, x.lanes))
        return builder.select(equal, value, _same(value.type, 0.0))

    return x(x, tags, types.int64), generate


@intrinsic
def compress(typingctx, x, offsets, to_values, to_offsets):
    """Write the nonzero elements of x and their offsets contiguously, and return their number.

    Complete vectors are written, with arbitrary elements at the end.
    """

    def generate(context, builder, signature, arguments):
        value, offsets_, *targets = arguments
        offset = _load_integers(builder, offsets_, x.lanes)
        chosen = builder.fcmp_unordered("!=", value, _same(value.type, 0.0))
        for part, target in zip((value, offset), targets, strict=True):
            undefined = ir.Constant(part.type, ir.Undefined)
            squeezed = _call(builder, "llvm.experimental.vector.compress", part.type, part.type,
                             [part, chosen, undefined])
            _store(builder, squeezed, target, _index(0))
        count = builder.ctpop(builder.bitcast(chosen, ir.IntType(x.lanes)))
        return builder.zext(count, _INDEX)

    return types.int64(x, offsets, to_values, to_offsets), generate
