"""Marginal gains, and the use of leftover budget."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.allocation import Problem, Unit, fill, greedy, uniform
from tersor.errors import InvalidArgument


@pytest.mark.parametrize("seed", range(40))
def test_greedy_is_within_one_step_of_the_optimum(make_problem, feasible_choices, seed):
    problem = make_problem(seed, units=4)
    best = min(problem.error(choices) for choices in feasible_choices(problem))
    largest_step = max(max(unit.errors) - min(unit.errors) for unit in problem.units)
    assert best - 1e-12 <= greedy(problem).error <= best + largest_step


def test_greedy_skips_a_level_inside_the_hull():
    problem = Problem((Unit("a", (0, 5, 6), (10.0, 9.0, 1.0)), Unit("b", (0, 6), (10.0, 8.0))), 6)
    assert greedy(problem).choices == (2, 0)


def test_taking_back_beats_going_on_when_the_last_step_is_large():
    # Upwards, a's step comes first and nothing of b fits any more; giving a back lets b in.
    problem = Problem((Unit("a", (0, 6), (1.3, 0.0)), Unit("b", (0, 10), (2.0, 0.0))), 10)
    assert greedy(problem).choices == (0, 1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
def test_fill_raises_only_what_does_not_hurt(make_problem, seed, ragged):
    problem = make_problem(seed, units=8, monotone=False, ragged=ragged)
    start = uniform(problem).choices
    filled = fill(problem, start)
    assert problem.feasible(filled)
    assert all(unit.errors[new] <= unit.errors[old] for unit, old, new in zip(problem.units, start, filled, strict=True))
    left = problem.budget - problem.cost(filled)
    for unit, choice in zip(problem.units, filled, strict=True):
        for cost, error in zip(unit.costs, unit.errors, strict=True):
            assert not (error < unit.errors[choice] and cost - unit.costs[choice] <= left), "an improvement that fits was left"


@pytest.mark.parametrize("errors", ["informative", "all zero"])
def test_fill_meets_a_byte_budget_within_one_percent(errors):
    rng = np.random.default_rng(0)
    units = []
    for index in range(60):
        size = int(rng.choice([110_592, 331_776, 884_736]))
        table = tuple((4.0**-bits) * rng.uniform(1, 5) if errors == "informative" else 0.0 for bits in (2, 3, 4, 5, 8))
        units.append(Unit(f"layer {index}", tuple(size * bits // 8 for bits in (2, 3, 4, 5, 8)), table, size))
    budget = int(sum(unit.size for unit in units) * 3.63 / 8)
    problem = Problem(tuple(units), budget)
    filled = fill(problem, uniform(problem).choices)
    assert 0.99 * budget <= problem.cost(filled) <= budget


def test_fill_keeps_fused_groups_together(make_problem):
    problem = make_problem(3, units=9, fused=True, share=0.7)
    assert problem.feasible(fill(problem, uniform(problem).choices))


def test_fill_refuses_what_does_not_fit(make_problem):
    with pytest.raises(InvalidArgument, match="above the budget"):
        fill(make_problem(0, share=0.1), (3, 3, 3, 3, 3))
