"""Learned step sizes: the usual way to train with few bits, and what QuEST is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.layerwise.checking import check_integer
from tersor.training.layers import linear_layers, put_layer


def learned_rounding(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """``values`` on a symmetric grid of ``2 ** bits`` levels with a learned ``step``; one bit is the sign.

    Gradients pass within the range. The step's is scaled by ``1 / sqrt(numel * largest code)``, which keeps its pace with the weights'.

    Args:
        values: Any shape.
        step: A positive scalar.
        bits: 1 to 8.
    """
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    pace = (values.numel() * high) ** -0.5
    scaled_step = step * pace + (step - step * pace).detach()
    scaled = (values / scaled_step).clamp(low, high)
    level = torch.where(scaled >= 0, 1.0, -1.0) if bits == 1 else scaled.round()
    return (scaled + (level - scaled).detach()) * scaled_step


class LSQLinear(nn.Linear):
    """A linear layer whose weight and inputs are rounded with learned steps.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is one.
        weight_bits: 1 to 8.
        activation_bits: 1 to 8.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, weight_bits: int, activation_bits: int) -> None:
        super().__init__(in_features, out_features, bias)
        self.bits = check_integer("weight_bits", weight_bits, 1, 8), check_integer("activation_bits", activation_bits, 1, 8)
        self.steps = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., in_features]`` to ``[..., out_features]``; the first call sets the steps from what it sees."""
        if not bool(self.steps.detach().any()):
            with torch.no_grad():
                self.steps.copy_(torch.stack([_first_step(part, bits) for part, bits in zip((self.weight, x), self.bits, strict=True)]))
        steps = self.steps.clamp(min=1e-8)
        weight = learned_rounding(self.weight, steps[0], self.bits[0])
        return F.linear(learned_rounding(x, steps[1], self.bits[1]), weight, self.bias)


def _first_step(values: Tensor, bits: int) -> Tensor:
    return 2 * values.detach().abs().mean() / max(2 ** (bits - 1) - 1, 1) ** 0.5 / (2 if bits == 1 else 1) + 1e-8


def lsq(model: nn.Module, *, weight_bits: int = 4, activation_bits: int = 4, skip: Sequence[str] = ("lm_head", "embed")) -> list[str]:
    """Turn every linear layer of ``model`` into an :class:`LSQLinear`, in place; build the optimizer afterwards.

    Args:
        model: Any module.
        weight_bits: 1 to 8.
        activation_bits: 1 to 8.
        skip: As for :func:`tersor.training.quest`.

    Returns:
        The names of the layers.

    Raises:
        InvalidArgument: If no layer is left, or an option is out of range.

    Reference:
        Esser, McKinstry, Bablani, Appuswamy, Modha: "Learned Step Size Quantization", 2020.
    """
    layers = linear_layers(model, skip)
    for name, layer in layers.items():
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        new = LSQLinear(*sizes, weight_bits=weight_bits, activation_bits=activation_bits)
        new.weight, new.bias = layer.weight, layer.bias
        put_layer(model, name, new)
    return list(layers)
