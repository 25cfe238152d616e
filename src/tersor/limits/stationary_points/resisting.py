"""An oracle that decides what the function is only after it was asked."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer
from tersor.limits.stationary_points.chain import ChainFunction


class ResistingOracle:
    """``f(U^T x)`` whose columns of ``U`` are chosen against the algorithm, one after each query, orthogonal to all that was asked.

    Whatever a deterministic algorithm does, the first ``T`` queries find at most one coordinate each, and every answer is that of one
    fixed function in the end. That takes ``2 T`` dimensions: at most ``T`` queries and ``T`` columns are to be orthogonal to each other.
    An algorithm that draws random numbers is deterministic once its seed is fixed, and so is covered too; to say the same of one function
    for all seeds takes the dimensions of :func:`required_dimension`.

    Args:
        chain: The function.
        dim: Dimension of the points; at least ``2 T``, which is the default.
        seed: Of the directions that are free.

    Raises:
        InvalidArgument: If ``dim`` is too small.

    Reference:
        Carmon, Duchi, Hinder, Sidford: "Lower Bounds for Finding Stationary Points I", 2017.
    """

    def __init__(self, chain: ChainFunction, dim: int | None = None, *, seed: int = 0) -> None:
        self.chain = chain
        self.dim = 2 * chain.length if dim is None else check_integer("dim", dim, 1)
        if self.dim < 2 * chain.length:
            raise InvalidArgument(f"dim must be at least twice the length of the chain, {2 * chain.length}, got {self.dim}")
        self._random = torch.Generator().manual_seed(seed)
        self._columns = torch.zeros(self.dim, 0, dtype=torch.float64)
        self._basis = torch.zeros(self.dim, 0, dtype=torch.float64)

    @property
    def eps(self) -> float:
        """Gradient norm at which a point counts as stationary."""
        return self.chain.eps

    @property
    def columns(self) -> Tensor:
        """The columns of ``U`` decided so far, ``[dim, min(queries, T)]``."""
        return self._columns

    def query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at ``x`` ``[dim]``; decides one more column unless all are decided."""
        if self._columns.shape[1] < self.chain.length:
            self._decide(x.detach().double())
        return self.evaluate(x)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of the function as decided so far, without deciding more; ``x`` is ``[dim]``."""
        coordinates = self._coordinates(x)
        return self.chain(coordinates), self._columns @ self.chain.gradient(coordinates)[: self._columns.shape[1]]

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient at a point that was queried."""
        return self.evaluate(x)[1]

    def progress(self, x: Tensor, threshold: float = 0.5) -> Tensor:
        """Coordinates found at ``x``."""
        return self.chain.progress(self._coordinates(x), threshold)

    def _coordinates(self, x: Tensor) -> Tensor:
        known = x.double() @ self._columns
        return torch.cat((known, known.new_zeros(self.chain.length - known.shape[0])))

    def _decide(self, x: Tensor) -> None:
        self._extend(x)
        column = None
        while column is None:  # a draw in the span of what was asked, as of an algorithm that draws alike, is no use
            column = self._extend(torch.randn(self.dim, dtype=torch.float64, generator=self._random))
        self._columns = torch.cat((self._columns, column[:, None]), 1)

    def _extend(self, vector: Tensor) -> Tensor | None:
        """Add the part of ``vector`` that is orthogonal to the basis to it, normalised; ``None`` if that is nothing but rounding."""
        size = vector.norm()
        for _ in range(2):  # once is not enough against rounding
            vector = vector - self._basis @ (self._basis.T @ vector)
        if not vector.norm() > 1e-10 * size:
            return None
        unit = vector / vector.norm()
        self._basis = torch.cat((self._basis, unit[:, None]), 1)
        return unit
