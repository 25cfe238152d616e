"""Activation-aware scaling: give the inputs that carry much a finer grid, by scaling columns before rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.layerwise.checking import check_integer, check_stats, check_weight
from tersor.layerwise.grid import Grid, Scheme
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import QuantizedWeight

# Below this share of the mean magnitude an input is scaled no further: dead inputs would otherwise set the normalisation.
_SMALLEST_SCALE = 1e-4


@register("awq", needs="inputs", makes="quantized", paper="Lin, Tang, Tang, Yang, Dang, Han: AWQ, 2023")
def awq(
    weight: Tensor, stats: LayerStats | None, *,
    bits: int = 4, group_size: int = 128, scheme: Scheme = "asymmetric", grid_points: int = 20, clip: bool = True,
) -> QuantizedWeight:  # fmt: skip
    """Round to nearest after scaling input j by ``mean |x_j| ** alpha``, with the alpha that loses least of this layer's output.

    It fits one number (and the clipping) to the calibration text where :func:`gptq` fits every code, so it carries over better from
    little text. The inverse scale is stored with the weight (16 bits an input), so no neighbouring layer is touched.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs.
        bits: 1 to 8.
        group_size: Neighbouring inputs that share a scale; divides ``in_features``, -1 for one group a row.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"float_min"``.
        grid_points: Values of alpha tried, evenly spaced from 0 (plain rounding, which stores no input scale) to below 1.
        clip: Then shrink the range of each group as far as that lowers the error of its share of the output; dropped if the whole
            output does not gain.

    Returns:
        The weight; its ``report`` holds ``alpha``, ``clipped`` and ``error_ratio``, the output error relative to plain rounding.

    Raises:
        InvalidArgument: On an option out of range, a weight that is not a finite matrix, or missing or foreign statistics.

    Reference:
        Lin, Tang, Tang, Yang, Dang, Han: "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.
    """
    stats = check_stats("awq", stats)
    values = check_weight(weight, stats)
    grid = Grid.of(values.shape[1], bits, scheme, group_size)
    check_integer("grid_points", grid_points, 1)
    hessian = stats.hessian.to(values)
    best = plain = _Candidate(values, None, hessian, grid, grid.fit(values))
    alpha = 0.0
    for point in range(1, grid_points):
        column_scale = _column_scale(stats.mean_abs, point / grid_points)
        candidate = _Candidate(values, column_scale, hessian, grid, grid.fit(values / column_scale))
        if candidate.error < best.error:
            best, alpha = candidate, point / grid_points
    clipped = _clipped(values, best.column_scale, hessian, grid) if clip else best
    chosen = clipped if clipped.error < best.error else best
    compressed = grid.pack(chosen.codes, *chosen.parameters, chosen.column_scale)
    ratio = chosen.error / plain.error if plain.error > 0 else 1.0
    compressed.report = {"alpha": alpha, "clipped": chosen is not best, "error_ratio": ratio}
    return compressed


class _Candidate:
    """A rounding of ``values / column_scale`` and the output error that it leaves."""

    def __init__(self, values: Tensor, column_scale: Tensor | None, hessian: Tensor, grid: Grid, parameters: tuple[Tensor, Tensor]) -> None:
        self.column_scale, self.parameters = column_scale, parameters
        self.codes = grid.quantize(values if column_scale is None else values / column_scale, *parameters)
        rounded = grid.dequantize(self.codes, *parameters)
        error = (rounded if column_scale is None else rounded.mul_(column_scale)).sub_(values)
        self.error = float((error @ hessian).mul_(error).sum(dtype=torch.float64))


def _column_scale(mean_abs: Tensor, alpha: float) -> Tensor:
    """``mean_abs ** -alpha`` of geometric middle one, as it is stored."""
    average = mean_abs.mean()
    relative = mean_abs / average if average > 0 else torch.ones_like(mean_abs)
    scale = relative.pow(alpha).clamp(min=_SMALLEST_SCALE)
    return ((scale.max() * scale.min()).sqrt() / scale).half().float()


def _clipped(values: Tensor, column_scale: Tensor | None, hessian: Tensor, grid: Grid) -> _Candidate:
    size = grid.group_size
    scaled = values if column_scale is None else values / column_scale
    metric = hessian if column_scale is None else hessian * column_scale * column_scale.unsqueeze(1)
    blocks = torch.stack([metric[start : start + size, start : start + size] for start in range(0, values.shape[1], size)])

    def loss(error: Tensor, rows: slice) -> Tensor:
        by_group = error.transpose(0, 1)
        return torch.bmm(by_group, blocks).mul_(by_group).sum(-1).T

    return _Candidate(values, column_scale, hessian, grid, grid.search(scaled, loss))
