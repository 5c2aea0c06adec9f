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
`number_fma`, `power_of_two`           arithmetic of single numbers
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

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen
from numba.extending import intrinsic, models, register_model


def _features() -> list[str]:
    """Return the features of the CPU that Numba compiles for, each with a plus or a minus sign."""
    features = numba.config.CPU_FEATURES
    return (codegen.get_host_cpu_features() if features is None else features).split(",")


def _width() -> int:
    """Return the number of bytes of a vector on this CPU, or as set in the environment."""
    native = 64 if "+avx512f" in _features() else 32 if "+avx2" in _features() else 16
    text = os.environ.get("MINICNN_VECTOR_BYTES", str(native))
    if text not in ("16", "32", "64"):
        raise ValueError(f"MINICNN_VECTOR_BYTES must be 16, 32 or 64, got {text!r}")
    return int(text)


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

_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Vector(types.Type):
    """The Numba type of a vector of `dtype`, float32 or float64."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype}, {VECTOR_BYTES} bytes)")


@register_model(Vector)
def _vector_model(manager, vector):
    """Return how LLVM represents a vector."""
    element = manager[vector.dtype].get_value_type()
    return models.PrimitiveModel(manager, vector, _vector_of(element))


def _vector(kind: Any) -> Vector:
    """Return the type of a vector for a type of numbers, of vectors or of pointers to numbers."""
    return Vector(getattr(kind, "dtype", kind))


def operation(
    result: Any = types.void, sizes: Sequence[tuple[int, ...]] = ((),)
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a function that emits code callable in kernels.

    The function takes a builder and the LLVM values of the arguments, and returns the value of the
    result.

    Parameters
    ----------
    result : Numba type, or function
        The type of the result, or a function that returns it for the type of the first argument.
    sizes : sequence of tuples of int
        The possible values of the first arguments, which the function gets as integers. If they
        are literals in a call, code for these is emitted, else for all sizes, with a switch.
    """
    count = len(sizes[0])

    def decorate(emit: Callable[..., Any]) -> Any:
        @functools.wraps(emit)
        def typed(typingctx: Any, *given: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                pairs = zip(signature.args, arguments, strict=True)
                values = [getattr(kind, "literal_value", value) for kind, value in pairs]
                value = _emit_for_sizes(builder, emit, sizes, values)
                return context.get_dummy_value() if value is None else value

            returned = result if isinstance(result, types.Type) else result(given[0])
            return returned(*given[:count], *map(_argument, given[count:])), generate

        function = intrinsic(prefer_literal=count > 0)(typed)
        function.emit = emit
        return function

    return decorate


def _argument(kind: Any) -> Any:
    """Return the type that an argument is converted to: integers have 64 bits."""
    return types.int64 if isinstance(kind, types.Integer) else types.unliteral(kind)


# Control flow of the operations -------------------------------------------------------------------


def _emit_for_sizes(
    builder: Any, emit: Callable[..., Any], sizes: Sequence[tuple[int, ...]],
    arguments: Sequence[Any],
) -> Any:
    """Emit code for the sizes among the arguments, or if unknown, for all sizes, with a switch."""
    count = len(sizes[0])
    if all(isinstance(size, int) for size in arguments[:count]):
        return emit(builder, *arguments)
    end = builder.append_basic_block()
    key = functools.reduce(
        lambda key, size: builder.add(builder.mul(key, _I64(256)), size), arguments[:count]
    )
    switch = builder.switch(key, end)
    for known in sizes:
        way = builder.append_basic_block()
        switch.add_case(_I64(int.from_bytes(bytes(known), "big")), way)
        builder.position_at_end(way)
        emit(builder, *known, *arguments[count:])
        builder.branch(end)
    builder.position_at_end(end)


@contextlib.contextmanager
def _loop(builder: Any, count: Any) -> Iterator[Any]:
    """Emit a loop of `count` iterations, whose body is emitted in the body of the `with` statement.

    LLVM is told not to unroll it: a long body does not benefit. Values that change are kept in
    memory by `cgutils.alloca_once`, for which LLVM uses registers.
    """
    with cgutils.for_range(builder, count) as loop:
        yield loop.index
        last = builder.block
    module = builder.module
    advice = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    name = module.add_metadata([advice, _I64(len(module.metadata))])
    name.operands = (name, advice)  # a loop is identified by a self-referencing node
    last.terminator.set_metadata("llvm.loop", name)


def _call(
    builder: Any, name: str, vector: Any, arguments: Sequence[Any], result: Any = None
) -> Any:
    """Emit a call of an LLVM intrinsic; `*` in its name stands for the type of the vectors."""
    name = name.replace("*", f"v{vector.count}{vector.element.intrinsic_name}")
    kind = ir.FunctionType(result or vector, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=kind), arguments)


# Vectors and memory -------------------------------------------------------------------------------


def _vector_of(element: Any) -> ir.VectorType:
    """Return the LLVM type of a vector that fills a register."""
    return ir.VectorType(element, VECTOR_BYTES * 8 // int(element.intrinsic_name[1:]))  # f32: 32


def _same(kind: ir.VectorType, number: float) -> ir.Constant:
    """Return a constant vector with the same number in all lanes."""
    return kind([number] * kind.count)


@operation(_vector)
def splat(builder: Any, x: Any) -> Any:
    """Return a vector with the number x in all lanes."""
    return _repeat(builder, x, _vector_of(x.type))


def _repeat(builder: Any, x: Any, kind: Any) -> Any:
    """Emit a vector of a type with the number x in all lanes."""
    first = builder.insert_element(kind(ir.Undefined), x, _I32(0))
    return builder.shuffle_vector(first, kind(ir.Undefined), ir.VectorType(_I32, kind.count)(None))


@operation(types.int64)
def lanes(builder: Any, place: Any) -> Any:
    """Return the number of elements in a vector, a compile-time constant, for a pointer's type."""
    return _I64(_vector_of(place.type.pointee).count)


@operation(lambda base: types.CPointer(base.dtype))
def pointer(builder: Any, base: Any, index: Any) -> Any:
    """Return a pointer to element `index` of an array, or `index` elements after a pointer."""
    if not isinstance(base.type, ir.PointerType):
        base = builder.extract_value(base, 4)  # the data of Numba's structure for an array
    return builder.gep(base, [index])


def _element(builder: Any, source: Any, index: Any) -> Any:
    """Emit a load of ``source[index]``."""
    return builder.load(builder.gep(source, [index]))


@operation(_vector)
def broadcast(builder: Any, source: Any, index: Any) -> Any:
    """Return a vector with ``source[index]`` in all lanes."""
    return splat.emit(builder, _element(builder, source, index))


@operation(_vector)
def load(builder: Any, source: Any, index: Any) -> Any:
    """Return the vector that starts at ``source[index]``."""
    return _read(builder, source, index)


@operation(_vector)
def load_some(builder: Any, source: Any, index: Any, count: Any) -> Any:
    """Return a vector of `count` elements from ``source[index]`` on, padded with zeros."""
    return _read(builder, source, index, count)


@operation()
def store(builder: Any, value: Any, target: Any, index: Any) -> None:
    """Write a vector to memory from ``target[index]`` on."""
    _write(builder, value, target, index)


@operation()
def store_some(builder: Any, value: Any, target: Any, index: Any, count: Any) -> None:
    """Write the first `count` lanes, or all if there are fewer, from ``target[index]`` on."""
    full = builder.icmp_signed(">=", count, _I64(value.type.count))
    with builder.if_else(full) as (complete, partial):
        with complete:
            _write(builder, value, target, index)
        with partial:
            _write(builder, value, target, index, count)


def _read(builder: Any, source: Any, index: Any, count: Any = None, kind: Any = None) -> Any:
    """Emit a load of a vector or, by a mask, of its first `count` lanes."""
    kind = kind or _vector_of(source.type.pointee)
    place = _at(builder, source, index, kind)
    if count is None:
        return builder.load(place, align=1)
    arguments = [place, _I32(1), _first_lanes(builder, count, kind), kind(None)]
    return _call(builder, "llvm.masked.load.*.p0", kind, arguments)


def _write(builder: Any, value: Any, target: Any, index: Any, count: Any = None) -> Any:
    """Emit a store of a vector or, by a mask, of its first `count` lanes."""
    place = _at(builder, target, index, value.type)
    if count is None:
        return builder.store(value, place, align=1)
    arguments = [value, place, _I32(1), _first_lanes(builder, count, value.type)]
    return _call(builder, "llvm.masked.store.*.p0", value.type, arguments, ir.VoidType())


def _at(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """Return ``base + index`` as a pointer to a vector of the given type."""
    return builder.bitcast(builder.gep(base, [index]), kind.as_pointer())


def _first_lanes(builder: Any, count: Any, kind: Any) -> Any:
    """Return a mask of the first `count` lanes, or of all."""
    numbers = ir.VectorType(_I64, kind.count)(list(range(kind.count)))
    return builder.icmp_signed("<", numbers, _repeat(builder, count, numbers.type))


# Arithmetic ---------------------------------------------------------------------------------------


@operation(_vector)
def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return ``x * y + z`` with a single rounding."""
    return _call(builder, "llvm.fma.*", x.type, [x, y, z])


@operation(lambda x: x)
def number_fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return ``x * y + z`` of numbers with a single rounding; loops over it are vectorized."""
    return builder.fma(x, y, z)


@operation(lambda t: t)
def power_of_two(builder: Any, t: Any) -> Any:
    """Return 2^n, where t = n + 1.5 * 2^m, and m is the number of bits of a mantissa.

    The last bits of t are those of the integer n; the least n gives 0.
    """
    is_single = t.type == ir.FloatType()
    whole, mantissa, bias = (_I32, 23, 127) if is_single else (_I64, 52, 1023)
    bits = builder.add(builder.bitcast(t, whole), whole(bias))
    return builder.bitcast(builder.shl(bits, whole(mantissa)), t.type)


@operation(_vector)
def add(builder: Any, x: Any, y: Any) -> Any:
    """Return ``x + y``."""
    return builder.fadd(x, y)


@operation(_vector)
def where_positive(builder: Any, x: Any, y: Any) -> Any:
    """Return y in the lanes where x is positive or NaN, and 0 in the others."""
    return builder.select(builder.fcmp_unordered(">", x, x.type(None)), y, y.type(None))


@operation(_vector)
def relu(builder: Any, x: Any) -> Any:
    """Return ``max(x, 0)``; NaN stays NaN."""
    return where_positive.emit(builder, x, x)


@operation(_vector)
def where_tagged(builder: Any, x: Any, tags: Any, first: Any, count: Any) -> Any:
    """Return x in the lanes with one of `count` int32 tags from `first` on, and zero elsewhere."""
    low, size = (splat.emit(builder, builder.trunc(n, _I32)) for n in (first, count))
    number = builder.sub(load.emit(builder, tags, _I64(0)), low)
    return builder.select(builder.icmp_unsigned("<", number, size), x, x.type(None))


@operation()
def largest_of_four(
    builder: Any, x0: Any, x1: Any, x2: Any, x3: Any, bias: Any, y: Any, code: Any, count: Any
) -> None:
    """Write relu(max(x0, x1, x2, x3) + bias) to y, and the index of the maximum to code.

    The code is the index of the first largest element, or `ZEROED` if ReLU is zero; one byte per
    lane. NaN is the largest. Only the first `count` lanes are written.
    """
    code_kind = ir.VectorType(ir.IntType(8), x0.type.count)

    def larger(x, y):  # y if it is larger or NaN, else x
        better = builder.or_(
            builder.fcmp_ordered(">", y[0], x[0]), builder.fcmp_unordered("uno", y[0], y[0])
        )
        return [builder.select(better, b, a) for a, b in zip(x, y, strict=True)]

    x = [(value, _same(code_kind, i)) for i, value in enumerate((x0, x1, x2, x3))]
    value, winner = larger(larger(x[0], x[1]), larger(x[2], x[3]))
    value = builder.fadd(value, bias)
    winner = builder.select(
        builder.fcmp_ordered("<=", value, value.type(None)), _same(code_kind, ZEROED), winner
    )
    store_some.emit(builder, relu.emit(builder, value), y, _I64(0), count)
    store_some.emit(builder, winner, code, _I64(0), count)


@operation(types.int64)
def compress(builder: Any, x: Any, offsets: Any, to_values: Any, to_offsets: Any) -> Any:
    """Write the nonzero elements of x and their offsets contiguously, and return their number.

    Complete vectors are written, with arbitrary elements at the end.
    """
    chosen = builder.fcmp_unordered("!=", x, x.type(None))
    mask = builder.bitcast(chosen, ir.IntType(x.type.count))
    for part, target in ((x, to_values), (load.emit(builder, offsets, _I64(0)), to_offsets)):
        store.emit(builder, _squeezed(builder, part, chosen, mask), target, _I64(0))
    return builder.zext(builder.ctpop(mask), _I64)


def _squeezed(builder: Any, x: Any, chosen: Any, mask: Any) -> Any:
    """Emit x with the chosen lanes moved to the front, in order.

    AVX2 needs a table with the numbers of these lanes; LLVM would move one lane after the other.
    """
    if not _HAS_PERMUTE:
        return _call(builder, "llvm.experimental.vector.compress.*", x.type,
                     [x, chosen, x.type(ir.Undefined)])
    order = np.argsort(np.arange(256)[:, None] >> np.arange(8) & 1 ^ 1, kind="stable")
    rows = order.astype(np.uint8).view(np.uint64).ravel().tolist()
    table = cgutils.global_constant(builder, "order", ir.ArrayType(_I64, len(rows))(rows))
    row = builder.load(builder.gep(table, [_I64(0), builder.zext(mask, _I64)]))
    kind = ir.VectorType(_I32, 8)
    numbers = builder.zext(builder.bitcast(row, ir.VectorType(ir.IntType(8), 8)), kind)
    moved = _call(builder, "llvm.x86.avx2.permd", kind, [builder.bitcast(x, kind), numbers])
    return builder.bitcast(moved, x.type)


@operation()
def transpose(builder: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> None:
    """Copy a square block with rows and columns exchanged.

    The block has as many rows as a vector has lanes. The strides of the rows are in elements.
    """
    lanes = _vector_of(source.type.pointee).count
    lanes_of_pair = ir.VectorType(_I32, lanes)
    rows = [load.emit(builder, source, builder.mul(source_row, _I64(i))) for i in range(lanes)]
    size = 1
    while size < lanes:
        # Exchange this bit of the numbers of row and column: the new element (i, j) comes from
        # row i - size or i + size of the other bit, if j has it, and from the column likewise.
        rows = [
            builder.shuffle_vector(rows[i & ~size], rows[i | size], lanes_of_pair(
                [(j & ~size | i & size) + (lanes if j & size else 0) for j in range(lanes)]
            ))
            for i in range(lanes)
        ]
        size *= 2
    for i, row in enumerate(rows):
        store.emit(builder, row, target, builder.mul(target_row, _I64(i)))


def linear(*factors: Mapping[int, Any]) -> Any:
    """Return a function that multiplies a column of vectors by one constant matrix after another.

    It is called as ``function(key, source, step, target, target_step)``, with the key of the
    matrices in `factors` and the distances between vectors.
    """

    @operation(sizes=[(key,) for key in factors[0]])
    def multiply(
        builder: Any, key: int, source: Any, step: Any, target: Any, target_step: Any
    ) -> None:
        places = (builder.mul(step, _I64(i)) for i in range(len(factors[0][key][0])))
        lines = [load.emit(builder, source, place) for place in places]
        for factor in factors:
            lines = [_combination(builder, row, lines) for row in factor[key]]
        for i, line in enumerate(lines):
            store.emit(builder, line, target, builder.mul(target_step, _I64(i)))

    return multiply


def _combination(builder: Any, factors: Sequence[float], lines: Sequence[Any]) -> Any:
    """Emit the sum of factor * line, starting with the terms with a factor of 1."""
    terms = [(factor, line) for factor, line in zip(factors, lines, strict=True) if factor]
    (factor, line), *rest = sorted(terms, key=lambda term: term[0] != 1)
    total = builder.fmul(_same(line.type, factor), line)
    for factor, line in rest:
        total = fma.emit(builder, _same(line.type, factor), line, total)
    return total


# Products in registers ----------------------------------------------------------------------------

# Sizes (rows, vectors) of the tiles.
_TILES = sorted({(2, VECTORS), (FEW_ROWS, 1), (ROWS, 1), (FEW_ROWS, VECTORS), (SOME_ROWS, VECTORS),
                 (ROWS, VECTORS)})


@operation(sizes=_TILES)
def tile(
    builder: Any, rows: int, vectors: int, a: Any, first: Any, a_row: Any, a_col: Any, a_round: Any,
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
    kind = _vector_of(c.type.pointee)
    halves = ir.VectorType(ir.HalfType(), kind.count)  # whose bits are given as integers
    b_kind = halves if b.type.pointee == ir.IntType(16) else kind
    last = builder.sub(height, _I64(1))
    numbers = [_I64(0), *(
        builder.select(builder.icmp_signed("<", _I64(r), last), _I64(r), last)
        for r in range(1, rows)
    )]
    columns = [_I64(v * kind.count) for v in range(vectors)]
    sums = {(r, v): cgutils.alloca_once(builder, kind) for r in range(rows) for v in range(vectors)}
    full = builder.icmp_signed(">=", width, _I64(vectors * kind.count))

    def places(stride: Any) -> Iterator[Any]:
        """Yield each sum and its place in a matrix, in a branch for tiles that are inside of C.

        Then yield them in a branch for other tiles, with the number of columns inside of C.
        """
        with builder.if_else(full) as branches:
            for branch, is_cut in zip(branches, (False, True), strict=True):
                with branch:
                    for (r, v), total in sums.items():
                        left = [builder.sub(width, columns[v])] if is_cut else []
                        yield total, builder.add(builder.mul(stride, numbers[r]), columns[v]), *left

    for total, *place in places(s_row):
        builder.store(_read(builder, s, *place), total)
    lines = [_offset(builder, a_row, builder.add(first, number)) for number in numbers]
    a_place = cgutils.alloca_once_value(builder, a)
    b_place = cgutils.alloca_once_value(builder, b)
    with _loop(builder, rounds) as u:
        start = builder.load(a_place)
        with _loop(builder, depth):
            a_, b_ = builder.load(a_place), builder.load(b_place)
            ys = [builder.fpext(_read(builder, b_, v, kind=b_kind), kind) for v in columns]
            for r, line in enumerate(lines):
                x = broadcast.emit(builder, a_, line)
                for v, y in enumerate(ys):
                    builder.store(fma.emit(builder, x, y, builder.load(sums[r, v])), sums[r, v])
            builder.store(builder.gep(a_, [a_col]), a_place)
            builder.store(builder.gep(b_, [b_row]), b_place)
        following = _offset(builder, a_round, builder.add(u, _I64(1)))
        step = builder.sub(following, _offset(builder, a_round, u))
        builder.store(builder.gep(start, [step]), a_place)
    with builder.if_then(adds):
        for total, *place in places(c_row):
            before = _read(builder, c, *place)
            builder.store(builder.fadd(before, builder.load(total)), total)
    for total, *place in places(c_row):
        _write(builder, builder.load(total), c, *place)


def _offset(builder: Any, steps: Any, number: Any) -> Any:
    """Emit ``number * steps``, or ``steps[number]`` if `steps` points to a list of offsets."""
    if isinstance(steps.type, ir.PointerType):
        return _element(builder, steps, number)
    return builder.mul(steps, number)


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


@operation(sizes=_BLOCKS[REGISTERS])
def gather(
    builder: Any, rows: int, vectors: int, source: Any, row: Any, lists: Any, count: Any,
    target: Any, step: Any, target_row: Any,
) -> None:
    """Add sums over lists to blocks of vectors of the target: list k to the block at k * step.

    With lists = (offsets, values, begins, ends), for all rows r and vectors v of a block, and all
    items e from begins[k] to ends[k] of list k:

        target[k * step + r * target_row + v] += values[e] * source[offsets[e] + r * row + v]

    The block size is one that `gather_blocks` returns.
    """
    offsets, values, begins, ends = cgutils.unpack_tuple(builder, lists, 4)
    kind = _vector_of(source.type.pointee)
    places = [(r, _I64(v * kind.count)) for r in range(rows) for v in range(vectors)]
    sums = [cgutils.alloca_once(builder, kind) for _ in places]
    lines = [builder.gep(source, [builder.mul(row, _I64(r))]) for r in range(rows)]
    with _loop(builder, count) as k:
        for total in sums:
            builder.store(kind(None), total)
        begin = _element(builder, begins, k)
        with _loop(builder, builder.sub(_element(builder, ends, k), begin)) as e:
            item = builder.add(begin, e)
            offset = builder.sext(_element(builder, offsets, item), _I64)
            value = broadcast.emit(builder, values, item)
            for (r, v), total in zip(places, sums, strict=True):
                x = load.emit(builder, builder.gep(lines[r], [offset]), v)
                builder.store(fma.emit(builder, value, x, builder.load(total)), total)
        block = builder.gep(target, [builder.mul(step, k)])
        for (r, v), total in zip(places, sums, strict=True):
            line = builder.gep(block, [builder.mul(target_row, _I64(r))])
            after = builder.fadd(load.emit(builder, line, v), builder.load(total))
            store.emit(builder, after, line, v)


# Native code and threads --------------------------------------------------------------------------


@operation()
def enter(builder: Any, code: Any, x: Any, y: Any) -> None:
    """Call the native code at an address, a function of two integers without a result."""
    kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
    builder.call(builder.inttoptr(code, kind.as_pointer()), [x, y])


@operation(types.int64)
def increment(builder: Any, counter: Any) -> Any:
    """Add 1 to an integer that threads share, and return its value before."""
    return builder.atomic_rmw("add", counter, _I64(1), "seq_cst")


@operation(types.int64)
def peek(builder: Any, counter: Any) -> Any:
    """Return the value of an integer that other threads change."""
    return builder.load_atomic(counter, "acquire", 8)
