"""Low rank where it matters: the truncation that is optimal for the layer's output (SVD-LLM)."""

from __future__ import annotations

from torch import Tensor

from tersor.layerwise.checking import check_choice, check_number, check_stats, check_weight
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.low_rank import FactorType, choose_rank, truncate
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import LowRankWeight


@register("whitened_svd", needs="inputs", makes="lowrank", paper="Wang, Zheng, Wan, Zhang: SVD-LLM, 2025")
def whitened_svd(
    weight: Tensor, stats: LayerStats | None, *,
    keep: float | None = None, rank: int | None = None, damping: float = 1e-6, factor_dtype: FactorType = "float16",
) -> LowRankWeight:  # fmt: skip
    """The matrix of a given rank that loses least of ``W x`` over the calibration inputs.

    The first choice among low-rank methods. With ``C C^T`` the second moment of the inputs, the discarded squared singular values of
    ``W C`` add up to the squared error of the output. The projection of features without their mean (LoRD) is the same matrix.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs.
        keep: Fraction of the parameters kept, 0.5 unless given; the rank is ``floor(keep * out * in / (out + in))``, at least 1.
        rank: The rank itself, instead of ``keep``.
        damping: Added to the diagonal of the second moment, relative to its mean; raised tenfold until the factorisation succeeds. It
            decides between directions that no calibration input reached.
        factor_dtype: Type that both factors are stored in.

    Returns:
        The weight; its ``report`` holds ``rank``, ``kept_energy`` of the output and the ``damping`` used.

    Raises:
        InvalidArgument: On an option out of range, a rank that saves nothing, or missing or foreign statistics.

    Reference:
        Wang, Zheng, Wan, Zhang: "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", 2025.
    """
    stats = check_stats("whitened_svd", stats)
    values = check_weight(weight, stats)
    check_choice("factor_dtype", factor_dtype, FactorType)
    check_number("damping", damping, 0.0)
    rank = choose_rank((values.shape[0], values.shape[1]), keep, rank)
    root, used = damped_cholesky(stats.hessian.double(), damping)
    compressed = truncate(values, root, rank, factor_dtype)
    compressed.report["damping"] = used
    return compressed
