"""The plain torch twin of every kernel: what it must compute, on any device and with gradients, in no particular haste."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.packing import unpack_bits

# Entries of a dense tile: 64 MiB in float32.
_TILE = 1 << 24


def tiled_linear(x: Tensor, dense: Callable[[int, int], Tensor], out_features: int) -> Tensor:
    """``x @ W.T`` where ``dense(first, last)`` makes rows of W, which are rounded to the type of ``x``."""
    step = max(1, _TILE // x.shape[-1])
    made = [F.linear(x, dense(first, min(first + step, out_features)).to(x.dtype)) for first in range(0, out_features, step)]
    return made[0] if len(made) == 1 else torch.cat(made, dim=-1)


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, scheme: str, in_features: int) -> Tensor:
    """The dense rows that packed low-bit rows stand for.

    Args:
        codes: uint8 ``[rows, ceil(in_features * bits / 8)]``, from :func:`tersor.kernels.packing.pack_bits`.
        scale: ``[rows, groups]``.
        zero: packed zero points uint8 ``[rows, ceil(groups * bits / 8)]`` (asymmetric), minima ``[rows, groups]`` (float_min), else None.
        bits: 1 to 8.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"float_min"``.
        in_features: columns.

    Returns:
        float32 ``[rows, in_features]``.
    """
    groups = scale.shape[1]
    code = unpack_bits(codes, bits, in_features).float().unflatten(1, (groups, -1))
    step = scale.float().unsqueeze(2)
    if scheme == "symmetric" or zero is None:
        dense = step * (2 * code - 1 if bits == 1 else code - 2 ** (bits - 1))
    elif scheme == "asymmetric":
        dense = step * (code - unpack_bits(zero, bits, groups).float().unsqueeze(2))
    else:
        dense = step * code + zero.float().unsqueeze(2)
    return dense.flatten(1)


def quantized_linear(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, scheme: str, in_features: int) -> Tensor:
    """``x @ W.T``; arguments as for :func:`dequantise`."""

    def dense(first: int, last: int) -> Tensor:
        part = slice(first, last)
        return dequantise(
            codes[part], scale[part], None if zero is None else zero[part], bits=bits, scheme=scheme, in_features=in_features
        )

    return tiled_linear(x, dense, codes.shape[0])


def pattern_bits(patterns: Tensor) -> int:
    """Bits that the number of one of ``patterns`` takes."""
    return (patterns.numel() - 1).bit_length()


def mask_of_bits(bits: Tensor, in_features: int) -> Tensor:
    """A bit map uint8 ``[rows, ceil(in_features / 8)]`` as bool ``[rows, in_features]``."""
    return unpack_bits(bits, 1, in_features).bool()


def mask_of_patterns(codes: Tensor, patterns: Tensor, of_m: int, in_features: int) -> Tensor:
    """Packed numbers of ``patterns`` (int64, bits of the kept columns) as bool ``[rows, in_features]``."""
    numbers = unpack_bits(codes, pattern_bits(patterns), in_features // of_m).long()
    return ((patterns.to(codes.device)[numbers].unsqueeze(2) >> torch.arange(of_m, device=codes.device)) & 1).bool().flatten(1)


def mask_of_columns(columns: Tensor, starts: Tensor, in_features: int) -> Tensor:
    """The columns of each row, ``columns[starts[i]:starts[i + 1]]``, as bool ``[rows, in_features]``."""
    lengths = starts.diff()
    row = torch.repeat_interleave(torch.arange(lengths.numel(), device=columns.device), lengths)
    mask = torch.zeros(lengths.numel(), in_features, dtype=torch.bool, device=columns.device)
    return mask.index_put_((row, columns.long()), torch.tensor(True, device=columns.device))


def fill(mask: Tensor, values: Tensor) -> Tensor:
    """``values``, row by row, where ``mask`` is true and zero elsewhere; float32."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values.float())
