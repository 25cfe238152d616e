"""Memory that layers read their keys and values back into, one layer after another."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# What is handed out grows with every token; memory grows by more at once.
_AHEAD = 1.25
# References to memory that no tensor lies in: the attribute, and the argument of the function that counts.
_UNUSED = 2


class Scratch:
    """Hands out memory for a tensor, the same again as soon as no tensor lies in it any more.

    Tensors that are a little larger in every step leave holes in a heap that the next do not fit into, so that decoding a long text would
    take many times what is alive at once. This is a mapping of its own, apart from the heap.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of ``shape`` with the type and device of ``like``, its values undefined.

        Whoever holds it, or a view of it, may keep it: it is never handed out twice.
        """
        count = math.prod(shape)
        if like.device.type != "cpu" or count == 0 or self._in_use():
            return like.new_empty(shape)
        if self._memory is None or len(self._memory) < count * like.element_size():
            self._memory = None  # before there is more of it
            self._memory = mmap.mmap(-1, math.ceil(_AHEAD * count * like.element_size()))
        return torch.frombuffer(self._memory, dtype=like.dtype, count=count).view(*shape)

    def _in_use(self) -> bool:
        # A tensor made of a buffer holds a reference to it until the last view of its storage is gone.
        return self._memory is not None and sys.getrefcount(self._memory) > _UNUSED

    def __deepcopy__(self, memo: dict[int, Any]) -> Scratch:
        return Scratch()

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()
