from __future__ import annotations

import numpy as np
import pytest

from tersor.allocation import Problem, Unit, lgreco, plain_fitness, with_sensitivities


def _problem(seed: int, fused: bool = False) -> tuple[Problem, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, 8)
    tables = [(1.0, float(middle), 0.0) for middle in rng.uniform(0.1, 0.9, 8)]
    units = tuple(Unit(f"u{i}", (1, 2, 3), table, 1, f"pair {i // 2}" if fused else None) for i, table in enumerate(tables))
    return Problem(units, 16), weights


@pytest.mark.parametrize("seed", range(10))
def test_where_effects_add_up_the_scaled_errors_are_the_fitness(seed):
    problem, weights = _problem(seed)

    def truth(choices):
        return sum(w * unit.errors[c] for w, unit, c in zip(weights, problem.units, choices, strict=True))

    scaled = with_sensitivities(problem, plain_fitness(truth), tokens=1, seed=0)
    for choices in ((0,) * 8, (1,) * 8, (2, 0, 1, 0, 2, 1, 0, 2)):
        assert scaled.error(choices) == pytest.approx(truth(choices), rel=1e-9)
    # Knowing the true weights, the exact knapsack cannot lose to the one that thinks all units alike.
    assert truth(lgreco(scaled, exact=True).choices) <= truth(lgreco(problem, exact=True).choices) + 1e-9


def test_fused_units_are_measured_together():
    problem, _ = _problem(0, fused=True)
    seen: list[tuple[int, ...]] = []

    def truth(choices):
        seen.append(choices)
        return float(sum(choices))

    with_sensitivities(problem, plain_fitness(truth), tokens=1, seed=0)
    assert len(seen) == 5
    assert all(choices[2 * pair] == choices[2 * pair + 1] for choices in seen for pair in range(4))


def test_a_unit_without_measured_effect_still_costs_something():
    problem, _ = _problem(1)
    scaled = with_sensitivities(problem, plain_fitness(lambda choices: 0.0), tokens=1, seed=0)
    assert all(unit.errors[0] > unit.errors[2] for unit in scaled.units)
