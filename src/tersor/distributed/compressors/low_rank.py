"""A projection on a basis that all workers share: PowerSGD."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed.compressors.base import Compressor, Context, Message, check_count


@dataclass(frozen=True)
class LowRank(Compressor):
    """The tensor as a matrix ``[first dimension, rest]``, its columns projected on ``rank`` directions found by a step of power iteration.

    Two all-reduces: the sum of ``M Q`` gives all workers one orthonormal basis ``P``, then each sends ``M^T P``. With the basis fixed the
    message is linear, so the traffic does not grow with the number of workers, and a projection never makes a tensor larger. The mean
    of ``M^T P`` starts the next step. Large matrices only: a tensor whose factors would not be smaller should be sent dense.

    A change of ``rank`` between steps keeps the leading columns of ``Q`` and draws the missing ones.

    Args:
        rank: Columns of the basis; at most the smaller side of the matrix counts.
        seed: Draws ``Q`` at the first step, with the name of the parameter.

    Raises:
        InvalidArgument: If the rank is not a positive integer.

    Reference:
        Vogels, Karimireddy, Jaggi: "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", 2019.
    """

    rank: int = 4
    seed: int = 0

    kind = "lowrank"
    reduces = True

    def __post_init__(self) -> None:
        check_count("the rank of lowrank", self.rank)

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        rows, columns = matrix_shape(shape)
        return rows, columns, min(self.rank, rows, columns)

    def sketch(self, x: Tensor, context: Context) -> Tensor:
        rows, columns, rank = self._sizes(context.shape)
        start = torch.randn(columns, rank, generator=context.generator("lowrank", self.seed, rank)).to(x)
        if context.warm is not None:
            shared = min(rank, context.warm.shape[1])
            start[:, :shared] = context.warm[:, :shared]
        return (x.unflatten(1, (rows, columns)) @ _orthonormal(start)).flatten(1)

    def agree(self, sketch: Tensor, context: Context) -> Tensor:
        rows, _, rank = self._sizes(context.shape)
        return _orthonormal(sketch.unflatten(0, (rows, rank)))

    def compress(self, x: Tensor, context: Context, shared: Tensor | None = None) -> Message:
        rows, columns, _ = self._sizes(context.shape)
        basis = self.agree(self.sketch(x, context).sum(0), context) if shared is None else shared
        return ((x.unflatten(1, (rows, columns)).mT @ basis).flatten(1),)

    def decompress(self, message: Message, context: Context, shared: Tensor | None = None) -> Tensor:
        _, columns, rank = self._sizes(context.shape)
        if shared is None:
            raise ValueError("a low-rank message stands for nothing without the basis that it was made with")
        return (shared @ message[0].unflatten(1, (columns, rank)).mT).flatten(1)

    def remember(self, message: Message, context: Context) -> Tensor:
        _, columns, rank = self._sizes(context.shape)
        return message[0].unflatten(-1, (columns, rank)).reshape(columns, rank)

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
        _, columns, rank = self._sizes(shape)
        return [((columns * rank,), dtype)]

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
        rows, columns, rank = self._sizes(shape)
        return (rows + columns) * rank * dtype.itemsize

    def delta(self, shape: tuple[int, ...]) -> float:
        """What the best basis keeps at least, ``rank / min(rows, columns)``; a single power step approaches it without a guarantee."""
        rows, columns, rank = self._sizes(shape)
        return rank / min(rows, columns)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """How a tensor is seen as a matrix: the first dimension against all others; ``(1, n)`` for a vector."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _orthonormal(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix).Q
