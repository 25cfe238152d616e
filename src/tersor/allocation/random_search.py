"""The best of random feasible allocations: what a search must beat, and the start of one."""

from __future__ import annotations

import numpy as np

from tersor.allocation.judging import Judge
from tersor.allocation.menus import Menus
from tersor.allocation.mutation import Mutator
from tersor.allocation.problem import Allocation, Fitness, Problem, make_allocation
from tersor.errors import InvalidArgument


def random_search(problem: Problem, fitness: Fitness | None = None, n: int = 64, seed: int = 0, tokens: int = 2048) -> Allocation:
    """Draw ``n`` feasible allocations that use the budget and keep the fittest.

    A control for :func:`evopress`, not a method to use: it spends evaluations without learning from them.

    Args:
        problem: Units and budget.
        fitness: Judges all candidates on one minibatch; without it the smallest summed layer error wins.
        n: Draws; duplicates are judged once.
        seed: Makes the result reproducible.
        tokens: Size of the minibatch.

    Returns:
        A feasible allocation with method ``"random"``.

    Raises:
        InvalidArgument: If ``n`` or ``tokens`` is below 1.
    """
    if n < 1 or tokens < 1:
        raise InvalidArgument(f"random search needs at least one draw and one token, not n={n} and tokens={tokens}")
    menus = Menus.of(problem)
    rng = np.random.default_rng(seed)
    mutator = Mutator(menus, None, 1)
    draws = list(dict.fromkeys(menus.choices(mutator.random(rng)) for _ in range(n)))
    if fitness is None:
        return make_allocation(problem, min(draws, key=lambda choices: (problem.error(choices), problem.cost(choices))), "random")
    judge = Judge(fitness)
    values = judge(draws, draws[0], tokens, int(rng.integers(2**31)))
    best = min(range(len(draws)), key=values.__getitem__)
    return make_allocation(problem, draws[best], "random", fitness=values[best], evaluations=judge.evaluations)
