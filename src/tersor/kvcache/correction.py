"""What is added to the quantised backbone: outliers kept apart, and factors of its error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tersor.kvcache.config import GearConfig
from tersor.layerwise.low_rank import leading_directions

# A line is long enough for its own outliers if rounding their number changes it by no more than this.
_SLACK = 0.25


class OutlierLines(NamedTuple):
    """The runs of rows among which outliers are chosen: ``number`` lines, ``each`` of their entries at both ends kept apart."""

    number: int
    each: int


def outlier_lines(rows: Tensor, blocks: int, sparsity: float) -> OutlierLines:
    """How outliers are spread: over every row if rows are long enough for ``sparsity``, else over all rows of a block.

    Args:
        rows: ``[batch, count, rows, row length]``.
        blocks: Blocks that the rows make up, the heads or one.
        sparsity: Fraction of entries to keep apart.
    """
    n_rows, length = rows.shape[2:]
    wanted = length * sparsity / 2
    each = round(wanted)
    if each and abs(each - wanted) <= _SLACK * wanted:
        return OutlierLines(n_rows, each)
    return OutlierLines(blocks, int(n_rows // blocks * wanted))


def pick_outliers(rows: Tensor, lines: OutlierLines, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Take the largest and the smallest entries out of every line.

    Returns:
        The rows with the mean of what remains of the line in their place, the entries ``[batch, count, lines, kept]`` and their
        positions in the line; ``None`` for both if none are taken.
    """
    if lines.each == 0:
        return rows, None, None
    values = rows.reshape(*rows.shape[:2], lines.number, -1)
    positions = torch.cat([values.topk(lines.each, largest=largest).indices for largest in (False, True)], -1)
    kept = torch.ones_like(values).scatter_(-1, positions, 0.0)
    # The mean of the rest, not of the line: one huge outlier would put that far outside of the range of the rest.
    mean = (values * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1)
    filled = torch.where(kept.bool(), values, mean)
    index_dtype = torch.int16 if values.shape[-1] <= 1 << 15 else torch.int32
    return filled.view(rows.shape), stored(values.gather(-1, positions), dtype), positions.to(index_dtype)


def factorise(residual: Tensor, rank: int, config: GearConfig) -> tuple[Tensor, Tensor]:
    """Factors ``left @ right.mT`` of the error of every head.

    Args:
        residual: ``[batch, heads, tokens, width]``.
        rank: At most the smaller of the last two.
        config: The solver, and the type that factors are stored in.

    Returns:
        ``[batch, heads, tokens, rank]`` and ``[batch, heads, width, rank]``.
    """
    if config.solver == "eigh":
        right = leading_directions(residual.double().mT, rank)[0].float()
    else:
        right = _power_iteration(residual, rank, config)
    left = residual @ right
    # Both factors get the same column norms, which keeps the smaller of them clear of the bottom of float16.
    balance = left.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return stored(left / balance, config.store_dtype), stored(right * balance, config.store_dtype)


def _power_iteration(residual: Tensor, rank: int, config: GearConfig) -> Tensor:
    """An orthonormal basis ``[..., width, rank]`` close to the leading directions, orthogonalised in every iteration."""
    random = torch.Generator(residual.device).manual_seed(config.seed)
    start = torch.randn(residual.shape[-1], rank, generator=random, device=residual.device)
    right = start.expand(*residual.shape[:-2], -1, -1)
    for _ in range(config.iterations):
        right = torch.linalg.qr(residual.mT @ (residual @ right)).Q
    return right


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, or as they are if one overflows."""
    small = values.to(dtype)
    return small if bool(torch.isfinite(small).all()) else values
