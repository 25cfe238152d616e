"""The weight that costs nothing: what a dropped layer holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.weights.base import CompressedWeight
from tersor.weights.checking import read_shape


class ZeroWeight(CompressedWeight):
    """An all-zero matrix without a stored byte.

    Depth pruning is this representation: a sub-block whose output projection is zero adds nothing to the
    residual stream, in every architecture and with its key-value cache still advancing.
    """

    kind = "zero"

    def dense(self) -> Tensor:
        return torch.zeros(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.shape[0])

    def rows(self, index: Tensor) -> Tensor:
        return torch.zeros(*index.shape, self.shape[1], device=index.device)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ZeroWeight:
        return cls(read_shape(config))
