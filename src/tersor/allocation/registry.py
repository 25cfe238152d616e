"""The one list of allocators, all called the same way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tersor.allocation.evolutionary import evopress
from tersor.allocation.greedy import greedy
from tersor.allocation.knapsack import lgreco
from tersor.allocation.problem import Allocation, Fitness, Problem
from tersor.allocation.random_search import random_search
from tersor.allocation.sparse import configuration_search
from tersor.allocation.uniform import uniform
from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class Allocator:
    """An allocation method; calling it is ``(problem, fitness=None, seed=0, **options) -> Allocation``.

    Attributes:
        name: What the user types and what ``Allocation.method`` says.
        function: The method itself; what it does not take of fitness and seed is not passed on.
        paper: Where it comes from.
        needs_fitness: Whether it cannot work without one.
        beats_uniform: Whether its summed error is never above that of :func:`uniform`, by construction.
    """

    name: str
    function: Callable[..., Allocation]
    paper: str
    needs_fitness: bool = False
    beats_uniform: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Option name to default value, fitness and seed left out."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {p.name: p.default for p in parameters if p.name not in ("fitness", "seed")}

    def __call__(self, problem: Problem, fitness: Fitness | None = None, seed: int = 0, **options: Any) -> Allocation:
        """Allocate.

        Raises:
            InvalidArgument: If a needed fitness is missing, an option is unknown, or the method refuses.
        """
        if self.needs_fitness and fitness is None:
            raise InvalidArgument(f"allocator {self.name!r} measures whole candidates and needs a fitness")
        for key in options:
            if key not in self.options:
                raise InvalidArgument(f"allocator {self.name!r} takes no option {key!r}; it takes {', '.join(self.options) or 'none'}")
        taken = inspect.signature(self.function).parameters
        common = {key: value for key, value in (("fitness", fitness), ("seed", seed)) if key in taken}
        return self.function(problem, **common, **options)


ALLOCATORS: dict[str, Allocator] = {
    allocator.name: allocator
    for allocator in (
        Allocator("uniform", uniform, "one level everywhere", beats_uniform=True),
        Allocator("random", random_search, "the best of random draws"),
        Allocator("greedy", greedy, "marginal gain per cost, Fox 1966"),
        Allocator("knapsack", lgreco, "L-GreCo, Markov et al. 2024", beats_uniform=True),
        Allocator("sparse", configuration_search, "sparse misspecified bandits, Dong, Yang 2023", needs_fitness=True),
        Allocator("evopress", evopress, "EvoPress, Sieberling et al. 2025", needs_fitness=True),
    )
}


def find_allocator(name: str) -> Allocator:
    """The allocator called ``name``.

    Raises:
        InvalidArgument: If there is none; the sentence lists those that there are.
    """
    if name not in ALLOCATORS:
        raise InvalidArgument(f"unknown allocator {name!r}; known allocators are {', '.join(ALLOCATORS)}")
    return ALLOCATORS[name]
