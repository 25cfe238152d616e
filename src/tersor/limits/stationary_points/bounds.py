"""How many oracle calls no algorithm can do without: calculators with the constants of the classical proofs."""

from __future__ import annotations

import math

from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.stationary_points.constants import GAP, LARGEST_PARTIAL, MEAN_SQUARED_SMOOTHNESS, SMOOTHNESS, smoothness_constant

_TINY = math.ulp(0.0)


def chain_scale(order: int, smoothness: float, eps: float) -> float:
    """``s = (l_p eps / L_p)^(1/p)``, at which the gradient of the scaled chain is above ``eps`` until its end is found."""
    return (smoothness_constant(order) * eps / smoothness) ** (1 / order)


def query_lower_bound(*, order: int = 1, smoothness: float = 1.0, gap: float = 1.0, eps: float = 1e-3) -> float:
    """Calls of an oracle for all derivatives up to ``order`` before any point has a gradient of norm at most ``eps``.

    ``floor(gap / 12 (L / l_p)^(1/p) eps^(-(1+p)/p))``: for deterministic algorithms by a resisting oracle, for randomised ones up to a
    constant factor, and for quantum algorithms the same order.

    Args:
        order: ``p``, derivatives that the oracle answers with.
        smoothness: Lipschitz constant of the derivative of that order.
        gap: ``f(start) - inf f``.
        eps: Gradient norm to reach.

    Returns:
        The number of calls, a whole number as a float; 0 where the bound says nothing.

    Raises:
        InvalidArgument: On an argument that is not positive and finite.

    Reference:
        Carmon, Duchi, Hinder, Sidford: "Lower Bounds for Finding Stationary Points I", 2017.
        Zhang, Li: "Quantum Lower Bounds for Finding Stationary Points of Nonconvex Functions", 2023.
    """
    check_integer("order", order, 1, 12)
    _positive(smoothness=smoothness, gap=gap, eps=eps)
    # The small excess forgives rounding where the quotient is a whole number by construction.
    return float(math.floor(gap / (GAP * eps * chain_scale(order, smoothness, eps)) * (1 + 1e-12)))


def stochastic_lower_bound(
    *, smoothness: float = 1.0, gap: float = 1.0, eps: float = 1e-3, sigma: float = 1.0, failure: float = 0.5
) -> dict[str, float]:
    """Calls of an unbiased gradient oracle of variance ``sigma^2``: order ``gap L sigma^2 / eps^4``.

    Args:
        smoothness: Lipschitz constant of the gradient.
        gap: ``f(start) - inf f``.
        eps: Expected gradient norm to reach.
        sigma: Root of the variance of the oracle's answers.
        failure: Probability with which the bound may fail for one run of a zero-respecting algorithm.

    Returns:
        ``bound`` in calls; ``length`` of the chain and ``probability`` with which an answer shows its next coordinate.

    Raises:
        InvalidArgument: On an argument that is not positive and finite, or a failure not in (0, 1).

    Reference:
        Arjevani, Carmon, Duchi, Foster, Srebro, Woodworth: "Lower Bounds for Non-Convex Stochastic Optimization", 2019.
    """
    _positive(smoothness=smoothness, gap=gap, eps=eps, sigma=sigma)
    check_number("failure", failure, _TINY, 1.0)
    length = math.floor(smoothness * gap / (4 * GAP * SMOOTHNESS * eps**2) * (1 + 1e-12))
    probability = min(1.0, (2 * LARGEST_PARTIAL * eps / sigma) ** 2)
    return {"bound": max(0.0, (length - math.log(1 / failure)) / (2 * probability)), "length": float(length), "probability": probability}


def mean_squared_lower_bound(
    *, smoothness: float = 1.0, gap: float = 1.0, eps: float = 1e-3, sigma: float = 1.0, failure: float = 0.5
) -> dict[str, float]:
    """As :func:`stochastic_lower_bound` for oracles with ``E |g(x, z) - g(y, z)|^2 <= L^2 |x - y|^2``: order ``gap L sigma / eps^3``.

    Args:
        smoothness: The mean-squared constant ``L``.
        gap: ``f(start) - inf f``.
        eps: Expected gradient norm to reach.
        sigma: Root of the variance of the oracle's answers.
        failure: Probability with which the bound may fail for one run of a zero-respecting algorithm.

    Returns:
        ``bound`` in calls; ``length`` of the chain and ``probability`` with which an answer shows its next coordinate.

    Raises:
        InvalidArgument: On an argument that is not positive and finite, or a failure not in (0, 1).

    Reference:
        Arjevani, Carmon, Duchi, Foster, Srebro, Woodworth: "Lower Bounds for Non-Convex Stochastic Optimization", 2019.
    """
    _positive(smoothness=smoothness, gap=gap, eps=eps, sigma=sigma)
    probability = min(1.0, (2 * LARGEST_PARTIAL * eps / sigma) ** 2)
    # Noise takes smoothness: this is what is left for the function itself.
    left = smoothness * min(1.0, SMOOTHNESS * math.sqrt(probability) / MEAN_SQUARED_SMOOTHNESS)
    return stochastic_lower_bound(smoothness=left, gap=gap, eps=eps, sigma=sigma, failure=failure)


def required_dimension(length: int, failure: float = 0.5) -> float:
    """Dimensions in which a random rotation hides a chain from any randomised algorithm: ``52 230^2 T^2 log(2 T^2 / failure)``.

    Polynomially large, so the bounds do not contradict faster algorithms whose cost grows with the dimension. The resisting oracle of
    :class:`ResistingOracle`, for deterministic algorithms, needs only ``2 T``.

    Raises:
        InvalidArgument: On a length below 1, or a failure not in (0, 1).

    Reference:
        Arjevani, Carmon, Duchi, Foster, Srebro, Woodworth: "Lower Bounds for Non-Convex Stochastic Optimization", 2019; the constants as
        recalled, not re-derived.
    """
    check_integer("length", length, 1)
    check_number("failure", failure, _TINY, 1.0)
    return math.ceil(52 * 230**2 * length**2 * math.log(2 * length**2 / failure))


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        check_number(name, value, _TINY)
