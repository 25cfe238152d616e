"""Random allocation problems of every shape, and brute force over them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tersor.allocation import Choices, Problem, Unit

MakeProblem = Callable[..., Problem]


def build_problem(
    seed: int,
    units: int = 5,
    levels: int = 4,
    *,
    share: float = 0.5,
    ragged: bool = False,
    fused: bool = False,
    monotone: bool = True,
    largest: int = 50,
) -> Problem:
    """A random problem whose budget lies ``share`` of the way from the smallest to the largest total."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(units):
        count = int(rng.integers(1, levels + 1)) if ragged else levels
        costs = rng.integers(0, largest, count)
        errors = rng.exponential(size=count)
        if monotone:
            costs, errors = np.sort(costs), -np.sort(-errors)
        size = int(rng.choice([64, 128, 256]))
        key = f"g{index // 3}" if fused and not ragged and index % 3 < 2 else None
        made.append(Unit(f"layer.{index}.weight", tuple(costs.tolist()), tuple(errors.tolist()), size, key))
    smallest = Problem(tuple(made), sum(max(unit.costs) for unit in made)).smallest_cost
    largest_total = sum(max(unit.costs) for unit in made)
    return Problem(tuple(made), int(smallest + share * (largest_total - smallest)))


def all_feasible(problem: Problem) -> Iterator[Choices]:
    """Every feasible choice."""
    return filter(problem.feasible, itertools.product(*(range(len(unit.costs)) for unit in problem.units)))


@pytest.fixture(scope="session")
def make_problem() -> MakeProblem:
    """See :func:`build_problem`."""
    return build_problem


@pytest.fixture(scope="session")
def feasible_choices() -> Callable[[Problem], Iterator[Choices]]:
    """See :func:`all_feasible`."""
    return all_feasible
