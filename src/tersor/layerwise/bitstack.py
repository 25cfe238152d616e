"""BitStack: peel a weight into one-bit residuals, each a sign matrix times a low-rank matrix of magnitudes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.layerwise.checking import check_integer, check_stats, check_weight
from tersor.layerwise.low_rank import choose_rank
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights import ResidualStack, SignBlock
from tersor.weights.residual_stack import MAX_BLOCKS

# Bits a weight that the factors may cost beside the one of the sign: what rank 16 costs on a 4096 x 4096 matrix.
_FACTOR_BITS = 0.125
# Columns beyond the rank, and passes over the matrix, of the subspace iteration: enough to lose less than a thousandth of the energy
# that an exact decomposition of magnitudes would keep.
_OVERSAMPLE, _PASSES = 8, 4
# Below this, relative to the mean, an input counts as no smaller; its float16 scale stays well inside the format.
_SCALE_FLOOR = 1e-3


@register("bitstack", needs="inputs", makes="residual_stack", paper="Wang, Wang, Yu, Ma, Wang, Wang: BitStack, 2025")
def bitstack(
    weight: Tensor, stats: LayerStats | None, *, blocks: int = 8, rank: int | Literal["auto"] = "auto", scaled: bool = True, seed: int = 0,
) -> ResidualStack:  # fmt: skip
    """Decompose into ``blocks`` residuals of a little over one bit a weight, any prefix of which is a usable weight.

    For a model whose memory budget changes while it runs. Each block stores the signs of what is left and the best low-rank matrix of
    its magnitudes, which are all of one sign and so decay much faster than the matrix itself. At one fixed budget above two bits
    :func:`gptq` is more accurate.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; only their mean squares are used, and none with ``scaled=False``.
        blocks: 1 to 32. Bytes grow in proportion, the error shrinks by a constant factor each.
        rank: Of the magnitudes; ``"auto"`` spends an eighth of a bit a weight on the factors, at least rank 1.
        scaled: Weigh each input by its root mean square while decomposing; the inverse is stored with the weight, 16 bits an input.
        seed: Of the start of the subspace iteration.

    Returns:
        The stack; its ``report`` holds ``rank`` and ``residual_energy``, after each block the fraction of the (scaled) weight's energy
        that is still missing. Residuals are taken from the stored factors, so later blocks repair the rounding of earlier ones.

    Raises:
        InvalidArgument: On an option out of range, a rank whose factors alone outweigh the matrix, or missing or foreign statistics.

    Reference:
        Wang, Wang, Yu, Ma, Wang, Wang: "BitStack: Any-Size Compression of Large Language Models in Variable Memory Environments", 2025.
    """
    stats = check_stats("bitstack with scaled=True", stats) if scaled else stats
    values = check_weight(weight, stats)
    check_integer("blocks", blocks, 1, MAX_BLOCKS)
    shape = (values.shape[0], values.shape[1])
    used_rank = _rank(shape, rank)
    multiplier = input_multiplier(stats) if scaled and stats is not None else None
    residual = values if multiplier is None else values / multiplier.float()
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape[1], min(used_rank + _OVERSAMPLE, *shape), generator=generator).to(values)
    total = float(residual.square().sum())
    stack, energies = [], []
    for _ in range(blocks):
        block = sign_block(residual, used_rank, start)
        residual = residual - block.values(slice(None))
        stack.append(block)
        energies.append(float(residual.square().sum()) / total if total > 0 else 0.0)
    compressed = ResidualStack(stack, multiplier)
    compressed.report = {"rank": used_rank, "residual_energy": energies}
    return compressed


def input_multiplier(stats: LayerStats) -> Tensor:
    """What the columns of a stack are multiplied by, float16 ``[in_features]``: the inverse root mean square of each input.

    Its geometric mean is about one, and inputs that hardly ever fire are taken for small ones, so that it fits into float16.
    """
    size = stats.mean_square.double().clamp(min=0).sqrt()
    mean = float(size.mean())
    relative = (size / mean if mean > 0 else torch.ones_like(size)).clamp(min=_SCALE_FLOOR)
    return (relative.log().mean().exp() / relative).to(torch.float16)


def sign_block(residual: Tensor, rank: int, start: Tensor) -> SignBlock:
    """The block that takes most off ``residual``: its signs, and the leading part of its magnitudes.

    Args:
        residual: ``[out_features, in_features]``.
        rank: Of the magnitudes.
        start: ``[in_features, n]`` with ``n >= rank``, where the subspace iteration starts.
    """
    magnitudes = residual.abs()
    basis = torch.linalg.qr(magnitudes @ start).Q
    for _ in range(_PASSES):
        other = torch.linalg.qr(magnitudes.T @ basis).Q
        basis = torch.linalg.qr(magnitudes @ other).Q
    left, singular, right = torch.linalg.svd(basis.T @ magnitudes, full_matrices=False)
    root = singular[:rank].sqrt()
    return SignBlock(residual >= 0, basis @ left[:, :rank] * root, root.unsqueeze(1) * right[:rank])


def _rank(shape: tuple[int, int], rank: int | Literal["auto"]) -> int:
    if rank == "auto":
        return max(round(_FACTOR_BITS * shape[0] * shape[1] / (16 * (shape[0] + shape[1]))), 1)
    return choose_rank(shape, None, rank)
