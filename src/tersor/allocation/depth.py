"""Dropping blocks or parts of them, as an allocation: every unit is kept or dropped, and the number kept is the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from tersor.allocation.problem import Choices, Problem, Unit
from tersor.errors import InvalidArgument

KEEP, DROP = 0, 1  # a protected unit has the single choice KEEP


def depth_problem(
    units: int | Sequence[str],
    drop: int,
    *,
    scores: Sequence[float] | None = None,
    blocks: Sequence[str] | None = None,
    protected: Collection[str] = (),
) -> Problem:
    """A problem whose solutions drop ``drop`` of the ``units``: choice ``KEEP`` costs one, ``DROP`` nothing.

    The same :func:`evopress` then searches blocks (one unit a block), sub-blocks (one unit for each attention and each MLP), or whole
    blocks written as their parts. :func:`evopress`, and every allocator that follows positive scores, drops exactly ``drop`` units
    (with ``blocks``, if all are of one size).

    Args:
        units: Names, or a number of units named ``"0"``, ``"1"``, ...
        drop: How many units to drop.
        scores: Additive error of dropping each unit, for example one minus the cosine between its input and output; one each by default.
        blocks: The block of each unit: the parts of a block are then dropped or kept together.
        protected: Names that must stay; with ``blocks`` their whole block stays.

    Raises:
        InvalidArgument: If the lengths differ, a protected name is unknown, or so many units cannot be dropped.
    """
    names = [str(index) for index in range(units)] if isinstance(units, int) else list(units)
    errors = [1.0] * len(names) if scores is None else list(scores)
    home = names if blocks is None else list(blocks)
    if not len(names) == len(errors) == len(home):
        raise InvalidArgument(f"scores and blocks must give one value for each of the {len(names)} units")
    unknown = sorted(set(protected) - set(names))
    if unknown:
        raise InvalidArgument(f"protected unit {unknown[0]!r} is not one of the units")
    fixed = {block for name, block in zip(names, home, strict=True) if name in protected}
    _check_reachable(drop, Counter(block for block in home if block not in fixed))
    keys: Sequence[str | None] = blocks or [None] * len(names)
    return Problem(
        tuple(
            Unit(name, (1,), (0.0,), 1, key) if block in fixed else Unit(name, (1, 0), (0.0, float(error)), 1, key)
            for name, error, block, key in zip(names, errors, home, keys, strict=True)
        ),
        len(names) - drop,
    )


def dropped(problem: Problem, choices: Choices) -> list[str]:
    """Names of the units that ``choices`` drop."""
    return [unit.name for unit, choice in zip(problem.units, choices, strict=True) if choice == DROP]


def _check_reachable(drop: int, sizes: Counter[str]) -> None:
    reachable = {0}
    for size in sizes.values():
        reachable |= {total + size for total in reachable}
    if drop not in reachable:
        near = min(reachable, key=lambda total: (abs(total - drop), total))
        raise InvalidArgument(f"exactly {drop} units cannot be dropped; the nearest number that can is {near}")
