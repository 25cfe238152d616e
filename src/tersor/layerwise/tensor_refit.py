"""Fitting the cores of a tensor train to a layer's output, one core at a time with the others held fixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.weights.contraction import merge_cores

# Conjugate gradients stop early: the next core moves the optimum of this one anyway.
_STEPS = 12


def refit(cores: Sequence[Tensor], weight: Tensor, hessian: Tensor, sweeps: int) -> list[Tensor]:
    """Lower ``tr(D H D^T)`` with ``D = weight - train`` by alternating least squares; it never rises.

    Args:
        cores: ``[left bond, J, I, right bond]`` each.
        weight: ``[out_features, in_features]``.
        hessian: ``H``, ``[in_features, in_features]``.
        sweeps: Visits of every core, from the first to the last and back in turn.

    Returns:
        New cores of the same shapes, float64.
    """
    fitted = [core.double().clone() for core in cores]
    target, metric = weight.double(), hessian.double() / hessian.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    for sweep in range(sweeps):
        for site in range(len(fitted)) if sweep % 2 == 0 else reversed(range(len(fitted))):
            fitted[site] = _solve(_Site(fitted, site, target.shape), target, metric)
    return fitted


class _Site:
    """The linear map from one core to the dense matrix, and its adjoint."""

    def __init__(self, cores: list[Tensor], site: int, shape: Sequence[int]) -> None:
        self.core, self.shape = cores[site], tuple(shape)
        self.left = _chain(cores[:site]).squeeze(0)  # [J, I, bond]
        self.right = _chain(cores[site + 1 :]).squeeze(-1)  # [bond, J, I]

    def dense(self, core: Tensor) -> Tensor:
        """``[out_features, in_features]``."""
        partial = torch.tensordot(self.left, core, dims=1)  # [JL, IL, j, i, bond]
        full = torch.tensordot(partial, self.right, dims=1)  # [JL, IL, j, i, JR, IR]
        return full.permute(0, 2, 4, 1, 3, 5).reshape(self.shape)

    def adjoint(self, matrix: Tensor) -> Tensor:
        """What a gradient by the dense matrix means for the core."""
        _, rows, columns, _ = self.core.shape
        (j_left, i_left, _), (_, j_right, i_right) = self.left.shape, self.right.shape
        legs = matrix.reshape(j_left, rows, j_right, i_left, columns, i_right)
        partial = torch.tensordot(self.left, legs, dims=([0, 1], [0, 3]))  # [bond, j, JR, i, IR]
        return torch.tensordot(partial, self.right, dims=([2, 4], [1, 2]))  # [bond, j, i, bond]


def _chain(cores: list[Tensor]) -> Tensor:
    return merge_cores(cores) if cores else torch.ones(1, 1, 1, 1, dtype=torch.float64)


def _solve(site: _Site, target: Tensor, metric: Tensor) -> Tensor:
    """Conjugate gradients on the normal equations from the present core."""
    core = site.core
    residual = site.adjoint((target - site.dense(core)) @ metric)
    direction, size = residual, float(residual.square().sum())
    for _ in range(_STEPS):
        if size == 0:
            break
        image = site.dense(direction)
        curvature = float(((image @ metric) * image).sum())
        if curvature <= 0:
            break
        step = size / curvature
        core = core + step * direction
        residual = residual - step * site.adjoint(image @ metric)
        before, size = size, float(residual.square().sum())
        direction = residual + size / before * direction
    return core
