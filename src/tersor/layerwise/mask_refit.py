"""The best values on a mask that is given: masked least squares by conjugate gradients, all rows of a layer at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.layerwise.checking import check_integer
from tersor.layerwise.stats import LayerStats


def check_refit(refit: int) -> None:
    """Refuse a number of steps that is none.

    Raises:
        InvalidArgument: If ``refit`` is no integer of 0 or more.
    """
    check_integer("refit", refit, 0)


def refit_values(values: Tensor, weight: Tensor, keep: Tensor, stats: LayerStats, damping: float, steps: int) -> tuple[Tensor, float]:
    """Move the kept values so that the outputs of the layer come closer to those of ``weight``.

    A sweep lets only the inputs that it has not yet visited make up for a removed weight; here all kept ones do. Every step takes one
    product with the Hessian and lowers ``tr((W - V) (H + damping * mean(diag H) * I) (W - V)^T)``, whose minimum on the mask it nears.

    Args:
        values: Where to begin, float32 ``[out_features, in_features]``; zero off the mask.
        weight: The original ``W``, likewise.
        keep: Mask of the kept weights, bool, likewise.
        stats: Statistics of the inputs.
        damping: Added to the diagonal of the Hessian, relative to its mean.
        steps: Conjugate gradient steps, preconditioned with the diagonal.

    Returns:
        New values, zero off the mask, and what is left of that error.

    Reference:
        Meng et al.: "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", 2024, for the step.
    """
    hessian = stats.hessian.to(torch.float32, copy=True)
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    # A dead input has no say in the outputs, and without damping no curvature either.
    scale = torch.where(hessian.diagonal() > 0, hessian.diagonal().reciprocal(), 0.0)
    found = torch.where(keep, values, 0.0)
    residual = ((weight - found) @ hessian).masked_fill_(~keep, 0.0)
    direction = residual * scale
    power = _rows(residual, direction)
    for _ in range(steps):
        curved = (direction @ hessian).masked_fill_(~keep, 0.0)
        length = _ratio(power, _rows(direction, curved))
        found.addcmul_(length, direction)
        residual.addcmul_(length, curved, value=-1)
        scaled = residual * scale
        before, power = power, _rows(residual, scaled)
        direction.mul_(_ratio(power, before)).add_(scaled)
    difference = weight - found
    return found, float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def _rows(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(1, keepdim=True)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    # A row that has arrived stays where it is.
    return torch.where(denominator > 0, numerator / denominator, 0.0)
