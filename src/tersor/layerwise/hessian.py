"""The factor of the inverse Hessian that GPTQ and SparseGPT sweep with, computed once for all layers and levels that share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise.stats import LayerStats

# What damping starts from when the caller asked for none and the matrix turns out singular. A mean of x x^T is singular by rounding at
# most, so one that takes more than its own mean diagonal is something else.
_SMALLEST_DAMPING = 1e-6
_LARGEST_DAMPING = 1.0


@dataclass(frozen=True)
class HessianFactor:
    """Upper triangular ``U`` with ``U^T U = (H + damping * mean(diag H) * I)^-1``, rows divided by their diagonal.

    Attributes:
        coefficients: ``U[i, j] / U[i, i]``, float32 ``[in_features, in_features]``: how an error in input i moves to input j.
        diagonal: ``U[i, i]``, float64. ``error ** 2 / diagonal ** 2`` is what the error costs after the others have compensated.
        order: Input at each position of the factor, int64; ``None`` for the natural order.
        damping: What was added, relative to the mean of the diagonal; more than was asked for if the matrix was singular.
        dead_inputs: Inputs that were zero in every calibration token.
    """

    coefficients: Tensor
    diagonal: Tensor
    order: Tensor | None
    damping: float
    dead_inputs: int


def factorize(stats: LayerStats, damping: float, act_order: bool = False) -> HessianFactor:
    """The factor for ``stats``, kept in their ``cache`` until another is asked for.

    Levels of one method come one after another, so keeping the latest serves all bit widths and the layers that share an input; keeping
    more would multiply the memory of a block.

    Args:
        stats: Statistics of the inputs.
        damping: Added to the diagonal, relative to its mean.
        act_order: Sweep the inputs by falling mean square instead of in their own order.
    """
    key = (damping, act_order)
    kept = stats.cache.get("factor")
    # A copy of the statistics with another hessian may share the dictionary.
    if kept is not None and kept[0] is stats.hessian and kept[1] == key:
        factor: HessianFactor = kept[2]
        return factor
    factor = _factorize(stats.hessian, damping, act_order)
    stats.cache["factor"] = (stats.hessian, key, factor)
    return factor


def damped_cholesky(hessian: Tensor, damping: float, *, overwrite: bool = False) -> tuple[Tensor, float]:
    """Lower Cholesky factor of ``hessian`` plus ``damping`` times its mean diagonal, and the damping that it took.

    The damping grows tenfold until the matrix is positive definite.

    Args:
        hessian: ``[n, n]``.
        damping: What to begin with.
        overwrite: Whether the diagonal of ``hessian`` may be damped in place, which saves a copy.

    Raises:
        InvalidArgument: If ``hessian`` is far from positive semi-definite, so that no reasonable damping mends it.
    """
    mean = float(hessian.diagonal().mean())
    unit = mean if mean > 0 else 1.0
    largest = max(damping, _LARGEST_DAMPING)
    damped = hessian if overwrite else hessian.clone()
    diagonal = hessian.diagonal().clone()
    while damping <= largest:
        damped.diagonal().copy_(diagonal + damping * unit)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return lower, damping
        damping = max(10 * damping, _SMALLEST_DAMPING)
    raise InvalidArgument("the Hessian of the inputs is not positive semi-definite; it must be a mean of x x^T")


def _factorize(hessian: Tensor, damping: float, act_order: bool) -> HessianFactor:
    # The matrix of a wide layer is what a job's memory peaks at, so no copy outlives its use.
    hessian = hessian.double()
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else None
    backwards = hessian.flip(0, 1) if order is None else hessian[order.flip(0).unsqueeze(1), order.flip(0)]
    # Cholesky from the last input to the first gives H = R R^T with R upper triangular, so U = R^-1 without forming the inverse of H.
    lower, used = damped_cholesky(backwards, damping, overwrite=True)
    del backwards
    # Column by column in memory, as LAPACK wants it to solve in place.
    inverse = torch.eye(hessian.shape[0], dtype=torch.float64, device=hessian.device).mT
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    diagonal = inverse.diagonal().flip(0)
    inverse /= inverse.diagonal().clone().unsqueeze(1)
    coefficients = inverse.float().flip(0, 1)
    if not torch.isfinite(coefficients).all():
        raise TersorError("the Hessian of the inputs is too ill-conditioned to factorise; raise damping")
    return HessianFactor(coefficients, diagonal, order, used, int((hessian.diagonal() == 0).sum()))
