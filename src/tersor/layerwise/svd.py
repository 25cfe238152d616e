"""Low rank by singular values: plain, and with inputs weighed by their size (ASVD)."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.layerwise.checking import check_choice, check_number, check_stats, check_weight
from tersor.layerwise.low_rank import FactorType, choose_rank, truncate
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import LowRankWeight


@register("svd", needs="nothing", makes="lowrank", paper="Eckart, Young: The approximation of one matrix by another of lower rank, 1936")
def svd(
    weight: Tensor, stats: LayerStats | None = None, *,
    keep: float | None = None, rank: int | None = None, factor_dtype: FactorType = "float16",
) -> LowRankWeight:  # fmt: skip
    """The closest matrix of a given rank.

    The baseline of the low-rank methods: close to the weight, far from the layer's output. With inputs use :func:`whitened_svd`.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Not looked at.
        keep: Fraction of the parameters kept, 0.5 unless given; the rank is ``floor(keep * out * in / (out + in))``, at least 1.
        rank: The rank itself, instead of ``keep``.
        factor_dtype: Type that both factors are stored in.

    Raises:
        InvalidArgument: On an option out of range, a rank that saves nothing, or a weight that is not a finite matrix.
    """
    values = check_weight(weight, stats)
    check_choice("factor_dtype", factor_dtype, FactorType)
    return truncate(values, None, choose_rank((values.shape[0], values.shape[1]), keep, rank), factor_dtype)


@register("asvd", needs="inputs", makes="lowrank", paper="Yuan, Shang, Song, Wu, Yan, Sun: ASVD, 2023")
def asvd(
    weight: Tensor, stats: LayerStats | None, *,
    keep: float | None = None, rank: int | None = None, alpha: float = 0.5, factor_dtype: FactorType = "float16",
) -> LowRankWeight:  # fmt: skip
    """Truncate after scaling each input by ``mean |x_j| ** alpha``.

    A baseline between :func:`svd` and :func:`whitened_svd`, which knows the correlations of the inputs as well and is never worse on
    the calibration inputs.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; only ``mean_abs`` is used.
        keep: As for :func:`svd`.
        rank: As for :func:`svd`.
        alpha: 0 is :func:`svd`.
        factor_dtype: As for :func:`svd`.

    Raises:
        InvalidArgument: On an option out of range, a rank that saves nothing, or missing or foreign statistics.

    Reference:
        Yuan, Shang, Song, Wu, Yan, Sun: "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models", 2023.
    """
    stats = check_stats("asvd", stats)
    values = check_weight(weight, stats)
    check_choice("factor_dtype", factor_dtype, FactorType)
    check_number("alpha", alpha, 0.0)
    rank = choose_rank((values.shape[0], values.shape[1]), keep, rank)
    largest = stats.mean_abs.max()
    relative = stats.mean_abs / largest if largest > 0 else torch.ones_like(stats.mean_abs)
    return truncate(values, (relative + 1e-6).pow(alpha), rank, factor_dtype)
