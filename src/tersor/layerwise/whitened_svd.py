"""Whitened singular value decomposition: the best low-rank layer for the inputs that it really sees."""

from __future__ import annotations

from torch import Tensor

from tersor.layerwise.hessian import damped_cholesky, need_stats
from tersor.layerwise.low_rank import FactorType, rank_of, truncate
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import LowRankWeight
from tersor.weights.base import check_matrix


@register("whitened_svd", needs="inputs", makes="lowrank", paper="Wang, Zheng, Wan, Zhang: SVD-LLM, 2024")
def whitened_svd(
    weight: Tensor, stats: LayerStats, *, keep: float | None = None, rank: int | None = None, damping: float = 1e-6, factor_dtype: FactorType = "float16"
) -> LowRankWeight:
    """Low rank that minimises the output error ``tr(D H D^T)`` exactly: truncate ``W C`` with ``H = C C^T``.

    The one to use of the family; :func:`svd` and :func:`asvd` are its baselines.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Of the layer's inputs.
        keep: Fraction of the parameters to keep; 0.5 if nothing is given.
        rank: Rank, instead of ``keep``.
        damping: Added to the diagonal of the hessian, relative to its mean; raised until the factorisation exists.
        factor_dtype: Type of the stored factors.

    Returns:
        The weight; ``report`` holds ``damping``, ``rank`` and ``discarded``, the squared output error a token before rounding the factors.

    Raises:
        InvalidArgument: On NaN or Inf, missing statistics, an option out of range, or a rank that saves nothing.

    Reference:
        Wang, Zheng, Wan, Zhang: SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression, 2024.
    """
    check_matrix(weight)
    stats = need_stats(stats, weight, "whitened_svd")
    keep = 0.5 if keep is None and rank is None else keep
    kept = rank_of((weight.shape[0], weight.shape[1]), keep, rank)
    root, used = damped_cholesky(stats.hessian, damping)
    compressed = truncate(weight, root, kept, factor_dtype)
    compressed.report["damping"] = used
    return compressed
