"""What each setting of a compressor would cost and lose on one tensor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tersor.distributed.compressors import Compressor, Context, LowRank, TopK, UniformQuant, matrix_shape
from tersor.errors import InvalidArgument

Metric = Literal["l2", "l2sq"]
_GRID = 17  # densities tried of TopK, from the smallest to the largest: neighbours differ by 9 % where the range is a factor of four
# With one bit, extremes are all that is left of a bucket: its error looks bearable in a table and drives error feedback apart in training.
_FEWEST_BITS, _MOST_BITS = 2, 8


def knob_of(compressor: Compressor, shape: tuple[int, ...]) -> int:
    """The one integer that a compressor is turned by: a rank, a number of entries, or bits.

    Raises:
        InvalidArgument: If it has none.
    """
    if isinstance(compressor, LowRank):
        return min(compressor.rank, *matrix_shape(shape))
    if isinstance(compressor, TopK):
        return compressor.count(math.prod(shape))
    if isinstance(compressor, UniformQuant):
        return compressor.bits
    raise InvalidArgument(f"per-layer choices need a compressor with a knob: lowrank, topk or quant, not {compressor.kind}")


def with_knob(compressor: Compressor, knob: int) -> Compressor:
    """The same compressor turned to ``knob``."""
    if isinstance(compressor, LowRank):
        return replace(compressor, rank=knob)
    if isinstance(compressor, TopK):
        return TopK(k=knob)
    assert isinstance(compressor, UniformQuant)
    return replace(compressor, bits=knob)


def candidates(compressor: Compressor, shape: tuple[int, ...], low: float, high: float) -> list[int]:
    """Settings from ``low`` to ``high`` times that of ``compressor``, which is one of them; none that takes more than the dense tensor.

    Args:
        compressor: The uniform setting.
        shape: Of the tensor.
        low: Rounded down, but to no less than 1, or 2 bits.
        high: Rounded up, but to no more than there is.
    """
    reference, numel = knob_of(compressor, shape), math.prod(shape)
    most = min(matrix_shape(shape)) if isinstance(compressor, LowRank) else numel if isinstance(compressor, TopK) else _MOST_BITS
    least = _FEWEST_BITS if isinstance(compressor, UniformQuant) else 1
    first, last = max(least, math.floor(low * reference)), min(most, math.ceil(high * reference))
    if isinstance(compressor, TopK):
        span = math.log(last / first)
        knobs = {round(first * math.exp(span * step / (_GRID - 1))) for step in range(_GRID)}
    else:
        knobs = set(range(first, last + 1))
    knobs = {knob for knob in knobs if with_knob(compressor, knob).nbytes(shape) <= 4 * numel}
    return sorted({*knobs, reference})


def errors(compressor: Compressor, knobs: list[int], x: Tensor, shape: tuple[int, ...], metric: Metric = "l2") -> Tensor:
    """What each setting loses of a tensor: of ranks, what the best matrix of that rank does.

    Args:
        compressor: The family.
        knobs: Settings, ascending.
        x: ``[numel]``.
        shape: Its shape.
        metric: ``"l2"`` for the norm of the error, ``"l2sq"`` for its square.

    Returns:
        float64 ``[len(knobs)]``.
    """
    exact = x.double()
    if isinstance(compressor, UniformQuant):
        context = Context("", shape)
        losses = []
        for bits in knobs:
            rounding = replace(compressor, bits=bits, stochastic=False)
            losses.append((rounding.decompress(rounding.compress(exact[None], context), context)[0] - exact).square().sum())
        squared = torch.stack(losses)
    else:
        energies = _spectrum(exact, shape) if isinstance(compressor, LowRank) else exact.square().sort(descending=True).values
        # What is left beyond each position, added from the small end up so that small rests do not drown.
        rest = torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])
        squared = rest[torch.tensor(knobs, device=x.device)]
    return squared.sqrt() if metric == "l2" else squared


def _spectrum(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Squared singular values, descending, from the smaller Gram matrix."""
    rows, columns = matrix_shape(shape)
    matrix = x.reshape(rows, columns)
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
