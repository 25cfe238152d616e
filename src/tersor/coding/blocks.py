"""Layers that the trained picture codecs share: what they compute at a place does not depend on how large the picture is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Normalise(nn.Module):
    """Layer norm over channels at each place: unlike group norm, a place decodes the same in a picture of any size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        last = functional.layer_norm(x.movedim(1, -1), (x.shape[1],), self.weight, self.bias)
        return last.movedim(-1, 1)


class Residual(nn.Module):
    """Two convolutions of width three behind normalisations, added to their input; ``convolution`` is ``Conv1d`` or ``Conv2d``."""

    def __init__(self, convolution: type[nn.Module], width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Normalise(width), nn.SiLU(), convolution(width, width, 3, padding=1),
            Normalise(width), nn.SiLU(), convolution(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@torch.no_grad()
def initialise(module: nn.Module, random: torch.Generator) -> None:
    """Set every parameter of ``module`` from ``random``: matrices keep variances, every residual branch begins at zero."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=random) / math.sqrt(fan))
        else:
            nn.init.constant_(parameter, float(name.endswith("weight")))
    for part in module.modules():
        if isinstance(part, Residual):
            nn.init.zeros_(part.body[-1].weight)  # type: ignore[arg-type]


def padded(signal: Tensor, stride: int) -> Tensor:
    """``signal`` ``[batch, channels, ...]`` continued at the end of every side to a multiple of ``stride``, mirrored."""
    for axis in range(2, signal.ndim):
        side = signal.shape[axis]
        wanted = -(-side // stride) * stride
        places = torch.arange(wanted)
        period = max(2 * side - 2, 1)
        folded = places % period
        signal = signal.index_select(axis, torch.where(folded < side, folded, period - folded))
    return signal
