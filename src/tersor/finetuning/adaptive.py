"""Adam on plain tensors, with steps relative to the size of what they change where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_EPSILON = 1e-8


class Adaptive:
    """Adam (Kingma, Ba, 2015) with bias correction; with ``relative`` a LAMB (You et al., 2020), whose rate is a relative step length.

    Args:
        learning_rate: Step of a coordinate, or with ``relative`` the length of the step over that of the tensor.
        betas: Decay of the first and second moments.
        relative: Scale each tensor's step to its own length.
    """

    def __init__(self, learning_rate: float, betas: tuple[float, float], relative: bool) -> None:
        self.learning_rate, self.betas, self.relative = learning_rate, betas, relative
        self.steps = 0
        self.moments: dict[str, Tensor] = {}

    def advance(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """One step of every tensor, in place.

        Args:
            tensors: float32, by name; names must not change between steps.
            gradients: Of the same names and shapes.
        """
        self.steps += 1
        first, second = self.betas
        for name, tensor in tensors.items():
            gradient = gradients[name]
            squares = self._moment(f"{name}.second", gradient).mul_(second).addcmul_(gradient, gradient, value=1 - second)
            update = gradient
            if first > 0:
                update = self._moment(f"{name}.first", gradient).mul_(first).add_(gradient, alpha=1 - first) / (1 - first**self.steps)
            update = update / ((squares / (1 - second**self.steps)).sqrt_().add_(_EPSILON))
            length = self.learning_rate
            if self.relative:
                size, step = float(tensor.norm()), float(update.norm())
                length *= size / step if size > 0 and step > 0 else 1.0
            tensor.add_(update, alpha=-length)

    def _moment(self, key: str, like: Tensor) -> Tensor:
        return self.moments.setdefault(key, torch.zeros_like(like))
