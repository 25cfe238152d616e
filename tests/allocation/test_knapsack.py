"""The knapsack against brute force, both ways."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tersor.allocation import Problem, Unit, greedy, lgreco, uniform
from tersor.allocation.dynamic_programming import make_grid, solve_grid
from tersor.allocation.menus import Menus
from tersor.errors import InvalidArgument

SHAPES = [
    pytest.param({}, id="monotone"),
    pytest.param({"monotone": False}, id="mixed"),
    pytest.param({"ragged": True, "monotone": False}, id="ragged"),
    pytest.param({"fused": True, "units": 6}, id="fused"),
]


def random_problems(make_problem, shape, count=60):
    rng = np.random.default_rng(9)
    for seed in range(count):
        yield make_problem(seed, **{"units": 4, **shape}, share=float(rng.uniform(0, 1)))


@pytest.mark.parametrize("exact", [False, True], ids=["grid", "pareto"])
@pytest.mark.parametrize("shape", SHAPES)
def test_smallest_error_equals_brute_force(make_problem, feasible_choices, shape, exact):
    for problem in random_problems(make_problem, shape):
        found = lgreco(problem, exact=exact)
        best = min(problem.error(choices) for choices in feasible_choices(problem))
        assert found.history[0]["exact"], "small integer costs are solved without rounding"
        assert problem.feasible(found.choices)
        assert found.error == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_smallest_cost_equals_brute_force_in_exact_mode(make_problem, feasible_choices, shape):
    rng = np.random.default_rng(2)
    for problem in random_problems(make_problem, shape):
        alpha = float(rng.uniform(1, 1.5))
        allowed = alpha * uniform(problem).error
        found = lgreco(problem, goal="cost", alpha=alpha, exact=True)
        best = min(problem.cost(choices) for choices in feasible_choices(problem) if problem.error(choices) <= allowed)
        assert found.error <= allowed
        assert found.cost == best


@pytest.mark.parametrize("buckets", [1, 7, 40, 10_000])
def test_grid_keeps_its_stated_loss_both_ways(make_problem, feasible_choices, buckets):
    for seed in range(60):
        problem = make_problem(seed, units=4, monotone=False, largest=10_000)
        everything = list(feasible_choices(problem))
        found = lgreco(problem, buckets=buckets)
        bound = problem.budget - len(problem.units) * found.history[0]["step"]
        reachable = [problem.error(choices) for choices in everything if problem.cost(choices) <= bound]
        assert problem.feasible(found.choices)
        assert found.error <= min(reachable, default=math.inf) + 1e-12

        allowed = 1.2 * uniform(problem).error
        found = lgreco(problem, goal="cost", alpha=1.2, buckets=buckets)
        bound = allowed - len(problem.units) * found.history[0]["step"]
        reachable = [problem.cost(choices) for choices in everything if problem.error(choices) <= bound]
        assert found.error <= allowed
        assert found.cost <= min(reachable, default=math.inf)


def test_programme_is_optimal_on_its_own_integer_weights(feasible_choices):
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = (int(rng.integers(1, 6)), 4)
        weights, values = rng.integers(0, 30, shape), rng.exponential(size=shape)
        capacity = int(weights.min(axis=1).sum() + rng.integers(0, 40))
        tables = zip(weights.tolist(), values.tolist(), strict=True)
        problem = Problem(tuple(Unit(str(i), tuple(w), tuple(v)) for i, (w, v) in enumerate(tables)), capacity)
        chosen = solve_grid(values, make_grid(weights, capacity, 10_000))
        assert problem.feasible(tuple(chosen))
        assert problem.error(chosen.tolist()) == pytest.approx(min(map(problem.error, feasible_choices(problem))))


@pytest.mark.parametrize("seed", range(10))
def test_never_worse_than_reference_uniform_or_greedy(make_problem, seed):
    problem = make_problem(seed, units=50, levels=6, largest=10**6)
    common = uniform(problem)
    found = lgreco(problem, buckets=100)
    assert found.error <= min(common.error, greedy(problem).error)
    cheaper = lgreco(problem, goal="cost", buckets=100)
    assert cheaper.cost <= common.cost
    assert cheaper.error <= common.error
    again = lgreco(problem, reference=found, buckets=1)
    assert again.error <= found.error


@pytest.mark.parametrize("exact", [False, True], ids=["grid", "pareto"])
@pytest.mark.parametrize("goal", ["error", "cost"])
@pytest.mark.parametrize("seed", range(5))
def test_reported_bound_holds_and_is_close(make_problem, seed, goal, exact):
    problem = make_problem(seed, units=200, levels=8, largest=10**6)
    found = lgreco(problem, goal=goal, exact=exact)
    reached = found.error if goal == "error" else found.cost
    assert found.history[0]["bound"] <= reached <= found.history[0]["bound"] * 1.01
    json.dumps(found.history[0], allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_exact_is_never_above_the_grid(make_problem, seed):
    problem = make_problem(seed, units=120, levels=8, largest=10**6)
    grid, pareto = lgreco(problem), lgreco(problem, exact=True)
    assert pareto.history[0]["solver"] == "pareto"
    assert pareto.error <= grid.error


def test_cost_never_grows_with_alpha(make_problem):
    problem = make_problem(0, units=60, levels=8, largest=10**5)
    costs = [lgreco(problem, goal="cost", alpha=alpha, exact=True).cost for alpha in (1.0, 1.05, 1.2, 1.5, 2.0, 4.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] <= uniform(problem).cost


def test_equal_convex_units_gain_nothing_over_uniform():
    units = tuple(Unit(str(i), (1, 2, 3, 4), (8.0, 4.0, 2.0, 1.0)) for i in range(6))
    assert lgreco(Problem(units, 12), goal="cost").cost == 12
    assert lgreco(Problem(units, 12)).choices == (1,) * 6


def test_rank_moves_to_the_flat_spectrum():
    """Two matrices at uniform rank 4: one of flat spectrum and one of rank 1, which needs no more than that."""
    flat = tuple(math.sqrt(8 - rank) for rank in range(1, 9))
    lone = (0.0,) * 8
    problem = Problem(tuple(Unit(name, tuple(range(1, 9)), errors) for name, errors in (("flat", flat), ("lone", lone))), 8)
    found = lgreco(problem, goal="cost", reference=(3, 3))
    assert found.choices == (3, 0)
    assert lgreco(problem).choices == (6, 0)


def test_zero_allowed_error_takes_the_cheapest_lossless_choices():
    problem = Problem((Unit("a", (1, 5, 9), (1.0, 0.0, 0.0)), Unit("b", (2, 4), (0.0, 0.0))), 20)
    assert lgreco(problem, goal="cost", reference=(2, 1)).choices == (1, 0)


def test_exact_mode_reports_its_fall_back(make_problem):
    found = lgreco(make_problem(0, units=30, levels=8, largest=10**6), exact=True, max_states=1)
    assert found.history[0]["fallback"]
    assert found.history[0]["solver"] == "grid"


def test_large_integers_do_not_overflow():
    problem = Problem(tuple(Unit(str(i), (10**15, 3 * 10**15), (1.0, 0.0)) for i in range(3)), 7 * 10**15)
    for exact in (False, True):
        assert lgreco(problem, exact=exact).cost == 7 * 10**15


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"goal": "speed"}, "goal must be 'error' or 'cost', not 'speed'"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": math.nan}, "alpha must be positive"),
        ({"buckets": 0}, "at least 1"),
        ({"reference": (9, 9, 9, 9, 9)}, "the reference: unit"),
        ({"goal": "cost", "alpha": 1e-9}, "below the smallest reachable sum"),
    ],
)
def test_bad_options_are_refused(make_problem, options, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        lgreco(make_problem(0), **options)


def test_an_error_that_the_budget_cannot_buy_is_refused():
    problem = Problem((Unit("a", (1, 9), (1.0, 0.1)), Unit("b", (1, 9), (1.0, 0.2))), 10)
    with pytest.raises(InvalidArgument, match="above the budget of 10; allow a larger alpha or budget"):
        lgreco(problem, goal="cost", reference=(1, 0), alpha=0.5)


def test_menus_translate_levels_both_ways(make_problem):
    problem = make_problem(2, units=9, fused=True, monotone=False)
    menus = Menus.of(problem)
    rng = np.random.default_rng(0)
    for _ in range(20):
        levels = rng.integers(menus.lengths)
        choices = menus.choices(levels)
        assert (menus.levels(choices) == levels).all()
        assert menus.cost(levels) == problem.cost(choices)
        assert (np.diff(np.where(menus.exists, menus.costs, menus.costs.max()), axis=1) >= 0).all()
