"""The group quantiser of the house: fit a grid to groups of weights, round to it, read it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer
from tersor.weights import QuantizedWeight, round_scale

Scheme = Literal["symmetric", "asymmetric", "float_min"]
Clip = Literal["minmax", "mse", "hessian"]
GroupLoss = Callable[[Tensor, slice], Tensor]

# The exponent that Frantar et al. use: between squared error and the largest error.
_MSE_NORM = 2.4
# Shrink factors of the range: an even scan, then ever finer steps about the best so far. On trained weights at 2 to 4 bits that comes
# within one per cent of the loss of eighty even steps, for a quarter of the work.
_SCAN = tuple(1 - 0.08 * step for step in range(1, 11))
_REFINEMENTS = ((-0.06, -0.04, -0.02, 0.02, 0.04, 0.06), (-0.01, 0.01))
# The compiled search of squared errors can afford more even steps.
_EVEN = np.linspace(0.98, 0.2, 40, dtype=np.float32)
_HALVES = np.array([-0.01, 0.01], np.float32)
# Rows are searched in tiles of this many weights, so that the passes over a tile stay in the cache.
_TILE = 1 << 16
# A group this much smaller than the largest is rounding noise of an update; its own scale would push all scales into float32.
_NEGLIGIBLE = 2.0**-20


@dataclass(frozen=True)
class Grid:
    """``2 ** bits`` evenly spaced levels for each group of ``group_size`` neighbouring inputs of a row.

    Scales are rounded to the type they are stored in before any code is computed. Scale and zero are float32 tensors of shape
    ``[out_features, groups]`` here; ``zero`` is the integer zero point, or the value of code 0 for ``"float_min"``.

    Attributes:
        bits: 1 to 8.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"float_min"``, as in :class:`tersor.weights.QuantizedWeight`.
        group_size: Inputs that share a scale, at least 1.
    """

    bits: int
    scheme: Scheme
    group_size: int

    @classmethod
    def of(cls, in_features: int, bits: int, scheme: Scheme, group_size: int) -> Grid:
        """The grid for rows of ``in_features``; a group size of -1 means one group a row.

        Raises:
            InvalidArgument: If a field is out of range or the group size does not divide the row; the message lists sizes that do.
        """
        check_integer("bits", bits, 1, 8)
        check_choice("scheme", scheme, Scheme)
        if group_size == -1:
            return cls(bits, scheme, in_features)
        check_integer("group_size", group_size, 1)
        if in_features % group_size:
            divisors = [size for size in range(8, in_features) if in_features % size == 0]
            nearest = sorted(sorted(divisors, key=lambda size: abs(size - group_size))[:6])
            offer = f"{', '.join(map(str, nearest))} or -1, one group a row, would do" if nearest else "only -1, one group a row, would"
            raise InvalidArgument(f"group_size {group_size} does not divide the {in_features} input features; {offer}")
        return cls(bits, scheme, group_size)

    @property
    def highest(self) -> int:
        """The largest code."""
        return int(2**self.bits) - 1

    @property
    def is_sign(self) -> bool:
        """Whether the grid is the one-bit symmetric one, whose levels are plus and minus the scale."""
        return self.bits == 1 and self.scheme == "symmetric"

    @property
    def number(self) -> int:
        """How the compiled loops call this kind of grid."""
        from tersor.layerwise import _compiled

        if self.is_sign:
            return _compiled.SIGN
        return {"symmetric": _compiled.SYMMETRIC, "asymmetric": _compiled.ASYMMETRIC, "float_min": _compiled.FLOAT_MIN}[self.scheme]

    def groups(self, weight: Tensor) -> Tensor:
        """``weight`` ``[out_features, n]`` viewed as ``[out_features, n / group_size, group_size]``."""
        return weight.reshape(weight.shape[0], -1, self.group_size)

    def fit(self, weight: Tensor, clip: Clip = "minmax", importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and zero of every group of ``weight``.

        Args:
            weight: float32 ``[out_features, n]``, ``n`` a multiple of the group size.
            clip: ``"minmax"`` covers every weight. ``"mse"`` shrinks the range while that lowers ``sum |error| ** 2.4``: the choice
                without data. ``"hessian"`` lowers ``sum importance * error ** 2``, which does not clip the weights of outlier inputs
                as ``"mse"`` does.
            importance: ``[n]``, mean square of each input; needed by ``"hessian"`` alone.
        """
        if self.is_sign:
            return self._fit_sign(weight, importance if clip == "hessian" else None)
        if clip == "minmax":
            return self._parameters(*self._range(self.groups(weight)))
        if clip == "mse":
            return self.search(weight, lambda error, _: error.abs_().pow_(_MSE_NORM).sum(-1))
        if importance is None:
            raise InvalidArgument("clip='hessian' weighs errors by the mean square of the inputs; pass stats, or use clip='mse'")
        return self._fit_weighted(weight, importance)

    def _fit_weighted(self, weight: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        from tersor.layerwise import _compiled

        groups = self.groups(weight.contiguous())
        low, high = self._range(groups)
        weights = importance.float().reshape(-1, self.group_size).contiguous()
        best = torch.empty(low.shape)
        _compiled.search_range(
            groups.numpy(), weights.numpy(), low.contiguous().numpy(), high.contiguous().numpy(), _EVEN, _HALVES,
            np.float32(self.highest), self.number, best.numpy(),
        )  # fmt: skip
        return self._parameters(*self._shrink(low, high, best))

    def search(self, weight: Tensor, loss: GroupLoss) -> tuple[Tensor, Tensor]:
        """Scale and zero whose shrunken range has the lowest ``loss`` in each group, for losses that couple the weights of a group.

        Never worse than the full range.

        Args:
            weight: float32 ``[out_features, n]``.
            loss: Maps rounding errors ``[rows, groups, group_size]`` (which it may overwrite) and the slice of rows to ``[rows, groups]``.
        """
        if self.is_sign:
            return self._fit_sign(weight, None)
        step = max(_TILE // weight.shape[1], 1)
        found = [self._search(weight[start : start + step], loss, start) for start in range(0, weight.shape[0], step)]
        low, high = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self._parameters(low, high)

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Codes of ``weight`` as whole float32 numbers; ``scale`` and ``zero`` broadcast against it."""
        if self.is_sign:
            return (weight >= 0).to(weight.dtype)
        if self.scheme == "float_min":
            return ((weight - zero) / scale).round_().clamp_(0, self.highest)
        return (weight / scale).round_().add_(zero).clamp_(0, self.highest)

    def decode(self, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The values that ``codes`` stand for, bit for bit those of the stored weight."""
        if self.scheme == "float_min":
            return codes * scale + zero
        return (codes - zero) * (2 * scale if self.is_sign else scale)

    def quantize(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """uint8 codes ``[out_features, n]`` of ``weight`` on fitted groups."""
        return self.encode(self.groups(weight), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1).to(torch.uint8)

    def dequantize(self, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """float32 values ``[out_features, n]`` of uint8 ``codes``."""
        return self.decode(self.groups(codes.float()), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1)

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor, input_scale: Tensor | None = None) -> QuantizedWeight:
        """The stored weight of ``codes`` on this grid."""
        return QuantizedWeight(
            codes, scale, None if self.scheme == "symmetric" else zero,
            bits=self.bits, scheme=self.scheme, group_size=self.group_size, input_scale=input_scale,
        )  # fmt: skip

    def _range(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        low, high = groups.aminmax(dim=-1)
        if self.scheme == "float_min":
            return low, high
        # Zero is a level, so that what is zero stays zero.
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.scheme == "symmetric":
            high = torch.maximum(-low, high)
            low = -high
        return low, high

    def _shrink(self, low: Tensor, high: Tensor, factor: Tensor | float) -> tuple[Tensor, Tensor]:
        if self.scheme != "float_min":
            return low * factor, high * factor
        middle, half = (low + high) / 2, (high - low) / 2 * factor
        return middle - half, middle + half

    def _parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        span = high - low
        scale = torch.where(span > _NEGLIGIBLE * span.max(), span / self.highest, 1.0)
        rounded = round_scale(scale)
        scale = rounded.float()
        if self.scheme == "symmetric":
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        if self.scheme == "asymmetric":
            return scale, (-low / scale).round_().clamp_(0, self.highest)
        # A minimum beyond float16 makes the stored pair float32, in which the rounded scale is kept as it is.
        minimum = low.to(rounded.dtype).float()
        return scale, minimum if torch.isfinite(minimum).all() else low

    def _fit_sign(self, weight: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        groups = self.groups(weight.abs())
        if importance is None:
            scale = groups.mean(-1)
        else:
            factor = importance.to(weight).reshape(-1, self.group_size)
            total = factor.sum(-1)
            scale = torch.where(total > 0, (groups * factor).sum(-1) / total, groups.mean(-1))
        scale = torch.where(scale > _NEGLIGIBLE * scale.max(), scale, 0.0)
        scale = round_scale(scale).float()
        return scale, torch.full_like(scale, 0.5)

    def _search(self, weight: Tensor, loss: GroupLoss, start: int) -> tuple[Tensor, Tensor]:
        groups = self.groups(weight)
        rows = slice(start, start + weight.shape[0])
        low, high = self._range(groups)

        def judge(factor: Tensor | float) -> Tensor:
            scale, zero = (tensor.unsqueeze(-1) for tensor in self._parameters(*self._shrink(low, high, factor)))
            return loss(self.decode(self.encode(groups, scale, zero), scale, zero).sub_(groups), rows)

        best = torch.ones_like(low)
        lowest = judge(1.0)
        for round_, steps in enumerate((_SCAN, *_REFINEMENTS)):
            centre = best if round_ else torch.zeros_like(best)
            for step in steps:
                factor = (centre + step).clamp(max=1.0)
                error = judge(factor)
                better = error < lowest
                best, lowest = torch.where(better, factor, best), torch.where(better, error, lowest)
        return self._shrink(low, high, best)
