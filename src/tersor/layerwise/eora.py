"""EoRA: a low-rank correction of any compressed weight, optimal for the layer's output, in closed form."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number, check_stats, check_weight
from tersor.layerwise.factors import quantise_factors
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.low_rank import FactorType, truncate
from tersor.layerwise.registry import find_method, register
from tersor.layerwise.stats import LayerStats
from tersor.weights import CompressedWeight, LowRankWeight, SumWeight

Space = Literal["eigenspace", "scaled", "plain"]

# Bits a weight that the factors take when no rank is given: a quarter of what the step from 2 to 4 bits costs.
_DEFAULT_BITS = 0.5


@register("eora", needs="inputs", makes="sum", paper="Liu, Khadkevich, Fung, Sakr et al.: EoRA, 2024")
def eora(
    weight: Tensor, base_or_stats: CompressedWeight | LayerStats | None = None, stats: LayerStats | None = None, *,
    rank: int | None = None, base: str = "gptq", bits: int | None = None, group_size: int | None = None, sparsity: float | None = None,
    keep_n: int | None = None, of_m: int | None = None, base_options: dict[str, Any] | None = None,
    factor_bits: int | None = None, damping: float = 0.01, space: Space = "eigenspace", factor_dtype: FactorType = "float16",
) -> SumWeight:  # fmt: skip
    """Compress with another method, then make up for what that lost by a low-rank term.

    Called as ``eora(weight, stats, base="gptq", bits=3)`` it runs the base method itself, which is the form recipes use; as
    ``eora(weight, compressed, stats)`` it compensates a weight that you have, see :func:`compensate`. Worth its bytes after rounding
    to nearest and after pruning; the residual of :func:`gptq` is nearly white in the metric of the inputs, and has little to give.

    Args:
        weight: ``[out_features, in_features]`` before compression, in the basis of the compressed weight.
        base_or_stats: The compressed weight, or the statistics of the inputs.
        stats: Statistics of the inputs, if a compressed weight came before them.
        rank: Of the correction; half a bit a weight unless given.
        base: The method to compensate.
        bits: Passed on to the base method if given.
        group_size: Likewise, if the base method has groups; the rounded factors use it as well where it divides.
        sparsity: Likewise.
        keep_n: Likewise.
        of_m: Likewise.
        base_options: Further options of the base method.
        factor_bits: 1 to 8 to store the factors quantised, each fitted to its own inputs; floats unless given.
        damping: Added to the diagonal of the second moment, relative to its mean.
        space: ``"eigenspace"``, or the baselines ``"scaled"`` (inputs weighed by their mean magnitude) and ``"plain"`` (SVD).
        factor_dtype: Type of factors that are not quantised.

    Returns:
        The sum of the base and the correction; its ``report`` holds ``rank``, ``kept_energy`` (the fraction of the residual's output
        that the correction restores, in the metric of ``space``), the ``damping`` used and the base's own report.

    Raises:
        InvalidArgument: On an option out of range, a rank above the dimensions, or missing or foreign statistics.

    Reference:
        Liu, Khadkevich, Fung, Sakr, Yang, Wang, Muralidharan, Yin, Cheng, Kautz, Wang, Molchanov, Chen: "EoRA: Fine-tuning-free
        Compensation for Compressed LLM with Eigenspace Low-Rank Approximation", 2024.
    """
    flat = {"bits": bits, "sparsity": sparsity, "keep_n": keep_n, "of_m": of_m}
    given = {key: value for key, value in flat.items() if value is not None} | (base_options or {})
    correction: dict[str, Any] = {
        "rank": rank, "group_size": group_size, "factor_bits": factor_bits, "damping": damping, "space": space,
        "factor_dtype": factor_dtype,
    }  # fmt: skip
    if isinstance(base_or_stats, CompressedWeight):
        if given:
            raise InvalidArgument(f"the weight is compressed already; {', '.join(sorted(given))} would do nothing, leave it out")
        return compensate(weight, base_or_stats, stats, **correction)
    method = find_method(base)
    if group_size is not None and "group_size" in method.options:
        given["group_size"] = group_size
    method.check_options(given)
    inputs = base_or_stats if base_or_stats is not None else stats
    compressed = method.function(weight, inputs, **given)
    total = compensate(weight, compressed, inputs, **correction)
    total.report["base"] = {"method": base, **compressed.report}
    return total


def compensate(
    weight: Tensor, base: CompressedWeight, stats: LayerStats | None, *,
    rank: int | None = None, group_size: int | None = None, factor_bits: int | None = None, damping: float = 0.01,
    space: Space = "eigenspace", factor_dtype: FactorType = "float16",
) -> SumWeight:  # fmt: skip
    """``base`` plus the matrix of a given rank that restores most of the output that ``base`` lost.

    With ``D`` the difference of the weights and ``P P^T`` the second moment of the inputs, the best ``B A`` is the projection of ``D``
    on the leading left singular vectors of ``D P``, whatever root ``P`` is; the squared output error that remains is the sum of the
    other squared singular values. No root is inverted, so inputs that never fired do no harm.

    Args:
        weight: ``[out_features, in_features]`` before compression, in the basis of ``base``.
        base: Any compressed weight of the same shape; held, not copied.
        stats: Statistics of the inputs, best of other text than ``base`` was fitted to; ``space="plain"`` does without.
        rank: As for :func:`eora`, like all that follow.
        group_size: Inputs of the right factor that share a scale, with ``factor_bits``; one group a row unless given.
        factor_bits: As for :func:`eora`.
        damping: As for :func:`eora`.
        space: As for :func:`eora`.
        factor_dtype: As for :func:`eora`.

    Raises:
        InvalidArgument: On an option out of range, a rank above the dimensions, another shape, or missing or foreign statistics.
    """
    check_choice("space", space, Space)
    check_choice("factor_dtype", factor_dtype, FactorType)
    check_number("damping", damping, 0.0)
    if factor_bits is not None:
        check_integer("factor_bits", factor_bits, 1, 8)
    stats = stats if space == "plain" else check_stats(f"eora in the {space} space", stats)
    values = check_weight(weight, stats)
    shape = (values.shape[0], values.shape[1])
    if base.shape != shape:
        raise InvalidArgument(f"the compressed weight has shape {base.shape}, the original {shape}; pass the weight that it was made from")
    rank = _rank(shape, rank, factor_bits)
    residual = values.double() - base.dense().double()
    root, used = _root(stats, space, damping)
    correction = truncate(residual, root, rank, "float32" if factor_bits is not None else factor_dtype)
    kept = correction.report["kept_energy"]
    if factor_bits is not None:
        metric = _metric(root, shape[1])
        divides = group_size is not None and group_size > 0 and shape[1] % group_size == 0
        correction = quantise_factors(correction, residual, metric, factor_bits, group_size if group_size and divides else -1)
        kept = _kept(residual, correction, metric)
    total = SumWeight([base, correction])
    total.report = {"rank": rank, "kept_energy": kept, "space": space} | ({} if used is None else {"damping": used})
    return total


def _rank(shape: tuple[int, int], rank: int | None, factor_bits: int | None) -> int:
    if rank is None:
        entries = shape[0] * shape[1] / (shape[0] + shape[1])
        return max(round(_DEFAULT_BITS * entries / (factor_bits or 16)), 1)
    check_integer("rank", rank, 1)
    if rank > min(shape):
        mend = f"use a rank of at most {min(shape)}"
        raise InvalidArgument(f"rank {rank} is above the smaller dimension of a weight of shape {shape}; {mend}")
    return rank


def _root(stats: LayerStats | None, space: Space, damping: float) -> tuple[Tensor | None, float | None]:
    """A root of the metric, ``[in, in]`` or its diagonal, and the damping that it took."""
    if stats is None or space == "plain":
        return None, None
    if space == "scaled":
        return stats.mean_abs.double(), None
    return damped_cholesky(stats.hessian.double(), damping)


def _metric(root: Tensor | None, in_features: int) -> Tensor:
    """The metric itself, float64 ``[in, in]``."""
    if root is None:
        return torch.eye(in_features, dtype=torch.float64)
    return torch.diag(root.square()) if root.ndim == 1 else root @ root.T


def _kept(residual: Tensor, correction: LowRankWeight, metric: Tensor) -> float:
    remaining = residual - correction.dense().double()
    lost, total = (float(((error @ metric) * error).sum()) for error in (remaining, residual))
    return 1 - lost / total if total > 0 else 1.0
