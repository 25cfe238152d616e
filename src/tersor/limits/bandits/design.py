"""Which actions to ask for so that the reward of every action can be predicted."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.limits.checking import Array, check_array


def optimal_design(features: Any, *, excess: float = 1.0, iterations: int = 2000) -> Array:
    """Weights of actions, few of them positive, with ``max_a features(a)^T V^-1 features(a) <= (1 + excess) rank``, ``V = sum w a a^T``.

    Frank-Wolfe on ``log det V`` from a well-conditioned basis. The optimum, ``rank``, is that of Kiefer and Wolfowitz; stopping at twice
    that takes few steps and leaves few actions.

    Args:
        features: ``[actions, d]``.
        excess: Stop this far above the optimum.
        iterations: Steps at most.

    Returns:
        ``[actions]``, non-negative, of sum 1.

    Raises:
        InvalidArgument: On another shape, or NaN or Inf.

    Reference:
        Kiefer, Wolfowitz: "The Equivalence of Two Extremum Problems", 1960.
        Kumar, Yildirim: "Minimum-Volume Enclosing Ellipsoids and Core Sets", 2005.
    """
    rows = check_array("features", features, 2)
    basis = _basis(rows)
    weights = np.zeros(len(rows))
    if not basis:  # features that are zero everywhere: nothing to predict, and any action will do
        weights[0] = 1.0
        return weights
    weights[basis] = 1 / len(basis)
    rank = len(basis)
    # In coordinates of the span, where V is invertible.
    coordinates = rows @ np.linalg.svd(rows[basis], full_matrices=False)[2].T
    inverse = np.linalg.inv((coordinates.T * weights) @ coordinates)
    for _ in range(iterations):
        leverage = np.einsum("ai,ij,aj->a", coordinates, inverse, coordinates)
        best = int(np.argmax(leverage))
        if leverage[best] <= (1 + excess) * rank:
            break
        step = (leverage[best] / rank - 1) / (leverage[best] - 1)
        weights *= 1 - step
        weights[best] += step
        inverse = np.linalg.inv((coordinates.T * weights) @ coordinates)
    return weights


def _basis(rows: Array) -> list[int]:
    """Actions that span the features, each the one farthest from the span of those before it."""
    rest, chosen = rows.copy(), []
    scale = float(np.linalg.norm(rows, axis=1).max())
    for _ in range(rows.shape[1]):
        norms = np.linalg.norm(rest, axis=1)
        best = int(np.argmax(norms))
        if norms[best] <= 1e-9 * max(scale, 1e-300):
            break
        chosen.append(best)
        direction = rest[best] / norms[best]
        rest = rest - np.outer(rest @ direction, direction)
    return chosen
