"""Making up for what the layers before have lost: a weight for the inputs of the compressed model and the outputs of the original."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.stats import LayerStats


def corrected(weight: Tensor, stats: LayerStats, lag: Tensor, share: float = 0.25, damping: float = 0.01) -> Tensor:
    """The weight to compress in place of ``weight`` so that outputs come nearer to the original's although the inputs have changed.

    With inputs ``z`` in the compressed model, where the outputs of ``W`` fall short of the original's by ``e``,
    ``W + E[e z^T] (E[z z^T])^-1`` is the weight whose outputs are nearest to the original's in the mean square. Any method then
    compresses it in the metric of ``z``. All of that change is too much: least squares also takes away what the noise in ``z``
    makes uncertain, a little in every layer, until the signal is lost.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Of ``z``.
        lag: ``E[z e^T]``, ``[in_features, out_features]``; :class:`tersor.models.blocks.BlockWalk` measures it.
        share: How much of the change to make, 0 to 1, before a discount of ``in_features / n_tokens``, about what least squares
            fits of the calibration text alone: with fewer tokens than inputs nothing is changed.
        damping: Added to the diagonal of the Hessian, relative to its mean.

    Returns:
        A weight of the same shape and type; ``weight`` itself where nothing is changed.

    Raises:
        InvalidArgument: If the shapes do not fit, a value is not finite, or ``share`` is out of range.

    Reference:
        The asymmetric objective is that of Li, Yin, Lee, Xiao, Panda: "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
        Calibration", 2025; there it enters the sweep of GPTQ, here the weight that any method is given.
    """
    if not 0 <= share <= 1:
        raise InvalidArgument(f"the share of the change to make must be from 0 to 1, got {share}")
    if tuple(lag.shape) != (stats.in_features, weight.shape[0]) or weight.shape[1] != stats.in_features:
        raise InvalidArgument(f"a weight {tuple(weight.shape)} and a lag {tuple(lag.shape)} do not fit {stats.in_features} inputs")
    if not torch.isfinite(lag).all():
        raise InvalidArgument("the lag holds NaN or Inf; the model or the text is broken upstream of this layer")
    share *= max(0.0, 1 - stats.in_features / stats.n_tokens)
    if share == 0:
        return weight
    change = torch.cholesky_solve(lag.double(), _factor(stats, damping)).T
    return weight + (share * change).to(weight.dtype)


def _factor(stats: LayerStats, damping: float) -> Tensor:
    """Of the damped Hessian, kept for the layers that share the input."""
    kept = stats.cache.get("lower")
    if kept is not None and kept[0] is stats.hessian and kept[1] == damping:
        found: Tensor = kept[2]
        return found
    found, _ = damped_cholesky(stats.hessian.double(), damping)
    stats.cache["lower"] = (stats.hessian, damping, found)
    return found
