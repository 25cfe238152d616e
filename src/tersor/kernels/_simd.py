"""Tiles of sixteen-lane vectors inside numba functions, because scalar loops over bit fields do not vectorise well.

A tile is ``n`` LLVM vectors held in registers, so the same source becomes AVX-512, AVX2 or NEON. Addresses are int64 throughout:
buffers of torch come as ``data_ptr``. Arguments named ``n``, ``bits`` or the like must be constants where they are used.
Importing this module imports numba, so do it only where something is about to be compiled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import register_jitable

from tersor.kernels._llvm import (
    F16,
    F32,
    F32V,
    I8,
    I16,
    I32,
    I32V,
    I64,
    LANES,
    BFloat,
    as_int,
    bytes_to_lanes,
    call_intrinsic,
    constant,
    every,
    fixed,
    floats,
    has,
    ints,
    operation,
    read,
    same,
    splat_scalar,
    write,
)


@operation(lambda rows, columns: floats(rows * columns))
def zeros(context: Any, builder: Any, rows: int, columns: int) -> Any:
    """A tile for every pair of a row and a column."""
    return [ir.Constant(F32V, None)] * (rows * columns)


@operation(fixed(floats(1)))
def splat(context: Any, builder: Any, value: Any) -> Any:
    """A float32 in every lane."""
    return [splat_scalar(builder, value)]


@operation(same)
def fma(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once."""
    return [call_intrinsic(builder, "llvm.fma.v16f32", *three) for three in zip(a, b, c, strict=True)]


@operation(same)
def add(context: Any, builder: Any, a: Any, b: Any) -> Any:
    return [builder.fadd(*pair) for pair in zip(a, b, strict=True)]


@operation(same)
def mul(context: Any, builder: Any, a: Any, b: Any) -> Any:
    return [builder.fmul(*pair) for pair in zip(a, b, strict=True)]


@operation(same)
def add_outer(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``c[i, j] + a[i] * b[j]`` for the tile ``c``, which has a vector for each pair."""
    return [call_intrinsic(builder, "llvm.fma.v16f32", u, v, c[i * len(b) + j]) for i, u in enumerate(a) for j, v in enumerate(b)]


@operation(same)
def add_scaled(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``c[i, j] + a[i] * b[i, j]``."""
    width = len(c) // len(a)
    return [call_intrinsic(builder, "llvm.fma.v16f32", a[i // width], b[i], c[i]) for i in range(len(c))]


@operation(fixed(types.void))
def store_totals(context: Any, builder: Any, address: Any, tile: Any) -> None:
    """Write the sum of the lanes of each vector as one float32; always the same tree, so that it is the same on every call."""
    for i, vector in enumerate(tile):
        for half in (8, 4, 2, 1):
            low, high = (ir.Constant(ir.VectorType(I32, half), list(range(start, start + half))) for start in (0, half))
            vector = builder.fadd(builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high))
        write(builder, builder.add(address, I64(4 * i)), builder.extract_element(vector, I32(0)))


@operation(lambda address, n: floats(n))
def load(context: Any, builder: Any, address: Any, n: int) -> Any:
    """``n`` consecutive vectors."""
    return [read(builder, address, F32V, 4 * LANES, i) for i in range(n)]


@operation(fixed(floats(1)))
def load_half(context: Any, builder: Any, address: Any) -> Any:
    """Sixteen float16, as float32."""
    return [builder.fpext(read(builder, address, ir.VectorType(F16, LANES)), F32V)]


@operation(fixed(floats(1)))
def load_bfloat(context: Any, builder: Any, address: Any) -> Any:
    """Sixteen bfloat16, as float32."""
    wide = builder.zext(read(builder, address, ir.VectorType(I16, LANES)), I32V)
    return [builder.bitcast(builder.shl(wide, every(16)), F32V)]


@operation(fixed(ints(1)))
def load_bytes(context: Any, builder: Any, address: Any) -> Any:
    """Sixteen bytes, as unsigned integers."""
    return [builder.zext(read(builder, address, ir.VectorType(I8, LANES)), I32V)]


@operation(fixed(types.void))
def store(context: Any, builder: Any, address: Any, tile: Any) -> None:
    write(builder, address, tile[0])


@operation(fixed(types.void))
def store_bfloat(context: Any, builder: Any, address: Any, tile: Any) -> None:
    """Round sixteen finite values to the nearest even bfloat16."""
    if has(context, "avx512bf16"):
        write(builder, address, builder.fptrunc(tile[0], ir.VectorType(BFloat(), LANES)))
        return
    word = builder.bitcast(tile[0], I32V)
    odd = builder.and_(builder.lshr(word, every(16)), every(1))
    rounded = builder.add(word, builder.add(odd, every(0x7FFF)))
    write(builder, address, builder.trunc(builder.lshr(rounded, every(16)), ir.VectorType(I16, LANES)))


@operation(lambda address, step, index, n: floats(n))
def lookup(context: Any, builder: Any, address: Any, step: Any, index: Any, n: int) -> Any:
    """In lane ``i`` of vector ``j`` float32 number ``index[i]``, below 16, of the table ``step * j`` bytes after ``address``."""
    return [builder.bitcast(_permuted(context, builder, read(builder, address, F32V, step, j), index[0]), F32V) for j in range(n)]


def _permuted(context: Any, builder: Any, table: Any, index: Any) -> Any:
    """The lanes ``index`` of a table of floats, as integers."""
    if has(context, "avx512f"):
        kind = ir.FunctionType(F32V, [F32V, I32V])
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
        return builder.bitcast(builder.call(permute, [table, index]), I32V)
    made = table
    for i in range(LANES):
        made = builder.insert_element(made, builder.extract_element(table, builder.extract_element(index, I32(i))), I32(i))
    return builder.bitcast(made, I32V)


@operation(fixed(ints(1)))
def load_codes(context: Any, builder: Any, address: Any, bits: int) -> Any:
    """Sixteen consecutive codes of ``bits`` bits that start on a byte, in order, as unsigned integers."""
    start = [i * bits for i in range(LANES)]
    pair = bytes_to_lanes(builder, read(builder, address, ir.VectorType(I8, 2 * bits)), [bit // 8 for bit in start], 2)
    return [builder.and_(builder.lshr(pair, constant(bit % 8 for bit in start)), every(2**bits - 1))]


@operation(lambda ints: floats(ints.n))
def to_float(context: Any, builder: Any, ints: Any) -> Any:
    return [builder.sitofp(vector, F32V) for vector in ints]


@operation(fixed(floats(1)))
def expand(context: Any, builder: Any, values: Any, mask: Any) -> Any:
    """The first of sixteen values in the lanes whose bit of ``mask`` is set, in order, and zero in the others."""
    if has(context, "avx512f"):
        bools = ir.VectorType(ir.IntType(1), LANES)
        kind = ir.FunctionType(F32V, [F32V, F32V, bools])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.mask.expand.v16f32")
        chosen = builder.bitcast(builder.trunc(mask, I16), bools)
        return [builder.call(function, [values[0], ir.Constant(F32V, None), chosen])]
    made, taken = ir.Constant(F32V, None), I32(0)
    for i in range(LANES):
        bit = builder.and_(builder.trunc(builder.lshr(mask, I64(i)), I32), I32(1))
        value = builder.select(builder.trunc(bit, ir.IntType(1)), builder.extract_element(values[0], taken), F32(0))
        made, taken = builder.insert_element(made, value, I32(i)), builder.and_(builder.add(taken, bit), I32(LANES - 1))
    return [made]


@operation(fixed(types.int64))
def bits_of_patterns(context: Any, builder: Any, table: Any, numbers: Any) -> Any:
    """Sixteen numbers of four-bit patterns as their 64 bits; ``table`` holds the patterns as sixteen int32."""
    moved = builder.shl(_permuted(context, builder, read(builder, table, F32V), numbers[0]), constant(4 * (i % 8) for i in range(LANES)))
    halves = []
    for start in (0, 8):
        v = builder.shuffle_vector(moved, moved, ir.Constant(ir.VectorType(I32, 8), list(range(start, start + 8))))
        for half in (4, 2, 1):
            low, high = (ir.Constant(ir.VectorType(I32, half), list(range(at, at + half))) for at in (0, half))
            v = builder.or_(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))
        halves.append(builder.zext(builder.extract_element(v, I32(0)), I64))
    return builder.or_(halves[0], builder.shl(halves[1], I64(32)))


@operation(fixed(types.int64))
def count_bits(context: Any, builder: Any, word: Any) -> Any:
    return call_intrinsic(builder, "llvm.ctpop.i64", word)


@register_jitable
def codes_per_lane(bits: int) -> int:
    """How many consecutive codes a lane of :func:`load_chunk` holds; a chunk has sixteen times as many, which fill whole bytes."""
    return 8 if bits <= 4 else 4


@operation(lambda address, step, bits, n: ints(n))
def load_chunk(context: Any, builder: Any, address: Any, step: Any, bits: int, n: int) -> Any:
    """A chunk of codes from each of ``n`` rows that are ``step`` bytes apart, consecutive codes in one lane from its lowest bit on."""
    per_lane = codes_per_lane(bits)
    start = [i * per_lane * bits for i in range(LANES)]
    kind = ir.VectorType(I8, 2 * per_lane * bits)
    rows = [bytes_to_lanes(builder, read(builder, address, kind, step, j), [bit // 8 for bit in start], 4) for j in range(n)]
    if any(bit % 8 for bit in start):
        rows = [builder.lshr(row, constant(bit % 8 for bit in start)) for row in rows]
    return rows


@operation(lambda lanes, k, bits: floats(lanes.n))
def decode(context: Any, builder: Any, lanes: Any, k: Any, bits: int) -> Any:
    """``1 + code / 2 ** bits`` for code ``k`` of every lane: its bits move to the top of a mantissa, which is cheaper than to convert."""
    rotation = splat_scalar(builder, builder.trunc(builder.sub(I64(55 - bits), builder.mul(as_int(k), I64(bits))), I32))
    moved = [call_intrinsic(builder, "llvm.fshl.v16i32", lane, lane, rotation) for lane in lanes]
    kept = [builder.and_(lane, every((2**bits - 1) << (23 - bits))) for lane in moved]
    return [builder.bitcast(builder.or_(lane, every(0x3F800000)), F32V) for lane in kept]


@operation(fixed(types.float32))
def read_float(context: Any, builder: Any, address: Any) -> Any:
    return read(builder, address, F32)


@operation(fixed(types.float32))
def read_half(context: Any, builder: Any, address: Any) -> Any:
    return builder.fpext(read(builder, address, F16), F32)


@operation(fixed(types.float32))
def read_bfloat(context: Any, builder: Any, address: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(read(builder, address, I16), I32), I32(16)), F32)


@operation(fixed(types.int64))
def read_byte(context: Any, builder: Any, address: Any) -> Any:
    return builder.zext(read(builder, address, I8), I64)


@operation(fixed(types.int64))
def read_short(context: Any, builder: Any, address: Any) -> Any:
    return builder.sext(read(builder, address, I16), I64)


@operation(fixed(types.int64))
def read_word(context: Any, builder: Any, address: Any) -> Any:
    return builder.sext(read(builder, address, I32), I64)


@operation(fixed(types.int64))
def read_int(context: Any, builder: Any, address: Any) -> Any:
    return read(builder, address, I64)


@operation(fixed(types.void))
def write_float(context: Any, builder: Any, address: Any, value: Any) -> None:
    write(builder, address, value)


@operation(fixed(types.void))
def write_bfloat(context: Any, builder: Any, address: Any, value: Any) -> None:
    """Round to the nearest even; NaN stays NaN."""
    word = builder.bitcast(value, I32)
    odd = builder.and_(builder.lshr(word, I32(16)), I32(1))
    rounded = builder.lshr(builder.add(word, builder.add(odd, I32(0x7FFF))), I32(16))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), I32(0x7FC0), rounded)
    write(builder, address, builder.trunc(kept, I16))


@operation(fixed(types.void))
def write_byte(context: Any, builder: Any, address: Any, value: Any) -> None:
    write(builder, address, builder.trunc(as_int(value), I8))


@operation(fixed(types.void))
def write_int(context: Any, builder: Any, address: Any, value: Any) -> None:
    write(builder, address, as_int(value))


@operation(fixed(types.CPointer(types.int64)))
def pointer(context: Any, builder: Any, address: Any) -> Any:
    """An address as a pointer to int64, for ``numba.carray``."""
    return builder.inttoptr(address, I64.as_pointer())


@operation(fixed(types.CPointer(types.float32)))
def float_pointer(context: Any, builder: Any, address: Any) -> Any:
    """An address as a pointer to float32."""
    return builder.inttoptr(address, F32.as_pointer())


@operation(fixed(types.void))
def prefetch(context: Any, builder: Any, address: Any) -> None:
    """Ask for the cache line at ``address``, which need not be readable."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, I8.as_pointer()), I32(0), I32(3), I32(1)])


@operation(fixed(types.int64))
def call_number(context: Any, builder: Any, function: Any) -> Any:
    """Call the C function ``int f(void)``."""
    kind = ir.FunctionType(I32, [])
    return builder.sext(builder.call(builder.inttoptr(function, kind.as_pointer()), []), I64)


@operation(fixed(types.void))
def call(context: Any, builder: Any, function: Any, data: Any) -> None:
    """Call the C function ``void f(void *data)``."""
    kind = ir.FunctionType(ir.VoidType(), [I64])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [data])


@operation(fixed(types.void))
def call_team(context: Any, builder: Any, launcher: Any, function: Any, data: Any, threads: Any) -> None:
    """Call ``launcher(function, data, threads, 0)``, the entry of OpenMP that runs a function on a team of threads."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I32, I32])
    builder.call(builder.inttoptr(launcher, kind.as_pointer()), [function, data, builder.trunc(threads, I32), I32(0)])
