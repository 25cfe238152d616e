"""Making up for what the layers before have lost: a weight for the inputs of the compressed model and the outputs of the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.hessian import damped_cholesky


@dataclass(frozen=True)
class Lag:
    """What a layer in a compressed model would have to add to its weight to make up for what its output lacks.

    Attributes:
        change: float32 ``[out_features, in_features]``, the least-squares solution over the tokens of a calibration text.
        n_tokens: Tokens seen; of unequal weights, as many equal ones as tell as much.
    """

    change: Tensor
    n_tokens: float

    @classmethod
    def solved(cls, gram: Tensor, crosses: list[Tensor], n_tokens: float, damping: float = 0.01) -> list[Lag]:
        """The lags of layers that read the same input.

        Args:
            gram: ``sum w z z^T`` over tokens with inputs ``z`` and weights ``w``, float64 ``[in_features, in_features]``; used up,
                since that of a wide layer is much of what a walk holds.
            crosses: For each layer ``sum w z e^T``, ``[in_features, out_features]``: ``e`` is what its output is short of the original's.
            n_tokens: See :class:`Lag`.
            damping: Added to the diagonal of the gram, relative to its mean.

        Raises:
            InvalidArgument: If the shapes do not belong together or something is not finite.
        """
        for cross in crosses:
            if gram.shape != (cross.shape[0],) * 2:
                raise InvalidArgument(f"a gram {tuple(gram.shape)} and a cross moment {tuple(cross.shape)} do not belong together")
            if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
                raise InvalidArgument("the lag of a layer holds NaN or Inf; the model or the text is broken upstream of it")
        lower, _ = damped_cholesky(gram, damping, overwrite=True)
        return [cls(torch.cholesky_solve(cross.double(), lower).T.float(), n_tokens) for cross in crosses]


def corrected(weight: Tensor, lag: Lag, share: float = 0.25) -> Tensor:
    """The weight to compress in place of ``weight`` so that outputs come nearer to the original's although the inputs have changed.

    With inputs ``z`` in the compressed model, where the outputs of ``W`` are short of the original's by ``e``,
    ``W + E[e z^T] (E[z z^T])^-1`` is the weight whose outputs are nearest to the original's in the mean square. Any method then
    compresses it. All of that change is too much: least squares also takes away what the noise in ``z`` makes uncertain, a little
    in every layer, until the signal is lost.

    Args:
        weight: ``[out_features, in_features]``.
        lag: Of the layer; :class:`tersor.models.BlockWalk` measures it.
        share: How much of the change to make, 0 to 1, before a discount of ``in_features / n_tokens``, about what least squares
            fits of the calibration text alone: with fewer tokens than inputs nothing is changed.

    Returns:
        A weight of the same shape and type; ``weight`` itself where nothing is changed.

    Raises:
        InvalidArgument: If the shapes do not fit or ``share`` is out of range.

    Reference:
        The asymmetric objective is that of Li, Yin, Lee, Xiao, Panda: "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
        Calibration", 2025; there it enters the sweep of GPTQ, here the weight that any method is given.
    """
    if not 0 <= share <= 1:
        raise InvalidArgument(f"the share of the change to make must be from 0 to 1, got {share}")
    if tuple(weight.shape) != tuple(lag.change.shape):
        raise InvalidArgument(f"a lag for a weight {tuple(lag.change.shape)} does not fit the weight {tuple(weight.shape)}")
    share *= max(0.0, 1 - weight.shape[1] / lag.n_tokens)
    return weight + (share * lag.change).to(weight.dtype) if share > 0 else weight
