"""Products with weights made of codebook entries: by tables of partial products for a few rows, by dense tiles for many.

For one row of inputs the product of every group of inputs with every codebook entry is a small table; a row of outputs is then a sum of
table look-ups, one for each stored code, and no weight is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.kernels import reference
from tersor.kernels._available import kernels_run
from tersor.kernels._openmp import team_for
from tersor.kernels._tiled import DifferentiableProduct, multiply, tiles
from tersor.kernels.packing import packed_size, unpack_bits

# Rows of x up to which tables beat dense tiles: at 8 they take two thirds of the time, at 16 as long or longer.
_MAX_ROWS = 8
# Look-ups below which a second thread costs more than it saves.
_GRAIN = 1 << 15


def lookup(codes: Tensor, codebooks: Tensor, scale: Tensor) -> Tensor:
    """The dense rows of unpacked codes; differentiable in ``codebooks`` and ``scale``.

    Args:
        codes: uint8 or int64 ``[rows, groups, n_codebooks]``.
        codebooks: ``[n_codebooks, entries, group_size]``.
        scale: ``[rows]``.

    Returns:
        ``[rows, groups * group_size]`` in the type of ``codebooks``.
    """
    index = codes.long()
    total = F.embedding(index[..., 0], codebooks[0])
    for number in range(1, codebooks.shape[0]):
        total = total + F.embedding(index[..., number], codebooks[number])
    return total.flatten(1) * scale.unsqueeze(1)


def codebook_linear(x: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor, *, bits: int) -> Tensor:
    """``x @ W.T`` for a weight of packed codes; sums are float32 whatever the type of ``x``.

    On a CPU with numba codes of 8 bits are looked up in tables of partial products for up to a few rows of ``x``; else a tile of rows at a
    time is made dense. Elsewhere, and when a codebook wants a gradient, plain torch does the same.

    Args:
        x: ``[..., in_features]``; gradients flow through it.
        codes: uint8 ``[out_features, ceil(groups * n_codebooks * bits / 8)]``, from :func:`tersor.kernels.packing.pack_bits`.
        codebooks: ``[n_codebooks, 2 ** bits, group_size]``.
        scale: ``[out_features]``.
        bits: Of a code, 1 to 8.

    Returns:
        ``[..., out_features]`` in the type of ``x``.

    Raises:
        InvalidArgument: If the buffers do not belong together.
    """
    packed = _Packed.of(x, codes, codebooks, scale, bits)
    trains = torch.is_grad_enabled() and (codebooks.requires_grad or scale.requires_grad)
    on_cpu = x.is_cpu and codes.is_cpu and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if trains or not on_cpu or torch.compiler.is_compiling():
        return reference.tiled_linear(x, packed.plain, codes.shape[0])
    if torch.is_grad_enabled() and x.requires_grad:
        made: Tensor = DifferentiableProduct.apply(x, partial(_product, packed=packed), partial(_tiles, packed))
        return made
    return _product(x, packed)


class _Packed(NamedTuple):
    codes: Tensor
    codebooks: Tensor
    scale: Tensor
    bits: int
    groups: int

    @classmethod
    def of(cls, x: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor, bits: int) -> _Packed:
        # Checked because the kernel reads memory by these numbers.
        count, entries, group_size = codebooks.shape
        groups = x.shape[-1] // group_size
        if groups * group_size != x.shape[-1] or codes.shape[1] != packed_size(groups * count, bits):
            raise InvalidArgument(f"codes of shape {tuple(codes.shape)} do not belong to inputs of shape {tuple(x.shape)}")
        if entries != 2**bits or scale.shape != codes.shape[:1] or codes.dtype != torch.uint8:
            given = f"codebooks of shape {tuple(codebooks.shape)} and a scale of shape {tuple(scale.shape)}"
            raise InvalidArgument(f"{given} do not belong to {codes.shape[0]} rows of {bits}-bit codes")
        return cls(codes.contiguous(), codebooks, scale, bits, groups)

    def plain(self, first: int, last: int) -> Tensor:
        """Rows by plain torch, float32."""
        count = self.codebooks.shape[0]
        codes = unpack_bits(self.codes[first:last], self.bits, self.groups * count).view(last - first, self.groups, count)
        return lookup(codes, self.codebooks.float(), self.scale[first:last].float())


def _product(x: Tensor, packed: _Packed) -> Tensor:
    rows = x.numel() // max(x.shape[-1], 1)
    if packed.bits == 8 and 0 < rows <= _MAX_ROWS and kernels_run():
        return _looked_up(x, packed)
    if x.dtype == torch.float16:
        return _product(x.float(), packed).half()
    x = x if x.is_contiguous() else x.contiguous()
    y = torch.empty(*x.shape[:-1], packed.codes.shape[0], dtype=x.dtype)
    multiply(x, y, partial(_tiles, packed))
    return y


def _tiles(packed: _Packed, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    def write(first: int, last: int, buffer: Tensor) -> None:
        buffer[: last - first].copy_(packed.plain(first, last))

    group_size = packed.codebooks.shape[2]
    return tiles(packed.codes.shape[0], packed.groups * group_size, dtype, write)


@cache
def _compiled() -> ModuleType:
    from tersor.kernels import _codebook_numba

    return _codebook_numba


def _looked_up(x: Tensor, packed: _Packed) -> Tensor:
    count, entries, group_size = packed.codebooks.shape
    compiled, outputs, lookups = _compiled(), packed.codes.shape[0], packed.groups * count
    flat = packed.codebooks.float().view(count * entries, group_size)
    made = torch.empty(x.numel() // x.shape[-1], outputs)
    scale = packed.scale.float().contiguous()
    for row, inputs in enumerate(x.reshape(-1, packed.groups, group_size).float()):
        table = inputs @ flat.T
        compiled.entry()(
            table.data_ptr(), packed.codes.data_ptr(), scale.data_ptr(), made[row].data_ptr(), lookups, entries, outputs,
            compiled.sum_body().address, *team_for(outputs * lookups, _GRAIN),
        )  # fmt: skip
    return made.view(*x.shape[:-1], outputs).to(x.dtype)
