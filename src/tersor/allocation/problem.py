"""The one question every allocator answers: which choice for each unit, under a budget."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, Protocol

from tersor.errors import CorruptFile, InvalidArgument

Choices = tuple[int, ...]

LARGEST_TOTAL = 2**61  # sums and differences of totals must fit 64-bit integers


class Fitness(Protocol):
    """Judges candidates; lower is better. What a search sees of a model.

    An evaluator may carry an attribute ``available_tokens``: a search that would ask for a larger minibatch is then refused at once.
    """

    def __call__(self, candidates: Sequence[Choices], *, parent: Choices, tokens: int, seed: int) -> Sequence[float]:
        """Fitness of every candidate on one and the same minibatch.

        Args:
            candidates: Choices to judge.
            parent: The choices they were mutated from; an evaluator may reuse what it shares with them.
            tokens: Size of the minibatch.
            seed: Draws the minibatch; the same seed and size give the same minibatch.
        """


def plain_fitness(function: Callable[[Choices], float]) -> Fitness:
    """A :class:`Fitness` from a plain deterministic callable of one candidate, for problems without minibatches."""

    def judge(candidates: Sequence[Choices], *, parent: Choices, tokens: int, seed: int) -> Sequence[float]:
        return [function(candidate) for candidate in candidates]

    return judge


@dataclass(frozen=True)
class Unit:
    """A part of the model that gets exactly one of several choices.

    Attributes:
        name: Unique name, usually that of a layer.
        costs: Cost of each choice in the unit of the budget: bytes, bits or parameters. Integers.
        errors: Additive error of each choice (any non-negative finite proxy), same length.
        size: Weights in the unit; units of equal size swap levels freely in the grouped mutation.
        fused: Units that share this key must take the same choice index (q/k/v, gate/up); ``None`` for free ones.
    """

    name: str
    costs: tuple[int, ...]
    errors: tuple[float, ...]
    size: int = 0
    fused: str | None = None


@dataclass(frozen=True)
class Problem:
    """Units and a budget: choose one index a unit with total cost at most ``budget``.

    Raises:
        InvalidArgument: On no units, ragged or non-finite tables, duplicate names, fused units whose number of choices differs,
            costs or a budget that are not integers, or a budget below the smallest reachable total (which the message names).
    """

    units: tuple[Unit, ...]
    budget: int

    def __post_init__(self) -> None:
        if not self.units:
            raise InvalidArgument("there is nothing to allocate: no units")
        if len({unit.name for unit in self.units}) != len(self.units):
            raise InvalidArgument("unit names must be unique")
        lengths: dict[str, int] = {}
        for unit in self.units:
            _check_unit(unit)
            if unit.fused is not None and lengths.setdefault(unit.fused, len(unit.costs)) != len(unit.costs):
                raise InvalidArgument(f"fused group {unit.fused!r} mixes units with different numbers of choices")
        if not isinstance(self.budget, Integral):
            raise InvalidArgument(f"the budget must be a whole number in the unit of the costs, not {self.budget!r}")
        if sum(max(unit.costs) for unit in self.units) > LARGEST_TOTAL:
            raise InvalidArgument("the costs add up to more than 2**61; count in a larger unit")
        smallest = self.smallest_cost
        if smallest > self.budget:
            raise InvalidArgument(f"a budget of {self.budget} is below the smallest reachable total of {smallest}")

    @property
    def smallest_cost(self) -> int:
        """Total when every unit (or fused group) takes its cheapest choice."""
        return int(sum(min(costs) for costs, _ in self._groups().values()))

    @property
    def digest(self) -> str:
        """SHA-256 over every name, table and the budget: two problems with one digest are the same problem."""
        units = [[u.name, [int(c) for c in u.costs], [float(e) for e in u.errors], int(u.size), u.fused] for u in self.units]
        return hashlib.sha256(json.dumps([int(self.budget), units]).encode()).hexdigest()

    def check(self, choices: Sequence[int], what: str = "choices") -> Choices:
        """``choices`` as plain integers, if they are one legal choice for each unit within the budget.

        Raises:
            InvalidArgument: If their number, an index, a fused group or the total cost is wrong; ``what`` names them in the sentence.
        """
        if len(choices) != len(self.units):
            raise InvalidArgument(f"{what}: {len(choices)} given for {len(self.units)} units")
        for unit, choice in zip(self.units, choices, strict=True):
            if not isinstance(choice, Integral) or not 0 <= choice < len(unit.costs):
                raise InvalidArgument(f"{what}: unit {unit.name!r} has no choice {choice!r}; it has 0 to {len(unit.costs) - 1}")
        plain = tuple(int(choice) for choice in choices)
        if not self.feasible(plain):
            total = self.cost(plain)
            fault = f"cost {total}, above the budget of {self.budget}" if total > self.budget else "split a fused group"
            raise InvalidArgument(f"{what} {fault}")
        return plain

    def cost(self, choices: Sequence[int]) -> int:
        """Total cost of ``choices``."""
        return int(sum(unit.costs[choice] for unit, choice in zip(self.units, choices, strict=True)))

    def error(self, choices: Sequence[int]) -> float:
        """Sum of the additive errors of ``choices``."""
        return math.fsum(unit.errors[choice] for unit, choice in zip(self.units, choices, strict=True))

    def feasible(self, choices: Sequence[int]) -> bool:
        """Whether ``choices`` respect the budget and the fused groups."""
        seen: dict[str, int] = {}
        fused = all(u.fused is None or seen.setdefault(u.fused, c) == c for u, c in zip(self.units, choices, strict=True))
        return fused and self.cost(choices) <= self.budget

    def _groups(self) -> dict[str, tuple[list[int], list[float]]]:
        groups: dict[str, tuple[list[int], list[float]]] = {}
        for unit in self.units:
            key = f"fused:{unit.fused}" if unit.fused is not None else f"unit:{unit.name}"
            if key not in groups:
                groups[key] = (list(unit.costs), list(unit.errors))
            else:
                costs, errors = groups[key]
                summed = [a + b for a, b in zip(costs, unit.costs, strict=True)]
                groups[key] = (summed, [a + b for a, b in zip(errors, unit.errors, strict=True)])
        return groups

    def merged(self) -> tuple[Problem, Callable[[Choices], Choices]]:
        """The same problem with each fused group as one unit, and the way back to a choice for every original unit."""
        keys = [f"fused:{u.fused}" if u.fused is not None else f"unit:{u.name}" for u in self.units]
        order = list(dict.fromkeys(keys))
        sizes = dict.fromkeys(order, 0)
        for key, unit in zip(keys, self.units, strict=True):
            sizes[key] += unit.size
        groups = self._groups()
        units = tuple(Unit(key, tuple(groups[key][0]), tuple(groups[key][1]), sizes[key]) for key in order)
        position = {key: index for index, key in enumerate(order)}

        def expand(choices: Choices) -> Choices:
            return tuple(choices[position[key]] for key in keys)

        return Problem(units, self.budget), expand


def _check_unit(unit: Unit) -> None:
    if not unit.costs or len(unit.costs) != len(unit.errors):
        raise InvalidArgument(f"unit {unit.name!r} has {len(unit.costs)} costs and {len(unit.errors)} errors")
    if not all(isinstance(cost, Integral) and cost >= 0 for cost in unit.costs):
        raise InvalidArgument(f"unit {unit.name!r} has a cost that is negative or not a whole number")
    if not all(math.isfinite(error) and error >= 0 for error in unit.errors):
        raise InvalidArgument(f"unit {unit.name!r} has an error that is negative or not finite")


@dataclass(frozen=True)
class Allocation:
    """What an allocator decided.

    Attributes:
        choices: Index of the chosen level for each unit, in the order of ``problem.units``.
        cost: Total cost, never above the budget.
        error: Sum of the additive errors.
        method: Name of the allocator.
        fitness: Value of the fitness callable for ``choices`` on the last minibatch, if one was used.
        evaluations: Calls of the fitness callable.
        history: One JSON-able row a generation or step, for reports.
    """

    choices: Choices
    cost: int
    error: float
    method: str
    fitness: float | None = None
    evaluations: int = 0
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; a fitness that is not finite becomes a string so that strict parsers read it."""
        fitness = self.fitness if self.fitness is None or math.isfinite(self.fitness) else str(self.fitness)
        return {**asdict(self), "choices": list(self.choices), "fitness": fitness, "history": [dict(row) for row in self.history]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], problem: Problem) -> Allocation:
        """The allocation that :meth:`to_json` wrote, its totals checked against ``problem``.

        Raises:
            CorruptFile: If a field is missing or contradicts ``problem``.
        """
        try:
            choices = problem.check(data["choices"], "the stored choices")
            fitness = None if data["fitness"] is None else float(data["fitness"])
            extra = {"fitness": fitness, "evaluations": int(data["evaluations"]), "history": tuple(data["history"])}
            allocation = make_allocation(problem, choices, str(data["method"]), **extra)
            same = allocation.cost == data["cost"] and math.isclose(allocation.error, data["error"], rel_tol=1e-9)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"the stored allocation cannot be used: {error}") from None
        if not same:
            raise CorruptFile("the stored allocation was made for other costs or errors")
        return allocation


def make_allocation(problem: Problem, choices: Sequence[int], method: str, **extra: Any) -> Allocation:
    """The :class:`Allocation` of ``choices``, its totals computed from ``problem``."""
    plain = tuple(int(choice) for choice in choices)
    return Allocation(plain, problem.cost(plain), problem.error(plain), method, **extra)
