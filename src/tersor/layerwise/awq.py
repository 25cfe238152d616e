"""AWQ: scale input columns up before rounding where their activations are large, then clip."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.grid import Grid, Levels, Scheme
from tersor.layerwise.hessian import need_stats
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import QuantizedWeight
from tersor.weights.base import check_matrix

CLIP_STEPS = 10  # ranges tried, each a twentieth smaller
SMALLEST = 1e-4


@register("awq", needs="inputs", makes="quantized", paper="Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han: AWQ, 2023")
def awq(
    weight: Tensor, stats: LayerStats, *, bits: int = 4, group_size: int = 128, scheme: Scheme = "asymmetric", grid_points: int = 20,
    clip: bool = True,
) -> QuantizedWeight:
    """Round ``W diag(s)`` instead of ``W``, with ``s = mean |x| ** alpha`` and ``alpha`` chosen by the layer's own output error.

    Cheaper than :func:`gptq` and less prone to fit the calibration text; a little worse where there is enough of it. The inverse of
    ``s`` is stored with the weight (16 bits an input) rather than folded into a neighbour, which grouped-query attention forbids.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Of the layer's inputs.
        bits: 1 to 8.
        group_size: Inputs that share a scale; -1 for whole rows.
        scheme: As in :class:`Grid`.
        grid_points: Values of ``alpha`` tried in [0, 1); the first is 0, plain rounding, so the search never loses on the calibration text.
        clip: Also shrink the range of each group while the group's own output error falls.

    Returns:
        The weight; ``report`` holds ``alpha``.

    Raises:
        InvalidArgument: On NaN or Inf, missing statistics or an option out of range.

    Reference:
        Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han: AWQ: Activation-aware Weight Quantization for LLM Compression, 2023.
    """
    check_matrix(weight)
    grid = Grid(bits, group_size, scheme)
    grid.check(weight.shape[1])
    if grid_points < 1:
        raise InvalidArgument(f"grid_points must be at least 1, got {grid_points}")
    stats = need_stats(stats, weight, "awq")
    original, hessian = weight.float(), stats.hessian.float()
    best: tuple[float, float, Tensor, Levels] | None = None
    for index in range(grid_points):
        alpha = index / grid_points
        column = column_scale(stats, alpha)
        levels = grid.fit(original / column)
        error = _error(original, grid, levels, column, hessian)
        if best is None or error < best[0]:
            best = (error, alpha, column, levels)
    assert best is not None
    error, alpha, column, levels = best
    if clip:
        clipped = _clipped(original / column, grid, levels, hessian * column[:, None] * column[None, :])
        if _error(original, grid, clipped, column, hessian) < error:
            levels = clipped
    compressed = grid.pack(grid.quantize(original / column, levels), levels, None if alpha == 0 else column)
    compressed.report = {"alpha": alpha}
    return compressed


def column_scale(stats: LayerStats, alpha: float) -> Tensor:
    """What the stored columns are multiplied by, ``1 / s`` as float16 holds it, float32 ``[in_features]``."""
    scale = stats.mean_abs.clamp(min=SMALLEST) ** alpha
    scale = scale / (scale.max() * scale.min()).sqrt()
    return (1 / scale).clamp(2.0**-13, 2.0**15).half().float()


def _error(original: Tensor, grid: Grid, levels: Levels, column: Tensor, hessian: Tensor) -> float:
    groups = levels.scale.shape[1]
    scale, zero = levels.scale.unsqueeze(-1), levels.zero.unsqueeze(-1)
    scaled = (original / column).reshape(original.shape[0], groups, -1)
    rounded = grid.decode(grid.encode(scaled, scale, zero), scale, zero).reshape(original.shape) * column
    difference = original - rounded
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def _clipped(scaled: Tensor, grid: Grid, levels: Levels, hessian: Tensor) -> Levels:
    """Levels of shrunk ranges where they lower the output error of the group on its own, ``d H_gg d^T``."""
    rows, columns = scaled.shape
    width = grid.width(columns)
    groups = scaled.reshape(rows, -1, width)
    blocks = torch.stack([hessian[start : start + width, start : start + width] for start in range(0, columns, width)])
    best, lowest = levels, None
    for index in range(CLIP_STEPS):
        shrink = 1 - index / (2 * CLIP_STEPS)
        clamped = groups.clamp(groups.amin(-1, keepdim=True) * shrink, groups.amax(-1, keepdim=True) * shrink)
        tried = grid.fit(clamped.reshape(rows, columns))
        scale, zero = tried.scale.unsqueeze(-1), tried.zero.unsqueeze(-1)
        difference = (grid.decode(grid.encode(groups, scale, zero), scale, zero) - groups).transpose(0, 1)
        error = ((difference @ blocks) * difference).sum(-1).T
        if lowest is None:
            lowest, best = error, tried
            continue
        better = error < lowest
        best = Levels(torch.where(better, tried.scale, best.scale), torch.where(better, tried.zero, best.zero))
        lowest = torch.minimum(error, lowest)
    return replace(best, scale=grid._consistent(best).scale)
