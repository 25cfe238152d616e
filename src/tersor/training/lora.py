"""Low-rank adapters as hooks on plain linear layers: trained beside frozen weights, then added to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Names of the two factors among the parameters of a layer.
DOWN, UP = "lora_down", "lora_up"


class Adapters:
    """Adds ``scale * up @ down @ x`` to the outputs of linear layers, which stay what they are.

    For use inside a method that also changes the layers; for fine-tuning alone, peft has more. The factors are parameters of the layers, so
    that the model's own ``parameters`` and ``state_dict`` hold them.

    Args:
        layers: Their weights should be frozen.
        rank: Of the update.
        alpha: The update is scaled by ``alpha / rank``.
        generator: Of the lower factor; the upper one is zero, so that nothing changes at first.

    Reference:
        Hu et al.: "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
    """

    def __init__(self, layers: Iterable[nn.Linear], rank: int, alpha: float, generator: torch.Generator) -> None:
        self.layers = list(layers)
        self.scale = alpha / rank
        self._handles: list[Any] = []
        for layer in self.layers:
            bound = 1 / math.sqrt(layer.in_features)
            down = (2 * torch.rand(rank, layer.in_features, generator=generator) - 1) * bound
            layer.register_parameter(DOWN, nn.Parameter(down.to(layer.weight.device)))
            layer.register_parameter(UP, nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device)))
            self._handles.append(layer.register_forward_hook(self._add))

    def _add(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        down, up = layer.get_parameter(DOWN), layer.get_parameter(UP)
        update = nn.functional.linear(nn.functional.linear(args[0].to(down.dtype), down), up)
        return output + (self.scale * update).to(output.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights and leave plain layers."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            update = self.scale * layer.get_parameter(UP).double() @ layer.get_parameter(DOWN).double()
            layer.weight.copy_(layer.weight.double() + update)
            for name in (DOWN, UP):
                delattr(layer, name)
        self._handles.clear()
