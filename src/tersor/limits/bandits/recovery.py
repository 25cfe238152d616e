"""A sparse parameter from few rewards that are linear up to a bounded error."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.checking import Array, check_array


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
    parameter = _least_norm(rows, values, misspecification, positive)
    support = np.argsort(-np.abs(parameter), kind="stable")[:sparsity]
    support = support[np.abs(parameter[support]) > 1e-9 * max(float(np.abs(parameter).max()), 1e-300)]
    found = np.zeros(rows.shape[1])
    if len(support):
        found[support] = _refitted(rows[:, support], values, positive)
    return found


def _least_norm(rows: Array, values: Array, misspecification: float, positive: bool) -> Array:
    """Linear program in ``[theta+, theta-, t]``: the slack ``t`` above ``eps`` costs more than any parameter can save."""
    from scipy.optimize import linprog

    count, dimension = rows.shape
    signs = 1 if positive else 2
    both = np.concatenate((rows, -rows), 1) if signs == 2 else rows
    slack = -np.ones((count, 1))
    constraints = np.concatenate((np.concatenate((both, slack), 1), np.concatenate((-both, slack), 1)))
    limits = np.concatenate((values + misspecification, misspecification - values))
    cost = np.concatenate((np.ones(signs * dimension), [1e4 * count]))
    solved = linprog(cost, A_ub=constraints, b_ub=limits, bounds=(0, None), method="highs")
    solution = solved.x[:-1].reshape(signs, dimension)
    return solution[0] - solution[1] if signs == 2 else solution[0]


def _refitted(rows: Array, values: Array, positive: bool) -> Array:
    if positive:
        from scipy.optimize import nnls

        return np.asarray(nnls(rows, values)[0])
    return np.asarray(np.linalg.lstsq(rows, values, rcond=1e-10)[0])
