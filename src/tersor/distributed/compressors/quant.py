"""Uniform levels between the extremes of each bucket."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.distributed.compressors.base import LARGEST_ETA, Compressor, Context, Message, check_count
from tersor.kernels.packing import pack_bits, packed_size, unpack_bits

_BITS = 8


@dataclass(frozen=True)
class UniformQuant(Compressor):
    """``2^bits`` levels from the smallest to the largest entry of every ``bucket`` entries, and two numbers a bucket.

    Plain rounding may make a tensor larger than it was: one bit turns ``(1, -1, 0, 0, ...)`` into nothing but ones. ``project`` therefore
    scales the levels of a bucket by the factor that brings them nearest to it, which costs nothing on the wire, lowers the error, and
    makes the compressor safe for error feedback at any number of bits.

    Args:
        bits: 1 to 8.
        bucket: Entries that share their levels.
        stochastic: Round up with the probability of the remainder, from a generator of the seed, the parameter, the step and the rank.
        project: Scale as said; without it the scheme is that of CGX, unbiased if stochastic.
        seed: For ``stochastic``.

    Raises:
        InvalidArgument: If ``bits`` or ``bucket`` is out of range.
    """

    bits: int = 4
    bucket: int = 1024
    stochastic: bool = False
    project: bool = True
    seed: int = 0

    kind = "quant"

    def __post_init__(self) -> None:
        check_count("the bits of quant", self.bits, _BITS)
        check_count("the bucket of quant", self.bucket)

    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        numel = x.shape[1]
        highest = 2**self.bits - 1
        # The last bucket is filled up with its last entry, which moves no extreme.
        rows = F.pad(x[:, None], (0, -numel % self.bucket), mode="replicate")[:, 0].unflatten(1, (-1, self.bucket))
        low = rows.amin(2, keepdim=True)
        unit = (rows.amax(2, keepdim=True) - low) / highest
        steps = (rows - low) / unit.clamp(min=torch.finfo(x.dtype).tiny)
        levels = (steps + self._offset(steps, context)).floor().clamp(0, highest)
        levels = torch.where(unit > 0, levels, 0)
        if self.project:
            inside = F.pad(torch.ones(1, numel, device=x.device, dtype=x.dtype), (0, -numel % self.bucket)).unflatten(1, (-1, self.bucket))
            rounded = (low + unit * levels) * inside
            energy = rounded.square().sum(2, keepdim=True)
            scale = torch.where(energy > 0, (rounded * rows).sum(2, keepdim=True) / energy.clamp(min=torch.finfo(x.dtype).tiny), 0)
            low, unit = low * scale, unit * scale
        codes = pack_bits(levels.flatten(1)[:, :numel].to(torch.uint8), self.bits)
        return codes, torch.cat([low, unit], 2).flatten(1)

    def _offset(self, steps: Tensor, context: Context) -> Tensor | float:
        if not self.stochastic:
            return 0.5
        draws = [
            torch.rand(steps.shape[1:], generator=context.generator("quant", self.seed, context.step, context.rank + row))
            for row in range(steps.shape[0])
        ]
        return torch.stack(draws).to(steps)

    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        codes, scales = message
        low, unit = scales.unflatten(1, (-1, 2)).unbind(2)
        levels = unpack_bits(codes, self.bits, context.numel).to(scales.dtype)
        levels = F.pad(levels, (0, -context.numel % self.bucket)).unflatten(1, (-1, self.bucket))
        return (low[..., None] + unit[..., None] * levels).flatten(1)[:, : context.numel]

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        numel = Context("", shape).numel
        return [((packed_size(numel, self.bits),), torch.uint8), ((2 * -(-numel // self.bucket),), dtype)]

    def delta(self, shape: tuple[int, ...]) -> float:
        # An entry is off by half a unit at most, and the squared span of a bucket is at most twice its squared norm.
        if self.stochastic:
            return 0.0
        size = min(self.bucket, Context("", shape).numel)
        return max(0.0, 1 - size / (2 * (2**self.bits - 1) ** 2))

    def eta(self, shape: tuple[int, ...]) -> float:
        return LARGEST_ETA  # what is expected of gradients is far better than what delta can promise

    @property
    def contractive(self) -> bool:
        return self.project
