"""SparseGPT: prune column by column, alone or together with quantisation, the remaining weights making up for it."""

from __future__ import annotations

from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_stats, check_weight
from tersor.layerwise.grid import Clip, Grid, Scheme
from tersor.layerwise.hessian import factorize
from tersor.layerwise.mask_refit import check_refit, refit_values
from tersor.layerwise.masks import Pattern, ValueType
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.layerwise.sweep import GroupRounding, Pruning, block_step, check_sweep_options, sweep, sweep_columns
from tersor.weights import SparseWeight


@register("sparsegpt", needs="inputs", makes="sparse", paper="Frantar, Alistarh: SparseGPT, 2023")
def sparsegpt(
    weight: Tensor, stats: LayerStats | None, *,
    sparsity: float | None = None, keep_n: int | None = None, of_m: int | None = None, bits: int | None = None,
    group_size: int = 128, scheme: Scheme = "asymmetric", clip: Clip = "minmax", damping: float = 0.01, block_size: int = 128,
    value_dtype: ValueType = "float16", refit: int = 0,
) -> SparseWeight:  # fmt: skip
    """Remove the weights whose loss the others can best make up for, and let them.

    The default for pruning with calibration text; :func:`wanda` where that is short. With ``bits`` the kept weights are rounded in
    the same sweep, so that rounding and pruning errors compensate each other.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; at least 16 tokens an input feature, or the fit does not carry over to other text.
        sparsity: Fraction removed, 0.5 unless given; exactly ``round(sparsity * numel)`` weights, uneven over rows but even over blocks.
        keep_n: With ``of_m``, instead of ``sparsity``: keep ``keep_n`` of every ``of_m`` neighbouring inputs.
        of_m: See ``keep_n``; with ``bits`` it divides ``group_size``.
        bits: 1 to 8 to quantise the kept weights too.
        group_size: As for :func:`gptq`, like ``scheme``, ``clip`` and ``damping``.
        scheme: Likewise.
        clip: Likewise.
        damping: Likewise.
        block_size: Columns whose mask is chosen at once.
        value_dtype: Type of the stored values, if no ``bits`` are given.
        refit: Steps of :func:`tersor.layerwise.mask_refit.refit_values` after the sweep; not with ``bits``.

    Returns:
        The weight; its ``report`` holds ``sparsity``, ``damping``, ``dead_inputs`` (the first to be pruned) and ``damped_error``.

    Raises:
        InvalidArgument: On an option out of range, a weight that is not a finite matrix, or missing or foreign statistics.

    Reference:
        Frantar, Alistarh: "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023.
    """
    stats = check_stats("sparsegpt", stats)
    values = check_weight(weight, stats)
    shape = (values.shape[0], values.shape[1])
    pattern = Pattern.of(shape[1], sparsity, keep_n, of_m)
    check_choice("value_dtype", value_dtype, ValueType)
    check_sweep_options(clip, damping, block_size)
    check_refit(refit)
    if refit and bits is not None:
        raise InvalidArgument("refit moves values off the grid that bits asks for; give one of the two")
    grid = None if bits is None else Grid.of(shape[1], bits, scheme, group_size)
    if grid is not None and grid.group_size % pattern.of_m:
        raise InvalidArgument(f"{keep_n}:{of_m} on a grid needs of_m to divide group_size, which is {grid.group_size}")
    factor = factorize(stats, damping)
    rounding = None if grid is None else GroupRounding(grid, shape, clip, stats.mean_square)
    step = block_step(block_size, None if grid is None else grid.group_size, pattern.of_m)
    pruning, columns = Pruning(pattern, shape), sweep_columns(values, factor)
    loss = sweep(columns, factor, step, rounding, pruning)
    if refit:
        refitted, loss = refit_values(columns.T, values, pruning.keep.T.bool(), stats, factor.damping, refit)
        columns = refitted.T
    compressed = _store(columns, pruning, rounding, value_dtype)
    compressed.report |= {"damping": factor.damping, "dead_inputs": factor.dead_inputs, "damped_error": loss}
    return compressed


def _store(columns: Tensor, pruning: Pruning, rounding: GroupRounding | None, value_dtype: ValueType) -> SparseWeight:
    compressed = _pack(columns, pruning, rounding, value_dtype)
    compressed.report = {"sparsity": compressed.sparsity}
    return compressed


def _pack(columns: Tensor, pruning: Pruning, rounding: GroupRounding | None, value_dtype: ValueType) -> SparseWeight:
    pattern, mask = pruning.pattern, pruning.keep.bool().T.contiguous()
    if rounding is None:
        return pattern.store(columns.T, mask, value_dtype)
    keep_n, of_m = (pattern.keep_n, pattern.of_m) if pattern.is_grouped else (None, None)
    return SparseWeight.from_quantized(rounding.grid.pack(*rounding.result), mask, keep_n=keep_n, of_m=of_m)
