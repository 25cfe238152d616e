"""The question itself: what is refused, what it totals to, merging and storage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tersor.allocation import Allocation, Problem, Unit, make_allocation
from tersor.errors import CorruptFile, InvalidArgument


def unit(name: str = "a", costs=(1, 2), errors=(1.0, 0.5), **more) -> Unit:
    return Unit(name, costs, errors, **more)


@pytest.mark.parametrize(
    ("units", "budget", "sentence"),
    [
        pytest.param((), 1, "no units", id="empty"),
        pytest.param((unit(), unit()), 9, "unique", id="duplicate-name"),
        pytest.param((unit(costs=()),), 9, "0 costs and 2 errors", id="no-choice"),
        pytest.param((unit(costs=(1,)),), 9, "1 costs and 2 errors", id="ragged"),
        pytest.param((unit(costs=(1.5, 2)),), 9, "whole number", id="fractional-cost"),
        pytest.param((unit(costs=(float("nan"), 2)),), 9, "whole number", id="nan-cost"),
        pytest.param((unit(costs=(-1, 2)),), 9, "negative", id="negative-cost"),
        pytest.param((unit(errors=(float("nan"), 1.0)),), 9, "not finite", id="nan-error"),
        pytest.param((unit(errors=(float("inf"), 1.0)),), 9, "not finite", id="infinite-error"),
        pytest.param((unit(errors=(-0.1, 1.0)),), 9, "negative", id="negative-error"),
        pytest.param((unit(fused="g"), unit("b", (1,), (0.0,), fused="g")), 9, "fused group 'g'", id="fused-lengths"),
        pytest.param((unit(),), 2.5, "whole number", id="fractional-budget"),
        pytest.param((unit(costs=(1, 2**62)),), 9, r"2\*\*61", id="overflow"),
        pytest.param((unit(costs=(7, 5)), unit("b", (4, 3))), 7, "budget of 7 is below the smallest reachable total of 8", id="budget"),
        pytest.param(
            (unit(costs=(1, 9), fused="g"), unit("b", (9, 1), fused="g")), 9, "smallest reachable total of 10", id="budget-of-fused"
        ),
    ],
)
def test_impossible_problems_are_refused_in_one_sentence(units, budget, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        Problem(units, budget)


def test_numpy_integers_are_whole_numbers():
    assert Problem((unit(costs=(np.int64(1), np.int32(2))),), np.int64(2)).feasible((1,))


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ((0,), "1 given for 2 units"),
        ((0, 2), "unit 'b' has no choice 2"),
        ((0, -1), "unit 'b' has no choice -1"),
        ((0, 0.0), "no choice 0.0"),
        ((1, 1), "cost 4, above the budget of 3"),
    ],
)
def test_check_names_what_is_wrong_with_choices(choices, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        Problem((unit(), unit("b")), 3).check(choices)


def test_check_refuses_a_split_fused_group():
    with pytest.raises(InvalidArgument, match="split a fused group"):
        Problem((unit(fused="g"), unit("b", fused="g")), 9).check((0, 1))


@pytest.mark.parametrize("seed", range(5))
def test_merging_keeps_totals(make_problem, seed):
    problem = make_problem(seed, units=7, fused=True)
    merged, expand = problem.merged()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        choices = tuple(int(rng.integers(len(u.costs))) for u in merged.units)
        whole = expand(choices)
        assert problem.cost(whole) == merged.cost(choices)
        assert problem.error(whole) == pytest.approx(merged.error(choices))
        assert problem.feasible(whole) == merged.feasible(choices)
    assert sum(u.size for u in merged.units) == sum(u.size for u in problem.units)
    assert all(u.fused is None for u in merged.units)


def test_digest_tells_problems_apart():
    base = Problem((unit(),), 5)
    others = [
        Problem((unit(),), 6),
        Problem((unit("b"),), 5),
        Problem((unit(costs=(1, 3)),), 5),
        Problem((unit(errors=(1.0, 0.25)),), 5),
        Problem((unit(fused="g"),), 5),
        Problem((unit(size=1),), 5),
    ]
    assert len({p.digest for p in [base, *others]}) == 7
    assert Problem((unit(costs=(np.int64(1), np.int64(2))),), np.int64(5)).digest == base.digest


@pytest.mark.parametrize("fitness", [None, 0.25, float("inf")])
def test_allocation_survives_strict_json(make_problem, fitness):
    problem = make_problem(0)
    allocation = make_allocation(problem, np.zeros(5, dtype=np.int64), "x", fitness=fitness, evaluations=3, history=({"generation": 1},))
    text = json.dumps(allocation.to_json(), allow_nan=False)
    assert Allocation.from_json(json.loads(text), problem) == allocation


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"choices": [9, 0, 0, 0, 0]}, id="choice"),
        pytest.param({"choices": None}, id="no-list"),
        pytest.param({"cost": -1}, id="cost"),
        pytest.param({"error": "low"}, id="error"),
        pytest.param({"fitness": "good"}, id="fitness"),
    ],
)
def test_a_stored_allocation_that_contradicts_the_problem_is_refused(make_problem, damage):
    problem = make_problem(0)
    data = make_allocation(problem, (0,) * 5, "x").to_json() | damage
    with pytest.raises(CorruptFile):
        Allocation.from_json(data, problem)
