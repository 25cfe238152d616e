"""EvoPress: an evolutionary search over whole-model quality, for errors that do not add up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.allocation.greedy import fill
from tersor.allocation.judging import Judge, check_tokens
from tersor.allocation.knapsack import lgreco
from tersor.allocation.menus import Menus
from tersor.allocation.mutation import Grouping, Mutator, mutation_groups
from tersor.allocation.problem import Allocation, Choices, Fitness, Problem, make_allocation
from tersor.allocation.state import SearchState
from tersor.allocation.uniform import uniform
from tersor.errors import InvalidArgument

NEARLY_ALL = 0.99  # a uniform allocation that uses so much of the budget is the paper's "integer target"

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class _Settings:
    """What the result depends on besides the problem, the fitness and the number of generations."""

    offspring: int
    stages: tuple[tuple[int, int], ...]
    seed: int
    groups: Grouping
    initial: str | list[int] | None
    initial_candidates: int
    initial_tokens: int
    max_switches: int

    def __post_init__(self) -> None:
        for name in ("offspring", "initial_candidates", "initial_tokens", "max_switches"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise InvalidArgument(f"seed must not be negative, not {self.seed}")
        if self.stages[-1][0] != 1 or any(survivors < 1 or tokens < 1 for survivors, tokens in self.stages):
            raise InvalidArgument(f"stages are (survivors, tokens) of at least 1 and the last leaves one survivor, not {self.stages}")


def evopress(
    problem: Problem,
    fitness: Fitness,
    *,
    generations: int = 40,
    offspring: int = 12,
    stages: Sequence[tuple[int, int]] = ((3, 512), (1, 2048)),
    seed: int = 0,
    groups: Grouping = "none",
    initial: str | Sequence[int] | None = None,
    initial_candidates: int = 16,
    initial_tokens: int | None = None,
    max_switches: int = 3,
    patience: int | None = None,
    state_path: str | Path | None = None,
    progress: Progress | None = None,
) -> Allocation:
    """A (1 + offspring) evolutionary search that keeps to the budget and judges whole candidates.

    Use it where layer errors do not add up and evaluations are affordable; :func:`lgreco` needs none. Works for any mixture of choices:
    costs are integers of any kind and every unit has its own menu. The layer errors of ``problem`` only guide the filling of leftover
    budget and repairs of more than a few steps.

    A generation mutates the parent into distinct offspring, then each stage judges the remaining ones on one fresh minibatch and keeps
    the best; in the last stage the parent competes too, so on that minibatch the new parent is never worse. Fitness values of different
    generations come from different minibatches and are not comparable.

    Args:
        problem: Units and budget; fused groups move as one.
        fitness: Judges candidates; lower is better; values that are not finite sort last.
        generations: How many; 0 returns the first parent.
        offspring: Candidates a generation; fewer if there are not so many legal moves.
        stages: ``(survivors, tokens)`` of each selection stage, the last with one survivor.
        seed: Same seed, same result. The stream of a generation depends on nothing but it and the generation's number.
        groups: ``"none"`` trades between any units: the total is at most the budget. ``"size"`` and ``"name"`` trade between units of
            equal weights or role at exactly equal cost: the total stays that of the first parent (within the budget, and within 1 % a
            step, where the units of a group have different tables).
        initial: ``"uniform"`` (also filled up, the fitter of the two), ``"knapsack"`` or ``"lgreco"``, ``"random"`` (the fittest of
            ``initial_candidates``), or choices. ``None``: uniform if that uses the budget, else the fittest of random ones and it filled.
        initial_candidates: Random allocations judged for the first parent.
        initial_tokens: Size of their minibatch; by default that of the first stage.
        max_switches: Switches a mutation: the smaller of two uniform draws from 1 to this.
        patience: Stop after so many generations without a new parent.
        state_path: File for the state, written after every generation. An existing one is resumed; the result is the same as that of an
            undisturbed search. More generations than it was begun with continue it.
        progress: Called with the number and the fitness of each new generation; what it raises ends the search, whose state is saved.

    Returns:
        The last parent, with method ``"evopress"`` and a row a generation: ``generation``, ``offspring``, ``changed``, ``fitness`` and
        ``parent_fitness`` (new and old parent on the same last minibatch; ``None`` if not finite), ``cost``, ``error``, and the running
        ``evaluations`` and ``tokens``. A last row with no offspring says that no legal move was found.

    Raises:
        InvalidArgument: If an option is out of range, a stage wants more tokens than the evaluator has, the initial choices are not
            feasible, or the state belongs to another search.
        CorruptFile: If the state cannot be read.

    Reference:
        Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search", 2025.
    """
    stage_pairs = _stage_pairs(stages)
    start = [int(choice) for choice in initial] if initial is not None and not isinstance(initial, str) else initial
    first_tokens = stage_pairs[0][1] if initial_tokens is None else initial_tokens
    settings = _Settings(offspring, stage_pairs, int(seed), groups, start, initial_candidates, first_tokens, max_switches)
    if generations < 0 or (patience is not None and patience < 1):
        raise InvalidArgument(f"generations must not be negative and patience at least 1, not {generations} and {patience}")
    check_tokens(fitness, max(first_tokens, *(tokens for _, tokens in stage_pairs)))
    search = _Search(problem, fitness, settings, None if state_path is None else Path(state_path))
    if search.state.generation > generations:
        raise InvalidArgument(f"the search state has {search.state.generation} generations, more than the {generations} asked for")
    while search.state.generation < generations and not search.finished(patience):
        search.step()
        if progress is not None:
            progress(search.state.generation, search.fitness)
    return search.result()


def _stage_pairs(stages: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple((int(survivors), int(tokens)) for survivors, tokens in stages)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs:
        raise InvalidArgument(f"stages must be pairs (survivors, tokens) such as ((3, 512), (1, 2048)), not {stages!r}")
    return pairs


class _Search:
    def __init__(self, problem: Problem, fitness: Fitness, settings: _Settings, path: Path | None) -> None:
        self.problem, self.settings, self.path = problem, settings, path
        self.menus = Menus.of(problem)
        self.mutator = Mutator(self.menus, mutation_groups(problem, settings.groups), settings.max_switches)
        self.judge = Judge(fitness)
        # Through JSON and back, so that a stored copy compares equal: tuples become lists.
        plain = json.loads(json.dumps(asdict(settings)))
        loaded = SearchState.load(path, problem, plain) if path is not None else None
        self.state = loaded or SearchState(problem.digest, plain)
        if loaded is not None:
            self.judge.evaluations, self.judge.tokens = loaded.evaluations, loaded.tokens
        else:
            self._begin()
            self._save()

    def _begin(self) -> None:
        """Choose the first parent."""
        rng = self._stream(0)
        candidates = list(dict.fromkeys(self._initial(rng)))
        self.state.parent = candidates[0]
        if len(candidates) > 1:
            values = self.judge(candidates, candidates[0], self.settings.initial_tokens, _minibatch(rng))
            best = min(range(len(candidates)), key=values.__getitem__)
            self.state.parent, self.state.fitness = candidates[best], _finite(values[best])

    def _initial(self, rng: np.random.Generator) -> list[Choices]:
        initial = self.settings.initial
        if isinstance(initial, list):
            return [self.problem.check(initial, "the initial choices")]
        if initial in ("knapsack", "lgreco"):
            return [lgreco(self.problem).choices]
        if initial not in (None, "uniform", "random"):
            raise InvalidArgument(f"initial must be 'uniform', 'knapsack', 'random' or choices, not {initial!r}")
        common = uniform(self.problem)
        if initial == "uniform":
            return [common.choices, fill(self.problem, common.choices)]
        if initial is None and common.cost >= NEARLY_ALL * self.problem.budget:
            return [common.choices]
        draws = [self.menus.choices(self.mutator.random(rng)) for _ in range(self.settings.initial_candidates)]
        return draws if initial == "random" else [fill(self.problem, common.choices), *draws]

    def step(self) -> None:
        """One generation."""
        state, number = self.state, self.state.generation + 1
        rng = self._stream(number)
        children = self.mutator.offspring(self.menus.levels(state.parent), self.settings.offspring, rng)
        row: dict[str, Any] = {"generation": number, "offspring": len(children), "changed": False}
        if children:
            winner, row["fitness"], row["parent_fitness"] = self._select([self.menus.choices(child) for child in children], rng)
            row["changed"] = winner != state.parent
            state.parent, state.fitness = winner, row["fitness"]
        row |= {"cost": self.problem.cost(state.parent), "error": self.problem.error(state.parent)}
        row |= {"evaluations": self.judge.evaluations, "tokens": self.judge.tokens}
        state.generation = number
        state.history.append(row)
        self._save()

    def _select(self, pool: list[Choices], rng: np.random.Generator) -> tuple[Choices, float | None, float | None]:
        """The winner of all stages, its fitness and the parent's on the last minibatch."""
        parent = self.state.parent
        for survivors, tokens in self.settings.stages[:-1]:
            values = self.judge(pool, parent, tokens, _minibatch(rng))
            # sorted() is stable, so equal values keep the order of the pool and the result is a function of the seed
            pool = [pool[index] for index in sorted(range(len(pool)), key=values.__getitem__)[:survivors]]
        pool = [*pool, parent]
        values = self.judge(pool, parent, self.settings.stages[-1][1], _minibatch(rng))
        # Offspring come before the parent and win ties, so the search drifts over plateaus; but never to a broken model.
        best = min(range(len(pool)), key=values.__getitem__) if min(values) < math.inf else len(pool) - 1
        return pool[best], _finite(values[best]), _finite(values[-1])

    def finished(self, patience: int | None) -> bool:
        """Whether no legal move was left or ``patience`` is exhausted."""
        history = self.state.history
        stuck = bool(history) and history[-1]["offspring"] == 0
        idle = patience is not None and len(history) >= patience and not any(row["changed"] for row in history[-patience:])
        return stuck or idle

    def result(self) -> Allocation:
        """The parent as an allocation."""
        state = self.state
        return make_allocation(
            self.problem,
            state.parent,
            "evopress",
            fitness=self.fitness if state.evaluations else None,
            evaluations=state.evaluations,
            history=tuple(state.history),
        )

    @property
    def fitness(self) -> float:
        """Of the parent on the last minibatch; infinite if it is not known to be finite."""
        return math.inf if self.state.fitness is None else self.state.fitness

    def _stream(self, generation: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, generation])

    def _save(self) -> None:
        self.state.evaluations, self.state.tokens = self.judge.evaluations, self.judge.tokens
        if self.path is not None:
            self.state.save(self.path)


def _minibatch(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
