"""Low rank of the features rather than of the weights: principal components of a layer's outputs (LoRD)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number, check_stats, check_weight
from tersor.layerwise.factors import quantise_factors
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.low_rank import FactorType, centred_root, choose_rank, truncate, with_mean
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats, layer_error
from tersor.weights import BiasedWeight, CompressedWeight, LowRankWeight

Centring = bool | Literal["auto"]

# What the bias must take off the squared error before it is used on its own accord. Language models gain a few hundredths on most
# tokens and lose a multiple of the output on the few that are nothing like the mean, above all the first.
_WORTHWHILE = 0.1
# Relative squared errors below this are rounding.
_EXACT = 1e-6


@register("lord", needs="inputs", makes="lowrank", paper="Kaushal, Vaidhya, Rish: LoRD, 2023")
def lord(
    weight: Tensor, stats: LayerStats | None, *,
    keep: float | None = None, rank: int | None = None, rank_multiple: int = 1, center: Centring = "auto",
    factor_bits: int | None = None, factor_group_size: int = -1, damping: float = 1e-6, factor_dtype: FactorType = "float16",
) -> LowRankWeight | BiasedWeight:  # fmt: skip
    """Project a layer's outputs on their principal components and fold the projection into the weight.

    Without centring this is the matrix of :func:`whitened_svd`. With it, the outputs are taken relative to their mean and a bias puts the
    mean back: never worse on the calibration tokens taken together, and better where the mean is a large part of the output. In language
    models it harms the first token, whose output is nothing like the mean, which is why the bias is not taken by default unless it
    lowers the error by a tenth.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; centring needs their mean.
        keep: Fraction of the parameters kept, 0.5 unless given; the rank is ``floor(keep * out * in / (out + in))``, at least 1.
        rank: The rank itself, instead of ``keep``.
        rank_multiple: Round the rank that ``keep`` gives down to a multiple of this, as tiled hardware likes it.
        center: ``True`` for the paper's method, ``False`` for none, ``"auto"`` for a bias where it is worthwhile.
        factor_bits: 1 to 8 to store the factors quantised, each fitted to its own inputs; floats unless given.
        factor_group_size: Inputs of the right factor that share a scale; -1 for all of them.
        damping: Added to the diagonal of the second moment, relative to its mean; raised tenfold until the factorisation succeeds.
        factor_dtype: Type of factors that are not quantised.

    Returns:
        A :class:`~tersor.weights.LowRankWeight`, inside a :class:`~tersor.weights.BiasedWeight` if it is centred. The ``report`` holds
        ``rank``, ``centred``, ``error`` (relative squared error of the output on the calibration tokens, the bias included) and the
        ``damping`` used.

    Raises:
        InvalidArgument: On an option out of range, a rank that saves nothing, or missing or foreign statistics.

    Reference:
        Kaushal, Vaidhya, Rish: "LoRD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression", 2023.
        Yu, Wu: "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!", 2023.
    """
    stats = check_stats("lord", stats)
    values = check_weight(weight, stats)
    _check_options(center, rank_multiple, factor_bits, damping, factor_dtype)
    rank = _rank((values.shape[0], values.shape[1]), keep, rank, rank_multiple)

    def make(centred: bool) -> LowRankWeight | BiasedWeight:
        root, used = centred_root(stats, damping) if centred else damped_cholesky(stats.hessian.double(), damping)
        factors = truncate(values, root, rank, factor_dtype if factor_bits is None else "float32")
        if factor_bits is not None:
            factors = quantise_factors(factors, values, root @ root.T, factor_bits, factor_group_size)
        made = with_mean(factors, values, stats) if centred else factors
        made.report = {"rank": rank, "centred": centred, "error": layer_error(values, made, stats), "damping": used}
        return made

    if center != "auto":
        return make(center)
    plain, centred = make(False), make(True)
    worthwhile = plain.report["error"] > _EXACT and centred.report["error"] < (1 - _WORTHWHILE) * plain.report["error"]
    return centred if worthwhile else plain


def token_error(weight: Tensor, compressed: CompressedWeight, inputs: Tensor) -> Tensor:
    """Relative squared error of the output of every token, in which the first token of a text counts as much as any other.

    Args:
        weight: ``[out_features, in_features]``.
        compressed: What replaces it.
        inputs: ``[..., in_features]``.

    Returns:
        ``[...]``, the shape of the inputs without their last axis.
    """
    x = inputs.float()
    output = x @ weight.float().T
    return (compressed(x) - output).square().sum(-1) / output.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def _rank(shape: tuple[int, int], keep: float | None, rank: int | None, multiple: int) -> int:
    chosen = choose_rank(shape, keep, rank)
    return chosen if rank is not None else max(chosen // multiple * multiple, min(chosen, multiple))


def _check_options(center: object, rank_multiple: int, factor_bits: int | None, damping: float, factor_dtype: FactorType) -> None:
    if not (isinstance(center, bool) or center == "auto"):
        raise InvalidArgument(f"center must be true, false or 'auto', got {center!r}")
    check_integer("rank_multiple", rank_multiple, 1)
    check_choice("factor_dtype", factor_dtype, FactorType)
    check_number("damping", damping, 0.0)
    if factor_bits is not None:
        check_integer("factor_bits", factor_bits, 1, 8)
