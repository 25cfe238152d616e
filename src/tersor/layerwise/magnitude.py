"""Magnitude pruning: the baseline that needs no data."""

from __future__ import annotations

from torch import Tensor

from tersor.layerwise.checking import check_choice, check_weight
from tersor.layerwise.masks import Pattern, ValueType
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import SparseWeight


@register("magnitude", needs="nothing", makes="sparse", paper="")
def magnitude(
    weight: Tensor, stats: LayerStats | None = None, *,
    sparsity: float | None = None, keep_n: int | None = None, of_m: int | None = None, value_dtype: ValueType = "float16",
) -> SparseWeight:  # fmt: skip
    """Remove the weights of smallest magnitude, compared over the whole matrix.

    On language models :func:`wanda` is far better for the cost of a forward pass; use this where no input is at hand.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Not looked at.
        sparsity: Fraction removed, 0.5 unless given; exactly ``round(sparsity * numel)`` weights.
        keep_n: With ``of_m``, instead of ``sparsity``: keep ``keep_n`` of every ``of_m`` neighbouring inputs.
        of_m: See ``keep_n``.
        value_dtype: Type of the stored values.

    Raises:
        InvalidArgument: On an option out of range, or a weight that is not a finite matrix.
    """
    values = check_weight(weight, stats)
    pattern = Pattern.of(values.shape[1], sparsity, keep_n, of_m)
    check_choice("value_dtype", value_dtype, ValueType)
    compressed = pattern.store(values, pattern.keep_in_matrix(values.abs()), value_dtype)
    compressed.report = {"sparsity": compressed.sparsity}
    return compressed
