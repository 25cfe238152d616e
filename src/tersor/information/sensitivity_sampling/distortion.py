"""How far a sample of rows is from preserving every ``||A x||_p^p``."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_rows, optional
from tersor.information.sensitivity_sampling.plans import RowSample
from tersor.information.sensitivity_sampling.scores import orthonormal_basis
from tersor.layerwise.checking import check_integer


def distortion(rows: Any, sample: RowSample, *, starts: int = 20, seed: int = 0) -> float:
    """``max_x | ||S A x||_p^p / ||A x||_p^p - 1 |``.

    Exact for ``p = 2``. For other ``p`` the maximum is not a convex problem, and what is returned is a lower estimate: the best of a
    number of local searches.

    Args:
        rows: ``A`` ``[n, d]``.
        sample: Of these rows.
        starts: Local searches upwards and as many downwards, half from random directions and half from the rows that matter most.
        seed: Of the random directions.

    Returns:
        0 for a perfect sample; 1 or more if some direction is lost.

    Raises:
        InvalidArgument: If the sample is of a matrix with another number of rows, or holds NaN or Inf.
        TersorError: If scipy is needed (``p`` other than 2) and missing.
    """
    matrix = check_rows("rows", rows)
    check_integer("starts", starts, 1)
    if sample.n_rows != len(matrix):
        raise InvalidArgument(f"the sample is of a matrix of {sample.n_rows} rows, got shape {matrix.shape}")
    basis = orthonormal_basis(matrix)
    if not basis.shape[1]:
        return 0.0
    if sample.p == 2:
        kept = sample.apply(basis)
        values = np.linalg.eigvalsh(kept.T @ kept)
        return float(max(values[-1] - 1, 1 - max(values[0], 0.0)))
    if not len(sample):
        return 1.0
    return _search(basis, sample, starts, seed)


def _search(basis: Array, sample: RowSample, starts: int, seed: int) -> float:
    optimize = optional("scipy.optimize")
    p, kept = sample.p, sample.apply(basis)
    random = np.random.default_rng(seed)
    rows = basis[np.argsort(-np.square(basis).sum(1))[: starts // 2]]
    directions = np.vstack([random.normal(size=(max(starts - len(rows), 0), basis.shape[1])), rows])

    def ratio(x: Array, sign: float) -> tuple[float, Array]:
        # log of the ratio: its gradient does not depend on the length of x.
        values, gradient = zip(*(_log_power(part, x, p) for part in (kept, basis)), strict=True)
        return sign * (values[0] - values[1]), sign * (gradient[0] - gradient[1])

    worst = 0.0
    for sign in (1.0, -1.0):
        for direction in directions:
            found = optimize.minimize(ratio, direction / np.linalg.norm(direction), args=(sign,), jac=True, method="L-BFGS-B")
            worst = max(worst, abs(float(np.exp(sign * found.fun)) - 1))
    return worst


def _log_power(matrix: Array, x: Array, p: float) -> tuple[float, Array]:
    """``log ||M x||_p^p`` and its gradient by ``x``."""
    values = matrix @ x
    size = np.abs(values)
    largest = max(float(size.max()), np.finfo(float).tiny)
    powers = (size / largest) ** p
    total = max(float(powers.sum()), np.finfo(float).tiny)
    slopes = p * (size / largest) ** (p - 1) * np.sign(values) / largest
    return float(np.log(total) + p * np.log(largest)), matrix.T @ slopes / total
