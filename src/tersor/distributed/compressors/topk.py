"""The entries of largest magnitude and where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed.compressors.base import Compressor, Context, Message, check_count, check_ratio, kept
from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class TopK(Compressor):
    """Keeps the ``ceil(ratio * numel)`` entries of largest magnitude: of all compressors that send ``k`` entries the one that loses least.

    Every worker keeps other entries, so messages are gathered and each worker receives ``workers * k`` of them: fewer bytes than a dense
    all-reduce as long as ``workers * k`` is well below the size of the tensor. :class:`RandK` needs no indices and reduces.

    Args:
        ratio: Fraction of the entries to keep, above 0 and at most 1.
        k: Their number instead.

    Raises:
        InvalidArgument: If both or neither are given, or one is out of range.

    Example:
        >>> import torch
        >>> from tersor.distributed import Context, TopK
        >>> x, context = torch.tensor([[1.0, -5.0, 2.0, 4.0]]), Context("x", (4,))
        >>> compressor = TopK(ratio=0.5)
        >>> compressor.decompress(compressor.compress(x, context), context)
        tensor([[ 0., -5.,  0.,  4.]])
    """

    ratio: float | None = None
    k: int | None = None

    kind = "topk"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.k is None):
            raise InvalidArgument("give topk either a ratio or a k")
        if self.ratio is not None:
            check_ratio("topk", self.ratio)
        if self.k is not None:
            check_count("the k of topk", self.k)

    def count(self, numel: int) -> int:
        """Entries kept of ``numel``."""
        return kept(self.ratio, numel) if self.ratio is not None else min(self.k or 1, numel)

    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        index = x.abs().topk(self.count(x.shape[1]), dim=1, sorted=False).indices
        return x.gather(1, index), index.to(torch.int32)

    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        values, index = message
        return values.new_zeros(values.shape[0], context.numel).scatter_(1, index.long(), values)

    def total(self, message: Message, context: Context) -> Tensor:
        values, index = message
        total = values.new_zeros(context.numel)
        if values.device.type == "cpu":  # adds in the order of the entries; elsewhere only within a row, whose indices differ, is that sure
            return total.index_add_(0, index.flatten().long(), values.flatten())
        for row in range(values.shape[0]):
            total.index_add_(0, index[row].long(), values[row])
        return total

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        k = self.count(Context("", shape).numel)
        return [((k,), dtype), ((k,), torch.int32)]

    def nbits(self, shape: tuple[int, ...]) -> int:
        numel = Context("", shape).numel
        return self.count(numel) * (32 + math.ceil(math.log2(numel)))

    def delta(self, shape: tuple[int, ...]) -> float:
        numel = Context("", shape).numel
        return self.count(numel) / numel
