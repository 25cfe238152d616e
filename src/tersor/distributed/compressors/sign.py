"""One bit an entry and one number a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed.compressors.base import LARGEST_ETA, Compressor, Context, Message
from tersor.kernels.packing import pack_bits, packed_size, unpack_bits


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """Signs times the mean magnitude, a thirty-second of the bytes.

    It keeps ``|x|_1^2 / (numel |x|_2^2)`` of the squared norm: 2/pi for Gaussian entries, but only ``1 / numel`` for a single spike, which
    is all that :meth:`delta` can promise. Zero counts as positive.
    """

    kind = "sign"

    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        return pack_bits((x >= 0).to(torch.uint8), 1), x.abs().mean(1, keepdim=True)

    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        signs, scale = message
        return (unpack_bits(signs, 1, context.numel).to(scale.dtype) * 2 - 1) * scale

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((packed_size(Context("", shape).numel, 1),), torch.uint8), ((1,), dtype)]

    def nbits(self, shape: tuple[int, ...]) -> int:
        return Context("", shape).numel + 32

    def delta(self, shape: tuple[int, ...]) -> float:
        return 1 / Context("", shape).numel

    def eta(self, shape: tuple[int, ...]) -> float:
        return LARGEST_ETA  # gradients are nearer to Gaussian than to a spike; see above
