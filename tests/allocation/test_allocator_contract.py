"""What every registered allocator must hold; a new one is covered by registering it."""

from __future__ import annotations

import numpy as np
import pytest

from tersor.allocation import ALLOCATORS, Allocator, Problem, Unit, find_allocator, plain_fitness, uniform
from tersor.errors import InvalidArgument

SHAPES = {
    "equal-menus": {},
    "ragged": {"ragged": True},
    "fused": {"fused": True, "units": 8},
    "mixed-methods": {"monotone": False},
    "tight": {"share": 0.0},
    "loose": {"share": 1.0},
    "single-unit": {"units": 1},
    "single-choice": {"levels": 1},
    "wide": {"units": 40, "levels": 9, "ragged": True, "largest": 100_000},
}


@pytest.fixture(params=sorted(ALLOCATORS))
def allocator(request) -> Allocator:
    return ALLOCATORS[request.param]


def run(allocator: Allocator, problem: Problem, seed: int = 0):
    short = {"evopress": {"generations": 4, "offspring": 4, "stages": ((1, 8),)}, "sparse": {"evaluations": 6}}
    return allocator(problem, fitness=plain_fitness(problem.error), seed=seed, **short.get(allocator.name, {}))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_feasible_and_consistent(allocator, make_problem, shape, seed):
    problem = make_problem(seed, **SHAPES[shape])
    found = run(allocator, problem)
    assert problem.check(found.choices) == found.choices
    assert found.cost == problem.cost(found.choices) <= problem.budget
    assert found.error == problem.error(found.choices)
    assert found.method == allocator.name
    assert all(type(choice) is int for choice in found.choices)


@pytest.mark.parametrize("shape", ["equal-menus", "ragged", "mixed-methods"])
def test_one_seed_one_result(allocator, make_problem, shape):
    problem = make_problem(3, **SHAPES[shape])
    before = np.random.get_state()[1].copy()
    assert run(allocator, problem, seed=5) == run(allocator, problem, seed=5)
    assert (np.random.get_state()[1] == before).all(), "the global generator was touched"


def test_everything_fits_means_the_smallest_error(allocator, make_problem):
    problem = make_problem(4, share=1.0)
    if allocator.name != "random":
        assert run(allocator, problem).error == pytest.approx(sum(min(unit.errors) for unit in problem.units))


def test_an_impossible_budget_names_the_smallest_reachable(make_problem):
    possible = make_problem(0)
    with pytest.raises(InvalidArgument, match=f"smallest reachable total of {possible.smallest_cost}"):
        Problem(possible.units, possible.smallest_cost - 1)


def test_zero_costs_and_zero_errors(allocator):
    problem = Problem((Unit("a", (0, 0), (0.0, 0.0)), Unit("b", (0,), (0.0,))), 0)
    assert run(allocator, problem).cost == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [name for name, allocator in ALLOCATORS.items() if allocator.beats_uniform])
def test_never_worse_than_uniform_where_promised(name, make_problem, shape, seed):
    problem = make_problem(seed + 100, **SHAPES[shape])
    assert run(ALLOCATORS[name], problem).error <= uniform(problem).error


def test_unknown_names_and_options_are_listed(make_problem):
    with pytest.raises(InvalidArgument, match="unknown allocator 'magic'; known allocators are uniform"):
        find_allocator("magic")
    with pytest.raises(InvalidArgument, match="takes no option 'bucket'; it takes goal"):
        find_allocator("knapsack")(make_problem(0), bucket=3)
    with pytest.raises(InvalidArgument, match="needs a fitness"):
        find_allocator("evopress")(make_problem(0))
