"""No compression: for comparisons, and for tests of everything around a compressor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed.compressors.base import Compressor, Context, Message


@dataclass(frozen=True)
class Identity(Compressor):
    """Sends the tensor as it is. Every mode is plain distributed SGD with it."""

    kind = "identity"
    reduces = True

    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        return (x.clone(),)

    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        return message[0]

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((Context("", shape).numel,), dtype)]

    def delta(self, shape: tuple[int, ...]) -> float:
        return 1.0
