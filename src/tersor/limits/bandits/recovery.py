"""A sparse parameter from few rewards that are linear up to a bounded error."""

from __future__ import annotations

from typing import Any

from tersor.allocation.recovery import sparse_parameter
from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.checking import Array, check_array, optional


def recover(features: Any, rewards: Any, misspecification: float, sparsity: int, *, positive: bool = False) -> Array:
    """The parameter of least l1 norm that explains all rewards within ``eps``, refitted on its ``s`` largest entries.

    Where no parameter explains them that well, the smallest error that one can is allowed instead.

    Args:
        features: ``[queries, d]``.
        rewards: ``[queries]``.
        misspecification: ``eps``.
        sparsity: ``s``, entries kept.
        positive: Allow no negative entries.

    Returns:
        ``[d]``, with at most ``s`` entries that are not zero.

    Raises:
        InvalidArgument: On other shapes, NaN or Inf, or a number out of range.
    """
    rows = check_array("features", features, 2)
    values = check_array("rewards", rewards, 1, (len(rows),))
    check_number("misspecification", misspecification, 0.0)
    check_integer("sparsity", sparsity, 1, rows.shape[1])
    optional("scipy")
    return sparse_parameter(rows, values, misspecification, sparsity, positive=positive)
