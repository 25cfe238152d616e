"""Small enough to know the optimum: 12 units, drop 4, 8 offspring, 21 generations, 16 first candidates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tersor.allocation import DROP, depth_problem, evopress, lgreco, plain_fitness

UNITS, DROPPED, SEEDS = 12, 4, 60
GENERATIONS = int(DROPPED * (UNITS - DROPPED) / 1.5)


def solved(seed: int, interaction: float) -> tuple[bool, bool]:
    """Whether the search found the optimum, and whether dropping the individually cheapest units is it."""
    rng = np.random.default_rng([seed, 12])
    alone = rng.uniform(size=UNITS)
    pairs = np.triu(rng.normal(scale=interaction, size=(UNITS, UNITS)), 1)

    def damage(choices):
        gone = np.array([choice == DROP for choice in choices], dtype=float)
        return float(gone @ alone + gone @ pairs @ gone)

    sets = (set(gone) for gone in itertools.combinations(range(UNITS), DROPPED))
    optimum = min(damage([int(unit in gone) for unit in range(UNITS)]) for gone in sets)
    found = evopress(
        depth_problem(UNITS, DROPPED), plain_fitness(damage), generations=GENERATIONS, offspring=8, stages=((1, 1),), seed=seed,
        initial="random", initial_candidates=16,
    )  # fmt: skip
    assert sum(choice == DROP for choice in found.choices) == DROPPED
    cheapest = lgreco(depth_problem(UNITS, DROPPED, scores=alone.tolist()))
    assert set(np.flatnonzero(cheapest.choices)) == set(np.argsort(alone)[:DROPPED])
    return damage(found.choices) <= optimum + 1e-9, damage(cheapest.choices) <= optimum + 1e-9


@pytest.mark.parametrize(
    ("interaction", "at_least", "cheapest_at_most"),
    [pytest.param(0.0, 0.9, 1.0, id="linear"), pytest.param(0.25, 0.6, 0.15, id="pairwise")],
)
def test_finds_the_optimum_of_the_toy(interaction, at_least, cheapest_at_most):
    evolved, cheapest = np.mean([solved(seed, interaction) for seed in range(SEEDS)], axis=0)
    assert evolved >= at_least
    assert cheapest <= cheapest_at_most
