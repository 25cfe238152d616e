"""Layers whose weights are read from a memory that they share, with gradients that make training independent of how much is shared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.training.swapping import Layer


class _Read(torch.autograd.Function):
    """``scale * sign * memory[place]``; the gradient of the memory is divided by ``divisor`` of each value."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, codes: Tensor, scale: float, divisor: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, divisor)
        ctx.scale, ctx.size = scale, memory.numel()
        values = memory.index_select(0, _places(codes).flatten()).reshape(codes.shape)
        return torch.where(codes < 0, -values, values) * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, divisor = ctx.saved_tensors
        signed = torch.where(codes < 0, -gradient, gradient) * ctx.scale
        total = signed.new_zeros(ctx.size).index_add_(0, _places(codes).flatten(), signed.flatten())
        return (total if divisor is None else total / divisor), None, None, None


def encode(places: Tensor, signs: Tensor) -> Tensor:
    """Places and signs as one int32 tensor: a place with a negative sign is stored as its complement."""
    return torch.where(signs < 0, ~places, places).to(torch.int32)


def _places(codes: Tensor) -> Tensor:
    return torch.where(codes < 0, ~codes, codes)


class SharedLayer(nn.Module):
    """A linear layer or convolution without a weight of its own.

    Args:
        layer: Its weight is dropped, the rest stays.
        owner: The module that holds the memory, a parameter, and the divisor of its gradient, a buffer.
        memory: The name of that parameter; the buffer is called ``<memory>_divisor``.
        codes: int32 of the shape of the weight, see :func:`encode`.
        scale: Multiplied onto what is read.

    Attributes:
        layer: What is left of the layer.
        scale: As given.
    """

    def __init__(self, layer: Layer, owner: nn.Module | None, memory: str, codes: Tensor, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.layer.register_parameter("weight", None)
        self.memory_name = memory
        self.scale = scale
        self.codes: Tensor
        # Four bytes a weight while training lasts; never stored, as a seed gives them.
        self.register_buffer("codes", codes, persistent=False)
        # In a tuple, so that the owner does not become a child of its child.
        self._owner = (self if owner is None else owner,)

    @property
    def memory(self) -> nn.Parameter:
        """The values that are read."""
        parameter: nn.Parameter = getattr(self._owner[0], self.memory_name)
        return parameter

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew for every call."""
        divisor = getattr(self._owner[0], f"{self.memory_name}_divisor")
        weight: Tensor = _Read.apply(self.memory, self.codes, self.scale, divisor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """What the layer would compute with :attr:`weight`."""
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, self.weight, self.layer.bias)
        return F.linear(x, self.weight, self.layer.bias)

    def dense_layer(self) -> Layer:
        """The plain layer that this one stands for."""
        layer = self.layer
        weight = nn.Parameter(self.weight.detach().clone())
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        layer.register_parameter("weight", weight)
        return layer.train(self.training)
