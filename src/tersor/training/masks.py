"""Masks that are held by putting zeros into the weights after every step, so that the model stays an ordinary model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.layerwise.masks import keep_highest

Pair = tuple[int, int]


def removed_of(numel: int, sparsity: float) -> int:
    """How many of ``numel`` weights ``sparsity`` removes; one is always left."""
    return numel - max(round(numel * (1 - sparsity)), 1)


def magnitude_mask(
    weight: Tensor, sparsity: float, *, pattern: Pair | None = None, block: Pair | None = None, within: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where ``weight`` is kept when ``sparsity`` of it is removed, the smallest first; exact counts, whatever the ties.

    Args:
        weight: ``[out, ...]``; seen as a matrix ``[out, rest]``.
        sparsity: Fraction removed, at least 0 and below 1.
        pattern: ``(keep_n, of_m)``: the same number of every ``of_m`` neighbours of a row, never below ``keep_n``.
        block: ``(rows, columns)``: whole blocks are kept or removed, compared by their mean magnitude.
        within: An earlier mask of the same kind, whose removed weights go before any other, also before zeros that it kept.

    Returns:
        A boolean tensor of the shape of ``weight``.

    Raises:
        InvalidArgument: If ``sparsity`` is out of range, the weight is not finite, or a pattern or blocks do not fit it.
    """
    check_number("sparsity", sparsity, 0.0, 1.0)
    check_places(pattern, block)
    check_shape("the weight", weight, pattern, block)
    if not bool(torch.isfinite(weight).all()):
        raise InvalidArgument("the weight holds NaN or Inf, which have no magnitude to compare; repair it first")
    score = _score(weight, within)
    score = score.flatten(1) if score.ndim > 1 else score.unsqueeze(0)
    if pattern is not None:
        keep_n, of_m = pattern
        kept = max(round(of_m * (1 - sparsity)), keep_n)
        groups = score.reshape(score.shape[0], -1, of_m)
        lowest = torch.argsort(groups, dim=-1, stable=True)[..., : of_m - kept]
        mask = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, lowest, False)
    elif block is not None:
        rows, columns = block
        tiles = score.reshape(score.shape[0] // rows, rows, score.shape[1] // columns, columns).mean((1, 3))
        kept_tiles = keep_highest(tiles, removed_of(tiles.numel(), sparsity))
        mask = kept_tiles.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    else:
        mask = keep_highest(score, removed_of(score.numel(), sparsity))
    return mask.reshape(weight.shape)


def check_places(pattern: Pair | None, block: Pair | None) -> None:
    """Refuse a pattern that keeps all or nothing, blocks without a side, and both at once.

    Raises:
        InvalidArgument: Naming the option.
    """
    for key, value in (("pattern", pattern), ("block", block)):
        if value is not None and not (isinstance(value, (tuple, list)) and len(value) == 2):
            raise InvalidArgument(f"{key} must be a pair of integers, such as (2, 4), got {value!r}")
    if pattern is not None and block is not None:
        raise InvalidArgument("a pattern and blocks exclude each other; give one")
    for length in block or ():
        check_integer("a side of block", length, 1)
    if pattern is not None:
        check_integer("of_m of pattern", pattern[1], 2)
        check_integer("keep_n of pattern", pattern[0], 1, pattern[1] - 1)


def check_shape(name: str, weight: Tensor, pattern: Pair | None, block: Pair | None) -> None:
    """Refuse a weight that groups or blocks do not divide.

    Raises:
        InvalidArgument: With its sizes.
    """
    if weight.ndim < 2 and (pattern is not None or block is not None):
        raise InvalidArgument(f"{name} is a vector, which has neither patterns nor blocks; leave it out")
    rows, columns = weight.flatten(1).shape if weight.ndim > 1 else (1, weight.numel())
    if pattern is not None and columns % pattern[1]:
        raise InvalidArgument(f"{name} has {columns} inputs, which groups of {pattern[1]} do not divide; name it in ignore")
    if block is not None and (rows % block[0] or columns % block[1]):
        raise InvalidArgument(f"{name} of {rows} x {columns} does not divide into blocks of {block[0]} x {block[1]}; name it in ignore")


def global_masks(weights: Mapping[str, Tensor], sparsity: float, within: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Where each weight is kept when ``sparsity`` of all together is removed, the smallest of all first; ``within`` as above."""
    scores = torch.cat([_score(weight, (within or {}).get(name)).flatten() for name, weight in weights.items()])
    kept = keep_highest(scores, removed_of(scores.numel(), sparsity))
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _score(weight: Tensor, within: Tensor | None) -> Tensor:
    score = weight.detach().abs()
    return score if within is None else score.masked_fill(~within, -1.0)


class Latent(nn.Module):
    """A parametrization that multiplies by a mask and leaves the values behind it, from which a weight may return."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def make_latent(layer: nn.Module, name: str) -> Latent:
    """Put a mask that keeps everything before parameter ``name`` of ``layer``; the parameter object stays the same."""
    latent = Latent(torch.ones_like(getattr(layer, name), dtype=torch.bool))
    parametrize.register_parametrization(layer, name, latent)
    return latent


def end_latent(layer: nn.Module, name: str) -> None:
    """Leave the masked values in the plain parameter."""
    parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
