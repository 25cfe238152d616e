"""How much each part may cost: allocators that see costs, errors and a fitness callable, never a model.

``uniform``, ``greedy``, ``lgreco`` and ``random_search`` need tables of costs and errors; ``evopress`` and
``configuration_search`` measure whole candidates.
"""

from tersor.allocation.budget import parse_budget
from tersor.allocation.depth import DROP, KEEP, depth_problem, dropped
from tersor.allocation.evolutionary import evopress
from tersor.allocation.greedy import fill, greedy
from tersor.allocation.knapsack import lgreco
from tersor.allocation.problem import Allocation, Choices, Fitness, Problem, Unit, make_allocation, plain_fitness
from tersor.allocation.random_search import random_search
from tersor.allocation.registry import ALLOCATORS, Allocator, find_allocator
from tersor.allocation.sensitivity import with_sensitivities
from tersor.allocation.sparse import configuration_search
from tersor.allocation.uniform import uniform

__all__ = [
    "ALLOCATORS",
    "DROP",
    "KEEP",
    "Allocation",
    "Allocator",
    "Choices",
    "Fitness",
    "Problem",
    "Unit",
    "configuration_search",
    "depth_problem",
    "dropped",
    "evopress",
    "fill",
    "find_allocator",
    "greedy",
    "lgreco",
    "make_allocation",
    "parse_budget",
    "plain_fitness",
    "random_search",
    "uniform",
    "with_sensitivities",
]
