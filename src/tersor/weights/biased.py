"""A weight that brings a bias of its own, which repairs the mean of what compression changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.base import CompressedWeight, weight_from_config
from tersor.weights.checking import FLOAT_TYPES, dtype_name, read_dtype, read_shape


class BiasedWeight(CompressedWeight):
    """``y = body(x) + bias``: an affine map in the place of a linear one.

    The layer around it may have a bias of its own; both are added. :meth:`dense` and :meth:`rows` are those of the body: the matrix alone,
    without the bias, so whoever turns the layer back into a dense one must add :attr:`offset` to the bias of that layer, as
    :func:`tersor.weights.modules.set_offset` does. Use a plain body for embeddings, where there is no product that a bias could repair.

    Args:
        body: The matrix.
        bias: ``[out_features]``, stored in its own type.

    Raises:
        InvalidArgument: If the bias has another length or type, or holds NaN or Inf.

    Example:
        >>> import torch
        >>> from tersor.weights import DenseWeight
        >>> weight = BiasedWeight(DenseWeight(torch.eye(2)), torch.tensor([0.5, -1.0]))
        >>> weight(torch.tensor([[1.0, 2.0]])), weight.nbytes
        (tensor([[1.5000, 1.0000]]), 24)
    """

    kind = "biased"

    def __init__(self, body: CompressedWeight, bias: Tensor) -> None:
        if tuple(bias.shape) != (body.shape[0],) or bias.dtype not in FLOAT_TYPES.values():
            got = f"{dtype_name(bias.dtype)} of shape {tuple(bias.shape)}"
            raise InvalidArgument(f"bias must be one of {', '.join(FLOAT_TYPES)} of shape ({body.shape[0]},), got {got}")
        if not torch.isfinite(bias).all():
            raise InvalidArgument(f"bias holds NaN or Inf in {dtype_name(bias.dtype)}; a wider type may hold it")
        self._hold(body, bias.detach().clone())

    def _hold(self, body: CompressedWeight, bias: Tensor) -> None:
        super().__init__(body.shape)
        self.body = body
        self.bias: Tensor
        self.register_buffer("bias", bias)

    def dense(self) -> Tensor:
        return self.body.dense()

    @property
    def offset(self) -> Tensor:
        """The bias, and that of the body if it brings one too, float32."""
        own, inner = self.bias.float(), self.body.offset
        return own if inner is None else own + inner

    def rows(self, index: Tensor) -> Tensor:
        return self.body.rows(index)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y + self.bias.to(y.dtype)

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "dtype": dtype_name(self.bias.dtype), "body": self.body.config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BiasedWeight:
        shape = read_shape(config)
        body = weight_from_config(config["body"])
        if body.shape != shape:
            raise CorruptFile(f"a stored biased weight of shape {list(shape)} has a body of shape {body.shape}")
        weight = cls.__new__(cls)
        weight._hold(body, torch.empty(shape[0], dtype=read_dtype(config, "dtype")))
        return weight
