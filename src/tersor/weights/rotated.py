"""A weight that is stored in a rotated basis of its inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.kernels.hadamard import rotate
from tersor.weights.base import CompressedWeight, weight_from_config
from tersor.weights.checking import read_int, read_shape


class RotatedWeight(CompressedWeight):
    """``W = body @ H`` with block-diagonal Hadamard ``H``: the body sees inputs whose outliers are spread over their block.

    Few bits lose less in that basis, at the price of one small rotation of the inputs. The rotation has nothing to store.

    Args:
        body: ``[out_features, in_features]``, in the rotated basis.
        block: A power of two that divides ``in_features``.

    Raises:
        InvalidArgument: If the block is no such power.

    Example:
        >>> import torch
        >>> from tersor.weights import DenseWeight
        >>> RotatedWeight(DenseWeight(torch.tensor([[1.0, 1.0]])), 2).dense()
        tensor([[1.4142, 0.0000]])
    """

    kind = "rotated"

    def __init__(self, body: CompressedWeight, block: int) -> None:
        super().__init__(body.shape)
        in_features = body.shape[1]
        if not isinstance(block, int) or block < 1 or block & (block - 1) or in_features % block:
            raise InvalidArgument(f"a Hadamard block must be a power of two that divides the {in_features} input features, got {block!r}")
        if body.offset is not None:
            raise InvalidArgument("a weight that brings a bias cannot be rotated; rotate what is inside of it")
        self.body, self.block = body, block

    def dense(self) -> Tensor:
        return rotate(self.body.dense(), self.block)

    def rows(self, index: Tensor) -> Tensor:
        return rotate(self.body.rows(index), self.block)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(rotate(x, self.block))
        return y

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "block": self.block, "body": self.body.config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RotatedWeight:
        shape, body = read_shape(config), weight_from_config(config["body"])
        block = read_int(config, "block", 1, shape[1])
        if body.shape != shape or block & (block - 1) or shape[1] % block:
            raise CorruptFile(f"a stored rotated weight of shape {list(shape)} has blocks of {block} and a body of {list(body.shape)}")
        return cls(body, block)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, Hadamard blocks of {self.block}"
