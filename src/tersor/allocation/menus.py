"""The choices of every unit as padded arrays, sorted by cost: what all allocators compute on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tersor.allocation.problem import Choices, Problem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NEVER = np.int64(2**62)  # cost of a choice that does not exist: above every total, and differences still fit


@dataclass(frozen=True)
class Menus:
    """Tables of a problem whose fused groups were merged into single units.

    A *level* is the rank of a choice in its own unit when sorted by cost and, at equal cost, from the larger error to the
    smaller. Units may have menus of different lengths, methods and costs; level vectors are int64 arrays ``[units]``.

    Attributes:
        costs: ``[units, levels]``, ``NEVER`` beyond the end of a menu.
        errors: ``[units, levels]``, infinite beyond the end.
        choice: ``[units, levels]`` index of each level in the unit's own table.
        lengths: ``[units]`` number of choices.
        sizes: ``[units]`` weights in each unit.
        budget: Largest allowed total.
        expand: From one choice a merged unit to one choice an original unit.
        members: ``[units]`` position of the first original unit of each merged one.
    """

    costs: Ints
    errors: Floats
    choice: Ints
    lengths: Ints
    sizes: Ints
    budget: int
    expand: Callable[[Choices], Choices]
    members: Ints

    @classmethod
    def of(cls, problem: Problem) -> Menus:
        """The menus of ``problem``."""
        merged, expand = problem.merged()
        lengths = np.array([len(unit.costs) for unit in merged.units], dtype=np.int64)
        shape = (len(merged.units), int(lengths.max()))
        costs, errors, choice = np.full(shape, NEVER), np.full(shape, np.inf), np.zeros(shape, dtype=np.int64)
        for row, unit in enumerate(merged.units):
            order = sorted(range(len(unit.costs)), key=lambda c, u=unit: (u.costs[c], -u.errors[c], c))  # type: ignore[misc]
            costs[row, : len(order)] = [unit.costs[c] for c in order]
            errors[row, : len(order)] = [unit.errors[c] for c in order]
            choice[row, : len(order)] = order
        sizes = np.array([unit.size for unit in merged.units], dtype=np.int64)
        positions = expand(tuple(range(shape[0])))
        members = np.array([positions.index(row) for row in range(shape[0])], dtype=np.int64)
        return cls(costs, errors, choice, lengths, sizes, int(problem.budget), expand, members)

    @cached_property
    def rows(self) -> Ints:
        """``[0, 1, ... units - 1]``, to index one level of every unit."""
        return np.arange(len(self.lengths), dtype=np.int64)

    @cached_property
    def exists(self) -> NDArray[np.bool_]:
        """``[units, levels]`` whether there is such a level."""
        return np.arange(self.costs.shape[1]) < self.lengths[:, None]

    def cost(self, levels: Ints) -> int:
        """Total cost of one level a unit."""
        return int(self.costs[self.rows, levels].sum())

    def choices(self, levels: Ints) -> Choices:
        """Choices of the original units for ``levels``."""
        return self.expand(tuple(self.choice[self.rows, levels].tolist()))

    def levels(self, choices: Sequence[int]) -> Ints:
        """The levels of ``choices``, which name one choice for each original unit."""
        wanted = np.asarray(choices, dtype=np.int64)[self.members]
        return np.asarray(((self.choice == wanted[:, None]) & self.exists).argmax(axis=1), dtype=np.int64)
