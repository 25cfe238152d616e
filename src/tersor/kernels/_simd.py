"""Tiles of sixteen-lane vectors inside numba functions, because scalar loops over bit fields do not vectorise well.

A tile is ``n`` LLVM vectors held in registers, so the same source becomes AVX-512, AVX2 or NEON. Addresses are int64 throughout:
buffers of torch come as ``data_ptr``. Arguments named ``n``, ``bits`` or the like must be constants where they are used.
Numba is imported here, so import this module only where something is about to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, register_jitable

LANES = 16

_I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
_F32, _F16 = ir.FloatType(), ir.HalfType()
_F32V, _I32V = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


class Tile(types.Type):
    """The type of ``n`` vectors of float32 or int32."""

    def __init__(self, n: int, vector: ir.VectorType) -> None:
        super().__init__(name=f"tersor.tile({n}, {vector})")
        self.n, self.vector = n, vector


@register_default(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Tile) -> None:
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.n))


def _floats(n: int) -> Tile:
    return Tile(n, _F32V)


def _ints(n: int) -> Tile:
    return Tile(n, _I32V)


def _operation(result: Callable[..., types.Type]) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of ``body(context, builder, *values)``.

    ``result`` gives the type of the result from those of the arguments, of which literal integers come as plain ints. In the body, tiles
    are lists of vectors, literal integers are plain ints and other values are LLVM's; a list that is returned becomes a tile.
    """

    def decorate(body: Callable[..., Any]) -> Any:
        def typing(typing_context: Any, *given: types.Type) -> Any:
            known = [kind.literal_value if isinstance(kind, types.IntegerLiteral) else kind for kind in given]

            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                made = body(context, builder, *(_unpacked(builder, *pair) for pair in zip(known, values, strict=True)))
                return context.get_dummy_value() if made is None else _packed(builder, made)

            wanted = [types.int64 if isinstance(kind, types.Integer) and not isinstance(kind, types.IntegerLiteral) else kind for kind in given]
            return result(*known)(*wanted), generate

        names = ["typing_context", *list(Signature.from_callable(body).parameters)[2:]]
        typing.__name__ = typing.__qualname__ = body.__name__
        typing.__doc__ = body.__doc__
        typing.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
        return intrinsic(prefer_literal=True)(typing)

    return decorate


def _unpacked(builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, Tile):
        return [builder.extract_value(value, i) for i in range(kind.n)]
    return kind if isinstance(kind, int) else value


def _packed(builder: Any, made: Any) -> Any:
    if not isinstance(made, list):
        return made
    tile = ir.Constant(ir.ArrayType(made[0].type, len(made)), ir.Undefined)
    for i, vector in enumerate(made):
        tile = builder.insert_value(tile, vector, i)
    return tile


def _same(*kinds: Any) -> Any:
    """The type of an operation lane by lane: that of its last argument."""
    return kinds[-1]


def _fixed(kind: types.Type) -> Callable[..., types.Type]:
    return lambda *_: kind


def _int(value: Any) -> Any:
    return _I64(value) if isinstance(value, int) else value


def _constant(values: Iterable[int]) -> ir.Constant:
    return ir.Constant(_I32V, list(values))


def _every(value: int) -> ir.Constant:
    return _constant([value] * LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, one, _every(0))


def _read(builder: Any, address: Any, kind: Any, step: Any = 0, i: int = 0) -> Any:
    """What lies ``i`` times ``step`` bytes after ``address``, aligned or not."""
    place = builder.add(_int(address), builder.mul(_int(step), _I64(i))) if i else _int(address)
    value = builder.load(builder.inttoptr(place, kind.as_pointer()))
    value.align = 1
    return value


def _write(builder: Any, address: Any, value: Any) -> None:
    store = builder.store(value, builder.inttoptr(_int(address), value.type.as_pointer()))
    store.align = 1


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    """An LLVM intrinsic whose result has the type of its first argument."""
    kind = ir.FunctionType(arguments[0].type, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _has(context: Any, feature: str) -> bool:
    """Whether numba compiles for a processor with ``feature``; asks numba, not the machine, because its target can be set."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def _bytes_to_lanes(builder: Any, loaded: Any, first: list[int], width: int) -> Any:
    """Give lane ``i`` the ``width`` bytes of the vector ``loaded`` from ``first[i]`` on, as one little-endian integer."""
    n = loaded.type.count
    pick = [first[i] + j if j < width and first[i] + j < n else n for i in range(LANES) for j in range(4)]
    spread = builder.shuffle_vector(loaded, ir.Constant(loaded.type, None), ir.Constant(ir.VectorType(_I32, 4 * LANES), pick))
    return builder.bitcast(spread, _I32V)


@_operation(lambda rows, columns: _floats(rows * columns))
def zeros(context: Any, builder: Any, rows: int, columns: int) -> Any:
    """A tile for every pair of a row and a column."""
    return [ir.Constant(_F32V, None)] * (rows * columns)


@_operation(_fixed(_floats(1)))
def splat(context: Any, builder: Any, value: Any) -> Any:
    """A float32 in every lane."""
    return [_splat(builder, value)]


@_operation(_same)
def fma(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once."""
    return [_call(builder, "llvm.fma.v16f32", *three) for three in zip(a, b, c, strict=True)]


@_operation(_same)
def add(context: Any, builder: Any, a: Any, b: Any) -> Any:
    return [builder.fadd(*pair) for pair in zip(a, b, strict=True)]


@_operation(_same)
def mul(context: Any, builder: Any, a: Any, b: Any) -> Any:
    return [builder.fmul(*pair) for pair in zip(a, b, strict=True)]


@_operation(_same)
def add_outer(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``c[i, j] + a[i] * b[j]`` for the tile ``c``, which has a vector for each pair."""
    return [_call(builder, "llvm.fma.v16f32", u, v, c[i * len(b) + j]) for i, u in enumerate(a) for j, v in enumerate(b)]


@_operation(_same)
def add_scaled(context: Any, builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``c[i, j] + a[i] * b[i, j]``."""
    width = len(c) // len(a)
    return [_call(builder, "llvm.fma.v16f32", a[i // width], b[i], c[i]) for i in range(len(c))]


@_operation(_fixed(types.void))
def store_totals(context: Any, builder: Any, address: Any, tile: Any) -> None:
    """Write the sum of the lanes of each vector as one float32; always the same tree, so that it is the same on every call."""
    for i, vector in enumerate(tile):
        for half in (8, 4, 2, 1):
            low, high = (ir.Constant(ir.VectorType(_I32, half), list(range(start, start + half))) for start in (0, half))
            vector = builder.fadd(builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high))
        _write(builder, builder.add(address, _I64(4 * i)), builder.extract_element(vector, _I32(0)))


@_operation(lambda address, n: _floats(n))
def load(context: Any, builder: Any, address: Any, n: int) -> Any:
    """``n`` consecutive vectors."""
    return [_read(builder, address, _F32V, 4 * LANES, i) for i in range(n)]


@_operation(_fixed(_floats(1)))
def load_half(context: Any, builder: Any, address: Any) -> Any:
    """Sixteen float16, as float32."""
    return [builder.fpext(_read(builder, address, ir.VectorType(_F16, LANES)), _F32V)]


@_operation(_fixed(_ints(1)))
def load_bytes(context: Any, builder: Any, address: Any) -> Any:
    """Sixteen bytes, as unsigned integers."""
    return [builder.zext(_read(builder, address, ir.VectorType(_I8, LANES)), _I32V)]


@_operation(_fixed(types.void))
def store(context: Any, builder: Any, address: Any, tile: Any) -> None:
    _write(builder, address, tile[0])


@_operation(_fixed(types.void))
def store_bfloat(context: Any, builder: Any, address: Any, tile: Any) -> None:
    """Round sixteen finite values to the nearest even bfloat16; in integers, because not every target of LLVM converts."""
    word = builder.bitcast(tile[0], _I32V)
    odd = builder.and_(builder.lshr(word, _every(16)), _every(1))
    rounded = builder.add(word, builder.add(odd, _every(0x7FFF)))
    _write(builder, address, builder.trunc(builder.lshr(rounded, _every(16)), ir.VectorType(_I16, LANES)))


@_operation(lambda address, step, index, n: _floats(n))
def lookup(context: Any, builder: Any, address: Any, step: Any, index: Any, n: int) -> Any:
    """In lane ``i`` of vector ``j`` float32 number ``index[i]``, below 16, of the table ``step * j`` bytes after ``address``."""
    tables = [_read(builder, address, _F32V, step, j) for j in range(n)]
    if _has(context, "avx512f"):
        kind = ir.FunctionType(_F32V, [_F32V, _I32V])
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
        return [builder.call(permute, [table, index[0]]) for table in tables]
    lanes = [builder.extract_element(index[0], _I32(i)) for i in range(LANES)]
    return [_gathered(builder, table, lanes) for table in tables]


def _gathered(builder: Any, table: Any, lanes: list[Any]) -> Any:
    made = table
    for i, lane in enumerate(lanes):
        made = builder.insert_element(made, builder.extract_element(table, lane), _I32(i))
    return made


@_operation(_fixed(_floats(1)))
def load_codes(context: Any, builder: Any, address: Any, bits: int) -> Any:
    """Sixteen consecutive codes of ``bits`` bits that start on a byte, in order."""
    start = [i * bits for i in range(LANES)]
    pair = _bytes_to_lanes(builder, _read(builder, address, ir.VectorType(_I8, 2 * bits)), [bit // 8 for bit in start], 2)
    codes = builder.and_(builder.lshr(pair, _constant(bit % 8 for bit in start)), _every(2**bits - 1))
    return [builder.sitofp(codes, _F32V)]


@register_jitable
def codes_per_lane(bits: int) -> int:
    """How many consecutive codes a lane of :func:`load_chunk` holds; a chunk has sixteen times as many, which fill whole bytes."""
    return 8 if bits <= 4 else 4


@_operation(lambda address, step, bits, n: _ints(n))
def load_chunk(context: Any, builder: Any, address: Any, step: Any, bits: int, n: int) -> Any:
    """A chunk of codes from each of ``n`` rows that are ``step`` bytes apart, consecutive codes in one lane from its lowest bit on."""
    per_lane = codes_per_lane(bits)
    start = [i * per_lane * bits for i in range(LANES)]
    kind = ir.VectorType(_I8, 2 * per_lane * bits)
    rows = [_bytes_to_lanes(builder, _read(builder, address, kind, step, j), [bit // 8 for bit in start], 4) for j in range(n)]
    if any(bit % 8 for bit in start):
        rows = [builder.lshr(row, _constant(bit % 8 for bit in start)) for row in rows]
    return rows


@_operation(lambda lanes, k, bits: _floats(lanes.n))
def decode(context: Any, builder: Any, lanes: Any, k: Any, bits: int) -> Any:
    """``1 + code / 2 ** bits`` for code ``k`` of every lane: its bits move to the top of a mantissa, which is cheaper than to convert."""
    rotation = _splat(builder, builder.trunc(builder.sub(_I64(55 - bits), builder.mul(_int(k), _I64(bits))), _I32))
    moved = [_call(builder, "llvm.fshl.v16i32", lane, lane, rotation) for lane in lanes]
    kept = [builder.and_(lane, _every((2**bits - 1) << (23 - bits))) for lane in moved]
    return [builder.bitcast(builder.or_(lane, _every(0x3F800000)), _F32V) for lane in kept]


@_operation(_fixed(types.float32))
def read_float(context: Any, builder: Any, address: Any) -> Any:
    return _read(builder, address, _F32)


@_operation(_fixed(types.float32))
def read_half(context: Any, builder: Any, address: Any) -> Any:
    return builder.fpext(_read(builder, address, _F16), _F32)


@_operation(_fixed(types.float32))
def read_bfloat(context: Any, builder: Any, address: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(_read(builder, address, _I16), _I32), _I32(16)), _F32)


@_operation(_fixed(types.int64))
def read_byte(context: Any, builder: Any, address: Any) -> Any:
    return builder.zext(_read(builder, address, _I8), _I64)


@_operation(_fixed(types.int64))
def read_int(context: Any, builder: Any, address: Any) -> Any:
    return _read(builder, address, _I64)


@_operation(_fixed(types.void))
def write_float(context: Any, builder: Any, address: Any, value: Any) -> None:
    _write(builder, address, value)


@_operation(_fixed(types.void))
def write_bfloat(context: Any, builder: Any, address: Any, value: Any) -> None:
    """Round to the nearest even; NaN stays NaN."""
    word = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(word, _I32(16)), _I32(1))
    rounded = builder.lshr(builder.add(word, builder.add(odd, _I32(0x7FFF))), _I32(16))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), _I32(0x7FC0), rounded)
    _write(builder, address, builder.trunc(kept, _I16))


@_operation(_fixed(types.void))
def write_byte(context: Any, builder: Any, address: Any, value: Any) -> None:
    _write(builder, address, builder.trunc(_int(value), _I8))


@_operation(_fixed(types.void))
def write_int(context: Any, builder: Any, address: Any, value: Any) -> None:
    _write(builder, address, _int(value))


@_operation(_fixed(types.CPointer(types.int64)))
def pointer(context: Any, builder: Any, address: Any) -> Any:
    """An address as a pointer to int64, for ``numba.carray``."""
    return builder.inttoptr(address, _I64.as_pointer())


@_operation(_fixed(types.int64))
def call_number(context: Any, builder: Any, function: Any) -> Any:
    """Call the C function ``int f(void)``."""
    kind = ir.FunctionType(_I32, [])
    return builder.sext(builder.call(builder.inttoptr(function, kind.as_pointer()), []), _I64)


@_operation(_fixed(types.void))
def call(context: Any, builder: Any, function: Any, data: Any) -> None:
    """Call the C function ``void f(void *data)``."""
    kind = ir.FunctionType(ir.VoidType(), [_I64])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [data])


@_operation(_fixed(types.void))
def call_team(context: Any, builder: Any, launcher: Any, function: Any, data: Any, threads: Any) -> None:
    """Call ``launcher(function, data, threads, 0)``, the entry of OpenMP that runs a function on a team of threads."""
    kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I32, _I32])
    builder.call(builder.inttoptr(launcher, kind.as_pointer()), [function, data, builder.trunc(threads, _I32), _I32(0)])
