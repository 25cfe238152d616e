"""Offspring keep to the budget, whatever the tables are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.allocation import Problem, Unit
from tersor.allocation.menus import Menus
from tersor.allocation.mutation import Mutator, mutation_groups
from tersor.errors import InvalidArgument

TABLES = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), min_size=1, max_size=8)


def mutator_of(problem: Problem, groups: str = "none", max_switches: int = 3) -> tuple[Menus, Mutator]:
    menus = Menus.of(problem)
    return menus, Mutator(menus, mutation_groups(problem, groups), max_switches)


def problem_of(tables: list[list[int]], share: float, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    units = tuple(
        Unit(f"layer.{i}", tuple(costs), tuple(rng.exponential(size=len(costs)).tolist()), int(rng.choice([64, 128])))
        for i, costs in enumerate(tables)
    )
    smallest, largest = sum(map(min, tables)), sum(map(max, tables))
    return Problem(units, smallest + int(share * (largest - smallest)))


@settings(max_examples=150, deadline=None)
@given(tables=TABLES, share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_free_offspring_never_exceed_the_budget(tables, share, seed):
    problem = problem_of(tables, share, seed)
    menus, mutator = mutator_of(problem)
    rng = np.random.default_rng(seed)
    parent = mutator.random(rng)
    assert problem.feasible(menus.choices(parent))
    children = mutator.offspring(parent, 8, rng)
    assert all(problem.feasible(menus.choices(child)) for child in children)
    assert len({child.tobytes() for child in [parent, *children]}) == len(children) + 1


@settings(max_examples=150, deadline=None)
@given(
    costs=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    offsets=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    groups=st.sampled_from(["size", "name"]),
    seed=st.integers(0, 1000),
)
def test_grouped_offspring_keep_the_total_exactly(costs, offsets, groups, seed):
    problem = problem_of([[cost + offset for cost in costs] for offset in offsets], 0.5, seed)
    menus, mutator = mutator_of(problem, groups)
    rng = np.random.default_rng(seed)
    parent = mutator.random(rng)
    for child in mutator.offspring(parent, 8, rng):
        assert menus.cost(child) == menus.cost(parent)
        assert (child != parent).any()


@pytest.mark.parametrize("seed", range(20))
def test_grouped_offspring_with_unequal_tables_stay_within_the_budget(seed):
    """Names of different length make the same level cost a few bytes more in some layers."""
    units = tuple(Unit(f"block.{i}", (0, 100_000 + len(str(i))), (1.0, 0.0), 64) for i in range(20))
    problem = Problem(units, 10 * 100_002 - 3)
    menus, mutator = mutator_of(problem, "size")
    rng = np.random.default_rng(seed)
    parent = mutator.random(rng)
    traded_across = 0
    for child in mutator.offspring(parent, 40, rng):
        assert problem.feasible(menus.choices(child))
        assert child.sum() == parent.sum()
        traded_across += menus.cost(child) != menus.cost(parent)
    assert traded_across, "one-digit and two-digit blocks never traded"


@pytest.mark.parametrize("groups", ["size", "name"])
def test_groups_do_not_trade_with_each_other(groups):
    units = tuple(Unit(f"block.{i}.{part}", (1, 2, 3), (2.0, 1.0, 0.0), size) for i in range(6) for part, size in (("q", 64), ("up", 256)))
    _, mutator = mutator_of(Problem(units, 24), groups)
    parent = np.ones(12, dtype=np.int64)
    for child in mutator.offspring(parent, 50, np.random.default_rng(0)):
        assert child[::2].sum() == 6
        assert child[1::2].sum() == 6


def test_switches_are_the_smaller_of_two_draws():
    units = tuple(Unit(str(i), (0, 1), (1.0, 0.0)) for i in range(400))
    _, mutator = mutator_of(Problem(units, 200))
    parent = (np.arange(400) % 2).astype(np.int64)
    counts = np.bincount([(child != parent).sum() // 2 for child in mutator.offspring(parent, 1500, np.random.default_rng(0))], minlength=4)
    np.testing.assert_allclose(counts[1:] / 1500, [5 / 9, 3 / 9, 1 / 9], atol=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_free_offspring_leave_nothing_that_a_raise_could_use(seed, make_problem):
    """What is left is less than the cheapest raise of any unit that does not enlarge its error."""
    problem = make_problem(seed, units=30, levels=5, largest=10_000)
    menus, mutator = mutator_of(problem)
    rng = np.random.default_rng(seed)
    parent = mutator.random(rng)
    for child in mutator.offspring(parent, 20, rng):
        left = problem.budget - menus.cost(child)
        extra = menus.costs - menus.costs[menus.rows, child][:, None]
        harmless = (menus.errors <= menus.errors[menus.rows, child][:, None]) & (extra > 0) & menus.exists
        assert not (harmless & (extra <= left)).any()


def test_a_unit_as_large_as_a_hundred_others_can_move_both_ways():
    """An embedding: raising it must be paid for by many layers, and lowering it pays for many."""
    layers = tuple(Unit(f"layer.{i}", (2, 3, 4), (1.0 + i / 100, 0.4, 0.1), 100) for i in range(120))
    problem = Problem((*layers, Unit("embedding", (200, 300), (5.0, 0.0), 10_000)), 120 * 3 + 250)
    menus, mutator = mutator_of(problem)
    rng = np.random.default_rng(0)
    parent = mutator.random(rng)
    parent[-1] = 0
    down_up = {int(child[-1]) for child in mutator.offspring(parent, 400, rng)}
    assert down_up == {0, 1}
    raised = next(child for child in mutator.offspring(parent, 400, rng) if child[-1] == 1)
    assert {int(child[-1]) for child in mutator.offspring(raised, 400, rng)} == {0, 1}
    assert menus.cost(raised) <= problem.budget


@pytest.mark.parametrize("groups", ["none", "size"])
def test_methods_of_equal_cost_are_all_reached(groups):
    units = tuple(Unit(str(i), (2, 2, 2, 3), (0.5, 0.4, 0.6, 0.1), 64) for i in range(4))
    menus, mutator = mutator_of(Problem(units, 9), groups)
    rng = np.random.default_rng(1)
    seen, level = set(), mutator.random(rng)
    for _ in range(200):
        children = mutator.offspring(level, 4, rng)
        seen |= {choice for child in children for choice in menus.choices(child)}
        level = children[0]
    assert seen == {0, 1, 2, 3}


EDGES = {
    "single-choice": Problem(tuple(Unit(str(i), (3,), (0.0,)) for i in range(4)), 99),
    "one-unit-at-the-edge": Problem((Unit("a", (3, 9), (1.0, 0.0)),), 3),
    "all-at-the-bottom": Problem(tuple(Unit(str(i), (3, 9), (1.0, 0.0)) for i in range(4)), 12),
    "no-room-for-any-raise": Problem(tuple(Unit(str(i), (3, 9), (1.0, 0.0)) for i in range(4)), 17),
    "everything-fits": Problem(tuple(Unit(str(i), (3, 9), (1.0, 0.0)) for i in range(4)), 36),
    "no-equal-steps": Problem(tuple(Unit(str(i), (0, 3 + 5**i), (1.0, 0.0), 64) for i in range(4)), 60),
    "free": Problem(tuple(Unit(str(i), (0, 0), (1.0, 0.0)) for i in range(2)), 0),
}


@pytest.mark.parametrize("groups", ["none", "size", "name"])
@pytest.mark.parametrize("edge", EDGES)
def test_at_the_edges_mutation_ends_with_fewer_offspring(edge, groups):
    problem = EDGES[edge]
    menus, mutator = mutator_of(problem, groups)
    rng = np.random.default_rng(0)
    children = mutator.offspring(mutator.random(rng), 64, rng)
    assert len(children) < 64
    assert all(problem.feasible(menus.choices(child)) for child in children)


def test_unknown_groups_are_refused():
    with pytest.raises(InvalidArgument, match="'size', 'name' or 'none', not 'shape'"):
        mutation_groups(EDGES["free"], "shape")
