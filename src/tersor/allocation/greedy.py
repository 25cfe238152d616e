"""Marginal gain per cost: the steepest trade first, and the use of what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.allocation.menus import Ints, Menus
from tersor.allocation.problem import Allocation, Choices, Problem, make_allocation

Table = NDArray[Any]


def greedy(problem: Problem) -> Allocation:
    """Spend the budget where it removes most error per cost.

    Faster than :func:`lgreco` and within one step of the linear relaxation; :func:`lgreco` is never worse. Steps along the convex
    hull of every unit are taken in order of slope. Where the next one no longer fits, two repairs compete: going on upwards with
    whatever fits, and taking the step and then giving back what hurts least.

    Args:
        problem: Units and budget.

    Returns:
        A feasible allocation with method ``"greedy"``.
    """
    menus = Menus.of(problem)
    levels = greedy_levels(menus.errors, menus.costs, menus.budget)
    return make_allocation(problem, menus.choices(levels), "greedy")


def fill(problem: Problem, choices: Sequence[int]) -> Choices:
    """Use the leftover budget of ``choices``: raise units as long as something fits, best error reduction per cost first.

    No unit gets a choice of larger error. Choices of equal error but larger cost are taken last, so that a byte budget is met closely
    also where the errors say nothing.

    Args:
        problem: Units and budget.
        choices: A feasible choice for each unit.

    Returns:
        Choices of at least the cost and at most the error of those given, unless both shrank.

    Raises:
        InvalidArgument: If ``choices`` are not feasible.
    """
    menus = Menus.of(problem)
    start = menus.levels(problem.check(choices))
    levels = descend(menus.errors, menus.costs, start, menus.budget)
    return menus.choices(_spend_ties(menus, levels))


def _spend_ties(menus: Menus, levels: Ints) -> Ints:
    levels, rows = levels.copy(), menus.rows
    left = menus.budget - menus.cost(levels)
    for _ in range(int(menus.lengths.sum())):
        extra = menus.costs - menus.costs[rows, levels][:, None]
        legal = (menus.errors <= menus.errors[rows, levels][:, None]) & (extra > 0) & (extra <= left)
        if not legal.any():
            break
        unit, level = np.unravel_index(int(np.where(legal, extra, -1).argmax()), legal.shape)
        left -= int(extra[unit, level])
        levels[unit] = level
    return levels


def greedy_levels(value: Table, weight: Table, capacity: float) -> Ints:
    """Greedy minimiser of summed ``value`` with summed ``weight`` at most ``capacity``.

    Args:
        value: ``[units, levels]``, infinite where there is no such level.
        weight: ``[units, levels]``, above ``capacity`` where there is no such level.
        capacity: Bound that the lightest levels meet.

    Returns:
        Level of every unit, ``[units]``.
    """
    rows = np.arange(len(weight))
    lightest = np.where(weight == weight.min(axis=1, keepdims=True), value, np.inf).argmin(axis=1)
    unit, target, extra = _hull_steps(value, weight, lightest)
    room = capacity - weight[rows, lightest].sum()
    taken = int(np.searchsorted(np.cumsum(extra), room, side="right"))
    below, above = lightest.copy(), lightest.copy()
    for count, levels in ((taken, below), (taken + 1, above)):
        levels[unit[:count]] = target[:count]  # numpy assigns in order, so the last and highest step of a unit stays
    upward = descend(value, weight, below, capacity)
    downward = descend(value, weight, _retreat(value, weight, above, capacity), capacity)
    return min((upward, downward), key=lambda levels: (value[rows, levels].sum(), weight[rows, levels].sum()))


def _hull_steps(value: Table, weight: Table, start: Ints) -> tuple[Ints, Ints, Table]:
    """Steps ``(unit, level, extra weight)`` along the convex hull of every unit, steepest first."""
    rows, at = np.arange(len(weight)), start.copy()
    slopes, units, targets, extras = [], [], [], []
    while True:
        gain = value[rows, at][:, None] - value
        extra = weight - weight[rows, at][:, None]
        slope = np.where((gain > 0) & (extra > 0), gain / np.where(extra > 0, extra, 1), -1.0)
        best = slope.argmax(axis=1)
        moving = np.flatnonzero(slope[rows, best] > 0)
        if not moving.size:
            break
        slopes.append(slope[moving, best[moving]])
        units.append(moving)
        targets.append(best[moving])
        extras.append(extra[moving, best[moving]])
        at[moving] = best[moving]
    if not slopes:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, weight.dtype)
    order = np.argsort(-np.concatenate(slopes), kind="stable")
    return np.concatenate(units)[order], np.concatenate(targets)[order], np.concatenate(extras)[order]


def descend(value: Table, weight: Table, start: Ints, capacity: float) -> Ints:
    """From ``start`` (within ``capacity``), move single units to levels of smaller value while they fit, best value per weight first."""
    levels, rows = start.copy(), np.arange(len(weight))
    for _ in range(value.size):  # every move lowers the value of a unit, so there are fewer moves than levels
        gain = value[rows, levels][:, None] - value
        extra = weight - weight[rows, levels][:, None]
        legal = (gain > 0) & (extra <= capacity - weight[rows, levels].sum())
        if not legal.any():
            break
        ratio = np.where(extra > 0, gain / np.where(extra > 0, extra, 1), np.inf)
        unit, level = np.unravel_index(int(np.where(legal, ratio, -1.0).argmax()), legal.shape)
        levels[unit] = level
    return levels


def _retreat(value: Table, weight: Table, start: Ints, capacity: float) -> Ints:
    """From ``start``, move single units to lighter levels until ``capacity`` is met, least added value per saved weight first."""
    levels, rows = start.copy(), np.arange(len(weight))
    for _ in range(value.size):
        excess = weight[rows, levels].sum() - capacity
        if excess <= 0:
            break
        saved = weight[rows, levels][:, None] - weight
        loss = value - value[rows, levels][:, None]
        useful = np.minimum(saved, excess)  # weight saved beyond the excess is worth nothing
        ratio = np.where(saved > 0, loss / np.where(saved > 0, useful, 1), np.inf)
        unit, level = np.unravel_index(int(ratio.argmin()), ratio.shape)
        if not np.isfinite(ratio[unit, level]):  # all at their lightest: what is left of the excess is rounding of float weights
            break
        levels[unit] = level
    return levels
