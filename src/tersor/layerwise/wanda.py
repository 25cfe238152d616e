"""Wanda: prune by weight times input norm, within each output row."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.layerwise.hessian import need_stats
from tersor.layerwise.masks import check_sparsity, lowest_mask, pattern_mask
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import SparseWeight
from tersor.weights.base import check_matrix


@register("wanda", needs="inputs", makes="sparse", paper="Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, 2023")
def wanda(
    weight: Tensor, stats: LayerStats, *, sparsity: float | None = None, keep_n: int | None = None, of_m: int | None = None
) -> SparseWeight:
    """Remove, in each output row, the weights whose product with the root mean square of their input is smallest; nothing is updated.

    Fast and hard to overfit. :func:`sparsegpt` is better with enough calibration text, above all at 2:4.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Of the layer's inputs.
        sparsity: Fraction to remove of every row; 0.5 if nothing is given.
        keep_n: Weights to keep of every ``of_m`` neighbouring inputs.
        of_m: See ``keep_n``.

    Raises:
        InvalidArgument: On NaN or Inf, missing statistics or an option out of range.

    Reference:
        Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, 2023.
    """
    check_matrix(weight)
    sparsity = 0.5 if sparsity is None and keep_n is None and of_m is None else sparsity
    check_sparsity(sparsity, keep_n, of_m, weight.shape[1])
    stats = need_stats(stats, weight, "wanda")
    scores = weight.double().abs() * stats.mean_square.sqrt()
    if keep_n is not None and of_m is not None:
        mask = pattern_mask(scores, keep_n, of_m)
    else:
        assert sparsity is not None
        mask = lowest_mask(scores, round(sparsity * weight.shape[1]))
    return SparseWeight.from_dense(weight, mask, torch.float16, keep_n=keep_n, of_m=of_m)
