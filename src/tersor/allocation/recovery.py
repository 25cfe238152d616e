"""A sparse parameter that explains numbers which are linear in it up to a bounded error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sparse_parameter(rows: Array, values: Array, error: float, sparsity: int, *, positive: bool = False) -> Array:
    """The parameter of least l1 norm that explains all values within ``error``, refitted on its largest entries.

    Where no parameter explains them that well, the smallest error that one can is allowed instead. Takes checked arguments;
    :func:`tersor.limits.bandits.recover` is the same thing for any.

    Args:
        rows: ``[n, d]``.
        values: ``[n]``.
        error: Largest misfit of a value.
        sparsity: Entries kept, from 1 to ``d``.
        positive: Allow no negative entries.

    Returns:
        ``[d]``, with at most ``sparsity`` entries that are not zero.
    """
    parameter = _least_norm(rows, values, error, positive)
    support = np.argsort(-np.abs(parameter), kind="stable")[:sparsity]
    support = support[np.abs(parameter[support]) > 1e-9 * max(float(np.abs(parameter).max()), 1e-300)]
    found = np.zeros(rows.shape[1])
    if len(support):
        found[support] = _refitted(rows[:, support], values, positive)
    return found


def _least_norm(rows: Array, values: Array, error: float, positive: bool) -> Array:
    """Linear program in ``[theta+, theta-, t]``: the slack ``t`` above ``eps`` costs more than any parameter can save."""
    from scipy.optimize import linprog

    count, dimension = rows.shape
    signs = 1 if positive else 2
    both = np.concatenate((rows, -rows), 1) if signs == 2 else rows
    slack = -np.ones((count, 1))
    constraints = np.concatenate((np.concatenate((both, slack), 1), np.concatenate((-both, slack), 1)))
    limits = np.concatenate((values + error, error - values))
    cost = np.concatenate((np.ones(signs * dimension), [1e4 * count]))
    solved = linprog(cost, A_ub=constraints, b_ub=limits, bounds=(0, None), method="highs")
    solution = solved.x[:-1].reshape(signs, dimension)
    return solution[0] - solution[1] if signs == 2 else solution[0]


def _refitted(rows: Array, values: Array, positive: bool) -> Array:
    if positive:
        from scipy.optimize import nnls

        return np.asarray(nnls(rows, values)[0])
    return np.asarray(np.linalg.lstsq(rows, values, rcond=1e-10)[0])
