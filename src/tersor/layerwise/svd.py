"""Plain and activation-scaled truncated singular value decomposition."""

from __future__ import annotations

from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.hessian import need_stats
from tersor.layerwise.low_rank import FactorType, rank_of, truncate
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import LowRankWeight
from tersor.weights.base import check_matrix


@register("svd", needs="nothing", makes="lowrank", paper="Eckart, Young, 1936")
def svd(
    weight: Tensor, stats: LayerStats | None = None, *, keep: float | None = None, rank: int | None = None, factor_dtype: FactorType = "float16"
) -> LowRankWeight:
    """Best low-rank matrix in the plain norm. A baseline: language models do not survive it; see :func:`whitened_svd`.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Not used.
        keep: Fraction of the parameters to keep; 0.5 if nothing is given.
        rank: Rank, instead of ``keep``.
        factor_dtype: Type of the stored factors.

    Raises:
        InvalidArgument: On NaN or Inf, an option out of range, or a rank that saves nothing.
    """
    check_matrix(weight)
    keep = 0.5 if keep is None and rank is None else keep
    return truncate(weight, None, rank_of((weight.shape[0], weight.shape[1]), keep, rank), factor_dtype)


@register("asvd", needs="inputs", makes="lowrank", paper="Yuan, Shang, Song, Wu, Yan, Sun: ASVD, 2023")
def asvd(
    weight: Tensor, stats: LayerStats, *, keep: float | None = None, rank: int | None = None, alpha: float = 0.5, factor_dtype: FactorType = "float16"
) -> LowRankWeight:
    """Low rank with inputs weighted by ``mean |x| ** alpha``: a diagonal stand-in for the whitening of :func:`whitened_svd`.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Of the layer's inputs.
        keep: Fraction of the parameters to keep; 0.5 if nothing is given.
        rank: Rank, instead of ``keep``.
        alpha: Exponent; 0 is plain :func:`svd`.
        factor_dtype: Type of the stored factors.

    Raises:
        InvalidArgument: On NaN or Inf, missing statistics, an option out of range, or a rank that saves nothing.

    Reference:
        Yuan, Shang, Song, Wu, Yan, Sun: ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models, 2023.
    """
    check_matrix(weight)
    stats = need_stats(stats, weight, "asvd")
    if alpha < 0:
        raise InvalidArgument(f"alpha must not be negative, got {alpha}")
    keep = 0.5 if keep is None and rank is None else keep
    root = (stats.mean_abs + 1e-6) ** alpha
    compressed = truncate(weight, root, rank_of((weight.shape[0], weight.shape[1]), keep, rank), factor_dtype)
    compressed.report["alpha"] = alpha
    return compressed
