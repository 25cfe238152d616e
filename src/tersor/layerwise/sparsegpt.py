"""SparseGPT: prune column by column and let the columns still to come absorb the error; optionally quantise in the same sweep."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.gptq import compensate
from tersor.layerwise.grid import Grid, Scheme
from tersor.layerwise.hessian import HessianFactor, factorize, need_stats
from tersor.layerwise.masks import check_sparsity, lowest_mask
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.layerwise.sweep import prune_sweep
from tersor.weights import SparseWeight
from tersor.weights.base import check_matrix


@register("sparsegpt", needs="inputs", makes="sparse", paper="Frantar, Alistarh: SparseGPT, 2023")
def sparsegpt(
    weight: Tensor, stats: LayerStats, *, sparsity: float | None = None, keep_n: int | None = None, of_m: int | None = None,
    bits: int | None = None, group_size: int = 128, scheme: Scheme = "asymmetric", damping: float = 0.01, block_size: int = 128,
) -> SparseWeight:
    """Prune with error compensation, unstructured or N:M, with the kept weights in half precision or quantised to ``bits``.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Of the layer's inputs; want at least 16 tokens an input feature, else :func:`wanda` is safer.
        sparsity: Fraction to remove, exact over the matrix, adaptive over rows; 0.5 if nothing is given.
        keep_n: Weights to keep of every ``of_m`` neighbouring inputs.
        of_m: See ``keep_n``.
        bits: Also quantise the kept weights to 1 to 8 bits, compensating for both at once.
        group_size: Inputs that share a scale when quantising; -1 for whole rows.
        scheme: As in :class:`Grid`.
        damping: Added to the diagonal of the hessian, relative to its mean; raised until the factorisation exists.
        block_size: Columns among which an unstructured mask is chosen jointly.

    Returns:
        The weight; ``report`` holds ``damping``, ``dead_inputs`` and ``loss``, the squared output error a token in the damped metric.

    Raises:
        InvalidArgument: On NaN or Inf, missing statistics or an option out of range.
        TersorError: If the hessian cannot be factored at any damping.

    Reference:
        Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023.
    """
    check_matrix(weight)
    sparsity = 0.5 if sparsity is None and keep_n is None and of_m is None else sparsity
    check_sparsity(sparsity, keep_n, of_m, weight.shape[1])
    if block_size < 1:
        raise InvalidArgument(f"block_size must be at least 1, got {block_size}")
    grid = None if bits is None else Grid(bits, group_size, scheme)
    if grid is not None:
        grid.check(weight.shape[1])
    stats = need_stats(stats, weight, "sparsegpt")
    factor = factorize(stats, damping)
    pruned, mask, loss = prune(weight, factor, sparsity, keep_n, of_m, block_size)
    if grid is None:
        compressed = SparseWeight.from_dense(pruned, mask, torch.float16, keep_n=keep_n, of_m=of_m)
    else:
        # The mask of the pruning sweep, and one sweep from the original weights that prunes and rounds: each weight's error is spread once.
        codes, levels, loss = compensate(weight, grid, factor, stats, grid.fit(pruned), mask, block_size)
        compressed = SparseWeight.from_quantized(grid.pack(codes, levels), mask, keep_n=keep_n, of_m=of_m)
    compressed.report = {**factor.report, "loss": loss}
    return compressed


def prune(
    weight: Tensor, factor: HessianFactor, sparsity: float | None, keep_n: int | None, of_m: int | None, block_size: int,
) -> tuple[Tensor, Tensor, float]:
    """The pruned and compensated weight, its mask (true where kept) and the squared output error a token in the damped metric."""
    rows, columns = weight.shape
    if of_m is not None:
        block_size = math.lcm(block_size, of_m)
    work, upper = weight.float().clone(), factor.upper.float()
    mask = torch.ones(rows, columns, dtype=torch.bool)
    loss, removed = 0.0, 0
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        block = work[:, start:end].contiguous()
        corner = upper[start:end, start:end].contiguous()
        if of_m is None:
            assert sparsity is not None
            count = round(sparsity * rows * end) - removed  # of this block, so that the whole is exact
            removed += count
            keep = lowest_mask((block / corner.diagonal()).square().reshape(1, -1), count).reshape(block.shape).to(torch.uint8)
        else:
            keep = torch.ones(block.shape, dtype=torch.uint8)
        errors = torch.empty_like(block)
        prune_sweep()(block.numpy(), corner.numpy(), keep.numpy(), np.int64(keep_n or 0), np.int64(of_m or 0), errors.numpy())
        work[:, start:end], mask[:, start:end] = block, keep.bool()
        loss += float(errors.double().square().sum())
        if end < columns:
            work[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    return work, mask, loss
