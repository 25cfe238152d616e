"""L-GreCo: the exact knapsack over additive layer errors, both ways round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tersor.allocation.dynamic_programming import make_grid, multiplier, solve_grid, solve_pareto
from tersor.allocation.greedy import descend, greedy_levels
from tersor.allocation.menus import Ints, Menus
from tersor.allocation.problem import Allocation, Problem, make_allocation
from tersor.allocation.uniform import uniform
from tersor.errors import InvalidArgument

Table = NDArray[Any]
Goal = Literal["error", "cost"]


def lgreco(
    problem: Problem,
    *,
    goal: Goal = "error",
    reference: Allocation | Sequence[int] | None = None,
    alpha: float = 1.0,
    buckets: int = 10_000,
    exact: bool = False,
    max_states: int = 100_000,
) -> Allocation:
    """The best allocation if layer errors add up.

    Use it as the baseline and the start of :func:`evopress`, which measures whole models instead of adding. The result is the best of
    the dynamic programme (its rounding loss then filled up), of greedy and of the reference, so it is never worse than uniform.
    On a grid of ``buckets`` steps the loss is at most one step a unit: the result is at least as good as the optimum for a bound that
    is smaller by units x step (the bound minus the lightest total, over ``buckets``).

    Args:
        problem: Units, their errors and the budget.
        goal: ``"error"``: smallest summed error within the budget. ``"cost"``: smallest cost with a summed error of at most ``alpha``
            times that of the reference (and within the budget).
        reference: Feasible allocation that must not be beaten by the result; by default :func:`uniform`.
        alpha: Allowed error over the error of the reference, for ``goal="cost"``.
        buckets: Steps of the grid. Integer costs with a common divisor that fits are solved exactly.
        exact: Merge Pareto lists instead, without rounding. Falls back to the grid beyond ``max_states``.
        max_states: Longest list of the exact mode.

    Returns:
        Allocation with method ``"knapsack"``. Its one ``history`` row reports ``solver`` (``"grid"`` or ``"pareto"``), ``exact`` (proved
        optimal), ``fallback`` (the exact mode gave up), ``step`` of the grid, ``winner`` and ``bound``: no allocation does better.

    Raises:
        InvalidArgument: If an option is out of range, the reference is not feasible, or no allocation reaches the allowed error.

    Reference:
        Markov, Alimohammadi, Frantar and Alistarh, "L-GreCo: Layerwise-Adaptive Gradient Compression", 2024.
    """
    _check_options(goal, alpha, buckets, max_states)
    menus = Menus.of(problem)
    given = uniform(problem) if reference is None else reference
    start = menus.levels(problem.check(given.choices if isinstance(given, Allocation) else given, "the reference"))
    question = _minimise_error(menus) if goal == "error" else _minimise_cost(menus, start, alpha)
    best, report = question.solve(start, buckets, exact, max_states)
    if goal == "cost" and menus.cost(best) > menus.budget:
        raise InvalidArgument(
            f"an error of at most {question.capacity:.6g} costs at least {report['bound']:.0f} and {menus.cost(best)} was found, "
            f"above the budget of {menus.budget}; allow a larger alpha or budget"
        )
    return make_allocation(problem, menus.choices(best), "knapsack", history=({"goal": goal, **report},))


def _check_options(goal: str, alpha: float, buckets: int, max_states: int) -> None:
    if goal not in ("error", "cost"):
        raise InvalidArgument(f"goal must be 'error' or 'cost', not {goal!r}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise InvalidArgument(f"alpha must be positive and finite, not {alpha}")
    if buckets < 1 or max_states < 1:
        raise InvalidArgument("buckets and max_states must be at least 1")


def _minimise_error(menus: Menus) -> _Question:
    return _Question(menus.errors, menus.costs, menus.budget, menus.rows)


def _minimise_cost(menus: Menus, reference: Ints, alpha: float) -> _Question:
    allowed = alpha * math.fsum(menus.errors[menus.rows, reference])
    smallest = math.fsum(menus.errors.min(axis=1))
    if smallest > allowed:
        raise InvalidArgument(f"an allowed error of {allowed:.6g} is below the smallest reachable sum of {smallest:.6g}; raise alpha")
    return _Question(menus.costs, menus.errors, allowed, menus.rows)


@dataclass(frozen=True)
class _Question:
    """Minimise summed ``value`` with summed ``weight`` at most ``capacity``."""

    value: Table
    weight: Table
    capacity: float
    rows: Ints

    def fits(self, levels: Ints) -> bool:
        """Whether the correctly rounded sum of weights is within the capacity."""
        return self._sum(self.weight, levels) <= self.capacity

    def rank(self, levels: Ints) -> tuple[float, float]:
        """What is compared: the value, then the weight."""
        return self._sum(self.value, levels), self._sum(self.weight, levels)

    def _sum(self, table: Table, levels: Ints) -> float:
        terms = table[self.rows, levels].tolist()
        return sum(terms) if np.issubdtype(table.dtype, np.integer) else math.fsum(terms)

    def solve(self, start: Ints, buckets: int, exact: bool, max_states: int) -> tuple[Ints, dict[str, Any]]:
        """Best fitting levels of all solvers, and the report."""
        grid = make_grid(self.weight, self.capacity, buckets)
        programme = solve_grid(self.value, grid)
        candidates = {
            "dynamic programme": programme,
            "dynamic programme, filled": self._descend(programme),
            "greedy": greedy_levels(self.value, self.weight, self.capacity),
            "reference": start,
            "reference, filled": self._descend(start),
            # Rounding of float weights may break every sum above by an ulp; the lightest levels are the ones that always fit.
            "lightest": self.weight.argmin(axis=1),
        }
        winner, best = self._best(candidates)
        report = {"solver": "grid", "exact": grid.exact, "fallback": False, "step": grid.step, "winner": winner}
        if exact:
            states = solve_pareto(self.value, self.weight, self.capacity, self.rank(best)[0], max_states)
            if states is None:
                report |= {"fallback": True}
            else:
                found = next(filter(self.fits, states), best)
                best = min(best, found, key=self.rank)
                report |= {"solver": "pareto", "exact": True, "step": 0.0, "winner": "pareto"}
        return best, report | {"bound": self._bound(best)}

    def _descend(self, levels: Ints) -> Ints:
        return descend(self.value, self.weight, levels, self.capacity) if self.fits(levels) else levels

    def _best(self, candidates: dict[str, Ints]) -> tuple[str, Ints]:
        fitting = [name for name, levels in candidates.items() if self.fits(levels)]
        name = min(fitting, key=lambda name: self.rank(candidates[name]))
        return name, candidates[name]

    def _bound(self, best: Ints) -> float:
        lightest = self.weight.min(axis=1)
        _, bound = multiplier(self.value, self.weight - lightest[:, None], self.capacity - lightest.sum())
        return float(min(bound, self.rank(best)[0]))  # the dual is a bound up to rounding; never report one above what was reached
