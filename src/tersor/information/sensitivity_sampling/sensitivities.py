"""l_p sensitivities: the largest part of ``||A x||_p^p`` that one row can make up, exactly or bounded."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from tersor.errors import InvalidArgument, TersorError
from tersor.information.checking import Array, check_rows, optional
from tersor.information.sensitivity_sampling.scores import (
    check_p,
    leverage_scores,
    lewis_weights,
    orthonormal_basis,
    root_leverage_scores,
)
from tersor.layerwise.checking import check_choice

ScoreKind = Literal["auto", "uniform", "leverage", "root_leverage", "lewis", "sensitivity", "sensitivity_bound", "sensitivity+leverage"]

_TOLERANCE = 1e-6
_ROUNDS = 2000
# Entries of A x below this fraction of the largest count as that: their weights in the reweighted problem stay finite.
_FLOOR = 1e-10
# Doubles that one batch of reweighted problems may hold.
_BATCH = 1 << 23


def sensitivities(rows: Any, p: float, *, indices: Any = None, surrogate: Any = None) -> Array:
    """``sigma_i = max_x |a_i^T x|^p / ||A x||_p^p``, each by a convex problem of its own.

    Every value comes with a certificate: a point of the dual problem, ``min ||y||_q^p`` over ``A^T y = a_i``, whose value is returned
    and is within one millionth of a value that some ``x`` attains. ``p = 1`` is a linear program, ``p = 2`` has a closed form. Above a few
    thousand rows use :func:`sensitivity_bounds`, or a sampled ``surrogate``.

    Args:
        rows: ``A`` ``[n, d]``.
        p: From 1 to 100.
        indices: Rows whose sensitivities are wanted, all of them unless given.
        surrogate: ``[m, d]`` in the place of ``A`` in the denominator, such as a sample that preserves its norm within ``1 + eps``;
            the sensitivities are then right within that factor.

    Returns:
        ``[len(indices)]``, each from 0 to 1 unless a ``surrogate`` is given. For rank ``d`` the sum over all rows lies between
        ``d^(p/2)`` and ``d``, in this order for ``p <= 2`` and in the reverse for ``p >= 2``.

    Raises:
        InvalidArgument: On NaN or Inf, ``p`` below 1, indices out of range, or a surrogate that does not span a row.
        TersorError: If a problem does not reach its certificate, or scipy is needed (``p = 1``) and missing.

    Reference:
        Woodruff, Yasuda: "Sharper Bounds for l_p Sensitivity Sampling", 2023.
    """
    p = check_p(p)
    matrix = check_rows("rows", rows)
    chosen = np.arange(len(matrix)) if indices is None else _check_indices(indices, len(matrix))
    if p == 2 and surrogate is None:
        return leverage_scores(matrix)[chosen]
    base, targets = _whitened(matrix, chosen, surrogate)
    result = np.zeros(len(chosen))
    # Sensitivities do not depend on the size of x, and rows of zeros have none.
    live = np.flatnonzero(np.abs(targets).max(1) > 0)
    if p == 1:
        result[live] = [_by_linear_program(base, target) for target in targets[live]]
    elif len(live):
        size = max(1, _BATCH // (len(base) + base.shape[1] ** 2))
        result[live] = np.concatenate([_by_reweighting(base, targets[part], p) for part in np.split(live, range(size, len(live), size))])
    return result if surrogate is not None else np.minimum(result, 1.0)


def sensitivity_bounds(rows: Any, p: float) -> Array:
    """Upper bounds of the sensitivities from Lewis weights, for the price of a few QR decompositions.

    Args:
        rows: ``[n, d]``.
        p: At least 1.

    Returns:
        ``[n]``: the Lewis weight for ``p <= 2``, ``rank^(p/2 - 1)`` times it above, never more than 1.

    Raises:
        InvalidArgument: On NaN or Inf, or ``p`` below 1.
    """
    weights = lewis_weights(rows, p)
    rank = max(float(weights.sum()), 1.0)
    return np.minimum(weights * rank ** max(p / 2 - 1, 0.0), 1.0)


def row_scores(rows: Any, p: float = 2.0, kind: ScoreKind = "auto") -> Array:
    """Scores to sample rows by.

    Args:
        rows: ``[n, d]``.
        p: Of the norm that the sample is to preserve.
        kind: ``"uniform"``, ``"leverage"``, ``"root_leverage"`` (``p <= 2``), ``"lewis"``, ``"sensitivity"`` (exact, slow),
            ``"sensitivity_bound"``, or ``"sensitivity+leverage"``, the sum that has the best known bound for ``p`` from 1 to 2.
            ``"auto"`` is ``"leverage"`` at 2, ``"sensitivity+leverage"`` below with sensitivities bounded by Lewis weights, and
            ``"sensitivity_bound"`` above.

    Returns:
        ``[n]``, none negative.

    Raises:
        InvalidArgument: On an unknown kind, NaN or Inf, or ``p`` out of range for it.

    Reference:
        Munteanu, Omlor: "Optimal bounds for l_p sensitivity sampling via l_2 augmentation", 2024.
    """
    check_choice("kind", kind, ScoreKind)
    p = check_p(p)
    if kind == "auto":
        if p < 2:
            return sensitivity_bounds(rows, p) + leverage_scores(rows)
        kind = "leverage" if p == 2 else "sensitivity_bound"
    if kind == "uniform":
        return np.ones(len(check_rows("rows", rows)))
    if kind == "root_leverage":
        return root_leverage_scores(rows, p)
    if kind == "sensitivity+leverage":
        return sensitivities(rows, p) + leverage_scores(rows)
    functions = {"lewis": lewis_weights, "sensitivity": sensitivities, "sensitivity_bound": sensitivity_bounds}
    return leverage_scores(rows) if kind == "leverage" else functions[kind](rows, p)


def _check_indices(indices: Any, n: int) -> Array:
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < n):
        raise InvalidArgument(f"indices must be a vector of integers from 0 to {n - 1}")
    return chosen


def _whitened(matrix: Array, chosen: Array, surrogate: Any) -> tuple[Array, Array]:
    """The base with orthonormal columns, and the chosen rows in the same coordinates."""
    if surrogate is None:
        basis = orthonormal_basis(matrix)
        return basis, basis[chosen]
    sampled = check_rows("surrogate", surrogate)
    if sampled.shape[1] != matrix.shape[1]:
        raise InvalidArgument(f"surrogate must have {matrix.shape[1]} columns like the rows, got shape {sampled.shape}")
    basis = orthonormal_basis(sampled)
    solved, *_ = np.linalg.lstsq(sampled, basis, rcond=None)
    targets: Array = matrix[chosen] @ solved
    back: Array = basis.T @ sampled
    if not np.allclose(targets @ back, matrix[chosen], rtol=1e-6, atol=1e-9 * float(np.abs(matrix).max())):
        raise InvalidArgument("the surrogate does not span the rows, so their sensitivities have no bound; sample more rows")
    return basis, targets


def _by_reweighting(base: Array, targets: Array, p: float) -> Array:
    """``[b]`` dual values; iteratively reweighted least squares in which every round yields a primal and a dual point."""
    q, damping = p / (p - 1), 1.0 if p <= 2 else 1 / (p - 1)
    directions = targets / np.square(targets).sum(1, keepdims=True)
    best = np.full(len(targets), np.inf)
    attained = np.zeros(len(targets))
    outer = (base[:, :, None] * base[:, None, :]).reshape(len(base), -1)
    for _ in range(_ROUNDS):
        values = np.abs(directions @ base.T)
        attained = np.maximum(attained, 1 / (values**p).sum(1))
        relative = np.maximum(values / values.max(1, keepdims=True), _FLOOR)
        weights = relative ** (p - 2)
        systems = (weights @ outer).reshape(len(targets), *(base.shape[1],) * 2)
        solved = np.linalg.solve(systems, targets[:, :, None])[:, :, 0]
        # y = W A H^-1 a satisfies A^T y = a whatever the weights: a certificate.
        dual = np.abs(weights * (solved @ base.T))
        largest = dual.max(1)
        best = np.minimum(best, largest**p * ((dual / largest[:, None]) ** q).sum(1) ** (p / q))
        if bool((best - attained <= _TOLERANCE * best).all()):
            return best
        step = solved / (solved * targets).sum(1, keepdims=True) - directions
        directions = directions + damping * step
    worst = float(((best - attained) / best).max())
    raise TersorError(f"sensitivities for p={p:g} are certified to {worst:.1g} only, not {_TOLERANCE:g}; use sensitivity_bounds")


def _by_linear_program(base: Array, target: Array) -> float:
    """``min ||y||_inf`` over ``A^T y = a``, as the largest ``s`` with ``A^T z = s a`` and ``|z| <= 1``."""
    optimize = optional("scipy.optimize")
    n = len(base)
    cost = np.zeros(n + 1)
    cost[-1] = -1.0
    equations = np.hstack([base.T, -target[:, None]])
    bounds = np.vstack([np.tile([-1.0, 1.0], (n, 1)), [0.0, np.inf]])
    found = optimize.linprog(cost, A_eq=equations, b_eq=np.zeros(base.shape[1]), bounds=bounds, method="highs")
    if not found.success:
        raise TersorError(f"the linear program of a sensitivity failed: {found.message}")
    return 1.0 / float(found.x[-1])
