"""The column sweep of optimal brain compression: replace one input column after another, let the rest make up for the error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.layerwise.grid import Clip, Grid
from tersor.layerwise.hessian import HessianFactor
from tersor.layerwise.masks import Pattern, keep_highest


@dataclass(frozen=True)
class BlockGrids:
    """Scale and zero ``[groups, out_features]``, the group of each column of a block, and what the compiled loop needs of the grid."""

    scale: Tensor
    zero: Tensor
    group: Tensor
    number: int = 0
    highest: int = 0


def sweep(
    columns: Tensor, factor: HessianFactor, step: int, rounding: GroupRounding | None = None, pruning: Pruning | None = None
) -> float:
    """Replace every column in the order of ``factor``, updating those not yet visited.

    Args:
        columns: float32 ``[in_features, out_features]``, contiguous, in the order of the factor; holds the replaced values afterwards.
        factor: See :func:`tersor.layerwise.hessian.factorize`.
        step: Columns whose updates of the columns beyond are gathered into one matrix product.
        rounding: Grids to round to, or ``None``.
        pruning: Which weights to zero, or ``None``.

    Returns:
        ``tr(D H D^T)`` of the damped Hessian, where ``D`` is the change from the original columns.
    """
    size = columns.shape[0]
    cost = factor.diagonal.pow(-2)
    importance = cost.float()
    loss = 0.0
    for start in range(0, size, step):
        end = min(start + step, size)
        block, coefficients = columns[start:end], factor.coefficients[start:end]
        keep, keep_n, of_m = pruning.choose(block, start, importance[start:end]) if pruning is not None else (None, 0, 0)
        grids = rounding.prepare(columns, start, end) if rounding is not None else None
        codes = rounding.codes(start, end) if rounding is not None else torch.empty(block.shape, dtype=torch.uint8)
        errors = _replace(block, coefficients[:, start:end], importance[start:end], grids, codes, keep, keep_n, of_m)
        if end < size:
            columns[end:].addmm_(coefficients[:, end:].T, errors, alpha=-1)
        loss += float((errors.square().sum(1, dtype=torch.float64) * cost[start:end]).sum())
    return loss


def _replace(
    block: Tensor, coefficients: Tensor, importance: Tensor, grids: BlockGrids | None, codes: Tensor,
    keep: Tensor | None, keep_n: int, of_m: int,
) -> Tensor:  # fmt: skip
    from tersor.layerwise import _compiled

    count, rows = block.shape
    keep = torch.ones(count, rows, dtype=torch.uint8) if keep is None else keep
    errors = torch.empty_like(block)
    none = torch.empty(0, rows)
    chosen = grids or BlockGrids(none, none, torch.zeros(count, dtype=torch.long))
    _compiled.replace_block(
        block.numpy(), coefficients.contiguous().numpy(), importance.contiguous().numpy(), chosen.scale.numpy(), chosen.zero.numpy(),
        chosen.group.numpy(), chosen.number, np.float32(chosen.highest), keep.numpy(), keep_n, of_m, codes.numpy(), errors.numpy(),
    )  # fmt: skip
    return errors


def check_sweep_options(clip: Clip, damping: float, block_size: int) -> None:
    """Refuse what no sweep can work with.

    Raises:
        InvalidArgument: Naming the option and what is allowed.
    """
    check_choice("clip", clip, Clip)
    check_number("damping", damping, 0.0)
    check_integer("block_size", block_size, 1)


def sweep_columns(weight: Tensor, factor: HessianFactor) -> Tensor:
    """An own copy of ``weight`` as :func:`sweep` takes it: transposed, in the order of ``factor``."""
    return weight.T.clone(memory_format=torch.contiguous_format) if factor.order is None else weight.T[factor.order].contiguous()


def block_step(block_size: int, group_size: int | None, of_m: int = 1) -> int:
    """Columns of a block: near ``block_size``, whole groups of M, and with quantisation one group or a divisor of it, so that a group's
    grid is fitted when all earlier updates have arrived.
    """
    if group_size is None:
        return max(block_size // of_m, 1) * of_m
    if group_size <= block_size:
        return group_size
    divisors = [size for size in range(of_m, block_size + 1, of_m) if group_size % size == 0]
    return divisors[-1] if divisors and divisors[-1] > block_size // 8 else group_size


class GroupRounding:
    """Grids for a sweep, and the codes that it leaves.

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
        self, grid: Grid, shape: tuple[int, int], clip: Clip, importance: Tensor,
        order: Tensor | None = None, original: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.grid, self.clip, self.importance = grid, clip, importance
        self._order = order
        self._codes = torch.empty(shape[1], shape[0], dtype=torch.uint8)
        if original is not None:
            self._scale, self._zero = (part.T.contiguous() for part in grid.fit(original, clip, importance))
        else:
            self._scale = torch.empty(shape[1] // grid.group_size, shape[0])
            self._zero = torch.empty_like(self._scale)
        self._fixed = original is not None

    def prepare(self, columns: Tensor, start: int, end: int) -> BlockGrids:
        """The grids of the block ``columns[start:end]``, fitted to ``columns`` as they are now where a group begins."""
        size = self.grid.group_size
        positions = torch.arange(start, end)
        if not self._fixed and start % size == 0:
            members = slice(start, max(end, start + size))
            scale, zero = self.grid.fit(columns[members].T.contiguous(), self.clip, self.importance[members])
            groups = slice(start // size, start // size + scale.shape[1])
            self._scale[groups], self._zero[groups] = scale.T, zero.T
        group = (positions if self._order is None else self._order[positions]) // size
        return BlockGrids(self._scale, self._zero, group, self.grid.number, self.grid.highest)

    def codes(self, start: int, end: int) -> Tensor:
        """uint8 ``[end - start, out_features]`` to write the codes of a block into, in the order of the sweep."""
        return self._codes[start:end]

    @property
    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``[out_features, in_features]`` in the order of the inputs, scale and zero ``[out_features, groups]``."""
        codes = self._codes
        if self._order is not None:
            codes = torch.empty_like(codes)
            codes[self._order] = self._codes
        return codes.T.contiguous(), self._scale.T.contiguous(), self._zero.T.contiguous()


class Pruning:
    """Which weights a sweep zeroes: unstructured masks chosen a block at a time, N:M masks inside the compiled loop.

    Args:
        pattern: What to remove.
        shape: ``(out_features, in_features)``.

    Attributes:
        keep: uint8 ``[in_features, out_features]``, one where the weight is kept.
    """

    def __init__(self, pattern: Pattern, shape: tuple[int, int]) -> None:
        self.pattern = pattern
        self.keep = torch.ones(shape[1], shape[0], dtype=torch.uint8)
        self._removed = 0

    def choose(self, block: Tensor, start: int, importance: Tensor) -> tuple[Tensor, int, int]:
        """The mask of the block that begins at ``start`` (to be written, if N:M), ``keep_n`` and ``of_m`` (0 if it is already chosen)."""
        keep = self.keep[start : start + block.shape[0]]
        if self.pattern.is_grouped:
            return keep, self.pattern.keep_n, self.pattern.of_m
        # The running total makes the count exact for the matrix, not merely for each block.
        removed = min(round(self.pattern.sparsity * block.shape[1] * (start + block.shape[0])) - self._removed, block.numel())
        self._removed += removed
        keep.copy_(keep_highest(block.square() * importance.unsqueeze(1), removed))
        return keep, 0, 0
