"""Products with packed low-bit weights on a CPU, from the packed bytes.

Up to a few rows of x the packed bytes are multiplied as they are read; above that a tile of rows at a time is dequantised into cache and
multiplied by torch's own GEMM. The weight is never dense in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels import reference
from tersor.kernels._available import kernels_run
from tersor.kernels._openmp import team_for
from tersor.kernels._tiled import DifferentiableProduct, multiply, tiles
from tersor.kernels.packing import packed_size

SCHEMES = {"symmetric": 0, "asymmetric": 1, "float_min": 2}

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_SCALE_KINDS = {torch.float32: 0, torch.float16: 2}

# Rows of x up to which the packed kernel beats dequantise + GEMM (benchmarks/kernels.py): bfloat16 GEMM is the faster one to beat.
_MAX_ROWS = {torch.float32: 16, torch.bfloat16: 8}
# Codes that share a 32-bit lane of the kernel, by bits.
_LANE = {bits: 8 if bits <= 4 else 4 for bits in range(1, 9)}
# Bits of an activation in fixed point where codes are multiplied as bytes; with these a sum of products never overflows.
_BYTE_DIGITS = {1: 22, 2: 22, 4: 22, 8: 20}
# Packed rows that are read together.
_TILE_ROWS = 4
# Codes below which a second thread costs more than it saves.
_GRAIN = 1 << 16


def quantized_linear(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, scheme: str, group_size: int, in_features: int
) -> Tensor:
    """``x @ W.T`` for a weight of packed low-bit codes; sums are float32 whatever the type of ``x``.

    On a CPU with numba this reads the packed bytes; elsewhere, under ``torch.compile``, or when the scale wants a gradient, it is
    :func:`tersor.kernels.reference.quantized_linear`, with which it agrees to float32 rounding (bfloat16 above a few rows: to that of a
    bfloat16 weight). Up to those few rows the result does not depend on the number of threads.

    Args:
        x: ``[..., in_features]``; gradients flow through it.
        codes: uint8 ``[out_features, ceil(in_features * bits / 8)]``, from :func:`tersor.kernels.packing.pack_bits`.
        scale: float16 or float32 ``[out_features, groups]``.
        zero: packed zero points uint8 ``[out_features, ceil(groups * bits / 8)]`` for ``"asymmetric"``, minima like ``scale`` for
            ``"float_min"``, None for ``"symmetric"``.
        bits: 1 to 8.
        scheme: the grid: ``scale * (code - 2 ** (bits - 1))`` (symmetric; ``scale * (2 * code - 1)`` for one bit),
            ``scale * (code - zero)`` (asymmetric) or ``scale * code + zero`` (float_min).
        group_size: columns that share a scale; -1 for all of them.
        in_features: columns.

    Returns:
        ``[..., out_features]`` in the type of ``x``.

    Raises:
        InvalidArgument: If the last size of ``x`` is not ``in_features``, or the buffers do not belong together.
    """
    group_size = in_features if group_size == -1 else group_size
    packed = _Packed(_whole(codes), _whole(scale), None if zero is None else _whole(zero), bits, scheme, group_size, in_features)
    packed.check(x)
    if not _runs_compiled(x, scale, zero):
        return reference.quantized_linear(x, codes, scale, zero, bits=bits, scheme=scheme, in_features=in_features)
    if x.requires_grad and torch.is_grad_enabled():
        made: Tensor = DifferentiableProduct.apply(x, partial(_product, packed=packed), partial(_tiles, packed))
        return made
    return _product(x, packed)


def dequantise(
    codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, scheme: str, group_size: int, in_features: int
) -> Tensor:
    """The dense rows that packed low-bit rows stand for, without a gradient; arguments as for :func:`quantized_linear`.

    On a CPU with numba one pass over the packed bytes; elsewhere :func:`tersor.kernels.reference.dequantise`, with which it agrees to
    float32 rounding.

    Returns:
        float32 ``[out_features, in_features]``.

    Raises:
        InvalidArgument: If the buffers do not belong together.
    """
    group_size = in_features if group_size == -1 else group_size
    packed = _Packed(_whole(codes), _whole(scale), None if zero is None else _whole(zero), bits, scheme, group_size, in_features)
    dense = torch.empty(codes.shape[0], in_features, device=codes.device)
    packed.check(dense)
    if not _runs_compiled(dense, scale, zero):
        return reference.dequantise(codes, scale, zero, bits=bits, scheme=scheme, in_features=in_features)
    if dense.numel():
        _write(packed, 0, dense.shape[0], dense)
    return dense


class _Packed(NamedTuple):
    """The buffers of one weight and their description."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    scheme: str
    group_size: int
    in_features: int

    def check(self, x: Tensor) -> None:
        """Refuse what does not belong together, because the kernels read memory by these numbers."""
        rows, columns, groups = self.codes.shape[0], self.in_features, self.scale.shape[1]
        if x.shape[-1] != columns:
            raise InvalidArgument(f"x must have {columns} features in its last dimension, got shape {tuple(x.shape)}")
        if self.scheme not in SCHEMES or not 1 <= self.bits <= 8:
            raise InvalidArgument(f"a grid has 1 to 8 bits and is one of {', '.join(SCHEMES)}; got {self.bits} bits, {self.scheme!r}")
        if self.codes.dtype != torch.uint8 or self.codes.shape[1] != packed_size(columns, self.bits):
            raise InvalidArgument(f"{columns} codes of {self.bits} bits do not fit codes {self.codes.dtype} {tuple(self.codes.shape)}")
        if groups * self.group_size != columns or self.scale.shape[0] != rows:
            raise InvalidArgument(f"groups of {self.group_size} in {rows}x{columns} do not fit a scale of shape {tuple(self.scale.shape)}")
        if self.scheme == "symmetric":
            return
        shape, dtype = (rows, groups), self.scale.dtype
        if self.scheme == "asymmetric":
            shape, dtype = (rows, packed_size(groups, self.bits)), torch.uint8
        if self.zero is None or self.zero.shape != shape or self.zero.dtype != dtype:
            given = "none" if self.zero is None else f"{self.zero.dtype} {tuple(self.zero.shape)}"
            raise InvalidArgument(f"the zero of {self.scheme} must be {dtype} {shape}, got {given}")

    def addresses(self) -> tuple[int, int, int, int, int]:
        """What the compiled functions take first."""
        zero = 0 if self.zero is None else self.zero.data_ptr()
        return self.codes.data_ptr(), self.scale.data_ptr(), _SCALE_KINDS[self.scale.dtype], zero, SCHEMES[self.scheme]


def _runs_compiled(x: Tensor, scale: Tensor, zero: Tensor | None) -> bool:
    if not x.is_cpu or not scale.is_cpu or torch.compiler.is_compiling() or not kernels_run():
        return False
    if torch.is_grad_enabled() and (scale.requires_grad or (zero is not None and zero.requires_grad)):
        return False
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16) and scale.dtype in _SCALE_KINDS


def _product(x: Tensor, packed: _Packed) -> Tensor:
    if x.dtype == torch.float16:  # numba and most processors have no float16 arithmetic
        return _product(x.float(), packed).half()
    rows = x.numel() // packed.in_features
    x = x if x.is_contiguous() else x.contiguous()
    y = torch.empty(*x.shape[:-1], packed.codes.shape[0], dtype=x.dtype)
    if rows <= _MAX_ROWS[x.dtype] and _lanes_align(packed, _LANE[packed.bits]):
        _multiply(x, y, rows, packed)
    else:
        multiply(x, y, partial(_tiles, packed))
    return y


@cache
def _compiled() -> ModuleType:
    from tersor.kernels import _quantized_numba

    return _quantized_numba


def _whole(buffer: Tensor) -> Tensor:
    return buffer if buffer.is_contiguous() else buffer.contiguous()


def _lanes_align(packed: _Packed, per_lane: int) -> bool:
    """Whether no lane of ``per_lane`` codes crosses from one group into the next."""
    return packed.group_size % per_lane == 0 or packed.group_size == packed.in_features


def _multiply(x: Tensor, y: Tensor, rows: int, packed: _Packed) -> None:
    compiled, n, k, bits = _compiled(), packed.codes.shape[0], packed.in_features, packed.bits
    batch, per_lane, digits = 1 if rows <= 2 else 4, _LANE[bits], 0
    if batch == 1 and bits in _BYTE_DIGITS and _lanes_align(packed, 32 // bits) and compiled.has_byte_products():
        per_lane, digits = 32 // bits, _BYTE_DIGITS[bits]
        body = compiled.byte_body(bits, _TILE_ROWS)
    else:
        body = compiled.product_body(bits, _TILE_ROWS, batch)
    compiled.product_entry()(
        *packed.addresses(), y.data_ptr(), _KINDS[x.dtype], n, k, packed.group_size,
        x.data_ptr(), rows, per_lane, digits, _TILE_ROWS, batch, body.address, *team_for(n * k, _GRAIN),
    )  # fmt: skip


def _tiles(packed: _Packed, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    return tiles(packed.codes.shape[0], packed.in_features, dtype, partial(_write, packed))


def _write(packed: _Packed, first: int, last: int, buffer: Tensor) -> None:
    """Rows ``first`` to ``last`` into the first rows of ``buffer``."""
    compiled, n, k = _compiled(), packed.codes.shape[0], packed.in_features
    compiled.dequantise_entry()(
        *packed.addresses(), buffer.data_ptr(), _KINDS[buffer.dtype], n, k, packed.group_size,
        first, last, compiled.dequantise_body(packed.bits, buffer.dtype == torch.bfloat16).address, *team_for((last - first) * k, _GRAIN),
    )  # fmt: skip
