"""Sparse misspecified bandits: guarantees on synthetic instances, and the search over compression configurations that they suggest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.allocation import Allocation, Choices, Problem, Unit, configuration_search, evopress, lgreco, plain_fitness, random_search
from tersor.limits import bandits
from tersor.papers.frame import Paper, Result, Row, measured

if TYPE_CHECKING:
    from torch import Tensor

PAPER = Paper(
    key="misspecified-bandits",
    claim="The net search is never further than 3 eps from the best action; a needle takes half of the actions whatever is done; and on a "
    "real model a sparse linear model of the layers' effects reaches what random search finds with five times the evaluations; where every "
    "configuration can be judged, it gets within twice the misspecification of the best, and as far as random draws with five times the "
    "evaluations.",
    where="tersor.limits.bandits, tersor.allocation.configuration_search",
)

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends; the model is real."""

    instances: int = 200
    actions: int = 2000
    needles: int = 200
    evaluations: int = 24
    more: int = 5
    layers: int = 7
    model: str = "stories260k"
    calibration: int = 8192
    search: int = 1024
    stages: tuple[tuple[int, int], ...] = ((1, 1024),)
    evaluation: int = 4096
    context: int = 256
    text: str = "tinystories"
    held_out: str = "tinystories.tail"


FULL = Size()
QUICK = Size(instances=30, actions=500, needles=60, evaluations=12, more=3, layers=5, calibration=4096, search=512, stages=((1, 512),))
SPARSE = "sparse model"
LEVELS: list[dict[str, Any]] = [{"method": "rtn", "bits": [2, 3, 4, 8], "clip": "mse"}]


def run(quick: bool) -> Result:
    """Confront the bounds with instances, then search bits for the layers of a small model with few evaluations."""
    size = QUICK if quick else FULL
    rows = [*measured(_guarantees(size)), *measured(_needles(size)), *measured(_configurations(size)), *measured(_exhaustive(size))]
    own = [row for row in rows if row["experiment"] == "configurations"]
    margin = min(_margin(own, seed) for seed in SEEDS)
    worst = max(row["worst_gap"] / row["bound"] for row in rows if row["experiment"] == "guarantee")
    found = [row for row in rows if row["experiment"] == "needle"]
    misses = max(abs(row["queries"] / row["bound"] - 1) for row in found)
    held = {row["method"]: statistics.mean(other["kl"] for other in own if other["method"] == row["method"]) for row in own}
    notes = [
        f"worst gap of the synthetic searches: {worst:.3f} of its bound",
        f"queries until a needle is found are within {misses:.1%} of half of the actions",
        "held-out divergence, mean over seeds: " + ", ".join(f"{method} {kl:.4f}" for method, kl in held.items()),
        _effort(own),
        *_against_all(rows),
        "the divergence on the search text is what is compared: all methods judge the same minibatch, so none gains by a lucky draw of it",
    ]
    close = all(_close(row) for row in rows if row["experiment"] == "exhaustive" and row["method"] == SPARSE)
    holds = margin >= 0 and worst <= 1 and misses < 0.05 and close
    data = (size.model, size.text, size.held_out, "scikit-learn digits")
    return Result(rows, f"the best of {size.more} times as many random allocations", margin, SEEDS, holds, data, notes)


def _guarantees(size: Size) -> Iterator[Row]:
    """Worst gap over many instances, half of them with errors that hide the best actions."""
    for strategy in ("net", "design"):
        for eps in (0.1, 0.4):
            gaps, queries = [], []
            for seed in range(size.instances):
                instance = bandits.sparse_instance(size.actions, 5, 2, eps, adversarial=bool(seed % 2), seed=seed)
                search = bandits.SparseMisspecifiedSearch(instance.features, 2, eps, strategy=strategy)
                found = search.run(instance.query)
                gaps.append(instance.gap(found.action))
                queries.append(found.queries)
            design = bandits.design_gap_bound(misspecification=eps, sparsity=2)
            bound = bandits.gap_bound(misspecification=eps) if strategy == "net" else design
            row: Row = {"experiment": "guarantee", "method": strategy, "eps": eps, "instances": size.instances, "worst_gap": max(gaps)}
            yield {**row, "bound": bound, "queries": statistics.mean(queries)}


def _needles(size: Size) -> Iterator[Row]:
    """Mean queries until the needle is found, over every place where it can hide: unpaid answers leave the order of asking unchanged."""
    for name, order in _orders().items():
        instance = bandits.needle_instance(size.needles, size.needles, 0.02, seed=0)
        asked = order(instance)
        queries = statistics.mean(asked.index(hidden) + 1 for hidden in range(size.needles))
        bound = bandits.needle_bound(needles=size.needles, sparsity=size.needles)["queries"]
        yield {"experiment": "needle", "method": name, "actions": size.needles, "queries": queries, "bound": bound}


def _orders() -> dict[str, Callable[[bandits.BanditInstance], list[int]]]:
    def recovered(instance: bandits.BanditInstance) -> list[int]:
        search = bandits.SparseMisspecifiedSearch(instance.features, 2, 0.02, strategy="recover")
        first = list(search.run(lambda action: 0.0).asked)
        return [*first, *(action for action in range(len(instance.rewards)) if action not in set(first))]

    def shuffled(instance: bandits.BanditInstance) -> list[int]:
        random = np.random.default_rng(0)
        return [int(action) for action in random.permutation(len(instance.rewards))]

    return {"in order": lambda instance: list(range(len(instance.rewards))), "at random": shuffled, "sparse recovery": recovered}


class _Counted:
    """The fitness of a job on one minibatch: every distinct candidate of a method counts once, so judging a parent again is free."""

    def __init__(self, job: Any, tokens: int) -> None:
        self._job, self._tokens = job, tokens
        self._known: dict[Choices, float] = {}
        self._seen: set[Choices] = set()
        self.trace: list[float] = []

    def start(self) -> None:
        """Forget what was found, not what was measured."""
        self.trace, self._seen = [], set()

    def __call__(self, candidates: Sequence[Choices], *, parent: Choices, tokens: int, seed: int) -> list[float]:
        """As the protocol wants it, but always on the same minibatch."""
        fresh = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self._known]
        if fresh:
            values = self._job.fitness(fresh, parent=parent, tokens=self._tokens, seed=0)
            self._known.update(zip(fresh, map(float, values), strict=True))
        for candidate in candidates:
            if candidate not in self._seen:
                self._seen.add(candidate)
                self.trace.append(min(self._known[candidate], self.trace[-1] if self.trace else float("inf")))
        return [self._known[candidate] for candidate in candidates]


def _configurations(size: Size) -> Iterator[Row]:
    from tersor.models import load
    from tersor.papers.workbench import divergence_on, workbench

    model = load(size.model)
    with TemporaryDirectory() as folder:
        job, windows = workbench(model, LEVELS, size, Path(folder) / "job")
        uniform = tuple(1 for _ in job.menu.layers)
        problem = job.problem(job.problem().cost(uniform) + job.menu.fixed)
        fitness = _Counted(job, size.search)
        for seed in SEEDS:
            goal = 0.0
            for name, search in _searches(problem, fitness, size, seed).items():
                fitness.start()
                found = search()
                goal = goal or fitness.trace[-1]
                needed = next((number for number, value in enumerate(fitness.trace, 1) if value <= goal * (1 + 1e-3)), None)
                yield {
                    "experiment": "configurations", "method": name, "seed": seed, "evaluations": len(fitness.trace), "needed": needed,
                    "fitness": fitness.trace[-1], "kl": divergence_on(model, job.assemble(found.choices), windows).kl,
                    "bytes": problem.cost(found.choices) + job.menu.fixed,
                }  # fmt: skip


def _searches(problem: Problem, fitness: _Counted, size: Size, seed: int) -> dict[str, Callable[[], Any]]:
    budget, tokens, offspring = size.evaluations, size.search, 3

    def evolved(evaluations: int) -> Callable[[], Any]:
        return lambda: evopress(
            problem, fitness, generations=(evaluations - 1) // offspring, offspring=offspring, stages=((1, tokens),), seed=seed,
            initial="uniform",
        )  # fmt: skip

    return {
        SPARSE: lambda: configuration_search(problem, fitness, evaluations=budget, tokens=tokens, seed=seed),
        "random": lambda: random_search(problem, fitness, n=size.more * budget, seed=seed, tokens=tokens),
        "knapsack": lambda: _judged(lgreco(problem), fitness),
        "evopress": evolved(budget),
        "evopress, more": evolved(size.more * budget),
    }


def _judged(found: Allocation, fitness: _Counted) -> Allocation:
    fitness([found.choices], parent=found.choices, tokens=0, seed=0)
    return found


def _exhaustive(size: Size) -> Iterator[Row]:
    """A classifier of few layers, where the best of all configurations is known."""
    for seed in SEEDS:
        problem, judge = _small_problem(size.layers, seed)
        pool = _maximal(problem)
        values = np.array([judge(choices) for choices in pool])
        fitness = _Counted(SimpleNamespace(fitness=plain_fitness(judge)), 1)
        misspecification = _misspecification(problem, pool, values)
        for name, search in _searches(problem, fitness, replace(size, search=1), seed).items():
            fitness.start()
            search()
            found = fitness.trace[-1]
            yield {
                "experiment": "exhaustive", "method": name, "seed": seed, "evaluations": len(fitness.trace), "configurations": len(pool),
                "needed": fitness.trace.index(found) + 1, "fitness": found, "best": float(values.min()), "gap": found - float(values.min()),
                # Draws without replacement until one is as good, in the mean.
                "needed_at_random": (len(pool) + 1) / (int((values <= found).sum()) + 1), "misspecification": misspecification,
            }  # fmt: skip


def _small_problem(layers: int, seed: int) -> tuple[Problem, Callable[[Choices], float]]:
    """Bits for the layers of a digits classifier at the bytes of 3 everywhere, judged by the divergence from its own answers."""
    from tersor.layerwise import rtn

    weights, x = _classifier(layers, seed)
    levels = [[rtn(weight, None, bits=bits, group_size=-1, clip="mse") for bits in LEVELS[0]["bits"]] for weight in weights]
    dense = [[level.dense() for level in menu] for menu in levels]
    units = tuple(
        Unit(
            f"layer{index}", tuple(level.nbytes for level in menu),
            tuple(float((level.dense() - weight).square().sum() / weight.square().sum()) for level in menu), weight.numel(),
        )
        for index, (menu, weight) in enumerate(zip(levels, weights, strict=True))
    )  # fmt: skip
    truth = _answers(weights, x)

    def judge(choices: Choices) -> float:
        found = _answers([menu[choice] for menu, choice in zip(dense, choices, strict=True)], x)
        return float((truth.exp() * (truth - found)).sum(1).mean())

    return Problem(units, sum(unit.costs[1] for unit in units)), judge


def _classifier(layers: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Trained weights of a network without biases, and the images that it was not trained on."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long()
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=random)
    widths = [64, *[32] * (layers - 1), 10]
    weights = [
        (torch.randn(out, width, generator=random) * (2 / width) ** 0.5).requires_grad_(True)
        for width, out in pairwise(widths)
    ]  # fmt: skip
    optimizer = torch.optim.Adam(weights, lr=0.003)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(_answers(weights, x[order[:1200]]), y[order[:1200]]).backward()
        optimizer.step()
    return [weight.detach() for weight in weights], x[order[1200:]]


def _answers(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    for weight in weights[:-1]:
        x = (x @ weight.T).relu()
    return (x @ weights[-1].T).log_softmax(1)


def _maximal(problem: Problem) -> list[Choices]:
    """Every feasible assignment in which nothing more can be raised."""
    found = []
    for choices in product(*(range(len(unit.costs)) for unit in problem.units)):
        left = problem.budget - problem.cost(choices)
        pairs = zip(problem.units, choices, strict=True)
        if left >= 0 and all(choice + 1 == len(unit.costs) or unit.costs[choice + 1] - unit.costs[choice] > left for unit, choice in pairs):
            found.append(choices)
    return found


def _misspecification(problem: Problem, pool: Sequence[Choices], values: np.ndarray) -> float:
    """The least largest misfit of an offset and a weight for the error of every layer: a linear program."""
    from scipy.optimize import linprog

    errors = [[1.0, *(unit.errors[choice] for unit, choice in zip(problem.units, choices, strict=True))] for choices in pool]
    rows, slack = np.array(errors), -np.ones((len(pool), 1))
    solved = linprog(
        np.eye(rows.shape[1] + 1)[-1], A_ub=np.block([[rows, slack], [-rows, slack]]), b_ub=np.concatenate((values, -values)),
        bounds=(None, None), method="highs",
    )  # fmt: skip
    return float(solved.fun)


def _close(row: Row) -> bool:
    """Within twice the misspecification of the best, with a fifth of the evaluations that random draws take to get as far."""
    return bool(row["gap"] <= 2 * row["misspecification"] and 5 * row["needed"] <= row["needed_at_random"])


def _against_all(rows: list[Row]) -> Iterator[str]:
    """What the searches reach where the best is known."""
    found = [row for row in rows if row["experiment"] == "exhaustive"]
    known = ", ".join(f"{row['best']:.3f} (misspecification {row['misspecification']:.3g})" for row in found if row["method"] == SPARSE)
    yield f"digits, the best of all {found[0]['configurations']} assignments that use up the budget, seed by seed: {known}"
    for name in dict.fromkeys(row["method"] for row in found):
        own = [row for row in found if row["method"] == name]
        parts = ", ".join(
            f"{row['gap']:.3f} above it after {row['needed']} of {row['evaluations']} evaluations ({row['needed_at_random']:.0f} at random)"
            for row in own
        )
        yield f"digits, {name}: {parts}"


def _margin(rows: list[Row], seed: int) -> float:
    """Relative reduction of the fitness against random search with more evaluations."""
    values = {row["method"]: row["fitness"] for row in rows if row["seed"] == seed}
    return 1 - values[SPARSE] / values["random"]


def _effort(rows: list[Row]) -> str:
    """Evaluations that EvoPress needs to reach what the sparse model ends at."""
    parts = []
    for row in rows:
        if row["method"] == "evopress, more":
            parts.append(str(row["needed"]) if row["needed"] else f"more than {row['evaluations']}")
    spent = [str(row["needed"]) for row in rows if row["method"] == SPARSE]
    return f"evopress needs {', '.join(parts)} evaluations to reach what the sparse model found with {', '.join(spent)}, seed by seed"
