"""What calibration leaves for one linear layer: the second moment of its inputs and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.weights.base import CompressedWeight

# Of a matrix in float64 at once, 16 MiB: an embedding table in float64 would be a multiple of the model.
_ENTRIES = 1 << 21
# Columns of a second moment that are formed together: wide enough for a fast product, narrow enough to leave out most of what
# symmetry gives, which is up to half of the work of calibration.
_STRIP = 192


@dataclass(frozen=True)
class LayerStats:
    """Calibration statistics of the inputs ``x`` (one row a token) of a linear layer. Layers that read the same input share one object.

    Attributes:
        hessian: ``X^T X / n_tokens``, float64, ``[in_features, in_features]``. Damping is the methods' business.
        mean_abs: ``mean |x_j|``, float64, ``[in_features]``.
        mean: ``mean x_j``, float64, ``[in_features]``.
        n_tokens: Rows seen.
        gradient: Mean squared gradient of the loss by the weight, ``[out_features, in_features]``, if it was collected.
        cache: What was derived from the hessian last, kept because many levels and sibling layers need the same.
    """

    hessian: Tensor
    mean_abs: Tensor
    mean: Tensor
    n_tokens: int
    gradient: Tensor | None = None
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def in_features(self) -> int:
        """Width of the layer's input."""
        return self.hessian.shape[0]

    @property
    def mean_square(self) -> Tensor:
        """``mean x_j^2``, the diagonal of the hessian."""
        return self.hessian.diagonal()

    @classmethod
    def identity(cls, in_features: int) -> LayerStats:
        """The statistics of white inputs: what a data-free method assumes."""
        ones = torch.ones(in_features, dtype=torch.float64)
        return cls(torch.eye(in_features, dtype=torch.float64), ones, torch.zeros_like(ones), in_features)

    @classmethod
    def from_inputs(cls, *batches: Tensor) -> LayerStats:
        """Statistics of ``batches``, each ``[..., in_features]``."""
        if not batches:
            raise InvalidArgument("calibration needs at least one batch of inputs")
        accumulator = StatsAccumulator(batches[0].shape[-1])
        for batch in batches:
            accumulator.update(batch)
        return accumulator.finish()


@dataclass
class StatsAccumulator:
    """Adds up :class:`LayerStats` batch by batch, in float64, so that their order and number do not matter.

    Products and sums of one batch are formed in float32, as batches are short enough to be exact to rounding, and added up in float64.
    """

    in_features: int
    n_tokens: int = 0
    _gram: Tensor = field(init=False)
    _abs: Tensor = field(init=False)
    _sum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._gram = torch.zeros(self.in_features, self.in_features, dtype=torch.float64)
        self._abs = torch.zeros(self.in_features, dtype=torch.float64)
        self._sum = torch.zeros(self.in_features, dtype=torch.float64)

    def update(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            inputs: ``[..., in_features]``.
            mask: Same leading shape, true where a token counts; padding must be masked.

        Raises:
            InvalidArgument: If the inputs have another width or are not finite.
        """
        if inputs.shape[-1] != self.in_features:
            raise InvalidArgument(f"expected inputs with {self.in_features} features, got shape {tuple(inputs.shape)}")
        rows = inputs.detach().reshape(-1, self.in_features)
        if mask is not None:
            rows = rows[mask.reshape(-1).bool()]
        rows = rows.float()
        sizes = rows.abs().sum(0)
        if not torch.isfinite(sizes).all():
            raise InvalidArgument("calibration inputs hold NaN or Inf; the model or the text is broken upstream of this layer")
        for first in range(0, self.in_features, _STRIP):
            self._gram[first : first + _STRIP, first:] += rows[:, first : first + _STRIP].T @ rows[:, first:]
        self._abs += sizes
        self._sum += rows.sum(0)
        self.n_tokens += rows.shape[0]

    def finish(self) -> LayerStats:
        """The statistics so far.

        Raises:
            InvalidArgument: If no token was seen.
        """
        if self.n_tokens == 0:
            raise InvalidArgument("this layer saw no calibration token; give more text or skip it")
        n = self.n_tokens
        for last in range(_STRIP, self.in_features, _STRIP):
            self._gram[last:, last - _STRIP : last] = self._gram[last - _STRIP : last, last:].T
        return LayerStats(self._gram / n, self._abs / n, self._sum / n, n)


def layer_error(weight: Tensor, compressed: CompressedWeight | Tensor, stats: LayerStats | None) -> float:
    """Relative squared error of the layer's output, ``tr(D H D^T) / tr(W H W^T)`` with ``D = W - W_hat``.

    Zero for an exact copy, one for an all-zero replacement. An :attr:`~tersor.weights.CompressedWeight.offset` that the weight
    adds to its product counts with it. The number that level databases record.

    Args:
        weight: ``[out_features, in_features]`` before compression.
        compressed: What replaces it.
        stats: Of the inputs that the error is measured on; ``None`` for white inputs.
    """
    dense = compressed if isinstance(compressed, Tensor) else compressed.dense()
    offset = None if isinstance(compressed, Tensor) else compressed.offset
    rows = max(1, _ENTRIES // weight.shape[1])
    shifts = [None] * len(weight.split(rows)) if offset is None else offset.double().split(rows)
    lost = total = 0.0
    for part, replaced, shift in zip(weight.split(rows), dense.split(rows), shifts, strict=True):
        original = part.double()
        difference = original - replaced.double()
        lost += _output_power(difference, stats)
        if shift is not None:
            # The mean of ||D x - b||^2: what is beyond the first term needs the mean of the inputs alone.
            lost += float(shift @ shift - (0 if stats is None else 2 * shift @ (difference @ stats.mean)))
        total += _output_power(original, stats)
    return max(lost, 0.0) / total if total > 0 else 0.0


def _output_power(matrix: Tensor, stats: LayerStats | None) -> float:
    return float(((matrix if stats is None else matrix @ stats.hessian) * matrix).sum())
