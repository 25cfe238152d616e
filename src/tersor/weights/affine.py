"""The affine grid of quantised values: what bits, scheme and group size mean, shared by full and sparse weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels.packing import pack_bits, packed_size, unpack_bits
from tersor.weights.checking import read_choice, read_group_size, read_int

SCHEMES = ("symmetric", "asymmetric", "float_min")

# Below this, half precision keeps fewer than seven significant bits of a value.
_HALF_SAFE = 2.0**-17


def round_scale(scale: Tensor) -> Tensor:
    """``scale`` as it is stored: float16, or float32 if a value would overflow or fade away in float16.

    Codes must be computed with the rounded scale, else the grid they are read on is not the grid they were rounded to. Give
    an all-zero group the scale zero (or one), not a tiny one, which would force the whole tensor into float32.

    Raises:
        InvalidArgument: If ``scale`` holds NaN or Inf.
    """
    if not torch.isfinite(scale).all():
        raise InvalidArgument(f"scale of shape {tuple(scale.shape)} holds NaN or Inf values")
    if scale.dtype == torch.float16:
        return scale
    magnitude = scale.abs()
    fades = ((magnitude > 0) & (magnitude < _HALF_SAFE)).any()
    half = scale.half()
    return scale.float() if fades or not torch.isfinite(half).all() else half


@dataclass(frozen=True)
class AffineGrid:
    """The format of a grid: ``scale * (q - zero)`` or ``scale * q + minimum`` for groups of neighbouring inputs.

    Attributes:
        bits: 1 to 8.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"float_min"``, see :class:`tersor.weights.QuantizedWeight`.
        group_size: Inputs that share a scale.
    """

    bits: int
    scheme: str
    group_size: int

    @classmethod
    def of(cls, shape: tuple[int, int], bits: int, scheme: str, group_size: int) -> AffineGrid:
        """The grid of a weight of ``shape``; group size -1 means one group a row.

        Raises:
            InvalidArgument: If a field is out of range or the group size does not divide the inputs.
        """
        if not 1 <= bits <= 8:
            raise InvalidArgument(f"bits must be from 1 to 8, got {bits}")
        if scheme not in SCHEMES:
            raise InvalidArgument(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
        if group_size != -1 and (group_size < 1 or shape[1] % group_size):
            raise InvalidArgument(f"group_size must divide the {shape[1]} input features or be -1 for one group a row, got {group_size}")
        return cls(bits, scheme, shape[1] if group_size == -1 else group_size)

    def store(self, shape: tuple[int, int], scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale and zero ``[out_features, groups]`` as they lie on disk, as own copies.

        Raises:
            InvalidArgument: If a shape or a value does not fit.
        """
        expected = (shape[0], shape[1] // self.group_size)
        if tuple(scale.shape) != expected:
            raise InvalidArgument(f"scale must have shape {expected} for groups of {self.group_size}, got {tuple(scale.shape)}")
        stored = round_scale(scale.detach()).clone(memory_format=torch.contiguous_format)
        if self.scheme == "symmetric":
            if zero is not None:
                raise InvalidArgument("a symmetric grid has no zero point; pass zero=None or another scheme")
            return stored, None
        if zero is None or zero.shape != scale.shape:
            raise InvalidArgument(f"zero must have the shape {expected} of scale for scheme {self.scheme!r}")
        zero = zero.detach()
        if not torch.isfinite(zero.float()).all():
            raise InvalidArgument("zero holds NaN or Inf values")
        if self.scheme == "asymmetric":
            return stored, self._pack_zero(zero)
        if not torch.isfinite(zero.to(stored.dtype)).all():
            stored = stored.float()
        return stored, zero.to(stored.dtype).clone(memory_format=torch.contiguous_format)

    def _pack_zero(self, zero: Tensor) -> Tensor:
        highest = 2**self.bits - 1
        if bool(((zero < 0) | (zero > highest) | (zero != zero.to(torch.int16))).any()):
            raise InvalidArgument(f"zero points must be integers from 0 to {highest} at {self.bits} bits; else use 'float_min'")
        return pack_bits(zero.to(torch.uint8), self.bits)

    def empty(self, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Unfilled stored scale and zero for a weight of ``shape``."""
        groups = shape[1] // self.group_size
        scale = torch.empty(shape[0], groups, dtype=dtype)
        if self.scheme == "symmetric":
            return scale, None
        if self.scheme == "asymmetric":
            return scale, torch.empty(shape[0], packed_size(groups, self.bits), dtype=torch.uint8)
        return scale, torch.empty_like(scale)

    def zero_of(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Zero points or minima as float32, of the shape of ``scale``."""
        if zero is None:
            centre = 2 ** (self.bits - 1) if self.bits > 1 else 0.5
            return torch.full(scale.shape, centre, dtype=torch.float32, device=scale.device)
        return unpack_bits(zero, self.bits, scale.shape[1]).float() if self.scheme == "asymmetric" else zero.float()

    def decode(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Float32 values of unpacked ``codes`` ``[rows, in_features]`` given their stored scale and zero."""
        grouped = codes.reshape(*scale.shape, self.group_size)
        return self.values(grouped, scale.float().unsqueeze(-1), self.zero_of(scale, zero).unsqueeze(-1)).reshape(codes.shape)

    def values(self, codes: Tensor, step: Tensor, offset: Tensor) -> Tensor:
        """Float32 values of ``codes`` given the float32 scale and the result of :meth:`zero_of` for each, of any shape that broadcasts."""
        values = codes.float()
        if self.scheme == "float_min":
            return values.mul_(step).add_(offset)
        # One symmetric bit stands for the two signs, which are two steps of the integer grid apart.
        return values.sub_(offset).mul_(2 * step if self.scheme == "symmetric" and self.bits == 1 else step)

    @property
    def config(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return {"bits": self.bits, "scheme": self.scheme, "group_size": self.group_size}

    @classmethod
    def from_config(cls, config: dict[str, Any], in_features: int) -> AffineGrid:
        """The grid that a stored description names.

        Raises:
            CorruptFile: If a field is out of range.
        """
        return cls(read_int(config, "bits", 1, 8), read_choice(config, "scheme", SCHEMES), read_group_size(config, in_features))
