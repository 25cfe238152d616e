"""Calling a fitness with its contract checked and its calls counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tersor.allocation.problem import Choices, Fitness
from tersor.errors import InvalidArgument


class Judge:
    """Wraps a :class:`Fitness`: counts evaluations and makes every value that is not finite infinite, so that it sorts last.

    Attributes:
        evaluations: Candidates judged so far.
        tokens: Candidates times tokens so far, the cost of the search.
    """

    def __init__(self, fitness: Fitness, evaluations: int = 0, tokens: int = 0) -> None:
        self._fitness = fitness
        self.evaluations = evaluations
        self.tokens = tokens

    def __call__(self, candidates: Sequence[Choices], parent: Choices, tokens: int, seed: int) -> list[float]:
        """Fitness of every candidate.

        Raises:
            InvalidArgument: If the callable does not return one value a candidate.
        """
        values = [float(value) for value in self._fitness(candidates, parent=parent, tokens=tokens, seed=seed)]
        if len(values) != len(candidates):
            raise InvalidArgument(f"the fitness returned {len(values)} values for {len(candidates)} candidates")
        self.evaluations += len(candidates)
        self.tokens += len(candidates) * tokens
        return [value if math.isfinite(value) else math.inf for value in values]


def check_tokens(fitness: Fitness, wanted: int) -> None:
    """Refuse a minibatch larger than what the evaluator says it has.

    Raises:
        InvalidArgument: Naming both numbers.
    """
    available = getattr(fitness, "available_tokens", None)
    if available is not None and wanted > available:
        raise InvalidArgument(f"a stage asks for {wanted} tokens but the evaluator has {available}; use smaller stages or more text")
