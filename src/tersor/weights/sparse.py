"""A pruned weight: the kept positions and the values there, nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.weights.base import CompressedWeight, check_matrix
from tersor.weights.checking import read_choice, read_int, read_shape
from tersor.weights.kept import VALUE_KINDS, FloatValues, GridValues, KeptValues
from tersor.weights.positions import POSITION_KINDS, Positions, positions_of
from tersor.weights.quantized import QuantizedWeight

# Entries up to which codes are decoded at once; 16 MiB in float32, small beside any model, and larger ones go tile by tile.
_TILE = 1 << 22


class SparseWeight(CompressedWeight):
    """A matrix that is zero except at stored positions, unstructured or N:M, with float or quantised values.

    Build one by :meth:`from_dense` or :meth:`from_quantized`. Positions cost a bit an entry (bit map), 8 to 32 bits a kept value
    (column indices, chosen where they are smaller) or 0.75 bits an entry at 2:4; all of it is in :attr:`nbytes`.

    Args:
        positions: Where the kept values are.
        values: The values, in the order of the positions.

    Example:
        >>> import torch
        >>> matrix = torch.tensor([[4.0, 1.0, -2.0, 0.5]])
        >>> weight = SparseWeight.from_dense(matrix, matrix.abs() > 1, keep_n=2, of_m=4)
        >>> weight.dense(), weight.nbytes
        (tensor([[ 4.,  0., -2.,  0.]]), 5)
    """

    kind = "sparse"

    def __init__(self, positions: Positions, values: KeptValues) -> None:
        super().__init__(positions.shape)
        self.positions = positions
        self.values = values

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor, value_dtype: torch.dtype = torch.float16, *, keep_n: int | None = None, of_m: int | None = None
    ) -> SparseWeight:
        """Keep the entries of ``weight`` where ``mask`` is true.

        Args:
            weight: ``[out_features, in_features]``.
            mask: bool, same shape, true where an entry is kept.
            value_dtype: float16, bfloat16 or float32.
            keep_n: With ``of_m``: the mask keeps exactly ``keep_n`` of every ``of_m`` neighbouring inputs and is stored as patterns.
            of_m: See ``keep_n``.

        Raises:
            InvalidArgument: If shapes differ, a value overflows ``value_dtype`` or the mask breaks the pattern.
        """
        check_matrix(weight)
        _check_mask(mask, tuple(weight.shape))
        return cls(positions_of(mask, keep_n, of_m), FloatValues.of(weight.detach(), mask, value_dtype))

    @classmethod
    def from_quantized(
        cls, weight: QuantizedWeight, mask: Tensor, *, keep_n: int | None = None, of_m: int | None = None
    ) -> SparseWeight:
        """Keep the codes of ``weight`` where ``mask`` is true: pruned and quantised jointly, exact zeros on any grid.

        Args:
            weight: The full grid; codes at pruned positions are dropped.
            mask: bool ``[out_features, in_features]``, true where an entry is kept.
            keep_n: As in :meth:`from_dense`.
            of_m: As in :meth:`from_dense`.

        Raises:
            InvalidArgument: If shapes differ, the mask breaks the pattern or the grid has an ``input_scale``.
        """
        _check_mask(mask, weight.shape)
        return cls(positions_of(mask, keep_n, of_m), GridValues.of(weight, mask))

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that is not stored."""
        return 1 - self.positions.kept / (self.shape[0] * self.shape[1])

    def mask(self) -> Tensor:
        """True where a value is kept, bool ``[out_features, in_features]``."""
        return self.positions.mask()

    def dense(self) -> Tensor:
        return self.positions.place(self.values.decode(self.positions))

    def rows(self, index: Tensor) -> Tensor:
        flat = index.reshape(-1).long()
        return self.positions.place(self.values.decode(self.positions, flat), flat).reshape(*index.shape, self.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        out_features, in_features = self.shape
        if isinstance(self.values, FloatValues):
            return self.positions.multiply(x, self.values.values)
        if out_features * in_features <= _TILE:
            return self.positions.multiply(x, self.values.decode(self.positions))
        step = max(_TILE // in_features, 1)
        tiles = torch.split(torch.arange(out_features, device=self.device), step)
        return torch.cat([F.linear(x, self.rows(tile).to(x.dtype)) for tile in tiles], dim=-1)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape), "kept": self.positions.kept,
            "positions": self.positions.config, "values": self.values.config,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparseWeight:
        shape = read_shape(config)
        kept = read_int(config, "kept", 0, shape[0] * shape[1])
        where, what = config["positions"], config["values"]
        positions = POSITION_KINDS[read_choice(where, "kind", tuple(POSITION_KINDS))].from_config(where, shape, kept)
        values = VALUE_KINDS[read_choice(what, "kind", tuple(VALUE_KINDS))].from_config(what, shape, kept)
        return cls(positions, values)

    def check_stored(self, tensors: dict[str, Tensor], name: str) -> None:
        prefix = "positions."
        self.positions.check({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}, name)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.sparsity:.0%} sparse"


def _check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise InvalidArgument(f"mask must be bool of shape {shape}, true where kept; got {mask.dtype} of shape {tuple(mask.shape)}")
