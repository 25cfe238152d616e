"""GPTQ: round column by column, each error made up for by the columns still to come."""

from __future__ import annotations

from torch import Tensor

from tersor.layerwise.checking import check_stats, check_weight
from tersor.layerwise.grid import Clip, Grid, Scheme
from tersor.layerwise.hessian import factorize
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.layerwise.sweep import GroupRounding, block_step, check_sweep_options, sweep, sweep_columns
from tersor.weights import QuantizedWeight


@register("gptq", needs="inputs", makes="quantized", paper="Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, 2022")
def gptq(
    weight: Tensor, stats: LayerStats | None, *,
    bits: int = 4, group_size: int = 128, scheme: Scheme = "asymmetric", act_order: bool = False, clip: Clip = "minmax",
    damping: float = 0.01, block_size: int = 128,
) -> QuantizedWeight:  # fmt: skip
    """Quantise to the grid of :func:`rtn` with the rounding errors of each column compensated by later columns.

    The default for 2 to 4 bits when there is calibration text. Stored exactly like :func:`rtn`, so it costs nothing at run time;
    :func:`awq` fits less closely to the calibration text and is the safer choice with little of it.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; at least 16 tokens an input feature, or the fit does not carry over to other text.
        bits: 1 to 8.
        group_size: Neighbouring inputs that share a scale; divides ``in_features``, -1 for one group a row.
        scheme: ``"symmetric"``, ``"asymmetric"`` or ``"float_min"``.
        act_order: Visit inputs by falling mean square. Grids are then fitted to the original weights (static groups), so the stored
            format is the same.
        clip: ``"minmax"``, ``"mse"`` or ``"hessian"``, see :func:`rtn`.
        damping: Added to the diagonal of the Hessian, relative to its mean; raised tenfold until the factorisation succeeds.
        block_size: Columns between two matrix products; a matter of speed.

    Returns:
        The weight; its ``report`` holds the ``damping`` used, ``dead_inputs`` (zero in all of the calibration: they are rounded to
        nearest) and ``damped_error``, the error ``tr(D H D^T)`` in the damped metric.

    Raises:
        InvalidArgument: On an option out of range, a weight that is not a finite matrix, or missing or foreign statistics.

    Reference:
        Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.
    """
    stats = check_stats("gptq", stats)
    values = check_weight(weight, stats)
    grid = Grid.of(values.shape[1], bits, scheme, group_size)
    check_sweep_options(clip, damping, block_size)
    factor = factorize(stats, damping, act_order)
    rounding = GroupRounding(grid, (values.shape[0], values.shape[1]), clip, stats.mean_square, factor.order, values if act_order else None)
    step = block_size if act_order else block_step(block_size, grid.group_size)
    loss = sweep(sweep_columns(values, factor), factor, step, rounding)
    compressed = grid.pack(*rounding.result)
    compressed.report = {"damping": factor.damping, "dead_inputs": factor.dead_inputs, "damped_error": loss}
    return compressed
