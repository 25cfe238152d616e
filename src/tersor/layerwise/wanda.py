"""Wanda: prune by magnitude times the size of the input, row by row."""

from __future__ import annotations

from torch import Tensor

from tersor.layerwise.checking import check_choice, check_stats, check_weight
from tersor.layerwise.masks import Pattern, ValueType
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import SparseWeight


@register("wanda", needs="inputs", makes="sparse", paper="Sun, Liu, Bair, Kolter: Wanda, 2023")
def wanda(
    weight: Tensor, stats: LayerStats | None, *,
    sparsity: float | None = None, keep_n: int | None = None, of_m: int | None = None, value_dtype: ValueType = "float16",
) -> SparseWeight:  # fmt: skip
    """Remove, in each output row, the weights of smallest ``|w_ij| * sqrt(mean x_j^2)``; the kept ones stay as they are.

    Almost as good as :func:`sparsegpt`, without a factorisation, and it cannot overfit the calibration text: the better one when there
    are only a few tokens an input.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; only their mean squares are used.
        sparsity: Fraction removed of each row, 0.5 unless given; ``round(sparsity * in_features)`` weights a row.
        keep_n: With ``of_m``, instead of ``sparsity``: keep ``keep_n`` of every ``of_m`` neighbouring inputs.
        of_m: See ``keep_n``.
        value_dtype: Type of the stored values.

    Raises:
        InvalidArgument: On an option out of range, a weight that is not a finite matrix, or missing or foreign statistics.

    Reference:
        Sun, Liu, Bair, Kolter: "A Simple and Effective Pruning Approach for Large Language Models", 2023.
    """
    stats = check_stats("wanda", stats)
    values = check_weight(weight, stats)
    pattern = Pattern.of(values.shape[1], sparsity, keep_n, of_m)
    check_choice("value_dtype", value_dtype, ValueType)
    score = values.abs() * stats.mean_square.sqrt().to(values)
    compressed = pattern.store(values, pattern.keep_by_row(score), value_dtype)
    compressed.report = {"sparsity": compressed.sparsity}
    return compressed
