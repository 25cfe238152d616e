"""Products with a sum of sign matrices times low-rank magnitudes: a tile of rows at a time is formed in cache, never the whole weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
# Multiplications below which a second thread costs more than it saves.
_GRAIN = 1 << 17


class SignTerm(NamedTuple):
    """One block ``S * (left @ right)``.

    Attributes:
        signs: uint8 ``[out_features, ceil(in_features / 8)]``, lowest bit first, set for plus.
        left: float16 ``[out_features, rank]``.
        right: float16 ``[rank, in_features]``.
    """

    signs: Tensor
    left: Tensor
    right: Tensor


def signed_values(term: SignTerm, rows: slice | Tensor) -> Tensor:
    """Float32 entries of the chosen rows of one block, ``[n_rows, in_features]``."""
    magnitudes = term.left[rows].float() @ term.right.float()
    return magnitudes.mul_(unpack_bits(term.signs[rows], 1, term.right.shape[1]).float().mul_(2).sub_(1))


def signed_linear(x: Tensor, terms: Sequence[SignTerm], input_scale: Tensor | None = None) -> Tensor:
    """``x @ W.T`` for ``W`` the sum of the blocks, its columns multiplied by ``input_scale``.

    Args:
        x: ``[..., in_features]``; gradients flow through it.
        terms: One block or more, of one shape and one rank.
        input_scale: ``[in_features]`` or ``None`` for ones.

    Returns:
        ``[..., out_features]`` in the type of ``x``.

    Raises:
        InvalidArgument: If the shapes do not belong together.
    """
    weight = _Stack.of(x, terms, input_scale)
    if not x.is_cpu or not weight.left.is_cpu or torch.compiler.is_compiling() or x.dtype == torch.float64 or not kernels_run():
        return reference.tiled_linear(x, weight.plain, weight.rows)
    if torch.is_grad_enabled() and x.requires_grad:
        made: Tensor = DifferentiableProduct.apply(x, partial(_product, weight=weight), partial(_tiles, weight))
        return made
    return _product(x, weight)


class _Stack(NamedTuple):
    """All blocks side by side: ``left [rows, blocks * rank]``, ``right [blocks * rank, columns]`` with the scale in it, both float32."""

    terms: Sequence[SignTerm]
    left: Tensor
    right: Tensor
    columns: int

    @classmethod
    def of(cls, x: Tensor, terms: Sequence[SignTerm], input_scale: Tensor | None) -> _Stack:
        # Checked because the kernel reads memory by these numbers.
        rows, columns = terms[0].left.shape[0], terms[0].right.shape[1]
        if x.shape[-1] != columns:
            raise InvalidArgument(f"x must have {columns} features in its last dimension, got shape {tuple(x.shape)}")
        width = packed_size(columns, 1)
        for term in terms:
            if term.signs.shape != (rows, width) or term.signs.dtype != torch.uint8 or not term.signs.is_contiguous():
                got = f"{term.signs.dtype} of shape {tuple(term.signs.shape)}"
                raise InvalidArgument(f"the signs of {rows}x{columns} must be contiguous uint8 of {width} bytes a row, got {got}")
            if term.left.shape != terms[0].left.shape or term.right.shape != (term.left.shape[1], columns):
                raise InvalidArgument("the blocks of a stack must have one shape and one rank")
        left = torch.cat([term.left for term in terms], 1).float()
        right = torch.cat([term.right for term in terms]).float()
        if input_scale is not None:
            right *= input_scale.float()
        return cls(terms, left, right, columns)

    @property
    def rows(self) -> int:
        return self.left.shape[0]

    def plain(self, first: int, last: int) -> Tensor:
        """Rows by plain torch, float32."""
        rank, part = self.right.shape[0] // len(self.terms), slice(first, last)
        total = torch.zeros(last - first, self.columns, device=self.left.device)
        for number, term in enumerate(self.terms):
            own = slice(number * rank, (number + 1) * rank)
            signs = unpack_bits(term.signs[part], 1, self.columns).float().mul_(2).sub_(1)
            total += (self.left[part, own] @ self.right[own]).mul_(signs)
        return total


def _product(x: Tensor, weight: _Stack) -> Tensor:
    if x.dtype == torch.float16:
        return _product(x.float(), weight).half()
    x = x if x.is_contiguous() else x.contiguous()
    y = torch.empty(*x.shape[:-1], weight.rows, dtype=x.dtype)
    multiply(x, y, partial(_tiles, weight))
    return y


@cache
def _compiled() -> ModuleType:
    from tersor.kernels import _signs_numba

    return _signs_numba


def _tiles(weight: _Stack, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    compiled, blocks = _compiled(), len(weight.terms)
    right = F.pad(weight.right, (0, -weight.columns % 16))
    addresses = torch.tensor([term.signs.data_ptr() for term in weight.terms])
    body, entry = compiled.fill_body(), compiled.entry()

    def write(first: int, last: int, buffer: Tensor) -> None:
        work = (last - first) * weight.columns * right.shape[0]
        entry(
            addresses.data_ptr(), weight.left.data_ptr(), right.data_ptr(), buffer.data_ptr(), _KINDS[dtype], weight.rows, weight.columns,
            blocks, right.shape[0] // blocks, first, last, body.address, *team_for(work, _GRAIN),
        )  # fmt: skip

    return tiles(weight.rows, weight.columns, dtype, write)
