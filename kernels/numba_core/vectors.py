"""Vectors of lanes, a type for Numba: 64 bytes that LLVM keeps in registers, in as many as the machine needs.

Loops over lanes that LLVM vectorises by itself come out in half the width and with checks for overlap; here
the kernel says what is a vector. Rounding is that of the operations as written, but for a·b + c, which may be
one operation ("contract"); nothing is reassociated, and NaN and infinities keep their meaning.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

BITS = 512
FUSED = ("contract",)


class VectorType(types.Type):
    """Lanes of one floating dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.lanes = dtype, BITS // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        element = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def _constant(value: float, t: Any) -> Any:
    return ir.Constant(t, [value] * t.count)


def _address(context: Any, builder: Any, array: Any, args: Any, vector: Any) -> Any:
    data = context.make_array(array)(context, builder, args[0]).data
    place = builder.gep(data, [args[1]])
    return builder.bitcast(place, context.get_value_type(vector).as_pointer())


@intrinsic
def load(typing: Any, array: Any, i: Any) -> Any:
    """The lanes at array[i:]."""
    vector = VectorType(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _address(context, builder, array, args, vector)
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, i: Any, x: Any) -> Any:
    """array[i:] = x, as many as there are lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _address(context, builder, array, args, x)
        builder.store(args[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), generate


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """The memory at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def count(typing: Any, words: Any, i: Any) -> Any:
    """words[i], and one more is there for the next thread that asks."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(words)(context, builder, args[0]).data
        place = builder.gep(data, [args[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(words, types.intp), generate


@intrinsic
def lanes(typing: Any, array: Any) -> Any:
    """How many lanes a vector of the array's dtype has, a constant."""
    n = VectorType(array.dtype).lanes

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, n)

    return types.intp(array), generate


@intrinsic
def spread(typing: Any, array: Any, i: Any) -> Any:
    """array[i] in every lane."""
    vector = VectorType(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return _splat(builder, builder.load(builder.gep(data, [args[1]])), context.get_value_type(vector))

    return vector(array, types.intp), generate


def _splat(builder: Any, value: Any, t: Any) -> Any:
    nothing, index = ir.Constant(t, ir.Undefined), ir.IntType(32)
    one = builder.insert_element(nothing, value, ir.Constant(index, 0))
    return builder.shuffle_vector(one, nothing, _constant(0, ir.VectorType(index, t.count)))


@intrinsic
def prefetch(typing: Any, array: Any, i: Any) -> Any:
    """Asks for the memory at array[i], which need not be there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        place = builder.bitcast(builder.gep(data, [args[1]]), byte)
        ask = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        )
        builder.call(ask, [place, *(ir.Constant(word, n) for n in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def splat(typing: Any, array: Any, value: Any) -> Any:
    """The value in every lane, of the dtype of the array (which is not looked at)."""
    vector = VectorType(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[1], context.get_value_type(vector))

    return vector(array, array.dtype), generate


def _binary(name: str) -> Any:
    @intrinsic
    def operation(typing: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args, flags=FUSED)

        return x(x, y), generate

    return operation


def _operator(symbol: Callable[..., Any], name: str) -> None:
    run = _binary(name)

    @overload(symbol, inline="always")
    def operation(x, y):
        if isinstance(x, VectorType) and x == y:
            return lambda x, y: run(x, y)
        return None


for _symbol, _name in ((operator.add, "fadd"), (operator.mul, "fmul")):
    _operator(_symbol, _name)


# e^r on [-ln 2 / 2, ln 2 / 2], 1 first: of least relative error, 3e-9 and 6e-20.
POLYNOMIALS = {
    32: (
        1.0, 1.00000004964037012, 0.500000043437705785, 0.166663654413136434, 0.0416647772891929119,
        0.00837901116061237608, 0.00140612409434210139,
    ),
    64: (
        1.0, 0.999999999999999998, 0.499999999999999998, 0.166666666666667128, 0.0416666666666670309,
        0.00833333333330414303, 0.0013888888888699741, 0.000198412699203413533, 0.0000248015877018199574,
        2.75572150440688981e-6, 2.75569411740857745e-7, 2.51180477050943847e-8, 2.102049867865676e-9,
    ),
}  # fmt: skip
# ln 2 in two parts (so that few bits of the first are set: n times it is exact), and the bits of a mantissa.
PARTS = {
    32: (0.693145751953125, 1.428606820309417232e-6, 23),
    64: (0.69314718036912381649, 1.9082149292705877e-10, 52),
}
# Below them, e^x is less than the least normal number and comes out as 0.
LOWEST = {32: -87.0, 64: -708.0}
LOG2E = 1.4426950408889634


@intrinsic
def exp(typing: Any, x: Any) -> Any:
    """e^x for x <= 1, to about an ulp; 1 at 0 and 0 at -inf, exactly.

    x = n ln 2 + r: a polynomial of r, and n into the bits of the exponent."""
    bits = x.dtype.bitwidth
    first, second, mantissa = PARTS[bits]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        t = context.get_value_type(x)
        whole = ir.VectorType(ir.IntType(bits), x.lanes)

        def fma(a: Any, b: Any, c: Any) -> Any:
            return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)

        def number(value: float) -> Any:
            return _constant(float(numpy.float32(value)) if bits == 32 else value, t)

        value = args[0]  # below LOWEST what follows is nonsense, and not taken
        there = builder.fcmp_ordered(">", value, number(LOWEST[bits]))
        # Adding 1.5 · 2^mantissa rounds, and leaves n in the low bits.
        magic = number(1.5 * 2.0**mantissa)
        shifted = fma(value, number(LOG2E), magic)
        n = builder.fsub(shifted, magic)
        r = fma(n, number(-second), fma(n, number(-first), value))
        last, *others = reversed(POLYNOMIALS[bits])
        p = number(last)
        for c in others:
            p = fma(p, r, number(c))
        exponent = builder.shl(builder.bitcast(shifted, whole), _constant(mantissa, whole))
        p = builder.bitcast(builder.add(builder.bitcast(p, whole), exponent), t)
        return builder.select(there, p, number(0.0))

    return x(x), generate


@intrinsic
def above(typing: Any, x: Any, limit: Any) -> Any:
    """A bit for every lane that is above the limit or NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        t = context.get_value_type(x)
        most = builder.fptrunc(args[1], t.element) if x.dtype.bitwidth == 32 else args[1]
        there = builder.fcmp_unordered(">", args[0], _splat(builder, most, t))
        return builder.zext(builder.bitcast(there, ir.IntType(x.lanes)), ir.IntType(64))

    return types.int64(x, types.float64), generate


@intrinsic
def sums(typing: Any, array: Any, i: Any) -> Any:
    """As many vectors as there are lanes, from array[i:]: lane n is the sum over the lanes of vector n.

    At each level two vectors become one: of every pair of lanes `h` apart, the first vector's sum lies in the
    one and the second's in the other."""
    vector = VectorType(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        n = vector.lanes
        place = _address(context, builder, array, args, vector)
        xs = [
            builder.load(
                builder.gep(place, [ir.Constant(ir.IntType(64), m)]), align=array.dtype.bitwidth // 8
            )
            for m in range(n)
        ]
        index = ir.VectorType(ir.IntType(32), n)
        h = n // 2
        while h:
            own = [n + lane if lane & h else lane for lane in range(n)]
            other = [at ^ h for at in own]

            def add(x: Any, y: Any, own: list[int] = own, other: list[int] = other) -> Any:
                a, b = (builder.shuffle_vector(x, y, ir.Constant(index, at)) for at in (own, other))
                return builder.fadd(a, b)

            xs = [add(x, y) for x, y in zip(xs[:h], xs[h:], strict=True)]
            h //= 2
        return xs[0]

    return vector(array, types.intp), generate
