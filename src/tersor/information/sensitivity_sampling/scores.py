"""How much each row of a matrix can matter: leverage scores, root leverage scores and Lewis weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.errors import InvalidArgument, TersorError
from tersor.information.checking import Array, check_rows
from tersor.layerwise.checking import check_number

# The Gram matrix resolves singular values down to the square root of float64; beyond this condition the rows themselves are factored.
_GRAM_CONDITION = 1e-6
_LEWIS_ROUNDS = 1000
_LEWIS_TOLERANCE = 1e-10


def check_p(p: object) -> float:
    """``p`` of an l_p norm, at least 1.

    Raises:
        InvalidArgument: If it is below 1 (no norm), infinite or no number.
    """
    value = check_number("p", p, 1.0)
    if value > 100:
        raise InvalidArgument(f"p must be at most 100, got {value:g}; such norms are maxima in float64")
    return value


def leverage_scores(rows: Any, gram: Any = None) -> Array:
    """``a_i^T (A^T A)^+ a_i``: the largest part of ``||A x||^2`` that row ``i`` can make up. The score of choice for squared errors.

    Args:
        rows: ``A`` ``[n, d]``, an array or a tensor.
        gram: ``A^T A`` ``[d, d]`` of a larger set that ``rows`` are a batch of, so that a second pass over data that does not fit in
            memory can score it; ``LayerStats.hessian * n_tokens`` is one. Of ``rows`` themselves unless given.

    Returns:
        ``[n]``, each from 0 to 1; their sum is the rank. Unchanged when ``A`` becomes ``A R`` with ``R`` invertible.

    Raises:
        InvalidArgument: On NaN or Inf, or shapes that do not match.

    Reference:
        Drineas, Mahoney, Muthukrishnan: "Sampling algorithms for l2 regression and applications", 2006.

    Example:
        >>> import numpy as np
        >>> leverage_scores(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])).round(6).tolist()
        [0.5, 0.5, 1.0]
    """
    matrix = check_rows("rows", rows)
    if gram is None:
        return _leverage(matrix)
    moment = check_rows("gram", gram)
    if moment.shape != (matrix.shape[1],) * 2:
        raise InvalidArgument(f"gram must be [{matrix.shape[1]}, {matrix.shape[1]}] for rows of that width, got shape {moment.shape}")
    scale = np.sqrt(np.maximum(np.diag(moment), 0))
    scale[scale == 0] = 1.0
    values, vectors = np.linalg.eigh(moment / np.outer(scale, scale))
    kept = values > values[-1] * len(scale) * np.finfo(float).eps
    projected = (matrix / scale) @ (vectors[:, kept] / np.sqrt(values[kept]))
    return np.minimum(np.square(projected).sum(1), 1.0)


def root_leverage_scores(rows: Any, p: float) -> Array:
    """``tau_i^(p/2)``: leverage scores flattened so that, sampled repeatedly, they preserve ``||A x||_p`` for ``p < 2``.

    Args:
        rows: ``[n, d]``.
        p: From 1 to 2. At 2 these are the leverage scores.

    Returns:
        ``[n]``; their sum is at most ``n^(1 - p/2) d^(p/2)``, which is why one round of sampling is not enough
        (:func:`~tersor.information.sensitivity_sampling.root_leverage_sample` repeats it).

    Raises:
        InvalidArgument: If ``p`` is out of range.

    Reference:
        Woodruff, Yasuda: "Sharper Bounds for l_p Sensitivity Sampling", 2023.
    """
    if check_p(p) > 2:
        raise InvalidArgument(f"root leverage scores are for p from 1 to 2, got {p:g}; use Lewis weights or sensitivities")
    scores: Array = leverage_scores(rows) ** (p / 2)
    return scores


def lewis_weights(rows: Any, p: float) -> Array:
    """The weights ``w`` with ``w_i = tau_i(W^(1/2 - 1/p) A)``: the change of measure that makes ``l_p`` look like ``l_2``.

    Found by ``w <- w^(1-t) tau^t`` with ``t = 2 / (1 + 2/p)``, which contracts the error of the logarithm at a fixed point by
    ``|p - 2| / (p + 2)`` or better for every ``p``.

    Args:
        rows: ``[n, d]``.
        p: At least 1; at 2 these are the leverage scores.

    Returns:
        ``[n]``, each from 0 to 1; their sum is the rank. They bound the sensitivities: ``sigma <= w`` for ``p <= 2``, and
        ``sigma <= d^(p/2 - 1) w`` above.

    Raises:
        InvalidArgument: On NaN or Inf, or ``p`` below 1.
        TersorError: If the iteration does not settle, as on rows near the ends of float64.

    Reference:
        Cohen, Peng: "Lp Row Sampling by Lewis Weights", 2015.
    """
    p = check_p(p)
    matrix = check_rows("rows", rows)
    weights = _leverage(matrix)
    if p == 2:
        return weights
    live = weights > 0
    result = np.zeros(len(matrix))
    result[live] = _fixed_point(matrix[live], weights[live], p)
    return result


def _fixed_point(matrix: Array, weights: Array, p: float) -> Array:
    step = 2 / (1 + 2 / p)
    for _ in range(_LEWIS_ROUNDS):
        scores = _leverage(matrix * (weights ** (0.5 - 1 / p))[:, None])
        # Scores that underflow would pin a weight at zero for good.
        change = np.log(np.maximum(scores, np.finfo(float).tiny)) - np.log(weights)
        weights = weights * np.exp(step * change)
        if float(np.abs(change).max()) < _LEWIS_TOLERANCE:
            return np.minimum(weights, 1.0)
    raise TersorError(f"Lewis weights for p={p:g} did not settle in {_LEWIS_ROUNDS} rounds; scale the rows to a common size")


def _leverage(matrix: Array) -> Array:
    # Scores do not depend on the units of the columns; equal norms keep the condition from being about units.
    largest = np.abs(matrix).max(0)
    scaled = matrix / np.where(largest > 0, largest, 1.0)
    norms = np.linalg.norm(scaled, axis=0)
    scaled = scaled / np.where(norms > 0, norms, 1.0)
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    sound = values[0] > _GRAM_CONDITION**2 * values[-1]
    projected = scaled @ (vectors / np.sqrt(values)) if sound else orthonormal_basis(scaled)
    return np.minimum(np.square(projected).sum(1), 1.0)


def orthonormal_basis(matrix: Array) -> Array:
    """An orthonormal basis ``[n, rank]`` of the column space of ``matrix`` ``[n, d]``, whatever its rank and condition."""
    q, r = np.linalg.qr(matrix)
    left, values, _ = np.linalg.svd(r, full_matrices=False)
    kept = values > values[0] * max(matrix.shape) * np.finfo(float).eps if values[0] > 0 else np.zeros(len(values), dtype=bool)
    basis: Array = q @ left[:, kept]
    return basis
