"""The same level everywhere: the baseline that every search must beat."""

from __future__ import annotations

import numpy as np

from tersor.allocation.menus import Ints, Menus
from tersor.allocation.problem import Allocation, Choices, Problem, make_allocation


def uniform(problem: Problem) -> Allocation:
    """One common level for all units, the best that fits.

    Needs neither data nor search; use :func:`lgreco` when the layer errors are known. Where every unit has the same number of
    choices this is one index for all: of those that fit, the one with the smallest summed error (the largest cost if errors tie).
    Where menus differ, or no common index fits, it is one common threshold: each unit takes its dearest choice of at most ``t`` cost
    per weight, or its cheapest if none is, with the largest ``t`` that fits.

    Args:
        problem: Units and budget.

    Returns:
        A feasible allocation with method ``"uniform"``.
    """
    choices = common_index(problem)
    if choices is None:
        menus = Menus.of(problem)
        choices = menus.choices(_common_threshold(menus))
    return make_allocation(problem, choices, "uniform")


def common_index(problem: Problem) -> Choices | None:
    """The best single index for all units, or ``None`` where menus differ in length or no index fits."""
    counts = {len(unit.costs) for unit in problem.units}
    if len(counts) > 1:
        return None
    candidates = [(index,) * len(problem.units) for index in range(counts.pop())]
    fitting = [choices for choices in candidates if problem.cost(choices) <= problem.budget]
    return min(fitting, key=lambda choices: (problem.error(choices), -problem.cost(choices)), default=None)


def _common_threshold(menus: Menus) -> Ints:
    # Without sizes there is no cost per weight; the share of the dearest choice compares units instead.
    top = menus.costs[menus.rows, menus.lengths - 1]
    scale = menus.sizes if (menus.sizes > 0).all() else np.maximum(top, 1)
    density = np.where(menus.exists, menus.costs / scale[:, None], np.inf)
    thresholds = np.unique(density[menus.exists])

    def under(threshold: float) -> Ints:
        return np.asarray(np.maximum((density <= threshold).sum(axis=1) - 1, 0), dtype=np.int64)

    low, high = 0, len(thresholds)  # the total grows with the threshold, so bisection finds the last that fits
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if menus.cost(under(thresholds[middle])) <= menus.budget else (low, middle)
    levels = under(thresholds[low - 1]) if low else np.zeros_like(menus.lengths)
    cheaper = menus.costs <= menus.costs[menus.rows, levels][:, None]
    return np.asarray(np.where(cheaper, menus.errors, np.inf).argmin(axis=1), dtype=np.int64)
