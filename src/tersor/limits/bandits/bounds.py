"""How many rewards must be asked for, and how many are enough."""

from __future__ import annotations

import math

from tersor.layerwise.checking import check_integer, check_number

_TINY = math.ulp(0.0)


def query_bound(*, dimension: int = 12, sparsity: int = 2, misspecification: float = 0.1, actions: int = 0) -> float:
    """The most queries that the net search makes: ``C(d, s) (ceil(2 sqrt(s) / eps) + 1)^s``, and never more than ``actions``.

    Order ``d^s eps^-s`` at fixed ``s``, as the paper's ``exp(s)``-algorithm; the cells are those of a grid, which costs a factor
    ``s^(s/2)`` against the smallest cover.

    Args:
        dimension: ``d``, features of an action.
        sparsity: ``s``, features that matter.
        misspecification: ``eps``, how far a reward may be from linear.
        actions: Number of actions; 0 if unlimited.

    Raises:
        InvalidArgument: On an argument out of range.

    Reference:
        Dong, Yang: "Does Sparsity Help in Learning Misspecified Linear Bandits?", 2023.
    """
    check_integer("dimension", dimension, 1)
    check_integer("sparsity", sparsity, 1, dimension)
    check_number("misspecification", misspecification, _TINY)
    check_integer("actions", actions, 0)
    cells = math.ceil(2 * math.sqrt(sparsity) / misspecification) + 1
    total = math.comb(dimension, sparsity) * cells**sparsity
    return float(min(total, actions) if actions else total)


def gap_bound(*, misspecification: float = 0.1, resolution: float = 0.0, radius: float = 1.0, noise: float = 0.0) -> float:
    """How far the answer of the net search is from the best action at most: ``radius resolution + 2 eps + 2 noise``, ``3 eps`` by default.

    Args:
        misspecification: ``eps``.
        resolution: Diameter of a cell; ``eps`` if 0.
        radius: Largest norm of the unknown parameter.
        noise: Half-width of the confidence interval of an averaged reward.

    Raises:
        InvalidArgument: On an argument out of range.
    """
    check_number("misspecification", misspecification, _TINY)
    for name, value in (("resolution", resolution), ("radius", radius), ("noise", noise)):
        check_number(name, value, 0.0)
    return radius * (resolution or misspecification) + 2 * misspecification + 2 * noise


def design_gap_bound(*, misspecification: float = 0.1, sparsity: int = 2) -> float:
    """As :func:`gap_bound` for the design search, without noise: ``2 eps (1 + sqrt(2 s))``, with no ``eps^-s`` in the queries.

    Raises:
        InvalidArgument: On an argument out of range.
    """
    check_number("misspecification", misspecification, _TINY)
    check_integer("sparsity", sparsity, 1)
    return 2 * misspecification * (1 + math.sqrt(2 * sparsity))


def needle_bound(*, needles: int = 1000, sparsity: int = 200, misspecification: float = 0.1) -> dict[str, float]:
    """What a needle among ``needles`` nearly orthogonal actions costs every algorithm.

    Args:
        needles: ``k``, actions of which one pays.
        sparsity: ``s``, the coordinates in which they live.
        misspecification: ``eps``.

    Returns:
        ``queries``, expected until the needle is asked for, ``(k + 1) / 2``; ``gap`` of every other action,
        ``eps sqrt((s - 1) / (8 log k))``; and ``delta`` such that this gap is ``s^delta eps``, always below 1/2.

    Raises:
        InvalidArgument: On an argument out of range.
    """
    check_integer("needles", needles, 2)
    check_integer("sparsity", sparsity, 2)
    check_number("misspecification", misspecification, _TINY)
    ratio = math.sqrt((sparsity - 1) / (8 * math.log(needles)))
    return {"queries": (needles + 1) / 2, "gap": misspecification * ratio, "delta": math.log(ratio) / math.log(sparsity)}
