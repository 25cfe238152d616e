"""Which GGUF type a matrix goes into: the smallest that holds it as it is, else the one asked for, else the least loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models.export.gguf_blocks import BLOCK_TYPES, BlockType, Fields
from tersor.models.export.grids import IntegerGrid, quantized_view
from tersor.models.export.kquants import quantize
from tersor.weights.base import CompressedWeight

GGUF_TYPES = (*BLOCK_TYPES, "F16", "BF16", "F32")

# Relative error that counts as none: rounding a scale or a minimum to float16 stays well below.
_FAITHFUL = 2e-3
# What takes the place of a super-block type where rows are no multiple of 256, as in llama.cpp.
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Types whose quantiser gives back a matrix that was decoded from them, by size.
_RECOVERABLE = ("Q4_1", "Q5_1", "Q8_0")
_PROBE_ROWS = 4


@dataclass(frozen=True)
class Stored:
    """A matrix as it goes into the file.

    Attributes:
        type: Name of the GGUF type.
        data: uint8 ``[rows, bytes]``.
        error: Relative root-mean-square difference of what is stored to what was to be stored.
    """

    type: str
    data: np.ndarray
    error: float


def check_type(gguf_type: str | None) -> None:
    """Refuse the name of a type that cannot be written.

    Raises:
        InvalidArgument: Listing those that can.
    """
    if gguf_type is not None and gguf_type not in GGUF_TYPES:
        raise InvalidArgument(f"gguf_type must be one of {', '.join(GGUF_TYPES)}, got {gguf_type!r}")


def fallback(gguf_type: str, columns: int) -> str:
    """The type that is used instead of ``gguf_type`` for rows of ``columns`` weights."""
    while gguf_type in BLOCK_TYPES and columns % BLOCK_TYPES[gguf_type].block:
        gguf_type = _FALLBACK.get(gguf_type, "F16")
    return gguf_type


def store_dense(matrix: Tensor, gguf_type: str | None = None, importance: Tensor | None = None) -> Stored:
    """Store a matrix in ``gguf_type`` or what replaces it, or, for ``None``, in the smallest type that loses nothing.

    Args:
        matrix: float32 ``[rows, columns]``.
        gguf_type: One of :data:`GGUF_TYPES`.
        importance: ``[columns]``, see :func:`tersor.models.export.kquants.quantize`.
    """
    if gguf_type is None:
        gguf_type = _exact_type(matrix)
        return _as_float(matrix, gguf_type) if gguf_type not in BLOCK_TYPES else _recovered(matrix, gguf_type)
    gguf_type = fallback(gguf_type, matrix.shape[1])
    if gguf_type not in BLOCK_TYPES:
        return _as_float(matrix, gguf_type)
    data, decoded = quantize(matrix, gguf_type, importance)
    return Stored(gguf_type, data, relative_error(matrix, decoded))


def store_compressed(weight: CompressedWeight, gguf_type: str | None = None, importance: Tensor | None = None) -> Stored:
    """Store a compressed weight: a grid as it is where a type can hold it, anything else as the dense matrix it stands for.

    Args:
        weight: Any kind.
        gguf_type: For what no type holds as it is.
        importance: As for :func:`store_dense`.
    """
    matrix = weight.dense()
    best: Stored | None = None
    for kind in sorted(BLOCK_TYPES.values(), key=lambda kind: kind.bits_per_weight):
        fields = grid_fields(weight, kind)
        if fields is None or not np.isfinite(fields.d).all() or (fields.dmin is not None and not np.isfinite(fields.dmin).all()):
            continue
        error = relative_error(matrix, torch.from_numpy(fields.values()).reshape(matrix.shape))
        if best is None or error < best.error:
            best = Stored(kind.name, kind.pack(fields).reshape(matrix.shape[0], -1), error)
        if error <= _FAITHFUL:
            return best
    if gguf_type is not None:
        return store_dense(matrix, gguf_type, importance)
    if quantized_view(weight) is None:
        exact = store_dense(matrix)
        return exact if exact.type != "F32" else store_dense(matrix, "F16")
    rounded = store_dense(matrix, "Q8_0", importance)
    return rounded if best is None or rounded.error <= best.error else best


def grid_fields(weight: CompressedWeight, kind: BlockType) -> Fields | None:
    """The codes and scales of ``weight`` as fields of ``kind``, without rounding again, or ``None`` if they do not fit."""
    quantized = quantized_view(weight)
    if quantized is None or quantized.input_scale is not None or quantized.group_size % kind.block:
        return None
    grid = IntegerGrid.of(quantized)
    n_blocks, n_groups = quantized.group_size // kind.block, kind.block // kind.group

    def per_block(values: Tensor) -> Tensor:
        return values.float().repeat_interleave(n_blocks, 1).reshape(-1)

    d = per_block(grid.scale).half().numpy()
    ones = None if kind.scale_range is None else np.ones((len(d), n_groups), np.int16)
    steps = grid.codes() if kind.has_min else grid.steps
    if int(steps.min()) < kind.low or int(steps.max()) > kind.high or (grid.minimum is not None and not kind.has_min):
        return None
    codes = steps.reshape(-1, kind.block).numpy()
    if not kind.has_min:
        return Fields(codes, d, ones)
    if grid.minimum is not None:
        return Fields(codes, d, ones, (-per_block(grid.minimum)).half().numpy(), ones)
    assert grid.zero is not None
    if ones is None:
        return Fields(codes, d, dmin=per_block(grid.zero * grid.scale.float()).half().numpy())
    if kind.scale_range is None or int(grid.zero.max()) > kind.scale_range[1]:
        return None
    # scale * (code - zero) with the scale as both factors: exact, since a minimum inside a super-block is an integer times its own factor.
    mins = per_block(grid.zero).reshape(-1, 1).to(torch.int16).expand(-1, n_groups)
    return Fields(codes, d, ones, d, mins.numpy())


def relative_error(wanted: Tensor, stored: Tensor) -> float:
    """Root of the squared difference over the squared original."""
    total = float(wanted.double().square().sum())
    lost = float((wanted.double() - stored.double()).square().sum())
    return (lost / total) ** 0.5 if total > 0 else lost**0.5


def _as_float(matrix: Tensor, name: str) -> Stored:
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[name]
    values = matrix.to(dtype).contiguous()
    if not torch.isfinite(values).all():
        return _as_float(matrix, "F32")
    data = values.view(torch.uint8).reshape(matrix.shape[0], -1).numpy()
    return Stored(name, data, relative_error(matrix, values.float()))


def _exact_type(matrix: Tensor) -> str:
    for name in (*_RECOVERABLE, "F16", "BF16"):
        if name in BLOCK_TYPES and matrix.shape[1] % BLOCK_TYPES[name].block:
            continue
        # Most types betray themselves in the first rows; only the others are tried on all.
        if all(_survives(part, name) for part in (matrix[:_PROBE_ROWS], matrix)):
            return name
    return "F32"


def _survives(matrix: Tensor, name: str) -> bool:
    if name in BLOCK_TYPES:
        return _recovered(matrix, name).error == 0
    return _as_float(matrix, name).error == 0


def _recovered(matrix: Tensor, name: str) -> Stored:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        data = quantize(matrix.numpy(), kind)
    return Stored(name, data, relative_error(matrix, torch.from_numpy(dequantize(data, kind))))
