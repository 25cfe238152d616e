"""The plain torch twin of every kernel: what it must compute, on any device and with gradients, in no particular haste."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.packing import unpack_bits

_TILE_BYTES = 1 << 26


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, scheme: str, group_size: int, in_features: int) -> Tensor:
    """The dense float32 rows that packed low-bit rows stand for.

    Args:
        codes: uint8 ``[out_features, ceil(in_features * bits / 8)]``, from :func:`tersor.kernels.packing.pack_bits`.
        scale: ``[out_features, groups]``.
        zero: packed zero points uint8 ``[out_features, ceil(groups * bits / 8)]`` (asymmetric), minima ``[out_features, groups]``
            (float_min) or None (symmetric).
        bits: 1 to 8.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"float_min"``.
        group_size: columns that share a scale; -1 for all of them.
        in_features: columns.

    Returns:
        float32 ``[out_features, in_features]``.
    """
    groups = scale.shape[1]
    code = unpack_bits(codes, bits, in_features).float().unflatten(1, (groups, -1))
    step = scale.float().unsqueeze(2)
    if scheme == "asymmetric":
        dense = step * (code - unpack_bits(_given(zero), bits, groups).float().unsqueeze(2))
    elif scheme == "float_min":
        dense = step * code + _given(zero).float().unsqueeze(2)
    else:
        dense = step * (2 * code - 1 if bits == 1 else code - 2 ** (bits - 1))
    return dense.flatten(1)


def _given(zero: Tensor | None) -> Tensor:
    if zero is None:
        raise TypeError("this scheme stores a zero")
    return zero


def quantized_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, scheme: str, group_size: int, in_features: int
) -> Tensor:
    """``x @ W.T`` with the dense rows rounded to the type of ``x``, a tile of rows at a time; arguments as for :func:`dequantise`."""
    options = {"bits": bits, "scheme": scheme, "group_size": group_size, "in_features": in_features}
    rows = max(1, _TILE_BYTES // (4 * in_features))
    made = []
    for first in range(0, codes.shape[0], rows):
        part = slice(first, first + rows)
        tile = dequantise(codes[part], scale[part], None if zero is None else zero[part], **options)  # type: ignore[arg-type]
        made.append(F.linear(x, tile.to(x.dtype)))
    return made[0] if len(made) == 1 else torch.cat(made, dim=-1)
