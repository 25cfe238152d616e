"""Pairs of worlds in which training data and hypothesis have the same law but the true error does not: no bound is tight in both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer
from tersor.limits.checking import Array

HELD_OUT = 100


@dataclass(frozen=True)
class Draw:
    """One training run.

    Attributes:
        inputs: ``[n, ...]``, the training inputs.
        labels: ``[n]``.
        hypothesis: What was learned: a table of labels, or a vector.
        loss: Its true error. A bound may not look at it.
        wrong: Errors on the training data.
        held_out: Error rate on :data:`HELD_OUT` fresh examples: what only a hold-out bound may look at.
        labels_count: Number of possible labels. Which world it is from is not told.
    """

    inputs: Array
    labels: Array
    hypothesis: Array
    loss: float
    wrong: int
    held_out: float
    labels_count: int


class Twin(Protocol):
    """A pair of worlds, ``"A"`` and ``"B"``."""

    def draw(self, world: str, random: np.random.Generator) -> Draw:
        """One training run in a world."""

    @property
    def gap(self) -> float:
        """What every estimator of the loss must be off by, on average over a fair coin for the world."""


class ShatteredTwin:
    """Labels of ``points`` of equal weight. A: the labels are random and unseen ones are guessed. B: the guess happens to be the truth.

    Sample and hypothesis have the same law in both, yet the loss is half of the unseen fraction in A and 0 in B. So a bound that does not
    know the algorithm, or a bound that does for both at once, is off by a quarter of the unseen fraction on average.

    Args:
        points: ``D``.
        examples: ``n``, drawn with replacement.

    Raises:
        InvalidArgument: On a number below 1.

    Reference:
        Gastpar, Nachum, Shafer, Weinberger: "Fantastic Generalization Measures are Nowhere to be Found", 2024.
    """

    def __init__(self, points: int, examples: int) -> None:
        self.points = check_integer("points", points, 1)
        self.examples = check_integer("examples", examples, 1)

    @property
    def gap(self) -> float:
        """``(1 - 1/D)^n / 4``."""
        return (1 - 1 / self.points) ** self.examples / 4

    def draw(self, world: str, random: np.random.Generator) -> Draw:
        """One training run in world ``"A"`` or ``"B"``."""
        _check_world(world)
        inputs = random.integers(self.points, size=self.examples)
        truth = random.integers(2, size=self.points)
        guess = truth.copy()
        if world == "A":
            unseen = np.ones(self.points, dtype=bool)
            unseen[inputs] = False
            guess[unseen] = random.integers(2, size=int(unseen.sum()))
        fresh = random.integers(self.points, size=HELD_OUT)
        wrong = guess != truth
        return Draw(inputs, truth[inputs], guess, float(wrong.mean()), 0, float(wrong[fresh].mean()), 2)

    def law(self, world: str) -> dict[tuple[tuple[int, ...], ...], float]:
        """Exact probabilities of (inputs, labels, hypothesis) by enumeration; for a handful of points."""
        _check_world(world)
        law: dict[tuple[tuple[int, ...], ...], float] = {}
        for inputs in _tuples(self.points, self.examples):
            for truth in _tuples(2, self.points):
                unseen = [point for point in range(self.points) if point not in inputs]
                guesses = _tuples(2, len(unseen)) if world == "A" else iter([tuple(truth[point] for point in unseen)])
                weight = (1 / self.points) ** self.examples * 0.5**self.points * (0.5 ** len(unseen) if world == "A" else 1.0)
                for guess in guesses:
                    table = list(truth)
                    for point, label in zip(unseen, guess, strict=True):
                        table[point] = label
                    key = (inputs, tuple(truth[point] for point in inputs), tuple(table))
                    law[key] = law.get(key, 0.0) + weight
        return law


class FieldTwin:
    """Linear maps over the field of ``q`` elements, learned by one known algorithm. A: the truth lies in a small space. B: anywhere.

    The algorithm takes the consistent map that uses the first ``n`` coordinates alone if there is one, else any consistent one. In A it
    learns the truth as soon as its sample determines it. In B it finds a map that fits as well, by accident, and is no better than a guess
    elsewhere. Given that the sample is invertible on those coordinates, which has probability :attr:`invertible`, sample and hypothesis
    have the same law. Being good at A is what makes its error impossible to tell.

    Args:
        field: ``q``, a prime.
        examples: ``n``.
        dimension: ``d``, above ``n``.

    Raises:
        InvalidArgument: If ``field`` is no prime below 10000 or ``dimension`` is not above ``examples``.

    Reference:
        Gastpar, Nachum, Shafer, Weinberger: "Fantastic Generalization Measures are Nowhere to be Found", 2024 (Theorem 4).
    """

    def __init__(self, field: int, examples: int, dimension: int) -> None:
        self.field = check_integer("field", field, 2, 10_000)
        if any(self.field % divisor == 0 for divisor in range(2, math.isqrt(self.field) + 1)):
            raise InvalidArgument(f"field must be a prime, got {field}")
        self.examples = check_integer("examples", examples, 1)
        self.dimension = check_integer("dimension", dimension, self.examples + 1)

    @property
    def invertible(self) -> float:
        """``prod_k (1 - q^-k)`` over ``k = 1..n``: about 0.289 for ``q = 2`` and ``1 - 1/q`` for large ``q``."""
        return math.prod(1 - self.field**-k for k in range(1, self.examples + 1))

    @property
    def gap(self) -> float:
        """Half of ``1 - 1/q``, on a fair coin for the world and a sample that is invertible; truths of B in the small space taken off."""
        return self.invertible * (1 - 1 / self.field) / 2 * (1 - self.field ** (self.examples - self.dimension))

    def draw(self, world: str, random: np.random.Generator) -> Draw:
        """One training run in world ``"A"`` or ``"B"``."""
        _check_world(world)
        truth = random.integers(self.field, size=self.dimension)
        if world == "A":
            truth[self.examples :] = 0
        inputs = random.integers(self.field, size=(self.examples, self.dimension))
        labels = inputs @ truth % self.field
        hypothesis = self.learn(inputs, labels, random)
        loss = 0.0 if np.array_equal(hypothesis, truth) else 1 - 1 / self.field
        fresh = random.integers(self.field, size=(HELD_OUT, self.dimension))
        held_out = float((fresh @ (hypothesis - truth) % self.field != 0).mean())
        return Draw(inputs, labels, hypothesis, loss, 0, held_out, self.field)

    def learn(self, inputs: Array, labels: Array, random: np.random.Generator) -> Array:
        """The algorithm: a consistent map of the small space if there is one, else a random consistent one."""
        small = solve_modular(inputs[:, : self.examples], labels, self.field, random)
        if small is not None:
            return np.concatenate((small, np.zeros(self.dimension - self.examples, dtype=np.int64)))
        found = solve_modular(inputs, labels, self.field, random)
        if found is None:
            raise InvalidArgument("no linear map fits these labels")
        return found


def solve_modular(matrix: Array, values: Array, field: int, random: np.random.Generator) -> Array | None:
    """A random solution of ``matrix @ x = values`` over the integers modulo a prime, each equally likely; ``None`` if there is none.

    Args:
        matrix: ``[n, d]`` integers.
        values: ``[n]`` integers.
        field: The prime.
        random: Draws the coordinates that are free.
    """
    rows, columns = matrix.shape
    table = np.concatenate((matrix, values[:, None]), 1).astype(np.int64) % field
    pivots: list[int] = []
    for column in range(columns):
        top = len(pivots)
        places = np.flatnonzero(table[top:, column])
        if top == rows or len(places) == 0:
            continue
        table[[top, top + places[0]]] = table[[top + places[0], top]]
        table[top] = table[top] * pow(int(table[top, column]), -1, field) % field
        others = np.arange(rows) != top
        table[others] = (table[others] - np.outer(table[others, column], table[top])) % field
        pivots.append(column)
    if table[len(pivots) :, -1].any():
        return None
    solution = random.integers(field, size=columns)
    solution[pivots] = 0
    solution[pivots] = (table[: len(pivots), -1] - table[: len(pivots), :-1] @ solution) % field
    return solution


def le_cam_bound(*, variation: float = 0.0, failure_good: float = 0.0, failure_bad: float = 0.0) -> float:
    """Probability with which every estimator of the loss is off by half the gap or more, in one of two worlds.

    The algorithm has a loss of at most ``a`` in the first except with probability ``failure_good``, of at least ``b`` in the second except
    with ``failure_bad``; the laws of what the estimator sees are ``variation`` apart. Then the precision ``(b - a) / 2`` fails with
    probability at least ``(1 - variation - failure_good - failure_bad) / 2``.

    Raises:
        InvalidArgument: On a number that is no probability.
    """
    numbers = {"variation": variation, "failure_good": failure_good, "failure_bad": failure_bad}
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise InvalidArgument(f"{name} must be a probability, got {value!r}")
    return max(0.0, (1 - sum(numbers.values())) / 2)


def _tuples(base: int, length: int) -> Iterator[tuple[int, ...]]:
    from itertools import product

    return product(range(base), repeat=length)


def _check_world(world: str) -> None:
    if world not in ("A", "B"):
        raise InvalidArgument(f"world must be 'A' or 'B', got {world!r}")
