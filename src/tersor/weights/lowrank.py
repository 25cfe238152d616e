"""A weight as the product of two thin factors, each of which may itself be compressed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.base import CompressedWeight, weight_from_config
from tersor.weights.checking import read_shape
from tersor.weights.dense import DenseWeight


class LowRankWeight(CompressedWeight):
    """``W = left @ right``. Use it where the spectrum decays, or inside a :class:`SumWeight` to repair a quantised weight.

    Below the rank ``out * in / (out + in)`` it is smaller and faster than the dense matrix.

    Args:
        left: ``[out_features, rank]``, a tensor (kept in its own type) or any compressed weight.
        right: ``[rank, in_features]``, likewise.

    Raises:
        InvalidArgument: If the inner sizes differ.

    Example:
        >>> import torch
        >>> weight = LowRankWeight(torch.ones(100, 2).half(), torch.ones(2, 50).half())
        >>> weight.shape, weight.rank, weight.nbytes
        ((100, 50), 2, 600)
    """

    kind = "lowrank"

    def __init__(self, left: CompressedWeight | Tensor, right: CompressedWeight | Tensor) -> None:
        left, right = (DenseWeight(factor) if isinstance(factor, Tensor) else factor for factor in (left, right))
        if left.shape[1] != right.shape[0]:
            shapes = f"{left.shape} and {right.shape}"
            raise InvalidArgument(f"factors of shapes {shapes} do not multiply: left is [out, rank], right [rank, in]")
        super().__init__((left.shape[0], right.shape[1]))
        self.left = left
        self.right = right

    @property
    def rank(self) -> int:
        """Columns of ``left`` and rows of ``right``."""
        return self.left.shape[1]

    def dense(self) -> Tensor:
        return self.left.dense() @ self.right.dense()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(self.right(x))
        return y

    def rows(self, index: Tensor) -> Tensor:
        return self.left.rows(index) @ self.right.dense()

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "left": self.left.config, "right": self.right.config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LowRankWeight:
        shape = read_shape(config)
        left, right = weight_from_config(config["left"]), weight_from_config(config["right"])
        if left.shape[1] != right.shape[0] or (left.shape[0], right.shape[1]) != shape:
            raise CorruptFile(f"a stored low-rank weight of shape {list(shape)} has factors of shapes {left.shape} and {right.shape}")
        return cls(left, right)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank {self.rank}"
