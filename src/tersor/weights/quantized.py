"""A weight on a uniform grid of 1 to 8 bits, one scale a group of inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels.packing import pack_bits, packed_size, unpack_bits
from tersor.kernels.quantized import quantized_linear
from tersor.weights.affine import SCHEMES, AffineGrid, round_scale
from tersor.weights.base import CompressedWeight
from tersor.weights.checking import dtype_name, read_choice, read_dtype, read_shape

__all__ = ["SCHEMES", "QuantizedWeight", "round_scale"]


class QuantizedWeight(CompressedWeight):
    """``w = scale * (q - zero)`` or ``w = scale * q + minimum`` with packed integer codes ``q``.

    The workhorse at 2 to 8 bits. Under 2 bits a codebook or a sum of sign matrices keeps more.

    Args:
        codes: uint8 ``[out_features, in_features]``, below ``2 ** bits``.
        scale: ``[out_features, in_features / group_size]``; stored as :func:`round_scale` returns it.
        zero: Same shape as ``scale``. ``None`` for ``"symmetric"``, integers from 0 to ``2 ** bits - 1`` for ``"asymmetric"``, the value
            of code 0 for ``"float_min"`` (stored in the type of the scale).
        bits: 1 to 8.
        scheme: ``"symmetric"``: ``scale * (q - 2 ** (bits - 1))``, at one bit ``scale * (2 q - 1)``; ``"asymmetric"``:
            ``scale * (q - zero)``; ``"float_min"``: ``scale * q + zero``.
        group_size: Neighbouring inputs that share a scale; divides ``in_features``. -1 means all of them.
        input_scale: ``[in_features]``, multiplied onto the columns (stored in float16); activation-aware scaling without a neighbour to
            fold it into.

    Raises:
        InvalidArgument: If a shape, a range or the group size does not fit.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
        >>> weight = QuantizedWeight(codes, torch.tensor([[0.5]]), None, bits=2, scheme="symmetric", group_size=-1)
        >>> weight.dense(), weight.nbytes
        (tensor([[-1.0000, -0.5000,  0.0000,  0.5000]]), 3)
    """

    kind = "quantized"

    def __init__(
        self, codes: Tensor, scale: Tensor, zero: Tensor | None, *,
        bits: int, scheme: str, group_size: int, input_scale: Tensor | None = None,
    ) -> None:
        if codes.ndim != 2 or codes.dtype != torch.uint8:
            raise InvalidArgument(f"codes must be a uint8 matrix, got {codes.dtype} of shape {tuple(codes.shape)}")
        shape = (codes.shape[0], codes.shape[1])
        grid = AffineGrid.of(shape, bits, scheme, group_size)
        scale, zero = grid.store(shape, scale, zero)
        column_scale = None if input_scale is None else _stored_input_scale(input_scale.detach(), shape[1])
        self._hold(shape, grid, pack_bits(codes, bits), scale, zero, column_scale)

    def _hold(
        self, shape: tuple[int, int], grid: AffineGrid, codes: Tensor, scale: Tensor, zero: Tensor | None, input_scale: Tensor | None
    ) -> None:
        super().__init__(shape)
        self.grid = grid
        self.codes: Tensor
        self.scale: Tensor
        self.zero: Tensor | None
        self.input_scale: Tensor | None
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("input_scale", input_scale)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.grid.bits

    @property
    def scheme(self) -> str:
        """``"symmetric"``, ``"asymmetric"`` or ``"float_min"``."""
        return self.grid.scheme

    @property
    def group_size(self) -> int:
        """Neighbouring inputs that share a scale; never -1."""
        return self.grid.group_size

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return self.shape[1] // self.group_size

    def unpacked_codes(self) -> Tensor:
        """The codes, uint8 ``[out_features, in_features]``."""
        return unpack_bits(self.codes, self.bits, self.shape[1])

    def unpacked_zero(self) -> Tensor:
        """The zero points or minima, float32 ``[out_features, groups]``; ``2 ** (bits - 1)`` throughout when symmetric (0.5 at one bit)."""
        return self.grid.zero_of(self.scale, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.dtype)
        return quantized_linear(
            x, self.codes, self.scale, self.zero,
            bits=self.bits, scheme=self.scheme, group_size=self.group_size, in_features=self.shape[1],
        )

    def dense(self) -> Tensor:
        return self._decode(self.codes, self.scale, self.zero)

    def rows(self, index: Tensor) -> Tensor:
        flat = index.reshape(-1)
        zero = None if self.zero is None else self.zero.index_select(0, flat)
        rows = self._decode(self.codes.index_select(0, flat), self.scale.index_select(0, flat), zero)
        return rows.reshape(*index.shape, self.shape[1])

    def _decode(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        values = self.grid.decode(unpack_bits(codes, self.bits, self.shape[1]), scale, zero)
        return values if self.input_scale is None else values.mul_(self.input_scale.float())

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape), **self.grid.config,
            "scale_dtype": dtype_name(self.scale.dtype), "input_scale": self.input_scale is not None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizedWeight:
        shape = read_shape(config)
        grid = AffineGrid.from_config(config, shape[1])
        scale, zero = grid.empty(shape, read_dtype(config, "scale_dtype"))
        codes = torch.empty(shape[0], packed_size(shape[1], grid.bits), dtype=torch.uint8)
        input_scale = torch.empty(shape[1], dtype=torch.float16) if read_choice(config, "input_scale", (True, False)) else None
        weight = cls.__new__(cls)
        weight._hold(shape, grid, codes, scale, zero, input_scale)
        return weight


def _stored_input_scale(input_scale: Tensor, in_features: int) -> Tensor:
    if tuple(input_scale.shape) != (in_features,):
        raise InvalidArgument(f"input_scale must have shape ({in_features},), got {tuple(input_scale.shape)}")
    half = input_scale.to(torch.float16).clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(half).all() or bool(((half == 0) & (input_scale != 0)).any()):
        raise InvalidArgument("input_scale overflows or vanishes in float16; normalise it to a geometric mean of one")
    return half
