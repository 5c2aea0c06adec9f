"""A vector type for Numba: 32 bytes, eight float32 or four float64, one machine register on AVX.

A vector is an opaque value whose representation is an LLVM vector. LLVM legalises it on any
processor: two registers with SSE or NEON, one with AVX. The operations are named functions, so
Numba's own operators stay as they were.

Vectors are read and written through pointers, as in C: ``p = pointer(array, i)`` points at element
`i` of an array, counted from its start whatever its rank; ``p[3]`` is the third element behind it,
and ``pointer(p, n)`` lies `n` elements further. No bounds are checked, and the array must outlive
the pointer. A helper that takes pointers compiles once for any rank, read-only or not. Addresses
are formed from the array's own data pointer by LLVM's `getelementptr` alone: arithmetic on integer
addresses can be miscompiled once Numba links the kernel again from its cache.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

VECTOR_BYTES = 32


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


def _llvm_type(vector: Vector) -> ir.VectorType:
    element = ir.FloatType() if vector.dtype.bitwidth == 32 else ir.DoubleType()
    return ir.VectorType(element, vector.lanes)


def _splat(builder: Any, vector: Vector, scalar: Any) -> Any:
    undefined = ir.Constant(_llvm_type(vector), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, undefined, lanes)


@intrinsic
def pointer(typingctx, base, index):
    """Return a pointer to element `index` of an array, or `index` elements behind a pointer."""

    def generate(context, builder, signature, arguments):
        start, offset = arguments
        if isinstance(base, types.Array):
            start = context.make_array(base)(context, builder, start).data
        return builder.gep(start, [offset])

    return types.CPointer(base.dtype)(base, types.int64), generate


@intrinsic
def lanes(typingctx, place):
    """Return how many elements of a pointer's type make a vector: a constant to the compiler."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), Vector(place.dtype).lanes)

    return types.int64(place), generate


@intrinsic
def as_integers(typingctx, place):
    """Return a pointer to float32 as one to int32: lists of both lie in one scratch."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.int32)(place), generate


@intrinsic
def load(typingctx, source, index):
    """Return the vector at ``source[index]`` and behind."""

    def generate(context, builder, signature, arguments):
        vector = _llvm_type(signature.return_type).as_pointer()
        at = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), vector)
        return builder.load(at, align=source.dtype.bitwidth // 8)

    return Vector(source.dtype)(source, types.int64), generate


@intrinsic
def store(typingctx, vector, target, index):
    """Write the vector to ``target[index]`` and behind."""

    def generate(context, builder, signature, arguments):
        value, base, offset = arguments
        at = builder.bitcast(builder.gep(base, [offset]), value.type.as_pointer())
        builder.store(value, at, align=target.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(vector, target, types.int64), generate


@intrinsic
def broadcast(typingctx, source, index):
    """Return a vector with ``source[index]`` in every lane."""

    def generate(context, builder, signature, arguments):
        scalar = builder.load(builder.gep(arguments[0], [arguments[1]]))
        return _splat(builder, signature.return_type, scalar)

    return Vector(source.dtype)(source, types.int64), generate


@intrinsic
def fma(typingctx, x, y, z):
    """Return ``x * y + z`` in one rounding."""

    def generate(context, builder, signature, arguments):
        vector = arguments[0].type
        bits = signature.return_type.dtype.bitwidth
        name = f"llvm.fma.v{signature.return_type.lanes}f{bits}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), name
        )
        return builder.call(function, arguments)

    return x(x, x, x), generate


@intrinsic
def spread(typingctx, x):
    """Return a vector with the number x in every lane."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, signature.return_type, arguments[0])

    return Vector(x)(x), generate


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
        zero = ir.Constant(arguments[0].type, [0.0] * signature.return_type.lanes)
        dead = builder.fcmp_ordered("<=", arguments[0], zero)
        return builder.select(dead, zero, arguments[0])

    return x(x), generate


@intrinsic
def pool_relu(typingctx, x0, x1, x2, x3, bias, y, code):
    """Write max(x0, x1, x2, x3) + bias through ReLU to y, and where it came from to code.

    The code is the number of the first largest, or 4 where ReLU is zero; one byte a lane. NaN
    counts as the largest.
    """

    def generate(context, builder, signature, arguments):
        *values, shift, target, codes = arguments
        lanes = x0.lanes

        def constant(number):
            return ir.Constant(ir.VectorType(ir.IntType(8), lanes), [number] * lanes)

        def larger(x, y):  # y where it is larger or NaN, else x
            better = builder.or_(
                builder.fcmp_ordered(">", y[0], x[0]), builder.fcmp_unordered("uno", y[0], y[0])
            )
            return tuple(builder.select(better, b, a) for a, b in zip(x, y, strict=True))

        first, second, third, last = ((v, constant(i)) for i, v in enumerate(values))
        value, winner = larger(larger(first, second), larger(third, last))
        value = builder.fadd(value, shift)
        zero = ir.Constant(value.type, [0.0] * lanes)
        dead = builder.fcmp_ordered("<=", value, zero)
        for result, pointer_, align in (
            (builder.select(dead, zero, value), target, 4),
            (builder.select(dead, constant(4), winner), codes, 1),
        ):
            at = builder.bitcast(pointer_, result.type.as_pointer())
            builder.store(result, at, align=align)
        return context.get_dummy_value()

    return types.void(x0, x0, x0, x0, x0, y, code), generate


def _sum_list(builder: Any, vector: Vector, source: Any, step: Any, items: Any, sums: Any) -> Any:
    """Emit a loop over a list that adds value[e] * source[offset[e] + v step] to sum v."""
    offsets, values, length = items
    llvm, index = _llvm_type(vector), ir.IntType(64)
    name = f"llvm.fma.v{vector.lanes}f{vector.dtype.bitwidth}"
    fma_type = ir.FunctionType(llvm, [llvm] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, fma_type, name)

    before = builder.block
    head, body, end = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    e = builder.phi(index)
    e.add_incoming(ir.Constant(index, 0), before)
    totals = [builder.phi(llvm) for _ in sums]
    builder.cbranch(builder.icmp_signed("<", e, length), body, end)
    builder.position_at_end(body)
    offset = builder.sext(builder.load(builder.gep(offsets, [e])), index)
    value = _splat(builder, vector, builder.load(builder.gep(values, [e])))
    base = builder.gep(source, [offset])
    for v, (start, total) in enumerate(zip(sums, totals, strict=True)):
        line = _load_vector(builder, base, builder.mul(step, ir.Constant(index, v)), vector)
        total.add_incoming(start, before)
        total.add_incoming(builder.call(multiply_add, [value, line, total]), body)
    e.add_incoming(builder.add(e, ir.Constant(index, 1)), body)
    builder.branch(head)
    builder.position_at_end(end)
    return totals


def _load_vector(builder: Any, base: Any, index: Any, vector: Vector) -> Any:
    at = builder.bitcast(builder.gep(base, [index]), _llvm_type(vector).as_pointer())
    return builder.load(at, align=vector.dtype.bitwidth // 8)


def _add_to(builder: Any, vector: Vector, target: Any, sums: Any) -> None:
    """Emit target[v] += sum v, vectors side by side."""
    for v, total in enumerate(sums):
        index = ir.Constant(ir.IntType(64), v * vector.lanes)
        place = builder.bitcast(builder.gep(target, [index]), _llvm_type(vector).as_pointer())
        result = builder.fadd(_load_vector(builder, target, index, vector), total)
        builder.store(result, place, align=vector.dtype.bitwidth // 8)


def _make_gather(count: int) -> Any:
    @intrinsic
    def gather(typingctx, source, step, offsets, values, length, target):
        """Add to vector v of target the sum over e of value[e] * source[offset[e] + v step]."""
        vector = Vector(source.dtype)

        def generate(context, builder, signature, arguments):
            source_, step_, *items, target_ = arguments
            zeros = [ir.Constant(_llvm_type(vector), [0.0] * vector.lanes)] * count
            sums = _sum_list(builder, vector, source_, step_, items, zeros)
            _add_to(builder, vector, target_, sums)
            return context.get_dummy_value()

        return types.void(source, types.int64, offsets, values, types.int64, target), generate

    return gather


def _make_gather_pair(count: int) -> Any:
    @intrinsic
    def gather_pair(typingctx, source, offsets, values, length, offsets2, values2, length2, target):
        """Gather twice, side by side: the second list adds to a target two vectors further.

        The two targets overlap, and what they share is read and written once.
        """
        vector = Vector(source.dtype)

        def generate(context, builder, signature, arguments):
            source_, *lists, target_ = arguments
            step = ir.Constant(ir.IntType(64), vector.lanes)
            sums = [ir.Constant(_llvm_type(vector), [0.0] * vector.lanes)] * (count + 2)
            for shift, items in ((0, lists[:3]), (2, lists[3:])):
                sums[shift : shift + count] = _sum_list(
                    builder, vector, source_, step, items, sums[shift : shift + count]
                )
            _add_to(builder, vector, target_, sums)
            return context.get_dummy_value()

        lists = (offsets, values, types.int64)
        return types.void(source, *lists, *lists, target), generate

    return gather_pair


# How many sums are kept in registers while a list is walked through; `sparse` picks one.
gather10, gather8, gather6, gather5, gather3, gather2, gather1 = map(
    _make_gather, (10, 8, 6, 5, 3, 2, 1)
)
gather_pair10, gather_pair6 = map(_make_gather_pair, (10, 6))


@intrinsic
def transpose(typingctx, source, source_row, target, target_row):
    """Copy a square of vectors with rows and columns exchanged.

    It has as many rows as a vector has lanes, so many elements apart.
    """
    vector = Vector(source.dtype)

    def generate(context, builder, signature, arguments):
        source_, source_row_, target_, target_row_ = arguments
        lanes, align = vector.lanes, vector.dtype.bitwidth // 8

        def row(pointer_, stride, number):
            index = builder.mul(stride, ir.Constant(ir.IntType(64), number))
            return builder.bitcast(builder.gep(pointer_, [index]), _llvm_type(vector).as_pointer())

        rows = [builder.load(row(source_, source_row_, i), align=align) for i in range(lanes)]
        # Rounds of exchanges between rows 1, 2 (and 4) apart, of blocks of 1, 2 (and 4) lanes.
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
            builder.store(value, row(target_, target_row_, i), align=align)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate
