"""Numba intrinsics written as plain functions that build LLVM vectors: the workshop of :mod:`tersor.kernels._simd`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

LANES = 16

I8, I16, I32, I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
F32, F16 = ir.FloatType(), ir.HalfType()
F32V, I32V = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


class BFloat(ir.Type):
    """A type that LLVM has and its Python binding has not."""

    def _to_string(self) -> str:
        return "bfloat"


class Tile(types.Type):
    """The type of ``n`` vectors of float32 or int32."""

    def __init__(self, n: int, vector: ir.VectorType) -> None:
        super().__init__(name=f"tersor.tile({n}, {vector})")
        self.n, self.vector = n, vector


@register_default(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Tile) -> None:
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.n))


def floats(n: int) -> Tile:
    return Tile(n, F32V)


def ints(n: int) -> Tile:
    return Tile(n, I32V)


def operation(result: Callable[..., types.Type]) -> Callable[[Callable[..., Any]], Any]:
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

            return result(*known)(*(_widened(kind) for kind in given)), generate

        names = ["typing_context", *list(Signature.from_callable(body).parameters)[2:]]
        typing.__name__ = typing.__qualname__ = body.__name__
        typing.__doc__ = body.__doc__
        typing.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
        return intrinsic(prefer_literal=True)(typing)

    return decorate


def _widened(kind: types.Type) -> types.Type:
    return types.int64 if isinstance(kind, types.Integer) and not isinstance(kind, types.IntegerLiteral) else kind


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


def same(*kinds: Any) -> Any:
    """The type of an operation lane by lane: that of its last argument."""
    return kinds[-1]


def fixed(kind: types.Type) -> Callable[..., types.Type]:
    return lambda *_: kind


def as_int(value: Any) -> Any:
    return I64(value) if isinstance(value, int) else value


def constant(values: Iterable[int]) -> ir.Constant:
    return ir.Constant(I32V, list(values))


def every(value: int) -> ir.Constant:
    return constant([value] * LANES)


def splat_scalar(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(one, one, every(0))


def read(builder: Any, address: Any, kind: Any, step: Any = 0, i: int = 0) -> Any:
    """What lies ``i`` times ``step`` bytes after ``address``, aligned or not."""
    place = builder.add(as_int(address), builder.mul(as_int(step), I64(i))) if i else as_int(address)
    value = builder.load(builder.inttoptr(place, kind.as_pointer()))
    value.align = 1
    return value


def write(builder: Any, address: Any, value: Any) -> None:
    store = builder.store(value, builder.inttoptr(as_int(address), value.type.as_pointer()))
    store.align = 1


def call_intrinsic(builder: Any, name: str, *arguments: Any) -> Any:
    """An LLVM intrinsic whose result has the type of its first argument."""
    kind = ir.FunctionType(arguments[0].type, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def has(context: Any, feature: str) -> bool:
    """Whether numba compiles for a processor with ``feature``; asks numba, not the machine, because its target can be set."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def bytes_to_lanes(builder: Any, loaded: Any, first: list[int], width: int) -> Any:
    """Give lane ``i`` the ``width`` bytes of the vector ``loaded`` from ``first[i]`` on, as one little-endian integer."""
    n = loaded.type.count
    pick = [first[i] + j if j < width and first[i] + j < n else n for i in range(LANES) for j in range(4)]
    spread = builder.shuffle_vector(loaded, ir.Constant(loaded.type, None), ir.Constant(ir.VectorType(I32, 4 * LANES), pick))
    return builder.bitcast(spread, I32V)
