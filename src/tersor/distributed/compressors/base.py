"""What a gradient compressor is: a pure function from a tensor to a short message of a size that every worker knows."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import InvalidArgument

Message = tuple[Tensor, ...]

# Error control diverges where it feeds back more than the compressor can send; from about a third on nothing is gained either.
LARGEST_ETA = 0.3


@dataclass(frozen=True)
class Context:
    """What a compressor may know besides the numbers; the same on every worker but for ``rank``.

    Attributes:
        name: Fully qualified name of the parameter.
        shape: Its shape.
        step: Steps of the run before this one.
        rank: Number of the first worker whose tensors are handed in.
        warm: What the compressor asked to be remembered at the last step, the same on every worker.
    """

    name: str
    shape: tuple[int, ...]
    step: int = 0
    rank: int = 0
    warm: Tensor | None = None

    @property
    def numel(self) -> int:
        """Entries of the parameter."""
        return math.prod(self.shape)

    def generator(self, *salt: object) -> torch.Generator:
        """A fresh generator that depends on the parameter and ``salt`` alone: nothing of it needs to be in a checkpoint."""
        digest = hashlib.blake2b(repr((self.name, *salt)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Compressor(ABC):
    """Compresses rows ``x`` ``[workers, numel]``, each on its own; a process of a distributed run hands in one row, a simulator all.

    Stateless: what a step needs of the one before is in :class:`Context`. Messages have the sizes that :meth:`nbytes` and the shape say,
    whatever the values, because collectives need equal sizes. A subclass is registered by setting ``kind``.

    Attributes:
        reduces: Whether messages are linear in the tensor, given what workers agreed on, so that they may be summed on the way instead of
            gathered.
    """

    kind: ClassVar[str] = ""
    reduces: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.kind:
            COMPRESSORS[cls.kind] = cls

    def sketch(self, x: Tensor, context: Context) -> Tensor | None:
        """What has to be summed over all workers before :meth:`compress`, ``[workers, n]``, or ``None``."""
        return None

    def agree(self, sketch: Tensor, context: Context) -> Tensor:
        """What every worker makes of the sum of all sketches, ``[n]``; :meth:`compress` and :meth:`decompress` are given it."""
        return sketch

    @abstractmethod
    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        """The message of every row.

        Args:
            x: ``[workers, numel]``, float32 or float64.
            context: The parameter and the step.
            shared: What :meth:`agree` gave; without it, what it gives for the workers at hand.

        Returns:
            Tensors whose first dimension is ``workers``.
        """

    @abstractmethod
    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        """The tensors that a message stands for, ``[workers, numel]``."""

    def total(self, message: Message, context: Context) -> Tensor:
        """The sum over workers of what gathered messages stand for, ``[numel]``; row by row, so that every replica adds in one order."""
        rows = message[0].shape[0]
        total = self.decompress(tuple(part[:1] for part in message), context)[0]
        for row in range(1, rows):
            total += self.decompress(tuple(part[row : row + 1] for part in message), context)[0]
        return total

    def remember(self, message: Message, context: Context) -> Tensor | None:
        """What :attr:`Context.warm` shall be at the next step, from the mean message of all workers."""
        return None

    @abstractmethod
    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor of one worker's message about a tensor of ``shape`` and ``dtype``."""

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
        """Bytes of one worker's message on the wire."""
        return sum(math.prod(size) * kind.itemsize for size, kind in self.layout(shape, dtype))

    def nbits(self, shape: tuple[int, ...]) -> int:
        """Bits that the information takes with an ideal index code and 32-bit values; at most ``8 * nbytes``."""
        return 8 * self.nbytes(shape)

    @abstractmethod
    def delta(self, shape: tuple[int, ...]) -> float:
        """The largest known ``d`` with ``E |C(x) - x|^2 <= (1 - d) |x|^2`` for every ``x``; 0 if none is guaranteed."""

    def eta(self, shape: tuple[int, ...]) -> float:
        """How much of its memory error control should feed back: the contraction to be expected, at most 0.3."""
        return min(self.delta(shape), LARGEST_ETA)

    @property
    def contractive(self) -> bool:
        """Whether the compressor never makes a tensor larger than its error; without it error feedback may blow up."""
        return True


COMPRESSORS: dict[str, type[Compressor]] = {}


def check_ratio(name: str, ratio: object) -> float:
    """``ratio`` as a float in (0, 1].

    Raises:
        InvalidArgument: If it is something else.
    """
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 < ratio <= 1:
        raise InvalidArgument(f"the ratio of {name} must be above 0 and at most 1, got {ratio!r}; 0.01 keeps one entry in a hundred")
    return float(ratio)


def check_count(name: str, count: object, highest: int | None = None) -> int:
    """``count`` as an integer from 1 to ``highest``.

    Raises:
        InvalidArgument: If it is something else.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or (highest is not None and count > highest):
        span = "of at least 1" if highest is None else f"from 1 to {highest}"
        raise InvalidArgument(f"{name} must be an integer {span}, got {count!r}")
    return count


def kept(ratio: float, numel: int) -> int:
    """How many of ``numel`` entries a ratio keeps: rounded up, never none."""
    return min(numel, max(1, math.ceil(ratio * numel - 1e-9)))
