"""What the experiments on limits compute from their rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from tersor.papers import bandlimited_networks, generalization_measures, misspecified_bandits, quantum_lower_bounds


@pytest.mark.parametrize("mode", ["ef", "ef21", "econtrol"])
def test_messages_of_one_coordinate_do_not_beat_the_chain(mode):
    from tersor.limits import stationary_points as sp

    run = sp.count_calls(quantum_lower_bounds._one_coordinate(mode, 0.05), sp.ChainFunction(5), budget=2000)
    assert run.reached
    assert run.calls > 5


def test_the_error_against_shuffled_labels_is_the_mean_over_all_orders():
    predicted, truth = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 2, 1])
    orders = [float((predicted != truth[list(order)]).double().mean()) for order in permutations(range(5))]
    assert generalization_measures._error(predicted, truth, True) == pytest.approx(sum(orders) / len(orders))
    assert generalization_measures._error(predicted, truth, False) == pytest.approx(2 / 5)


def test_fewer_bytes_with_a_higher_bound_are_told():
    rows = [
        {"seed": seed, "labels": "true", "train_error": 0.01, "bytes": nbytes, "occam": occam}
        for seed in generalization_measures.SEEDS for nbytes, occam in ((400, 0.9), (100, 0.3), (200, 0.5))
    ]  # fmt: skip
    assert "always lowered" in generalization_measures._monotone(rows)
    rows[1]["occam"] = 0.7
    assert "did NOT always" in generalization_measures._monotone(rows)


def test_a_line_through_bands_that_lie_on_one():
    rows = [{"experiment": "frequency", "frequency": f, "band": 0.2 * f + 1} for f in (5.0, 10.0, 20.0)] + [{"experiment": "sweep"}]
    assert bandlimited_networks._line(rows, "band") == (pytest.approx(0.2), pytest.approx(1.0))


def test_every_order_finds_needles_after_half_of_the_actions():
    rows = list(misspecified_bandits._needles(replace(misspecified_bandits.QUICK, needles=20)))
    assert len(rows) == 3
    assert all(row["queries"] == row["bound"] == 10.5 for row in rows)


def test_the_margin_and_the_effort_come_from_the_rows():
    methods = (("sparse model", 0.5, 9, 24), ("random", 1.0, None, 120), ("evopress, more", 0.6, None, 120))
    rows = [
        {"seed": 0, "method": method, "fitness": fitness, "needed": needed, "evaluations": evaluations}
        for method, fitness, needed, evaluations in methods
    ]
    assert misspecified_bandits._margin(rows, 0) == pytest.approx(0.5)
    assert misspecified_bandits._effort(rows).startswith(
        "evopress needs more than 120 evaluations to reach what the sparse model found with 9"
    )


def test_where_all_assignments_are_judged_none_is_better_than_the_best():
    from tersor.allocation import Problem, Unit

    problem = Problem(tuple(Unit(f"u{i}", (2, 3, 4), (0.5, 0.2, 0.1), 10) for i in range(4)), 12)
    pool = misspecified_bandits._maximal(problem)
    # Nothing is left in any of them, and nothing that uses up the budget is missing.
    assert sorted(pool) == sorted(c for c in product(range(3), repeat=4) if problem.cost(c) == 12)
    values = np.array([2.0 + sum((i + 1) * problem.units[i].errors[choice] for i, choice in enumerate(choices)) for choices in pool])
    assert misspecified_bandits._misspecification(problem, pool, values) == pytest.approx(0, abs=1e-9)
    values[3] += 0.4
    assert 0 < misspecified_bandits._misspecification(problem, pool, values) <= 0.2 + 1e-9


def test_a_gap_and_an_effort_are_both_asked_for():
    row = {"gap": 0.1, "misspecification": 0.05, "needed": 4, "needed_at_random": 20.0}
    assert misspecified_bandits._close(row)
    assert not misspecified_bandits._close({**row, "gap": 0.11})
    assert not misspecified_bandits._close({**row, "needed": 5})
