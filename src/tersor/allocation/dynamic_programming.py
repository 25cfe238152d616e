"""Multiple-choice knapsack: minimise summed value, one level a unit, with summed weight at most a capacity.

Generic in what is value and what is weight: the allocator minimises error under a cost and cost under an error with the same code.
Tables are ``[units, levels]``; a level that does not exist has infinite (or ``NEVER``) weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.allocation.menus import Ints

Table = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """Weights rounded up to multiples of ``step`` above the lightest level of each unit.

    Rounding up keeps every solution within the real capacity. A unit loses less than one step, so the solution is at least as good as
    the optimum for a capacity smaller by ``units * step``; with ``exact`` nothing is lost.
    """

    weights: Ints
    capacity: int
    step: float
    exact: bool


def make_grid(weight: Table, capacity: float, buckets: int) -> Grid:
    """Round ``weight`` to at most ``buckets`` steps; exactly where integer weights have a common divisor that allows it."""
    lightest = weight.min(axis=1)
    room = capacity - lightest.sum()
    extra = weight - lightest[:, None]
    fits = extra <= room
    if np.issubdtype(weight.dtype, np.integer):
        divisor = int(np.gcd.reduce(extra[fits])) or 1
        step: float = divisor * max(1, -(-int(room) // (divisor * buckets)))
        scaled = np.where(fits, -(-extra // step), 0)
        whole, exact = int(room // step), step == divisor
    else:
        step = room / buckets if room > 0 else 1.0
        scaled = np.ceil(np.where(fits, extra, 0) / step)
        whole, exact = (buckets if room > 0 else 0), bool((extra[fits] == 0).all())
    return Grid(np.where(fits, scaled, whole + 1).astype(np.int64), whole, float(step), exact)


def solve_grid(value: Table, grid: Grid) -> Ints:
    """Optimal levels on the grid, ``[units]``, by dynamic programming over capacities with parent pointers.

    Time and memory are units x levels x capacity steps and one byte a unit and capacity step.
    """
    units, levels = value.shape
    best = np.zeros(grid.capacity + 1)
    pointers = np.zeros((units, grid.capacity + 1), dtype=np.uint8 if levels <= 256 else np.int32)
    for unit in range(units):
        table = np.full(grid.capacity + 1, np.inf)
        for level in np.flatnonzero(grid.weights[unit] <= grid.capacity):
            shift = int(grid.weights[unit, level])
            candidate = best[: grid.capacity + 1 - shift] + value[unit, level]
            better = candidate < table[shift:]
            np.copyto(table[shift:], candidate, where=better)
            pointers[unit, shift:][better] = level
        best = table
    chosen = np.zeros(units, dtype=np.int64)
    at = grid.capacity
    for unit in range(units - 1, -1, -1):
        chosen[unit] = pointers[unit, at]
        at -= int(grid.weights[unit, chosen[unit]])
    return chosen


def multiplier(value: Table, weight: Table, capacity: float) -> tuple[float, float]:
    """The price of weight that gives the best Lagrangian bound.

    Returns:
        ``(price, bound)``: no feasible solution has a summed value below ``bound``.
    """
    exists = weight <= capacity
    value, weight = np.where(exists, value, np.inf).astype(float), np.where(exists, weight, 0).astype(float)

    def dual(price: float) -> tuple[float, float]:
        priced = value + price * weight
        picked = priced.argmin(axis=1)[:, None]
        used = float(np.take_along_axis(weight, picked, 1).sum())
        return float(np.take_along_axis(priced, picked, 1).sum()) - price * capacity, used

    low, high = 0.0, 1.0
    best = dual(0.0)[0], 0.0
    if dual(0.0)[1] <= capacity:
        return 0.0, best[0]
    while dual(high)[1] > capacity and high < 1e300:
        low, high = high, high * 16
    for _ in range(100):
        middle = math.sqrt(low * high) if low > 0 else high / 16
        bound, used = dual(middle)
        best = max(best, (bound, middle))
        if used > capacity:
            low = middle
        else:
            high = middle
        if low > 0 and high / low < 1 + 1e-12:
            break
    return best[1], best[0]


def solve_pareto(value: Table, weight: Table, capacity: float, above: float, max_states: int) -> list[Ints] | None:
    """Every Pareto-optimal solution whose value can still be at most ``above``, by merging lists of states unit by unit.

    Dominated states go, and so do those whose Lagrangian bound exceeds ``above``. Exact; the lists stay short except on adversarial
    tables.

    Returns:
        Levels ``[units]`` of the final states, smallest value first, or ``None`` if a list grew beyond ``max_states``.
    """
    lightest = weight.min(axis=1)
    extra, room = weight - lightest[:, None], capacity - lightest.sum()
    price, _ = multiplier(value, extra, room)
    # Room for rounding: sums in another order than the caller's must neither lose the optimum nor a state that just fits.
    ceiling = above + 1e-9 * (abs(above) + price * float(room))
    limit = room if np.issubdtype(extra.dtype, np.integer) else room + 1e-12 * abs(capacity)
    priced = np.where(extra <= room, value + price * np.where(extra <= room, extra, 0), np.inf).min(axis=1)
    remaining = np.concatenate([np.cumsum(priced[::-1])[::-1][1:], [0.0]])
    weights, values = np.zeros(1, dtype=extra.dtype), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []
    for unit in range(len(weight)):
        options = np.flatnonzero(extra[unit] <= limit)
        weights_next = (weights[:, None] + extra[unit, options]).ravel()
        values_next = (values[:, None] + value[unit, options]).ravel()
        bound = values_next + remaining[unit] - price * (room - weights_next)
        kept = np.flatnonzero((weights_next <= limit) & (bound <= ceiling))
        kept = kept[np.lexsort((values_next[kept], weights_next[kept]))]
        lowest = np.minimum.accumulate(values_next[kept])
        kept = kept[np.concatenate([[True], values_next[kept][1:] < lowest[:-1]])] if kept.size else kept
        if kept.size > max_states:
            return None
        weights, values = weights_next[kept], values_next[kept]
        trail.append((kept // len(options), options[kept % len(options)]))
    return _unwind(trail, np.argsort(values, kind="stable"))


def _unwind(trail: list[tuple[Ints, Ints]], states: Ints) -> list[Ints]:
    solutions = np.zeros((len(states), len(trail)), dtype=np.int64)
    for unit in range(len(trail) - 1, -1, -1):
        parents, levels = trail[unit]
        solutions[:, unit] = levels[states]
        states = parents[states]
    return list(solutions)
