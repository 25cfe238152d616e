"""Search over compression configurations as a sparse misspecified bandit: a few layers matter, and effects nearly add up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tersor.allocation import Allocation, Choices, Fitness, Problem, lgreco, make_allocation, random_search
from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.bandits.recovery import recover
from tersor.limits.checking import Array

# A unit whose effect was not seen is not free: it counts this share of the middle one of those that were.
_LEAST = 0.05
_RETRIES = 8


def configuration_search(
    problem: Problem, fitness: Fitness, *, sparsity: int = 8, evaluations: int = 32, exploration: float = 0.5, tokens: int = 2048,
    seed: int = 0,
) -> Allocation:  # fmt: skip
    """An allocation from few evaluations of whole models, by a sparse linear model of what each unit costs in quality.

    The feature of a unit is its own layer error, so its unknown weight says how much that error matters to the whole model. Random
    allocations are judged first; then, over and over, the weights are recovered (:func:`recover`), the best allocation under them is found
    by an exact knapsack, and it is judged. Prefer :func:`tersor.allocation.evopress` where hundreds of evaluations are affordable: it
    sees interactions, which this does not.

    Args:
        problem: Units and budget; errors are any proxy, such as layer errors.
        fitness: Judges candidates, lower is better; always asked for the same minibatch.
        sparsity: Units that matter most; the others share a small weight.
        evaluations: Candidates to judge in all.
        exploration: Fraction of them that are random.
        tokens: Size of the minibatch.
        seed: Of the random allocations and of the minibatch.

    Returns:
        The fittest allocation that was judged, with method ``"sparse"``; its ``history`` has a row for each evaluation with ``kind``
        (``"random"`` or ``"model"``), ``fitness``, and ``predicted`` where there was a prediction.

    Raises:
        InvalidArgument: On an argument out of range, or if no judged allocation has a finite fitness.
    """
    merged, expand = problem.merged()
    check_integer("sparsity", sparsity, 1)
    check_integer("evaluations", evaluations, 3)
    check_number("exploration", exploration, 0.0, 1.0)
    check_integer("tokens", tokens, 1)
    check_integer("seed", seed, 0)
    model = _Model(merged, min(sparsity, len(merged.units)))
    random = np.random.default_rng(seed)
    judged: dict[Choices, float] = {}
    history: list[dict[str, object]] = []

    def judge(candidates: list[Choices], kind: str, predicted: float | None = None) -> None:
        whole = [expand(candidate) for candidate in candidates]
        for candidate, value in zip(candidates, fitness(whole, parent=whole[0], tokens=tokens, seed=seed), strict=True):
            judged[candidate] = float(value)
            history.append({"kind": kind, "fitness": float(value) if math.isfinite(value) else None, "predicted": predicted})

    judge(_draws(merged, max(2, round(exploration * evaluations)), random), "random")
    while len(judged) < evaluations:
        finite = {choices: value for choices, value in judged.items() if math.isfinite(value)}
        candidate = model.propose(finite, judged, random) if len(finite) > 1 else _draws(merged, 1, random, judged)
        if not candidate:
            break
        judge(candidate, "model", model.predict(candidate[0]) if len(finite) > 1 else None)
    best = min(judged, key=lambda choices: judged[choices] if math.isfinite(judged[choices]) else math.inf)
    if not math.isfinite(judged[best]):
        raise InvalidArgument("no judged allocation has a finite fitness; raise the budget")
    return make_allocation(problem, expand(best), "sparse", fitness=judged[best], evaluations=len(judged), history=tuple(history))


def _draws(problem: Problem, count: int, random: np.random.Generator, known: dict[Choices, float] | None = None) -> list[Choices]:
    """Distinct random allocations that use the budget; fewer than ``count`` if there are not so many."""
    drawn: dict[Choices, None] = {}
    for _ in range(_RETRIES * count):
        choices = random_search(problem, n=1, seed=int(random.integers(2**31))).choices
        if choices not in (known or {}):
            drawn[choices] = None
        if len(drawn) == count:
            break
    return list(drawn)


class _Model:
    """``fitness ~ offset + sum_u weight_u error_u(choice_u)`` with few large weights."""

    def __init__(self, problem: Problem, sparsity: int) -> None:
        self.problem = problem
        self.sparsity = sparsity
        spans = np.array([max(unit.errors) - min(unit.errors) for unit in problem.units])
        self._scales = np.where(spans > 0, spans, 1.0)
        self.weights = np.ones(len(problem.units))
        self.offset = 0.0

    def features(self, choices: Choices) -> Array:
        """Layer errors above the smallest, as parts of their span."""
        excess = [unit.errors[choice] - min(unit.errors) for unit, choice in zip(self.problem.units, choices, strict=True)]
        return np.array(excess) / self._scales

    def predict(self, choices: Choices) -> float:
        """The fitness of ``choices`` under the model."""
        return float(self.offset + self.features(choices) @ self.weights)

    def propose(self, finite: dict[Choices, float], judged: dict[Choices, float], random: np.random.Generator) -> list[Choices]:
        """The best allocation under a model of all that was judged; of a resampled part where that one was judged already."""
        rows, values = np.stack([self.features(choices) for choices in finite]), np.array(list(finite.values()))
        for attempt in range(_RETRIES):
            part = np.arange(len(values)) if attempt == 0 else np.unique(random.integers(len(values), size=len(values)))
            self._fit(rows[part], values[part])
            units = [
                replace(unit, errors=tuple(float(e) for e in np.subtract(unit.errors, min(unit.errors)) * weight / scale))
                for unit, weight, scale in zip(self.problem.units, self.weights, self._scales, strict=True)
            ]
            choices = lgreco(replace(self.problem, units=tuple(units))).choices
            if choices not in judged:
                return [choices]
        return _draws(self.problem, 1, random, judged)

    def _fit(self, rows: Array, values: Array) -> None:
        centre = values.mean()
        found = recover(rows - rows.mean(0), values - centre, 0.1 * float(values.std()), self.sparsity, positive=True)
        seen = found[found > 0]
        floor = _LEAST * float(np.median(seen)) if len(seen) else 1.0
        self.weights = np.maximum(found, floor)
        self.offset = float(centre - rows.mean(0) @ self.weights)
