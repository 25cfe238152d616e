"""Random entries, the same on every worker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed.compressors.base import Compressor, Context, Message, check_ratio, kept


def sample(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different indices below ``numel``, every set of them alike likely, int64 ``[count]``.

    In time and memory of ``count`` where it is a small part: a permutation of a large layer takes longer than to send all of it.
    """
    if 4 * count >= numel:
        return torch.randperm(numel, generator=generator)[:count]
    found = torch.empty(0, dtype=torch.long)
    while len(found) < count:
        drawn = torch.randint(numel, (count + count // 4 + 8,), generator=generator)
        found = torch.cat([found, drawn]).unique()
    # Which values were hit is symmetric in the values, so any fair choice among them is fair among all.
    return found[torch.randperm(len(found), generator=generator)[:count]]


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
        return sample(context.numel, kept(self.ratio, context.numel), context.generator("randk", self.seed, context.step))

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
