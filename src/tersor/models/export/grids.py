"""Compressed weights seen as plain integer grids, for formats that store integers and scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.packing import unpack_bits
from tersor.weights.base import CompressedWeight
from tersor.weights.kept import GridValues
from tersor.weights.quantized import QuantizedWeight
from tersor.weights.sparse import SparseWeight


@dataclass(frozen=True)
class IntegerGrid:
    """``scale * steps``, or ``scale * steps + minimum``, for groups of neighbouring inputs.

    Attributes:
        steps: int16 ``[out_features, in_features]``; signed, or from 0 where there is a minimum.
        scale: ``[out_features, groups]``.
        minimum: float32 ``[out_features, groups]`` or ``None``.
        zero: float32 ``[out_features, groups]``: added to the steps it makes them codes from 0. ``None`` where there is a minimum.
        group_size: Inputs that share a scale.
    """

    steps: Tensor
    scale: Tensor
    minimum: Tensor | None
    zero: Tensor | None
    group_size: int

    @classmethod
    def of(cls, weight: QuantizedWeight) -> IntegerGrid:
        """The grid of ``weight``, whose ``input_scale`` is not looked at."""
        codes = weight.unpacked_codes().to(torch.int16)
        if weight.scheme == "float_min":
            return cls(codes, weight.scale, weight.unpacked_zero(), None, weight.group_size)
        if weight.scheme == "symmetric" and weight.bits == 1:
            return cls(2 * codes - 1, weight.scale, None, torch.ones(weight.scale.shape), weight.group_size)
        zero = weight.unpacked_zero()
        return cls(codes - zero.to(torch.int16).repeat_interleave(weight.group_size, 1), weight.scale, None, zero, weight.group_size)

    def codes(self) -> Tensor:
        """Steps counted from the zero point or minimum, so that none is negative."""
        return self.steps if self.zero is None else self.steps + self.zero.to(torch.int16).repeat_interleave(self.group_size, 1)


def quantized_view(weight: CompressedWeight) -> QuantizedWeight | None:
    """``weight`` as one full grid with the same values, or ``None`` if it is not one.

    A pruned and quantised weight is one where zero lies on its grid.
    """
    if isinstance(weight, QuantizedWeight):
        return weight
    if not isinstance(weight, SparseWeight) or not isinstance(weight.values, GridValues):
        return None
    values, grid = weight.values, weight.values.grid
    if grid.scheme == "float_min" or (grid.scheme == "symmetric" and grid.bits == 1):
        return None
    kept = unpack_bits(values.codes.unsqueeze(0), grid.bits, weight.positions.kept).squeeze(0)
    zero = grid.zero_of(values.scale, values.zero)
    at_zero = zero.to(torch.uint8).repeat_interleave(grid.group_size, 1)
    codes = torch.where(weight.mask(), weight.positions.place(kept), at_zero)
    stored = None if grid.scheme == "symmetric" else zero
    return QuantizedWeight(codes, values.scale, stored, bits=grid.bits, scheme=grid.scheme, group_size=grid.group_size)


def symmetric_view(weight: QuantizedWeight) -> QuantizedWeight | None:
    """The same values without zero points, which may take one more bit; ``None`` where that would be nine or there is a minimum."""
    if weight.scheme == "symmetric":
        return weight
    steps = IntegerGrid.of(weight).steps
    half = 2 ** (weight.bits - 1)
    bits = weight.bits if weight.bits > 1 and -half <= int(steps.min()) and int(steps.max()) < half else weight.bits + 1
    if weight.scheme == "float_min" or bits > 8:
        return None
    codes = (steps + 2 ** (bits - 1)).to(torch.uint8)
    return QuantizedWeight(
        codes, weight.scale, None, bits=bits, scheme="symmetric", group_size=weight.group_size, input_scale=weight.input_scale
    )


def without_input_scale(weight: QuantizedWeight) -> QuantizedWeight:
    """A copy of ``weight`` without its column scale."""
    return _rebuilt(weight, weight.scale, _stored_zero(weight), None)


def with_scaled_rows(weight: QuantizedWeight, row_scale: Tensor) -> QuantizedWeight:
    """A copy of ``weight`` whose rows are multiplied by ``row_scale`` ``[out_features]``, up to the rounding of its scales."""
    zero = _stored_zero(weight)
    if weight.scheme == "float_min" and zero is not None:
        zero = zero * row_scale[:, None]
    return _rebuilt(weight, weight.scale.float() * row_scale[:, None], zero, weight.input_scale)


def _stored_zero(weight: QuantizedWeight) -> Tensor | None:
    return None if weight.scheme == "symmetric" else weight.unpacked_zero()


def _rebuilt(weight: QuantizedWeight, scale: Tensor, zero: Tensor | None, input_scale: Tensor | None) -> QuantizedWeight:
    return QuantizedWeight(
        weight.unpacked_codes(), scale, zero, bits=weight.bits, scheme=weight.scheme, group_size=weight.group_size, input_scale=input_scale
    )
