"""Magnitude pruning: the baseline that looks at the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.layerwise.masks import check_sparsity, lowest_mask, pattern_mask
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import SparseWeight
from tersor.weights.base import check_matrix


@register("magnitude", needs="nothing", makes="sparse", paper="")
def magnitude(
    weight: Tensor, stats: LayerStats | None = None, *, sparsity: float | None = None, keep_n: int | None = None, of_m: int | None = None
) -> SparseWeight:
    """Remove the smallest weights of the matrix, or of every run of ``of_m``. :func:`wanda` costs little more and keeps far more.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Not used.
        sparsity: Fraction to remove, exact over the matrix; 0.5 if nothing is given.
        keep_n: Weights to keep of every ``of_m`` neighbouring inputs.
        of_m: See ``keep_n``.

    Raises:
        InvalidArgument: On NaN or Inf, or an option out of range.
    """
    check_matrix(weight)
    sparsity = 0.5 if sparsity is None and keep_n is None and of_m is None else sparsity
    check_sparsity(sparsity, keep_n, of_m, weight.shape[1])
    scores = weight.float().abs()
    if keep_n is not None and of_m is not None:
        mask = pattern_mask(scores, keep_n, of_m)
    else:
        assert sparsity is not None
        mask = lowest_mask(scores.reshape(1, -1), round(sparsity * scores.numel())).reshape(scores.shape)
    return SparseWeight.from_dense(weight, mask, torch.float16, keep_n=keep_n, of_m=of_m)
