"""Activations in fixed point and their products with bytes of codes: the operations of :mod:`tersor.kernels._simd` that only those need."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from tersor.kernels._llvm import (
    F32V,
    I32,
    I32V,
    I64,
    LANES,
    as_int,
    call_intrinsic,
    every,
    fixed,
    floats,
    ints,
    operation,
    read,
    same,
    splat_scalar,
    write,
)


@operation(lambda rows, columns: ints(rows * columns))
def int_zeros(context: Any, builder: Any, rows: int, columns: int) -> Any:
    return [ir.Constant(I32V, None)] * (rows * columns)


@operation(fixed(ints(1)))
def max_magnitude(context: Any, builder: Any, most: Any, x: Any) -> Any:
    """The larger of ``most`` and the magnitude of ``x``, as the bits of a float, which grow with it; NaN is the largest."""
    magnitude = builder.and_(builder.bitcast(x[0], I32V), every(0x7FFFFFFF))
    return [builder.select(builder.icmp_unsigned(">", magnitude, most[0]), magnitude, most[0])]


@operation(fixed(floats(1)))
def unit_below(context: Any, builder: Any, most: Any, bits: Any) -> Any:
    """The power of two of which at most ``2 ** bits`` make up a magnitude; NaN if that is not finite."""
    exponent = builder.lshr(most[0], every(23))
    lower = splat_scalar(builder, builder.trunc(builder.sub(as_int(bits), I64(1)), I32))
    unit = builder.shl(builder.sub(_at_least(builder, exponent), lower), every(23))
    return [builder.bitcast(builder.select(builder.icmp_unsigned("==", exponent, every(255)), every(0x7FC00000), unit), F32V)]


@operation(fixed(ints(1)))
def in_units(context: Any, builder: Any, x: Any, most: Any, bits: Any) -> Any:
    """``x`` divided by :func:`unit_below` of ``most``, rounded to the nearest integer."""
    exponent = _at_least(builder, builder.lshr(most[0], every(23)))
    higher = splat_scalar(builder, builder.trunc(builder.add(as_int(bits), I64(253)), I32))
    inverse = builder.bitcast(builder.shl(builder.sub(higher, exponent), every(23)), F32V)
    shift = ir.Constant(F32V, [float(3 << 22)] * LANES)  # added to a small number it leaves the integer in the lowest bits
    rounded = builder.bitcast(call_intrinsic(builder, "llvm.fma.v16f32", x[0], inverse, shift), I32V)
    return [builder.sub(rounded, every(0x4B400000))]


def _at_least(builder: Any, exponent: Any) -> Any:
    # Magnitudes below 2 ** -95 have fewer bits, so that units and their inverses stay normal numbers (bits is at most 30).
    return builder.select(builder.icmp_unsigned(">", exponent, every(32)), exponent, every(32))


@operation(fixed(ints(1)))
def with_byte(context: Any, builder: Any, word: Any, value: Any, i: Any) -> Any:
    """``word`` with the lowest byte of ``value`` as byte ``i``, which was zero."""
    amount = splat_scalar(builder, builder.trunc(builder.mul(as_int(i), I64(8)), I32))
    return [builder.or_(word[0], builder.shl(builder.and_(value[0], every(255)), amount))]


@operation(fixed(ints(1)))
def without_byte(context: Any, builder: Any, value: Any) -> Any:
    """``value`` less its lowest byte as a signed number, divided by 256."""
    return [builder.ashr(builder.add(value[0], every(128)), every(8))]


@operation(lambda address, step, n: ints(n))
def load_words(context: Any, builder: Any, address: Any, step: Any, n: int) -> Any:
    """``n`` vectors that are ``step`` bytes apart."""
    return [read(builder, address, I32V, step, i) for i in range(n)]


@operation(fixed(ints(1)))
def load_ints(context: Any, builder: Any, address: Any) -> Any:
    return [read(builder, address, I32V)]


@operation(fixed(types.void))
def store_ints(context: Any, builder: Any, address: Any, tile: Any) -> None:
    write(builder, address, tile[0])


@operation(lambda words, part, bits: words)
def bytes_of_codes(context: Any, builder: Any, words: Any, part: Any, bits: int) -> Any:
    """Code number ``part`` of every byte."""
    amount = splat_scalar(builder, builder.trunc(builder.mul(as_int(part), I64(bits)), I32))
    return [builder.and_(builder.lshr(word, amount), every((2**bits - 1) * 0x01010101)) for word in words]


@operation(same)
def add_byte_products(context: Any, builder: Any, codes: Any, x: Any, c: Any) -> Any:
    """``c`` plus, in every lane, the products of its four unsigned bytes of ``codes`` with the four signed ones of ``x``."""
    # Older versions of LLVM take words instead of bytes and newer ones accept that form when they read it.
    kind = ir.FunctionType(I32V, [I32V] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    return [builder.call(function, [vector, code, x[0]]) for code, vector in zip(codes, c, strict=True)]


@operation(same)
def shift_byte(context: Any, builder: Any, tile: Any) -> Any:
    """``tile * 256``."""
    return [builder.shl(vector, every(8)) for vector in tile]


@operation(lambda tile, factor: tile)
def mul_each(context: Any, builder: Any, tile: Any, factor: Any) -> Any:
    """Every vector of ``tile`` times the only one of ``factor``."""
    return [builder.fmul(vector, factor[0]) for vector in tile]
