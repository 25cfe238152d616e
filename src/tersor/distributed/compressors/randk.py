"""Random entries, the same on every worker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed.compressors.base import Compressor, Context, Message, check_ratio, kept


@dataclass(frozen=True)
class RandK(Compressor):
    """Keeps ``ceil(ratio * numel)`` random entries that all workers draw alike: no indices are sent, and messages all-reduce.

    At equal bytes it loses more than :class:`TopK`; its traffic does not grow with the number of workers.

    Args:
        ratio: Fraction of the entries to keep, above 0 and at most 1.
        rescale: Multiply by ``numel / k``, which makes the result unbiased and no longer contractive: for mode ``"csgd"`` only.
        seed: Draws the entries, with the name of the parameter and the step.

    Raises:
        InvalidArgument: If the ratio is out of range.
    """

    ratio: float = 0.01
    rescale: bool = False
    seed: int = 0

    kind = "randk"
    reduces = True

    def __post_init__(self) -> None:
        check_ratio("randk", self.ratio)

    def _index(self, context: Context) -> Tensor:
        generator = context.generator("randk", self.seed, context.step)
        return torch.randperm(context.numel, generator=generator)[: kept(self.ratio, context.numel)]

    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        values = x[:, self._index(context).to(x.device)]
        return (values * (x.shape[1] / values.shape[1]) if self.rescale else values,)

    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        (values,) = message
        dense = values.new_zeros(values.shape[0], context.numel)
        dense[:, self._index(context).to(values.device)] = values
        return dense

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((kept(self.ratio, Context("", shape).numel),), dtype)]

    def delta(self, shape: tuple[int, ...]) -> float:
        numel = Context("", shape).numel
        return 0.0 if self.rescale else kept(self.ratio, numel) / numel

    @property
    def contractive(self) -> bool:
        return not self.rescale
