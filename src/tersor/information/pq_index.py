"""Measures of sparsity that need no threshold: the PQ index, what it says of pruning, and the Gini index beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.pq_index import kept_at_least, pq_index

__all__ = ["gini_index", "kept_at_least", "pq_index"]


def gini_index(values: Tensor) -> float:
    """The Gini index of the magnitudes: 0 for equal ones, ``1 - 1/d`` for a single entry that is not zero.

    It obeys the same laws as :func:`pq_index` and has no orders to choose, but tells nothing of how many entries can go.

    Args:
        values: Of any shape and floating type, at least one entry; computed in float64.

    Raises:
        InvalidArgument: If there is no entry, or one is NaN or Inf.

    Reference: Hurley, Rickard (2009), "Comparing Measures of Sparsity".
    """
    if values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise InvalidArgument("the values must be finite and at least one; NaN, Inf or nothing has no index")
    ordered = values.detach().double().abs().flatten().sort().values
    total = ordered.sum()
    if total == 0:
        return 0.0
    count = ordered.numel()
    weights = (count - torch.arange(1, count + 1, dtype=torch.float64) + 0.5) / count
    return float(1 - 2 * (ordered / total * weights).sum())
