"""Search for the shape of a model that makes the most of a number of bytes, without training any."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.training.architecture_cost import CostModel

Architecture = dict[str, int]
Genome = tuple[int, ...]

# Too large a model ranks below every one that fits, the larger the lower.
_TOO_LARGE = -1e9
_ATTEMPTS = 200


def heads_divide_width(architecture: Mapping[str, Any]) -> Any:
    """Whether the attention heads share the width evenly, which transformers demand."""
    return architecture["hidden_size"] % architecture["num_attention_heads"] == 0


@dataclass(frozen=True)
class SearchSpace:
    """Values that each part of an architecture may take.

    Attributes:
        choices: Values by name. Crossover cuts the names in this order. The names are those of ``transformers.RobertaConfig``
            where a RoBERTa is searched; any others go with a cost model that reads them.
        allowed: Says of an architecture (also of one with NumPy arrays for values) whether it can be built; without it all can.
    """

    choices: Mapping[str, Sequence[int]]
    allowed: Callable[[Mapping[str, Any]], Any] | None = heads_divide_width

    def __post_init__(self) -> None:
        for name, values in self.choices.items():
            if not values or len(set(values)) < len(values) or min(values) < 1:
                raise InvalidArgument(f"the choices of {name} must be one or more different positive integers, got {list(values)}")
        if not self.choices:
            raise InvalidArgument("a search space needs at least one name with choices")

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.choices.values())

    def architecture(self, genome: Genome) -> Architecture:
        """The architecture that a tuple of values in the order of ``choices`` stands for."""
        return dict(zip(self.choices, genome, strict=True))

    def valid(self, genome: Genome) -> bool:
        """Whether it can be built."""
        return self.allowed is None or bool(self.allowed(self.architecture(genome)))


# The published space: 10.9 million shapes, all of which can be built.
ROBERTA_SPACE = SearchSpace({
    "num_attention_heads": (1, 2, 4, 8), "hidden_size": tuple(range(16, 769, 16)), "intermediate_size": tuple(range(32, 3041, 32)),
    "num_hidden_layers": tuple(range(1, 13)), "vocab_size": tuple(range(1000, 50001, 1000)),
})  # fmt: skip


@dataclass(frozen=True)
class SearchResult:
    """The best architecture that a search has seen.

    Attributes:
        architecture: Values by name.
        fitness: See :func:`fitness`.
        parameters: Of the cost model.
        nbytes: Of the cost model; not above the bound unless the search was soft.
        flops: Of the cost model, for one input.
        evaluations: Architectures that were looked at.
        history: Best fitness after the first population, after every generation and after every climb; never falls.
    """

    architecture: Architecture
    fitness: float
    parameters: int
    nbytes: int
    flops: int
    evaluations: int
    history: tuple[float, ...] = field(default=(), repr=False)


def fitness(cost: CostModel, architecture: Mapping[str, Any], bound: int, *, hard: bool = True) -> Any:
    """Billions of operations for an input, minus the megabytes between the size and the bound.

    Args:
        cost: Counts.
        architecture: Values by name; arrays of values give an array.
        bound: Bytes.
        hard: Rank what is larger than ``bound`` below everything else. Without it, as published, one megabyte too many costs no
            more than one too few.

    Returns:
        A float, or an array of them.
    """
    nbytes = np.asarray(cost.nbytes(architecture), dtype=np.float64)
    value = np.asarray(cost.flops(architecture), dtype=np.float64) / 1e9 - np.abs(bound - nbytes) / 1e6
    value = np.where(nbytes > bound, _TOO_LARGE - (nbytes - bound), value) if hard else value
    return float(value) if value.ndim == 0 else value


def genetic_search(
    space: SearchSpace, cost: CostModel, bound: int, *, population: int = 50, generations: int = 100, crossover: float = 0.6,
    climbers: int = 8, hard: bool = True, seed: int = 0,
) -> SearchResult:  # fmt: skip
    """Breed architectures: parents drawn at random, children by crossover or mutation, and the best of both survive.

    Args:
        space: What is allowed.
        cost: Counts bytes and operations.
        bound: Bytes that the result may take.
        population: Architectures that survive a generation.
        generations: Each makes ``population`` children.
        crossover: Chance that a pair is crossed at one point; otherwise both are mutated: from a random name on, every value is
            replaced by another one.
        climbers: Survivors from which the search climbs at the end, changing any two values at once to their best. Not in the paper
            (0), whose operators alone stop well below the optimum: along the bound, a gain takes two changes that fit each other.
        hard: Keep to the bound; ``False`` is the published soft penalty, whose result may be a little too large.
        seed: Of every draw.

    Returns:
        The best architecture, with the course of the search.

    Raises:
        InvalidArgument: If an option is out of range or nothing of the space fits the bound.

    Reference:
        Shi et al., Compressing pre-trained models of code into 3 MB (2022).
    """
    if population < 2 or generations < 0 or climbers < 0 or not 0 <= crossover <= 1 or bound < 1:
        raise InvalidArgument(
            f"a search needs a population of 2, 0 or more generations and climbers, a chance between 0 and 1 and a bound of 1 byte, got "
            f"{population}, {generations}, {climbers}, {crossover} and {bound}"
        )
    breeding = _Breeding(space, lambda genome: fitness(cost, space.architecture(genome), bound, hard=hard), crossover, seed)
    alive = breeding.first(population)
    history = [breeding.score(alive[0])]
    for _ in range(generations):
        alive = breeding.next(alive, population)
        history.append(breeding.score(alive[0]))
    best, looked = space.architecture(alive[0]), len(breeding.scores)
    for start in alive[:climbers]:
        found, more = _climb(space, cost, bound, hard, space.architecture(start))
        looked += more
        best = max(best, found, key=lambda architecture: fitness(cost, architecture, bound, hard=hard))
        history.append(fitness(cost, best, bound, hard=hard))
    return _result(space, cost, bound, hard, best, looked, history)


def random_search(
    space: SearchSpace, cost: CostModel, bound: int, *, evaluations: int = 5050, hard: bool = True, seed: int = 0
) -> SearchResult:
    """The best of ``evaluations`` random architectures: what any search must beat.

    Args:
        space: What is allowed.
        cost: Counts bytes and operations.
        bound: Bytes that the result may take.
        evaluations: Draws.
        hard: As in :func:`genetic_search`.
        seed: Of the draws.

    Raises:
        InvalidArgument: If none that fits was drawn.
    """
    if evaluations < 1:
        raise InvalidArgument(f"a random search needs 1 evaluation at least, got {evaluations}")
    random = np.random.default_rng(seed)
    drawn = (space.architecture(_draw(space, random)) for _ in range(evaluations))
    best = max(drawn, key=lambda architecture: fitness(cost, architecture, bound, hard=hard))
    return _result(space, cost, bound, hard, best, evaluations, ())


def exhaustive_search(space: SearchSpace, cost: CostModel, bound: int, *, hard: bool = True) -> SearchResult:
    """The best of all architectures; the published space takes some seconds and half a gigabyte.

    Args:
        space: What is allowed.
        cost: Counts bytes and operations, on arrays.
        bound: Bytes that the result may take.
        hard: As in :func:`genetic_search`.

    Raises:
        InvalidArgument: If nothing fits.
    """
    # All but the two longest lists are walked one by one, to bound the memory.
    names = sorted(space.choices, key=lambda name: -len(space.choices[name]))
    best: tuple[float, Architecture] = (-math.inf, {})
    for values in product(*(space.choices[name] for name in names[2:])):
        best = max(best, _best_of(space, cost, bound, hard, dict(zip(names[2:], values, strict=True)), names[:2]), key=lambda pair: pair[0])
    if not best[1]:
        raise InvalidArgument("no architecture of the space can be built; widen its choices")
    return _result(space, cost, bound, hard, best[1], len(space), ())


def _best_of(
    space: SearchSpace, cost: CostModel, bound: int, hard: bool, fixed: Mapping[str, int], free: Sequence[str]
) -> tuple[float, Architecture]:
    """The best architecture with the values of ``fixed``, all combinations of the others looked at at once."""
    grid = np.meshgrid(*(np.array(space.choices[name], dtype=np.int64) for name in free), indexing="ij")
    candidates: dict[str, Any] = {**fixed, **{name: part.ravel() for name, part in zip(free, grid, strict=True)}}
    scores = np.broadcast_to(fitness(cost, candidates, bound, hard=hard), grid[0].size)
    if space.allowed is not None:
        scores = np.where(space.allowed(candidates), scores, -np.inf)
    place = int(scores.argmax())
    if scores[place] == -np.inf:
        return -math.inf, {}
    return float(scores[place]), {name: int(np.broadcast_to(candidates[name], grid[0].size)[place]) for name in space.choices}


def _climb(space: SearchSpace, cost: CostModel, bound: int, hard: bool, start: Architecture) -> tuple[Architecture, int]:
    """Change any two values at once to their best, until that gains nothing; the number of architectures looked at."""
    best, seen = (fitness(cost, start, bound, hard=hard), start), 0
    improved = True
    while improved:
        improved = False
        for free in combinations(space.choices, min(2, len(space.choices))):
            fixed = {name: value for name, value in best[1].items() if name not in free}
            found = _best_of(space, cost, bound, hard, fixed, free)
            seen += math.prod(len(space.choices[name]) for name in free)
            if found[0] > best[0]:
                best, improved = found, True
    return best[1], seen


def random_architecture(
    space: SearchSpace, cost: CostModel, bound: int, *, tolerance: float = 0.05, seed: int = 0, attempts: int = 200_000
) -> Architecture:
    """A random architecture of nearly ``bound`` bytes: what the search is compared with.

    Args:
        space: What is allowed.
        cost: Counts bytes.
        bound: Bytes that it may take.
        tolerance: It takes at least ``1 - tolerance`` of them.
        seed: Of the draws.
        attempts: Draws before giving up.

    Raises:
        InvalidArgument: If none was drawn.
    """
    random = np.random.default_rng(seed)
    for _ in range(attempts):
        architecture = space.architecture(_draw(space, random))
        if (1 - tolerance) * bound <= cost.nbytes(architecture) <= bound:
            return architecture
    share = f"{1 - tolerance:.0%} to 100%"
    raise InvalidArgument(f"none of {attempts:,} random architectures takes {share} of {bound:,} bytes; widen the tolerance")


class _Breeding:
    """Draws, crosses and mutates; looks at no architecture twice."""

    def __init__(self, space: SearchSpace, score: Callable[[Genome], float], crossover: float, seed: int) -> None:
        self.space, self.crossover = space, crossover
        self.random = np.random.default_rng(seed)
        self.scores: dict[Genome, float] = {}
        self._score = score

    def score(self, genome: Genome) -> float:
        if genome not in self.scores:
            self.scores[genome] = self._score(genome)
        return self.scores[genome]

    def first(self, size: int) -> list[Genome]:
        distinct: dict[Genome, None] = {}
        for _ in range(_ATTEMPTS * size):
            if len(distinct) == min(size, len(self.space)):
                break
            distinct.setdefault(_draw(self.space, self.random))
        return self._best(distinct, size)

    def next(self, alive: list[Genome], size: int) -> list[Genome]:
        known = dict.fromkeys(alive)
        for child in self._children(alive, size):
            fresh = child
            for _ in range(_ATTEMPTS):
                if fresh not in known and self.space.valid(fresh):
                    known[fresh] = None
                    break
                fresh = self._mutated(fresh)
        return self._best(known, size)

    def _best(self, genomes: Mapping[Genome, None], size: int) -> list[Genome]:
        return sorted(genomes, key=lambda genome: (-self.score(genome), genome))[:size]

    def _children(self, alive: list[Genome], size: int) -> Iterator[Genome]:
        for _ in range(-(-size // 2)):
            pair = self.random.choice(len(alive), 2, replace=len(alive) < 2)
            first, second = (alive[index] for index in pair)
            if len(first) > 1 and self.random.random() < self.crossover:
                cut = int(self.random.integers(1, len(first)))
                yield first[:cut] + second[cut:]
                yield second[:cut] + first[cut:]
            else:
                yield self._mutated(first)
                yield self._mutated(second)

    def _mutated(self, genome: Genome) -> Genome:
        locus = int(self.random.integers(len(genome)))
        changed = list(genome)
        for place, values in list(enumerate(self.space.choices.values()))[locus:]:
            others = [value for value in values if value != genome[place]]
            if others:
                changed[place] = others[int(self.random.integers(len(others)))]
        return tuple(changed)


def _draw(space: SearchSpace, random: np.random.Generator) -> Genome:
    for _ in range(_ATTEMPTS * _ATTEMPTS):
        genome = tuple(int(values[int(random.integers(len(values)))]) for values in space.choices.values())
        if space.valid(genome):
            return genome
    raise InvalidArgument("no architecture of the space can be built; widen its choices")


def _result(
    space: SearchSpace, cost: CostModel, bound: int, hard: bool, architecture: Architecture, evaluations: int, history: Sequence[float]
) -> SearchResult:
    nbytes = int(cost.nbytes(architecture))
    if hard and nbytes > bound:
        raise InvalidArgument(
            f"no architecture that was looked at takes at most {bound:,} bytes, the smallest takes {nbytes:,}; "
            "allow more bytes or smaller values"
        )
    value = fitness(cost, architecture, bound, hard=hard)
    parameters, flops = int(cost.parameters(architecture)), int(cost.flops(architecture))
    return SearchResult(architecture, value, parameters, nbytes, flops, evaluations, tuple(history))
