"""Few evaluations of whole models, taken as a sparse misspecified bandit: a few layers matter, and effects nearly add up."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from tersor.allocation.judging import check_tokens
from tersor.allocation.knapsack import lgreco
from tersor.allocation.problem import Allocation, Choices, Fitness, Problem, make_allocation
from tersor.allocation.recovery import Array, sparse_parameter
from tersor.allocation.uniform import uniform
from tersor.errors import InvalidArgument, TersorError

# A unit whose effect was not seen is not free: it counts this share of the middle one of those that were.
_LEAST = 0.05
_RETRIES = 8
# Deviation of the logarithm of the random weights: a factor of e.
_SPREAD = 1.0


def configuration_search(
    problem: Problem, fitness: Fitness, *, sparsity: int = 8, evaluations: int = 32, exploration: float = 0.5, tokens: int = 2048,
    seed: int = 0,
) -> Allocation:  # fmt: skip
    """An allocation from few evaluations of whole models, by a sparse linear model of what each unit costs in quality.

    The feature of a unit is its own layer error, so its unknown weight says how much that error matters to the whole model. Most units
    are taken to weigh alike, as when layer errors are simply added up; a few deviate. The uniform allocation, the knapsack for equal
    weights and those for random weights are judged first; then, over and over, the deviations are recovered by a linear program and the
    knapsack for the weights found is judged. Prefer :func:`evopress` where hundreds of evaluations are affordable: it
    sees how units act on each other, which this does not.

    Args:
        problem: Units and budget; errors are any proxy, such as layer errors.
        fitness: Judges candidates, lower is better; always asked for the same minibatch.
        sparsity: Units whose weight may deviate.
        evaluations: Candidates to judge in all.
        exploration: Fraction of them that come before the first model.
        tokens: Size of the minibatch.
        seed: Of the random weights and of the minibatch.

    Returns:
        The fittest allocation that was judged, with method ``"sparse"``; its ``history`` has a row for each evaluation with ``kind``
        (``"explored"`` or ``"model"``), ``fitness``, and ``predicted`` where there was a prediction.

    Raises:
        InvalidArgument: On an argument out of range, or if no judged allocation has a finite fitness.
        TersorError: Without scipy, which solves the linear programs.

    Reference:
        Dong, Yang: "Does Sparsity Help in Learning Misspecified Linear Bandits?", 2023, for the model.
    """
    _check(fitness, exploration, sparsity=(sparsity, 1), evaluations=(evaluations, 3), tokens=(tokens, 1), seed=(seed, 0))
    merged, expand = problem.merged()
    model = _Model(merged, min(sparsity, len(merged.units)))
    random = np.random.default_rng(seed)
    judged: dict[Choices, float] = {}
    history: list[dict[str, object]] = []

    def judge(candidates: list[Choices], kind: str, predicted: float | None = None) -> None:
        whole = [expand(candidate) for candidate in candidates]
        for candidate, value in zip(candidates, fitness(whole, parent=whole[0], tokens=tokens, seed=seed), strict=True):
            judged[candidate] = float(value)
            history.append({"kind": kind, "fitness": float(value) if math.isfinite(value) else None, "predicted": predicted})

    first = dict.fromkeys([uniform(merged).choices, model.best(np.ones(len(merged.units)))])
    judge([*first, *model.explore(max(2, round(exploration * evaluations)) - len(first), set(first), random)], "explored")
    while len(judged) < evaluations:
        finite = {choices: value for choices, value in judged.items() if math.isfinite(value)}
        candidate = model.propose(finite, set(judged), random) if len(finite) > 2 else model.explore(1, set(judged), random)
        if not candidate:
            break
        judge(candidate, "model", model.predict(candidate[0]) if len(finite) > 2 else None)
    best = min(judged, key=lambda choices: judged[choices] if math.isfinite(judged[choices]) else math.inf)
    if not math.isfinite(judged[best]):
        raise InvalidArgument("no judged allocation has a finite fitness; raise the budget")
    return make_allocation(problem, expand(best), "sparse", fitness=judged[best], evaluations=len(judged), history=tuple(history))


def require_solver() -> None:
    """Refuse before any work what only a solver of linear programs can finish.

    Raises:
        TersorError: Without scipy.
    """
    if find_spec("scipy") is None:
        raise TersorError("the sparse search needs scipy, which is not installed; it comes with pip install 'tersor[limits]'")


def _check(fitness: Fitness, exploration: float, **integers: tuple[int, int]) -> None:
    """Refuse options out of range, a minibatch that there are no tokens for, and a missing scipy, before anything is judged."""
    for name, (value, lowest) in integers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise InvalidArgument(f"{name} must be an integer of at least {lowest}, got {value!r}")
    if not 0 <= exploration < 1:
        raise InvalidArgument(f"exploration must be a number of at least 0 and below 1, got {exploration!r}")
    check_tokens(fitness, integers["tokens"][0])
    require_solver()


class _Model:
    """``fitness ~ offset + sum_u (common + deviation_u) error_u(choice_u)`` with few deviations."""

    def __init__(self, problem: Problem, sparsity: int) -> None:
        self.problem = problem
        self.sparsity = sparsity
        self.weights = np.ones(len(problem.units))
        self.offset = 0.0

    def features(self, choices: Choices) -> Array:
        """Layer errors above the smallest of each unit."""
        return np.array([unit.errors[choice] - min(unit.errors) for unit, choice in zip(self.problem.units, choices, strict=True)])

    def predict(self, choices: Choices) -> float:
        """The fitness of ``choices`` under the model."""
        return float(self.offset + self.features(choices) @ self.weights)

    def best(self, weights: Array) -> Choices:
        """The knapsack for given weights."""
        units = [
            replace(unit, errors=tuple(float(error) for error in np.subtract(unit.errors, min(unit.errors)) * weight))
            for unit, weight in zip(self.problem.units, weights, strict=True)
        ]
        return lgreco(replace(self.problem, units=tuple(units))).choices

    def explore(self, count: int, known: set[Choices], random: np.random.Generator) -> list[Choices]:
        """Up to ``count`` new allocations, each the best for weights drawn at random around equal ones."""
        drawn: dict[Choices, None] = {}
        for _ in range(_RETRIES * max(count, 0)):
            if len(drawn) == count:
                break
            choices = self.best(np.exp(_SPREAD * random.standard_normal(len(self.weights))))
            if choices not in known:
                drawn[choices] = None
        return list(drawn)

    def propose(self, finite: dict[Choices, float], known: set[Choices], random: np.random.Generator) -> list[Choices]:
        """The best allocation under a model of all that was judged; of a resampled part where that one was judged already."""
        rows, values = np.stack([self.features(choices) for choices in finite]), np.array(list(finite.values()))
        for attempt in range(_RETRIES):
            part = np.arange(len(values)) if attempt == 0 else np.unique(random.integers(len(values), size=len(values)))
            self._fit(rows[part], values[part])
            choices = self.best(self.weights)
            if choices not in known:
                return [choices]
        return self.explore(1, known, random)

    def _fit(self, rows: Array, values: Array) -> None:
        centred, rises = rows - rows.mean(0), values - values.mean()
        total = centred.sum(1)
        energy = float(total @ total) or 1.0

        def without_total(columns: Array) -> Array:
            part: Array = np.multiply.outer(total, total @ columns) / energy
            return columns - part

        deviations = sparse_parameter(without_total(centred), without_total(rises), 0.1 * float(values.std()), self.sparsity)
        common = float(total @ (rises - centred @ deviations)) / energy
        found = common + deviations
        positive = found[found > 0]
        # Noise can make a weight negative; no layer gains from an error of its own.
        self.weights = np.maximum(found, _LEAST * float(np.median(positive)) if len(positive) else 1.0)
        self.offset = float(values.mean() - rows.mean(0) @ self.weights)
