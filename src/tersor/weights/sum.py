"""A weight as the sum of compressed parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.base import CompressedWeight, weight_from_config
from tersor.weights.checking import read_shape


class SumWeight(CompressedWeight):
    """``W = W_1 + W_2 + ...``: a quantised body with a low-rank or sparse correction, or a stack of residuals.

    Args:
        parts: One weight or more, all of one shape.

    Raises:
        InvalidArgument: If there is no part or the shapes differ.

    Example:
        >>> import torch
        >>> from tersor.weights import DenseWeight, LowRankWeight
        >>> weight = SumWeight([DenseWeight(torch.eye(2)), LowRankWeight(torch.ones(2, 1), torch.ones(1, 2))])
        >>> weight(torch.tensor([[1.0, 2.0]])), weight.nbytes
        (tensor([[4., 5.]]), 32)
    """

    kind = "sum"

    def __init__(self, parts: Iterable[CompressedWeight]) -> None:
        weights = list(parts)
        if not weights:
            raise InvalidArgument("a sum needs at least one part")
        shapes = {part.shape for part in weights}
        if len(shapes) > 1:
            raise InvalidArgument(f"the parts of a sum must have one shape, got {', '.join(map(str, sorted(shapes)))}")
        super().__init__(weights[0].shape)
        self.parts = nn.ModuleList(weights)

    def __iter__(self) -> Iterator[CompressedWeight]:
        return iter(self._weights())

    def _weights(self) -> list[CompressedWeight]:
        return cast("list[CompressedWeight]", list(self.parts))

    def dense(self) -> Tensor:
        first, *others = self._weights()
        return sum((part.dense() for part in others), first.dense())

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self._weights()
        y: Tensor = first(x)
        for part in others:
            y = y + part(x)
        return y

    def rows(self, index: Tensor) -> Tensor:
        first, *others = self._weights()
        return sum((part.rows(index) for part in others), first.rows(index))

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "parts": [part.config for part in self._weights()]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SumWeight:
        shape = read_shape(config)
        parts = [weight_from_config(part) for part in config["parts"]]
        if not parts or any(part.shape != shape for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts)
            raise CorruptFile(f"a stored sum of shape {list(shape)} has parts of shapes {shapes or 'none'}")
        return cls(parts)
