"""The column sweep of optimal brain compression: replace one input column after another, let the rest make up for the error."""

from __future__ import annotations

from collections.abc import Callable
from math import lcm

import torch
from torch import Tensor

from tersor.layerwise.grid import Clip, Grid
from tersor.layerwise.hessian import HessianFactor

Replace = Callable[[Tensor, int], Tensor]


def sweep(columns: Tensor, factor: HessianFactor, step: int, replace: Replace) -> float:
    """Replace every column in the order of ``factor``, updating those not yet visited.

    Args:
        columns: float32 ``[in_features, out_features]``, contiguous, in the order of the factor; holds the replaced values afterwards.
        factor: See :func:`tersor.layerwise.hessian.factorize`.
        step: Columns whose updates of the columns beyond are gathered into one matrix product.
        replace: Called with ``columns`` as they are then and the position ``c``; returns the new value of column ``c``. It sees all
            earlier updates in ``columns[c:end]`` up to the end of the block, and in all of ``columns[c:]`` at the start of a block.

    Returns:
        ``tr(D H D^T)`` of the damped Hessian, where ``D`` is the change from the original columns.
    """
    size = columns.shape[0]
    weights = factor.diagonal.to(columns.device).pow(-2)
    loss = 0.0
    for start in range(0, size, step):
        end = min(start + step, size)
        errors = torch.empty_like(columns[start:end])
        coefficients = factor.coefficients[start:end].to(columns.device)
        for column in range(start, end):
            new = replace(columns, column)
            error = torch.sub(columns[column], new, out=errors[column - start])
            columns[column] = new
            if column + 1 < end:
                columns[column + 1 : end].addr_(coefficients[column - start, column + 1 : end], error, alpha=-1)
        if end < size:
            columns[end:].addmm_(coefficients[:, end:].T, errors, alpha=-1)
        loss += float((errors.square().sum(1, dtype=torch.float64) * weights[start:end]).sum())
    return loss


def sweep_columns(weight: Tensor, factor: HessianFactor) -> Tensor:
    """An own copy of ``weight`` as :func:`sweep` takes it: transposed, in the order of ``factor``."""
    return weight.T.clone(memory_format=torch.contiguous_format) if factor.order is None else weight.T[factor.order].contiguous()


def block_step(block_size: int, group_size: int, of_m: int = 1) -> int:
    """Columns of a block, near ``block_size``, such that no group of M is cut and every quantisation group either starts a block or lies
    inside one: only then does a group see all earlier updates when its grid or mask is chosen.
    """
    unit = lcm(group_size, of_m)
    if unit <= block_size:
        return block_size // unit * unit
    divisors = [size for size in range(of_m, block_size + 1, of_m) if group_size % size == 0]
    return divisors[-1] if divisors and divisors[-1] > block_size // 8 else unit


class GroupRounder:
    """A ``replace`` for :func:`sweep` that rounds columns to group grids and keeps the codes.

    Args:
        grid: The grid.
        shape: ``(out_features, in_features)``.
        clip: How a group's range is chosen.
        importance: Mean square of each input in its own order.
        order: Input at each position of the sweep; ``None`` for the natural order, in which each group's grid is fitted to the weights
            as they are when the sweep reaches it.
        original: The weight ``[out_features, in_features]`` that all grids are fitted to beforehand when there is an ``order``.
    """

    def __init__(
        self, grid: Grid, shape: tuple[int, int], clip: Clip, importance: Tensor, order: Tensor | None = None, original: Tensor | None = None
    ) -> None:
        self.grid, self.clip, self.importance = grid, clip, importance
        self._order = None if order is None else order.tolist()
        self._codes = torch.empty(shape[1], shape[0], dtype=torch.uint8)
        if self._order is not None and original is not None:
            self._scale, self._zero = (part.T.contiguous() for part in grid.fit(original, clip, importance))
        else:
            self._scale = torch.empty(shape[1] // grid.group_size, shape[0])
            self._zero = torch.empty_like(self._scale)

    def __call__(self, columns: Tensor, position: int) -> Tensor:
        column = position if self._order is None else self._order[position]
        group, inside = divmod(column, self.grid.group_size)
        if self._order is None and inside == 0:
            members = slice(column, column + self.grid.group_size)
            scale, zero = self.grid.fit(columns[members].T.contiguous(), self.clip, self.importance[members])
            self._scale[group], self._zero[group] = scale[:, 0], zero[:, 0]
        codes = self.grid.encode(columns[position], self._scale[group], self._zero[group])
        self._codes[column] = codes
        return self.grid.decode(codes, self._scale[group], self._zero[group])

    @property
    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``[out_features, in_features]``, scale and zero ``[out_features, groups]``."""
        return self._codes.T.contiguous(), self._scale.T.contiguous(), self._zero.T.contiguous()
