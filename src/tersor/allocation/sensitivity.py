"""How much each unit matters to the whole model, measured once: the link between layer errors and what they do."""

from __future__ import annotations

import statistics
from dataclasses import replace

from tersor.allocation.problem import Fitness, Problem

# A unit whose measured effect drowns in the noise of the minibatch is not free: it counts this share of the middle unit.
_LEAST = 0.05


def with_sensitivities(problem: Problem, fitness: Fitness, *, tokens: int, seed: int) -> Problem:
    """``problem`` with every unit's errors scaled so that they add up in the units of ``fitness``.

    Relative layer errors weigh every layer alike, a key projection like an embedding table. Here each unit (or fused group) alone is put
    to its cheapest choice while all others stay at their best, and the rise of the fitness sets the scale of its errors. Interactions are
    still not seen: that is what :func:`tersor.allocation.evopress` is for.

    Args:
        problem: Units with errors on a scale of their own.
        fitness: Judges candidates; called once with a candidate a unit and one for the start.
        tokens: Size of the minibatch.
        seed: Draws it.
    """
    merged, expand = problem.merged()
    best = [min(zip(unit.errors, unit.costs, range(len(unit.costs)), strict=True))[2] for unit in merged.units]
    cheap = [min(zip(unit.costs, unit.errors, range(len(unit.costs)), strict=True))[2] for unit in merged.units]
    start = expand(tuple(best))
    alone = [expand((*best[:index], choice, *best[index + 1 :])) for index, choice in enumerate(cheap)]
    first, *values = fitness([start, *alone], parent=start, tokens=tokens, seed=seed)
    rises = [value - first for value in values]
    least = _LEAST * statistics.median([rise for rise in rises if rise > 0] or [1.0])
    scales = []
    for unit, rise, low, high in zip(merged.units, rises, cheap, best, strict=True):
        span = unit.errors[low] - unit.errors[high]
        scales.append(max(rise, least) / span if span > 0 else 1.0)
    scale_of = dict(zip([unit.name for unit in merged.units], scales, strict=True))
    names = [f"fused:{unit.fused}" if unit.fused is not None else f"unit:{unit.name}" for unit in problem.units]
    scaled = (tuple(error * scale_of[name] for error in unit.errors) for unit, name in zip(problem.units, names, strict=True))
    return replace(problem, units=tuple(replace(unit, errors=errors) for unit, errors in zip(problem.units, scaled, strict=True)))
