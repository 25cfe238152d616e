"""Level-switch mutation: trade cost between units without leaving the budget.

Every loop here is bounded: a parent without a legal move yields fewer offspring, or none.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tersor.allocation.menus import Floats, Ints, Menus
from tersor.allocation.problem import Problem
from tersor.errors import InvalidArgument

Grouping = Literal["size", "name", "none"]
Mask = NDArray[np.bool_]

TRIES = 10  # attempts per wanted offspring, and per switch, before giving up
JUMP = 0.25  # share of switches that go further than the next level: with mixed methods the neighbour may be a dominated choice
NEAR = 0.01  # units of a group whose tables differ (by a longer name in a file header, say) may trade steps this close in cost
GUIDED = 10  # a repair of more than so many average steps follows the layer errors: random ones would undo a good parent
TINY = 1e-300  # lets the noise decide between units whose errors do not


def mutation_groups(problem: Problem, grouping: Grouping) -> list[Ints] | None:
    """Units of the merged problem that may trade levels with each other; ``None`` if all may, at unequal cost.

    Args:
        problem: Its fused groups are merged first.
        grouping: ``"size"`` equal numbers of weights; ``"name"`` equal names once the numbers in them are removed; ``"none"``.

    Raises:
        InvalidArgument: On another grouping.
    """
    if grouping == "none":
        return None
    if grouping not in ("size", "name"):
        raise InvalidArgument(f"groups must be 'size', 'name' or 'none', not {grouping!r}")
    merged, _ = problem.merged()
    rows: dict[object, list[int]] = {}
    for row, unit in enumerate(merged.units):
        rows.setdefault(unit.size if grouping == "size" else re.sub(r"\d+", "#", unit.name), []).append(row)
    return [np.array(group, dtype=np.int64) for group in rows.values()]


class Mutator:
    """Makes offspring of a parent.

    With groups, a switch raises one unit and lowers another of its group by exactly the same cost, so that the total does not change;
    units whose tables differ may trade steps within 1 %, and the total then stays within the budget. Without groups, units are
    raised and lowered freely, then random units are lowered until the budget is met and random ones raised while they fit.

    Args:
        menus: Tables and budget.
        groups: Units that trade with each other, or ``None``.
        max_switches: The number of switches is the smaller of two uniform draws from ``1..max_switches``.
    """

    def __init__(self, menus: Menus, groups: list[Ints] | None, max_switches: int) -> None:
        self.menus, self.groups, self.max_switches = menus, groups, max_switches
        self.group_of = np.zeros(len(menus.lengths), dtype=np.int64)
        for index, group in enumerate(groups or []):
            self.group_of[group] = index
        self.table_of = _equal_tables(menus)
        self.up, self.down = _paid_steps(menus)

    def offspring(self, parent: Ints, count: int, rng: np.random.Generator) -> list[Ints]:
        """At most ``count`` feasible level vectors, all different from each other and from ``parent``."""
        seen = {parent.tobytes()}
        found: list[Ints] = []
        for _ in range(TRIES * max(count, TRIES)):
            if len(found) == count:
                break
            child = self.mutate(parent, rng)
            if child is not None and child.tobytes() not in seen:
                seen.add(child.tobytes())
                found.append(child)
        return found

    def mutate(self, parent: Ints, rng: np.random.Generator) -> Ints | None:
        """One mutated copy of ``parent``; ``None`` if no legal move was found."""
        switches = int(rng.integers(1, self.max_switches + 1, size=2).min())
        levels = parent.copy()
        if self.groups is None:
            return levels if self._trade(levels, switches, rng) else None
        done = [any(self._exact_switch(levels, rng) for _ in range(TRIES)) for _ in range(switches)]
        return levels if any(done) else None

    def random(self, rng: np.random.Generator) -> Ints:
        """Random levels, repaired to the budget and filled."""
        levels = rng.integers(self.menus.lengths)
        nobody = np.zeros(len(levels), dtype=bool)
        self._repair(levels, nobody, nobody.copy(), rng, guided=False)
        self._spend(levels, nobody, rng, guided=False)
        return levels

    def _exact_switch(self, levels: Ints, rng: np.random.Generator) -> bool:
        """Move one unit and let another of its group pay exactly, in place; ``False`` if this draw found no partner."""
        assert self.groups is not None
        group = self.groups[self.group_of[rng.integers(len(levels))]]
        direction = 1 if rng.random() < 0.5 else -1
        movable = np.flatnonzero(levels[group] + 1 < self.menus.lengths[group] if direction > 0 else levels[group] > 0)
        if not movable.size:
            return False
        member = _pick(movable, rng)
        unit = int(group[member])
        target = self._target(levels, unit, direction, rng)
        extra = self.menus.costs[unit, target] - self.menus.costs[unit, levels[unit]]
        if extra != 0:
            partners = np.argwhere(self._payers(levels, group, member, int(extra)))
            if not len(partners):
                return False
            other, paying = partners[rng.integers(len(partners))]
            levels[group[other]] = paying
        levels[unit] = target
        return True

    def _payers(self, levels: Ints, group: Ints, member: int, extra: int) -> Mask:
        """``[units of the group, levels]`` moves that pay for ``extra`` more cost of one member."""
        saved = self.menus.costs[group, levels[group]][:, None] - self.menus.costs[group]
        matching: Mask = saved == extra
        other_table = self.table_of[group] != self.table_of[group[member]]
        if other_table.any():
            left = self.menus.budget - self.menus.cost(levels)
            close = (np.abs(saved - extra) <= NEAR * abs(extra)) & (extra - saved <= left)
            matching |= close & other_table[:, None]
        matching[member] = False
        return matching

    def _trade(self, levels: Ints, switches: int, rng: np.random.Generator) -> bool:
        """Free raises and lowers, then repair and spending, in place; ``False`` if the budget cannot be met."""
        raised, lowered = np.zeros(len(levels), dtype=bool), np.zeros(len(levels), dtype=bool)
        for _ in range(switches):
            for direction in rng.permutation([1, -1]):
                inside = levels + 1 < self.menus.lengths if direction > 0 else levels > 0
                movable = np.flatnonzero(inside & ~(lowered if direction > 0 else raised))
                if movable.size:
                    unit = _pick(movable, rng)
                    levels[unit] = self._target(levels, unit, int(direction), rng)
                    (raised if direction > 0 else lowered)[unit] = True
        if not self._repair(levels, raised, lowered, rng):
            return False
        self._spend(levels, lowered, rng)
        # Where nobody else can use what lowering freed, some of the lowered take it back: an exact count of dropped units stays exact.
        self._spend(levels, np.zeros_like(lowered), rng)
        return True

    def _target(self, levels: Ints, unit: int, direction: int, rng: np.random.Generator) -> int:
        here, last = int(levels[unit]), int(self.menus.lengths[unit]) - 1
        furthest = last - here if direction > 0 else here
        far = furthest > 1 and rng.random() < JUMP
        return here + direction * (int(rng.integers(2, furthest + 1)) if far else 1)

    def _repair(self, levels: Ints, keep: Mask, lowered: Mask, rng: np.random.Generator, guided: bool | None = None) -> bool:
        """Lower units other than ``keep`` until the budget is met, and mark them."""
        menus, rows = self.menus, self.menus.rows
        noise: Floats | None = None
        for _ in range(menus.costs.size):
            excess = menus.cost(levels) - menus.budget
            if excess <= 0:
                return True
            target = self.down[rows, levels]
            legal = np.flatnonzero((target >= 0) & ~keep)
            if not legal.size:
                return False
            saved = (menus.costs[rows, levels] - menus.costs[rows, target])[legal]
            if guided is None:
                guided = bool(excess > GUIDED * saved.mean())
            if guided:
                noise = rng.exponential(size=len(levels)) if noise is None else noise
                loss = np.maximum(menus.errors[rows, target] - menus.errors[rows, levels], 0)[legal]
                unit = int(legal[np.argmin((loss / saved + TINY) * noise[legal])])
            else:
                unit = _pick(legal, rng)
            levels[unit] = target[unit]
            lowered[unit] = True
        return False

    def _spend(self, levels: Ints, keep: Mask, rng: np.random.Generator, guided: bool | None = None) -> None:
        """Raise units other than ``keep`` while something fits, never to a larger layer error."""
        menus, rows = self.menus, self.menus.rows
        noise: Floats | None = None
        for _ in range(menus.costs.size):
            left = menus.budget - menus.cost(levels)
            target = self.up[rows, levels]
            extra = menus.costs[rows, target] - menus.costs[rows, levels]
            legal = np.flatnonzero((target >= 0) & ~keep & (extra <= left))
            if not legal.size:
                return
            if guided is None:
                guided = bool(left > GUIDED * extra[legal].mean())
            if guided:
                noise = rng.exponential(size=len(levels)) if noise is None else noise
                gain = (menus.errors[rows, levels] - menus.errors[rows, target])[legal]
                unit = int(legal[np.argmax((gain / extra[legal] + TINY) * noise[legal])])
            else:
                unit = _pick(legal, rng)
            levels[unit] = target[unit]


def _pick(options: Ints, rng: np.random.Generator) -> int:
    return int(options[rng.integers(len(options))])


def _equal_tables(menus: Menus) -> Ints:
    """A number for each unit, equal for units whose costs above their cheapest choice are equal."""
    above = np.where(menus.exists, menus.costs - menus.costs[:, :1], -1)
    return np.asarray(np.unique(above, axis=0, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def _paid_steps(menus: Menus) -> tuple[Ints, Ints]:
    """For each level the next dearer one of no larger error, and the next cheaper one; -1 where there is none.

    Levels are sorted by cost and at equal cost end with the smallest error, so the best of equal cost is the last.
    """
    up, down = np.full(menus.costs.shape, -1, dtype=np.int64), np.full(menus.costs.shape, -1, dtype=np.int64)
    for row, length in enumerate(menus.lengths.tolist()):
        costs, errors = menus.costs[row], menus.errors[row]
        for level in range(length):
            cheaper = np.flatnonzero(costs[:length] < costs[level])
            dearer = np.flatnonzero((costs[:length] > costs[level]) & (errors[:length] <= errors[level]))
            if cheaper.size:
                down[row, level] = cheaper[-1]
            if dearer.size:
                up[row, level] = np.flatnonzero(costs[:length] == costs[dearer[0]])[-1]
    return up, down
