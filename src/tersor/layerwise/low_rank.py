"""The one truncation behind every low-rank method: project the outputs on their most important directions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.stats import LayerStats
from tersor.weights import BiasedWeight, LowRankWeight, check_matrix

FactorType = Literal["float16", "bfloat16", "float32"]
_DEFAULT_KEEP = 0.5


def choose_rank(shape: tuple[int, int], keep: float | None, rank: int | None) -> int:
    """The rank asked for, either itself or as the fraction of the parameters to keep; half of them if nothing is said.

    Raises:
        InvalidArgument: If both are given, one is out of range, or factors of that rank would not be smaller than the matrix.
    """
    out_features, in_features = shape
    if keep is not None and rank is not None:
        raise InvalidArgument("give keep or rank, not both")
    if rank is None:
        keep = check_number("keep", _DEFAULT_KEEP if keep is None else keep, 0.0, 1.0)
        rank = max(int(keep * out_features * in_features / (out_features + in_features)), 1)
    check_integer("rank", rank, 1)
    if rank * (out_features + in_features) >= out_features * in_features:
        largest = (out_features * in_features - 1) // (out_features + in_features)
        mend = f"use a rank of at most {largest}, or the method 'keep'" if largest else "use the method 'keep'"
        raise InvalidArgument(f"rank {rank} saves nothing on a weight of shape ({out_features}, {in_features}): {mend}")
    return rank


def truncate(weight: Tensor, multiplier: Tensor | None, rank: int, factor_dtype: FactorType) -> LowRankWeight:
    """The matrix ``W_hat`` of ``rank`` that minimises ``||(W - W_hat) M||_F`` over the directions that W M reaches.

    With ``U`` the leading left singular vectors of ``W M`` it is ``U U^T W``: no inverse of ``M`` is needed, whatever its condition.

    Args:
        weight: ``[out_features, in_features]``.
        multiplier: ``M``, ``[in_features, in_features]`` or the diagonal ``[in_features]``; ``None`` for the identity.
        rank: Columns of the left factor.
        factor_dtype: Type that both factors are stored in.

    Returns:
        The weight; its ``report`` holds ``rank`` and ``kept_energy``, the fraction of ``||W M||_F^2`` that is kept.

    Raises:
        InvalidArgument: If a factor overflows in ``factor_dtype``.
    """
    exact = weight.double()
    basis, energy = leading_directions(_times(exact, multiplier), rank)
    right = basis.T @ exact
    # Both factors get the same row norms, which keeps the smaller of them clear of the bottom of float16.
    balance = right.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    factors = [(basis * balance).to(getattr(torch, factor_dtype)), (right / balance.unsqueeze(1)).to(getattr(torch, factor_dtype))]
    for factor in factors:
        check_matrix(factor, f"a factor rounded to {factor_dtype}")
    compressed = LowRankWeight(*factors)
    compressed.report = {"rank": rank, "kept_energy": energy}
    return compressed


def leading_directions(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    """The ``rank`` leading left singular vectors of ``matrix`` ``[..., out, n]`` and the fraction of its energy that they hold.

    Taken from the eigenvectors of the smaller Gram matrix, in half the time of a singular value decomposition; singular values below
    1e-8 of the largest are not resolved, far below the rounding of any stored factor.
    """
    out_features, width = matrix.shape[-2:]
    total = float(matrix.square().sum())
    if out_features <= width:
        basis = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors[..., -rank:].flip(-1)
    else:
        vectors = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors[..., -rank:].flip(-1)
        basis = torch.linalg.qr(matrix @ vectors).Q
    kept = float((basis.mT @ matrix).square().sum())
    return basis, kept / total if total > 0 else 1.0


def centred_root(stats: LayerStats, damping: float) -> tuple[Tensor, float]:
    """A root ``[in, in]`` of the covariance of the inputs, and the damping that it took."""
    mean = stats.mean.double()
    covariance = stats.hessian.double() - torch.outer(mean, mean)
    try:
        return damped_cholesky(covariance, damping)
    except InvalidArgument:
        # Inputs that hardly vary leave little but rounding, which no damping relative to itself makes definite.
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp(min=0).sqrt(), 0.0


def with_mean(factors: LowRankWeight, weight: Tensor, stats: LayerStats) -> BiasedWeight:
    """``factors`` and the mean of what they leave out, in float16, or in float32 if a value overflows."""
    bias = (weight.double() - factors.dense().double()) @ stats.mean.double()
    half = bias.half()
    return BiasedWeight(factors, half if bool(torch.isfinite(half).all()) else bias.float())


def _times(weight: Tensor, multiplier: Tensor | None) -> Tensor:
    if multiplier is None:
        return weight
    return weight * multiplier if multiplier.ndim == 1 else weight @ multiplier
