"""The kept values of a sparse weight: floats, short floats, or codes on a group grid (pruned and quantised in one)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.kernels.packing import gather_bits, pack_bits, packed_size, unpack_bits
from tersor.weights.affine import AffineGrid
from tersor.weights.checking import FLOAT_TYPES, dtype_name, read_dtype
from tersor.weights.positions import Positions, segments
from tersor.weights.quantized import QuantizedWeight


class KeptValues(nn.Module, ABC):
    """One stream of values in the order of their positions, row by row."""

    kind: ClassVar[str] = ""

    @abstractmethod
    def decode(self, positions: Positions, rows: Tensor | None = None) -> Tensor:
        """The values in float32, ``[kept]``.

        Args:
            positions: Where they belong.
            rows: int64 ``[n]``, the rows whose values are wanted; all unless given.
        """

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able description."""


class FloatValues(KeptValues):
    """Values in float16, bfloat16 or float32."""

    kind = "float"

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", values)

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor, dtype: torch.dtype) -> FloatValues:
        """The entries of ``weight`` where ``mask`` is true.

        Raises:
            InvalidArgument: If ``dtype`` is not a storage type or a value overflows in it.
        """
        if dtype not in FLOAT_TYPES.values():
            raise InvalidArgument(f"value_dtype must be one of {', '.join(FLOAT_TYPES)}, got {dtype_name(dtype)}")
        values = weight[mask].to(dtype, copy=True)
        if not torch.isfinite(values).all():
            raise InvalidArgument(f"a kept value overflows in {dtype_name(dtype)}; use value_dtype=torch.bfloat16 or torch.float32")
        return cls(values)

    def decode(self, positions: Positions, rows: Tensor | None = None) -> Tensor:
        values = self.values if rows is None else self.values[segments(positions.row_starts(), rows)]
        return values.float()

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "dtype": dtype_name(self.values.dtype)}

    @classmethod
    def from_config(cls, config: dict[str, Any], shape: tuple[int, int], kept: int) -> FloatValues:
        """Empty values."""
        return cls(torch.empty(kept, dtype=read_dtype(config, "dtype")))


class ShortValues(KeptValues):
    """Values in 14 bits: float16 without its two lowest bits, rounded to nearest.

    Beside a bit map that keeps every second position a value then costs 16 bits with all that it needs. The relative error of a value is
    at most one in 512, far below what sparse codes leave out.

    Args:
        high: uint8 ``[kept]``, sign, exponent and the first two bits of the fraction.
        low: uint8 ``[ceil(kept * 6 / 8)]``, the other six bits, packed.
    """

    kind = "float14"

    def __init__(self, high: Tensor, low: Tensor) -> None:
        super().__init__()
        self.high: Tensor
        self.low: Tensor
        self.register_buffer("high", high)
        self.register_buffer("low", low)

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor) -> ShortValues:
        """The entries of ``weight`` where ``mask`` is true.

        Raises:
            InvalidArgument: If a value overflows.
        """
        # Adding half a step before the cut rounds; bits are integers here, so a carry into the exponent is the right one.
        bits = weight[mask].half().view(torch.int16).int() & 0xFFFF
        short = torch.minimum(bits + 2, bits | 0x7FFF) >> 2
        if bool(((short & 0x1FFF) >= 0x1F00).any()):
            raise InvalidArgument("a kept value overflows in 14 bits; scale the weight or store it in 16 bits")
        low = pack_bits((short & 0x3F).to(torch.uint8).unsqueeze(0), 6).squeeze(0)
        return cls((short >> 6).to(torch.uint8), low)

    def decode(self, positions: Positions, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            high, low = self.high, unpack_bits(self.low.unsqueeze(0), 6, self.high.numel()).squeeze(0)
        else:
            index = segments(positions.row_starts(), rows)
            high, low = self.high[index], gather_bits(self.low, 6, index)
        bits = (high.int() << 8) | (low.int() << 2)
        return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16).view(torch.float16).float()

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any], shape: tuple[int, int], kept: int) -> ShortValues:
        """Empty values."""
        return cls(torch.empty(kept, dtype=torch.uint8), torch.empty(packed_size(kept, 6), dtype=torch.uint8))


class GridValues(KeptValues):
    """Codes of the kept positions alone, packed in one stream, with the scales and zeros of the full grid."""

    kind = "grid"

    def __init__(self, grid: AffineGrid, codes: Tensor, scale: Tensor, zero: Tensor | None) -> None:
        super().__init__()
        self.grid = grid
        self.codes: Tensor
        self.scale: Tensor
        self.zero: Tensor | None
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    @classmethod
    def of(cls, weight: QuantizedWeight, mask: Tensor) -> GridValues:
        """The codes of ``weight`` where ``mask`` is true.

        Raises:
            InvalidArgument: If the weight has an ``input_scale``.
        """
        if weight.input_scale is not None:
            raise InvalidArgument("a sparse weight takes a grid without input_scale; fold it into the layer before")
        codes = pack_bits(weight.unpacked_codes()[mask].unsqueeze(0), weight.bits).squeeze(0)
        return cls(weight.grid, codes, weight.scale.clone(), None if weight.zero is None else weight.zero.clone())

    def decode(self, positions: Positions, rows: Tensor | None = None) -> Tensor:
        scale, zero = self.scale, self.zero
        if rows is None:
            codes = unpack_bits(self.codes.unsqueeze(0), self.grid.bits, positions.kept).squeeze(0)
        else:
            codes = gather_bits(self.codes, self.grid.bits, segments(positions.row_starts(), rows))
            scale, zero = scale.index_select(0, rows), None if zero is None else zero.index_select(0, rows)
        counts = positions.group_counts(self.grid.group_size, rows)
        step = scale.float().reshape(-1)
        # Symmetric grids share one centre.
        offset = self.grid.zero_of(scale if zero is not None else scale[:1, :1], zero).reshape(-1)
        if isinstance(counts, int):
            return self.grid.values(codes.reshape(-1, counts), step.unsqueeze(1), offset.unsqueeze(1)).reshape(-1)
        return self.grid.values(codes, step.repeat_interleave(counts), offset if zero is None else offset.repeat_interleave(counts))

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.grid.config, "scale_dtype": dtype_name(self.scale.dtype)}

    @classmethod
    def from_config(cls, config: dict[str, Any], shape: tuple[int, int], kept: int) -> GridValues:
        """Empty values."""
        grid = AffineGrid.from_config(config, shape[1])
        scale, zero = grid.empty(shape, read_dtype(config, "scale_dtype"))
        return cls(grid, torch.empty(packed_size(kept, grid.bits), dtype=torch.uint8), scale, zero)


VALUE_KINDS: dict[str, type[FloatValues] | type[ShortValues] | type[GridValues]] = {
    kind.kind: kind for kind in (FloatValues, ShortValues, GridValues)
}
