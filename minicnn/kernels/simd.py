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
