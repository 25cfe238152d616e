"""A weight kept as it is: the passthrough level, and the leaf inside nested weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.weights.base import CompressedWeight, check_matrix
from tersor.weights.checking import FLOAT_TYPES, dtype_name, read_dtype, read_shape


class DenseWeight(CompressedWeight):
    """A plain matrix in float32, float16 or bfloat16. Use it for what must not be compressed.

    Args:
        weight: ``[out_features, in_features]``, stored in its own type.
    """

    kind = "dense"

    def __init__(self, weight: Tensor) -> None:
        check_matrix(weight)
        if weight.dtype not in FLOAT_TYPES.values():
            raise InvalidArgument(f"a dense weight is stored in {', '.join(FLOAT_TYPES)}, got {dtype_name(weight.dtype)}; convert it first")
        self._allocate(weight.detach().clone(memory_format=torch.contiguous_format))

    def _allocate(self, values: Tensor) -> None:
        super().__init__((values.shape[0], values.shape[1]))
        self.values: Tensor
        self.register_buffer("values", values)
        self._compute_dtype = values.dtype

    def dense(self) -> Tensor:
        return self.values.float()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.values.to(x.dtype))

    def rows(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.values).float()

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "dtype": dtype_name(self.values.dtype)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DenseWeight:
        weight = cls.__new__(cls)
        weight._allocate(torch.empty(read_shape(config), dtype=read_dtype(config, "dtype")))
        return weight
