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
`splat`, `fma`, `add`, `relu`          arithmetic
`where_positive`                       the gradient of ReLU
`largest_of_four`                      2x2 max pooling with ReLU, and the index of the maximum
`transpose`                            a square block of vectors
`linear`                               a constant matrix times a column of vectors
`tile`                                 a tile of a matrix product, in registers
`where_tagged`, `compress`             select elements by tag; pack the nonzero elements
`gather`                               sums over lists of (offset, value), in registers
`enter`, `increment`, `peek`           call native code; integers that threads share
=====================================  ============================================================

An operation is written as a function that emits LLVM code. The decorator `operation` makes it
callable in kernels; other operations emit the same code by ``load.emit(builder, ...)``. The code of
`tile` and `gather` is generated for each of the sizes that they support: ``tile(6, 2, ...)`` uses
twelve accumulators.
"""

import functools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, codegen, types
from numba.extending import intrinsic, models, register_model


def _features() -> list[str]:
    """Return the features of the CPU that Numba compiles for, each with a plus or a minus sign."""
    features = numba.config.CPU_FEATURES
    return (codegen.get_host_cpu_features() if features is None else features).split(",")


def _width() -> int:
    """Return the number of bytes of a vector on this CPU, or as set in the environment."""
    text = os.environ.get("MINICNN_VECTOR_BYTES")
    if text is not None:
        if text not in ("16", "32", "64"):
            raise ValueError(f"MINICNN_VECTOR_BYTES must be 16, 32 or 64, got {text!r}")
        return int(text)
    features = _features()
    return 64 if "+avx512f" in features else 32 if "+avx2" in features else 16


def _is_arm() -> bool:
    return platform.machine() in ("aarch64", "arm64")


def _has_half() -> bool:
    """Return whether the CPU converts float16; LLVM would call a function that is missing."""
    return _is_arm() or "+f16c" in _features()


VECTOR_BYTES = _width()
REGISTERS = 32 if VECTOR_BYTES == 64 or _is_arm() else 16
HAS_HALF = _has_half()
_HAS_PERMUTE = VECTOR_BYTES == 32 and "+avx2" in _features()
LANES = VECTOR_BYTES // 4  # of float32
VECTORS = 2  # per row of a tile of a matrix product
PANEL = VECTORS * LANES  # columns of float32 in a tile
ROWS = (REGISTERS - VECTORS - 1) // VECTORS  # of a tile, so that sums, a row of B and one of A fit
FEW_ROWS = (ROWS - 2) // 2  # of a smaller tile, for the remainder
SOME_ROWS = (ROWS + FEW_ROWS) // 2
ZEROED = 4  # written by `largest_of_four` if ReLU is zero, instead of 0 to 3

_INDEX = ir.IntType(64)


class Vector(types.Type):
    """The Numba type of a vector of `dtype`, float32 or float64."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype}, {VECTOR_BYTES} bytes)")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        element = ir.FloatType() if vector.dtype.bitwidth == 32 else ir.DoubleType()
        super().__init__(manager, vector, _vector_of(element))


def operation(
    result: Any = types.void, literals: int = 0
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a function that emits code callable in kernels.

    The function takes a builder and the LLVM values of the arguments, and returns the value of the
    result.

    Parameters
    ----------
    result : Numba type, or Vector
        Vector stands for a vector of the type of the first argument.
    literals : int
        So many of the first arguments are given as integers if they are literals in the call.
    """
    return functools.partial(_operation, result, literals)


def _operation(result: Any, literals: int, emit: Callable[..., Any]) -> Any:
    @functools.wraps(emit)
    def typed(typingctx: Any, *given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sizes = [getattr(kind, "literal_value", size)
                     for kind, size in zip(given[:literals], arguments, strict=False)]
            value = emit(builder, *sizes, *arguments[literals:])
            return context.get_dummy_value() if value is None else value

        returned = Vector(getattr(given[0], "dtype", given[0])) if result is Vector else result
        return returned(*given[:literals], *map(_argument, given[literals:])), generate

    function = intrinsic(prefer_literal=literals > 0)(typed)
    function.emit = emit
    return function


def _argument(kind: Any) -> Any:
    """Return the type that an argument is converted to: integers have 64 bits."""
    plain = types.int64, types.boolean  # also of literals
    return next((other for other in plain if isinstance(kind, type(other))), kind)


# Code of the operations ---------------------------------------------------------------------------


def _bits(element: Any) -> int:
    """Return the number of bits of an LLVM number type."""
    return int(element.intrinsic_name[1:])  # f32, f64, i8


def _vector_of(element: Any) -> ir.VectorType:
    """Return the LLVM type of a vector that fills a register."""
    return ir.VectorType(element, VECTOR_BYTES * 8 // _bits(element))


def _index(number: int) -> ir.Constant:
    return ir.Constant(_INDEX, number)


def _same(type_: ir.VectorType, number: float) -> ir.Constant:
    """Return a constant vector with the same number in all lanes."""
    return ir.Constant(type_, [number] * type_.count)


def _chosen(numbers: Sequence[int]) -> ir.Constant:
    """Return the constant that chooses lanes in a shuffle."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


@operation(Vector)
def splat(builder: Any, x: Any) -> Any:
    """Return a vector with the number x in all lanes."""
    return _repeat(builder, x, _vector_of(x.type).count)


def _repeat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _chosen([0] * lanes))


@operation(types.int64)
def lanes(builder: Any, place: Any) -> Any:
    """Return the number of elements in a vector, a compile-time constant, for a pointer's type."""
    return _index(_vector_of(place.type.pointee).count)


@intrinsic
def pointer(typingctx, base, index):
    """Return a pointer to element `index` of an array, or `index` elements after a pointer."""

    def generate(context, builder, signature, arguments):
        start, offset = arguments
        if isinstance(base, types.Array):
            start = context.make_array(base)(context, builder, start).data
        return builder.gep(start, [offset])

    return types.CPointer(base.dtype)(base, types.int64), generate


def _at(builder: Any, base: Any, index: Any, type_: Any) -> Any:
    """Return ``base + index`` as a pointer to a vector of the given type."""
    return builder.bitcast(builder.gep(base, [index]), type_.as_pointer())


@operation(Vector)
def load(builder: Any, source: Any, index: Any) -> Any:
    """Return the vector that starts at ``source[index]``."""
    type_ = _vector_of(source.type.pointee)
    return builder.load(_at(builder, source, index, type_), align=_bytes(type_))


def _load_wide(builder: Any, source: Any, index: Any, type_: Any) -> Any:
    """Return the vector that starts at ``source[index]``; 16-bit elements are float16 numbers."""
    if source.type.pointee != ir.IntType(16):
        return load.emit(builder, source, index)
    place = _at(builder, source, index, ir.VectorType(ir.HalfType(), type_.count))
    return builder.fpext(builder.load(place, align=2), type_)


@operation(Vector)
def load_some(builder: Any, source: Any, index: Any, count: Any) -> Any:
    """Return a vector of `count` elements from ``source[index]`` on, padded with zeros."""
    type_ = _vector_of(source.type.pointee)
    arguments = [*_masked(builder, source, index, count, type_), _same(type_, 0.0)]
    return _call(builder, "llvm.masked.load", type_, type_, arguments)


@operation()
def store(builder: Any, value: Any, target: Any, index: Any) -> None:
    """Write a vector to memory from ``target[index]`` on."""
    place = _at(builder, target, index, value.type)
    builder.store(value, place, align=_bytes(value.type))


@operation()
def store_some(builder: Any, value: Any, target: Any, index: Any, count: Any) -> None:
    """Write the first `count` lanes, or all if there are fewer, from ``target[index]`` on."""
    full = builder.icmp_signed(">=", count, _index(value.type.count))
    _if_else(builder, full, lambda: store.emit(builder, value, target, index),
             lambda: _store_masked(builder, value, target, index, count))


def _store_masked(builder: Any, value: Any, target: Any, index: Any, count: Any) -> None:
    """Emit a store of the first `count` lanes."""
    arguments = [value, *_masked(builder, target, index, count, value.type)]
    _call(builder, "llvm.masked.store", value.type, ir.VoidType(), arguments)


def _masked(builder: Any, base: Any, index: Any, count: Any, type_: Any) -> tuple[Any, Any, Any]:
    """Return the place, the alignment and a mask of the first `count` lanes, or of all."""
    numbers = ir.Constant(ir.VectorType(_INDEX, type_.count), list(range(type_.count)))
    mask = builder.icmp_signed("<", numbers, _repeat(builder, count, type_.count))
    alignment = ir.Constant(ir.IntType(32), _bytes(type_))
    return _at(builder, base, index, type_), alignment, mask


def _bytes(type_: ir.VectorType) -> int:
    """Return the number of bytes of an element, to which vectors are aligned."""
    return _bits(type_.element) // 8


def _element(builder: Any, source: Any, index: Any) -> Any:
    """Emit a load of ``source[index]``."""
    return builder.load(builder.gep(source, [index]))


@operation(Vector)
def broadcast(builder: Any, source: Any, index: Any) -> Any:
    """Return a vector with ``source[index]`` in all lanes."""
    return splat.emit(builder, _element(builder, source, index))


def _call(builder: Any, name: str, vector: Any, result: Any, arguments: Sequence[Any]) -> Any:
    """Emit a call of an LLVM intrinsic for a vector type."""
    masked = ".p0" if name.startswith("llvm.masked") else ""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]),
        f"{name}.v{vector.count}{vector.element.intrinsic_name}{masked}",
    )
    return builder.call(function, arguments)


@operation(Vector)
def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return ``x * y + z`` with a single rounding."""
    return _call(builder, "llvm.fma", x.type, x.type, [x, y, z])


@operation(Vector)
def add(builder: Any, x: Any, y: Any) -> Any:
    """Return ``x + y``."""
    return builder.fadd(x, y)


@operation(Vector)
def relu(builder: Any, x: Any) -> Any:
    """Return ``max(x, 0)``; NaN stays NaN."""
    zero = _same(x.type, 0.0)
    return builder.select(builder.fcmp_ordered("<=", x, zero), zero, x)


@operation(Vector)
def where_positive(builder: Any, x: Any, y: Any) -> Any:
    """Return y in the lanes where x > 0, and 0 in the others."""
    zero = _same(x.type, 0.0)
    return builder.select(builder.fcmp_ordered(">", x, zero), y, zero)


@operation()
def largest_of_four(
    builder: Any, x0: Any, x1: Any, x2: Any, x3: Any, bias: Any, y: Any, code: Any, count: Any
) -> None:
    """Write relu(max(x0, x1, x2, x3) + bias) to y, and the index of the maximum to code.

    The code is the index of the first largest element, or `ZEROED` if ReLU is zero; one byte per
    lane. NaN is the largest. Only the first `count` lanes are written.
    """
    code_type = ir.VectorType(ir.IntType(8), x0.type.count)

    def larger(x, y):  # y if it is larger or NaN, else x
        better = builder.or_(
            builder.fcmp_ordered(">", y[0], x[0]), builder.fcmp_unordered("uno", y[0], y[0])
        )
        return tuple(builder.select(better, b, a) for a, b in zip(x, y, strict=True))

    first, second, third, last = ((v, _same(code_type, i)) for i, v in enumerate((x0, x1, x2, x3)))
    value, winner = larger(larger(first, second), larger(third, last))
    value = builder.fadd(value, bias)
    negative = builder.fcmp_ordered("<=", value, _same(value.type, 0.0))
    winner = builder.select(negative, _same(code_type, ZEROED), winner)
    store_some.emit(builder, relu.emit(builder, value), y, _index(0), count)
    store_some.emit(builder, winner, code, _index(0), count)


@operation()
def transpose(builder: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> None:
    """Copy a square block with rows and columns exchanged.

    The block has as many rows as a vector has lanes. The strides of the rows are in elements.
    """
    lanes = _vector_of(source.type.pointee).count

    def row(stride, number):
        return builder.mul(stride, _index(number))

    rows = [load.emit(builder, source, row(source_row, i)) for i in range(lanes)]
    # Exchange blocks of 1, 2, 4, ... lanes between rows that are as far apart.
    size = 1
    while size < lanes:
        low = [i + (lanes - size if i & size else 0) for i in range(lanes)]
        high = [i + (lanes if i & size else size) for i in range(lanes)]
        for i in range(lanes):
            if not i & size:
                pair = rows[i], rows[i + size]
                rows[i] = builder.shuffle_vector(*pair, _chosen(low))
                rows[i + size] = builder.shuffle_vector(*pair, _chosen(high))
        size *= 2
    for i, value in enumerate(rows):
        store.emit(builder, value, target, row(target_row, i))


def linear(*factors: Mapping[int, Any]) -> Any:
    """Return a function that multiplies a column of vectors by one constant matrix after another.

    It is called as ``function(key, source, step, target, target_step)``, with the key of the
    matrices in `factors` and the distances between vectors.
    """

    def emit(
        builder: Any, key: Any, source: Any, step: Any, target: Any, target_step: Any
    ) -> None:
        def emit_one(known: int) -> None:
            places = (builder.mul(step, _index(i)) for i in range(len(factors[0][known][0])))
            lines = [load.emit(builder, source, place) for place in places]
            for factor in factors:
                lines = [_combination(builder, row, lines) for row in factor[known]]
            for i, line in enumerate(lines):
                store.emit(builder, line, target, builder.mul(target_step, _index(i)))

        _for_sizes(builder, [key], [(known,) for known in factors[0]], emit_one)

    return _operation(types.void, 1, emit)


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
            total = fma.emit(builder, _same(line.type, factor), line, total)
    return total


# Control flow of the operations -------------------------------------------------------------------


def _loop(builder: Any, count: Any, values: Sequence[Any], body: Callable[..., Any]) -> list[Any]:
    """Emit a loop with `count` iterations, and return the final values.

    ``body(i, values)`` emits one iteration and returns the new values, which stay in registers.
    """
    slots = [cgutils.alloca_once_value(builder, value) for value in values]
    with cgutils.for_range(builder, count) as loop:
        results = body(loop.index, [builder.load(slot) for slot in slots])
        for slot, result in zip(slots, results, strict=True):
            builder.store(result, slot)
        last = builder.block
    _keep_rolled(builder, last.terminator)
    return [builder.load(slot) for slot in slots]


def _keep_rolled(builder: Any, jump: Any) -> None:
    """Tell LLVM not to unroll the loop that this jump closes: a long body does not benefit."""
    module = builder.module
    advice = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = module.add_metadata([advice, _index(len(module.metadata))])
    loop.operands = (loop, advice)  # a loop is identified by a self-referencing node
    jump.set_metadata("llvm.loop", loop)


def _if_else(builder: Any, condition: Any, *emits: Callable[[], Any]) -> list[Any]:
    """Emit both branches, and return the values of the branch that is taken, if any."""
    slots: list[Any] = []
    with builder.if_else(condition) as ways:
        for way, emit in zip(ways, emits, strict=True):
            with way:
                values = emit() or []
                slots = slots or [cgutils.alloca_once(builder, value.type) for value in values]
                for slot, value in zip(slots, values, strict=True):
                    builder.store(value, slot)
    return [builder.load(slot) for slot in slots]


def _for_sizes(
    builder: Any, sizes: Sequence[Any], known: Sequence[tuple[int, ...]],
    emit: Callable[..., None],
) -> None:
    """Emit code for sizes, or if these are not literals, for all known ones and a switch."""
    if all(isinstance(size, int) for size in sizes):
        emit(*sizes)
        return
    end = builder.append_basic_block()
    key = functools.reduce(
        lambda key, size: builder.add(builder.mul(key, _index(256)), size), sizes
    )
    switch = builder.switch(key, end)
    for numbers in known:
        way = builder.append_basic_block()
        switch.add_case(_index(int.from_bytes(bytes(numbers), "big")), way)
        builder.position_at_end(way)
        emit(*numbers)
        builder.branch(end)
    builder.position_at_end(end)


# Products in registers ----------------------------------------------------------------------------

# Sizes (rows, vectors) of the tiles.
_TILES = sorted({(2, VECTORS), (FEW_ROWS, 1), (ROWS, 1), (FEW_ROWS, VECTORS), (SOME_ROWS, VECTORS),
                 (ROWS, VECTORS)})


def _products(
    builder: Any, rows: Sequence[Any], a: Any, a_step: Any, b: Any, b_step: Any, depth: Any,
    sums: Sequence[Any],
) -> tuple[Any, list[Any]]:
    """Emit sum[r][v] += a[rows[r] + k a_step] * B[k][v] for all k; return the end of B and sums.

    The number of vectors of B is the number of sums per row of A.
    """
    vectors = len(sums) // len(rows)
    lanes = sums[0].type.count

    def step(k, values):
        place, line, *totals = values
        b_ = [_load_wide(builder, line, _index(v * lanes), sums[0].type) for v in range(vectors)]
        for r, row in enumerate(rows):
            x = broadcast.emit(builder, place, row)
            for v in range(vectors):
                totals[r * vectors + v] = fma.emit(builder, x, b_[v], totals[r * vectors + v])
        return [builder.gep(place, [a_step]), builder.gep(line, [b_step]), *totals]

    _, end, *totals = _loop(builder, depth, [a, b, *sums], step)
    return end, totals


def _offset(builder: Any, steps: Any, number: Any) -> Any:
    """Emit ``number * steps``, or ``steps[number]`` if `steps` points to a list of offsets."""
    if isinstance(steps.type, ir.PointerType):
        return _element(builder, steps, number)
    return builder.mul(steps, number)


def _row_numbers(builder: Any, count: int, height: Any) -> list[Any]:
    """Emit the row numbers min(r, height - 1) for r = 0, ..., count - 1."""
    last = builder.sub(height, _index(1))
    return [_index(0), *(
        builder.select(builder.icmp_signed("<", _index(r), last), _index(r), last)
        for r in range(1, count)
    )]


@operation(literals=2)
def tile(
    builder: Any, rows: Any, vectors: Any, a: Any, first: Any, a_row: Any, a_col: Any, a_round: Any,
    b: Any, b_row: Any, s: Any, s_row: Any, c: Any, c_row: Any, height: Any, width: Any, depth: Any,
    rounds: Any, adds: Any,
) -> None:
    """Write C = S + A B for a tile of `rows` x `vectors` vectors of C.

    A is read from row `first` on, through two strides. Its columns are in `rounds` groups of
    `depth` columns, and each group starts `a_round` elements after the previous one. In place of
    `a_row` and `a_round`, pointers to lists of the offsets of rows or groups may be given; that of
    groups begins with 0 and has one item more. The rows of B, S and C are contiguous,
    and `b_row`, `s_row` and `c_row` elements apart. Only `height` rows and `width` columns of the
    tile are inside C. Nothing outside is read or written: rows below the last row of A repeat it.
    If `adds`, the result is added to C.
    """
    lanes = _vector_of(c.type.pointee).count

    def emit(count: int, across: int) -> None:
        numbers = _row_numbers(builder, count, height)
        full = builder.icmp_signed(">=", width, _index(across * lanes))

        def places(stride: Any) -> Iterator[Any]:
            """Yield the place of each vector, and the number of columns from there on."""
            for number in numbers:
                start = builder.mul(stride, number)
                for v in range(across):
                    left = builder.sub(width, _index(v * lanes))
                    yield builder.add(start, _index(v * lanes)), left

        def read(base: Any, stride: Any, finish: Callable[..., Any]) -> Any:
            return _if_else(
                builder, full,
                lambda: finish([load.emit(builder, base, at) for at, _ in places(stride)]),
                lambda: finish([load_some.emit(builder, base, *place) for place in places(stride)]),
            )

        def add_sums(values: Sequence[Any]) -> Any:  # directly after the loads: saves registers
            return [builder.fadd(*pair) for pair in zip(values, sums, strict=True)]

        def next_round(u: Any, values: Sequence[Any]) -> Any:
            place, line, *totals = values
            line, totals = _products(builder, lines, place, a_col, line, b_row, depth, totals)
            following = _offset(builder, a_round, builder.add(u, _index(1)))
            step = builder.sub(following, _offset(builder, a_round, u))
            return [builder.gep(place, [step]), line, *totals]

        sums = read(s, s_row, list)
        lines = [_offset(builder, a_row, builder.add(first, number)) for number in numbers]
        _, _, *sums = _loop(builder, rounds, [a, b, *sums], next_round)
        sums = _if_else(builder, adds, lambda: read(c, c_row, add_sums), lambda: sums)
        with builder.if_else(full) as (all_lanes, some_lanes):
            with all_lanes:
                for x, (at, _) in zip(sums, places(c_row), strict=True):
                    store.emit(builder, x, c, at)
            with some_lanes:
                for x, place in zip(sums, places(c_row), strict=True):
                    _store_masked(builder, x, c, *place)

    _for_sizes(builder, (rows, vectors), _TILES, emit)


# Sums over lists in registers ---------------------------------------------------------------------

# Sizes (rows, vectors) of the blocks of `gather`, by the number of registers.
_BLOCKS = {
    32: ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (1, 9), (1, 10), (3, 1),
         (3, 2), (3, 3), (3, 4), (3, 6), (5, 1), (5, 2), (5, 5)),
    16: ((1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (1, 9), (1, 10), (3, 1),
         (3, 2), (3, 3), (3, 4), (2, 6), (5, 1), (5, 2), (2, 5)),
}


@functools.cache
def gather_blocks(rows: int, vectors: int) -> np.ndarray:
    """Split rows of vectors into few blocks for `gather`: (first row, rows, first vector, vectors).

    Blocks are ordered from right to left. If targets overlap, the terms of each element are then
    added in the order of the lists.
    """
    widths = range(max(across for _, across in _BLOCKS[REGISTERS]), 0, -1)
    cuts = (_blocks_of_width(rows, vectors, width) for width in widths)
    return np.array(min(cuts, key=len), np.int64)


def _blocks_of_width(rows: int, vectors: int, width: int) -> list[tuple[int, int, int, int]]:
    """Split rows of vectors into blocks of at most `width` vectors."""
    blocks = []
    for v in reversed(range(0, vectors, width)):
        across, row = min(width, vectors - v), 0
        while row < rows:
            height = max(r for r, size in _BLOCKS[REGISTERS] if size == across and r <= rows - row)
            blocks.append((row, height, v, across))
            row += height
    return blocks


@operation(literals=2)
def gather(
    builder: Any, rows: Any, vectors: Any, source: Any, row: Any, lists: Any, count: Any,
    target: Any, step: Any, target_row: Any,
) -> None:
    """Add sums over lists to blocks of vectors of the target: list k to the block at k * step.

    With lists = (offsets, values, begins, ends), for all rows r and vectors v of a block, and all
    items e from begins[k] to ends[k] of list k:

        target[k * step + r * target_row + v] += values[e] * source[offsets[e] + r * row + v]

    The block size is one that `gather_blocks` returns. If it is not a literal, code for all sizes
    is emitted.
    """
    offsets, values, begins, ends = cgutils.unpack_tuple(builder, lists, 4)
    zero = _same(_vector_of(source.type.pointee), 0.0)

    def emit(high: int, wide: int) -> None:
        places = [(r, _index(v * zero.type.count)) for r in range(high) for v in range(wide)]
        lines = [builder.gep(source, [builder.mul(row, _index(r))]) for r in range(high)]

        def add_list(k: Any, _: Any) -> Any:
            begin = _element(builder, begins, k)

            def add_item(e: Any, sums: Sequence[Any]) -> Any:
                item = builder.add(begin, e)
                offset = builder.sext(_element(builder, offsets, item), _INDEX)
                value = broadcast.emit(builder, values, item)
                bases = [builder.gep(line, [offset]) for line in lines]
                loaded = [load.emit(builder, bases[r], v) for r, v in places]
                return [fma.emit(builder, value, *pair) for pair in zip(loaded, sums, strict=True)]

            length = builder.sub(_element(builder, ends, k), begin)
            sums = _loop(builder, length, [zero] * len(places), add_item)
            block = builder.gep(target, [builder.mul(step, k)])
            for (r, v), total in zip(places, sums, strict=True):
                line = builder.gep(block, [builder.mul(target_row, _index(r))])
                store.emit(builder, builder.fadd(load.emit(builder, line, v), total), line, v)
            return []

        _loop(builder, count, [], add_list)

    _for_sizes(builder, (rows, vectors), _BLOCKS[REGISTERS], emit)


@operation(Vector)
def where_tagged(builder: Any, x: Any, tags: Any, first: Any, count: Any) -> Any:
    """Return x in the lanes with one of `count` int32 tags from `first` on, and zero elsewhere."""
    low, size = (splat.emit(builder, builder.trunc(n, ir.IntType(32))) for n in (first, count))
    number = builder.sub(load.emit(builder, tags, _index(0)), low)
    chosen = builder.icmp_unsigned("<", number, size)
    return builder.select(chosen, x, _same(x.type, 0.0))


@operation(types.int64)
def compress(builder: Any, x: Any, offsets: Any, to_values: Any, to_offsets: Any) -> Any:
    """Write the nonzero elements of x and their offsets contiguously, and return their number.

    Complete vectors are written, with arbitrary elements at the end.
    """
    offset = load.emit(builder, offsets, _index(0))
    chosen = builder.fcmp_unordered("!=", x, _same(x.type, 0.0))
    mask = builder.bitcast(chosen, ir.IntType(x.type.count))
    for part, target in ((x, to_values), (offset, to_offsets)):
        store.emit(builder, _squeezed(builder, part, chosen, mask), target, _index(0))
    return builder.zext(builder.ctpop(mask), _INDEX)


def _squeezed(builder: Any, x: Any, chosen: Any, mask: Any) -> Any:
    """Emit x with the chosen lanes moved to the front, in order.

    AVX2 needs a table with the numbers of these lanes; LLVM would move one lane after the other.
    """
    if not _HAS_PERMUTE:
        return _call(builder, "llvm.experimental.vector.compress", x.type, x.type,
                     [x, chosen, ir.Constant(x.type, ir.Undefined)])
    order = np.argsort(np.arange(256)[:, None] >> np.arange(8) & 1 ^ 1, kind="stable")
    table = ir.Constant(ir.ArrayType(_INDEX, len(order)),
                        order.astype(np.uint8).view(np.uint64).ravel().tolist())
    place = builder.gep(cgutils.global_constant(builder, "order", table),
                        [_index(0), builder.zext(mask, _INDEX)])
    numbers = builder.bitcast(builder.load(place), ir.VectorType(ir.IntType(8), 8))
    kind = ir.VectorType(ir.IntType(32), 8)
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind, kind]), "llvm.x86.avx2.permd"
    )
    arguments = builder.bitcast(x, kind), builder.zext(numbers, kind)
    return builder.bitcast(builder.call(permute, arguments), x.type)


# Native code and threads --------------------------------------------------------------------------


@operation()
def enter(builder: Any, code: Any, x: Any, y: Any) -> None:
    """Call the native code at an address, a function of two integers without a result."""
    kind = ir.FunctionType(ir.VoidType(), [_INDEX, _INDEX])
    builder.call(builder.inttoptr(code, kind.as_pointer()), [x, y])


@operation(types.int64)
def increment(builder: Any, counter: Any) -> Any:
    """Add 1 to an integer that threads share, and return its value before."""
    return builder.atomic_rmw("add", counter, _index(1), "seq_cst")


@operation(types.int64)
def peek(builder: Any, counter: Any) -> Any:
    """Return the value of an integer that other threads change."""
    return builder.load_atomic(counter, "acquire", 8)
