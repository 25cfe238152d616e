"""Constants of the chain function: suprema of its pieces and of its derivatives, in closed form."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial import hermite_e as hermite

from tersor.layerwise.checking import check_integer

# F_T(0) - inf F_T is at most this times T: each of the T terms is above -sup Ψ sup Φ = -e sqrt(2 pi e) > -11.24.
GAP = 12.0
# No coordinate of the gradient exceeds this: sup Ψ sup Φ' + sup Ψ' sup Φ = 22.9.
LARGEST_PARTIAL = 23.0
# Lipschitz constant of the gradient in the papers: that of smoothness_constant(1), 151.3, rounded up.
SMOOTHNESS = 152.0
# The stochastic gradient of the smooth variant is mean-squared smooth with this over sqrt(q) (Arjevani et al., Lemma 4; not re-derived).
MEAN_SQUARED_SMOOTHNESS = 328.0


@cache
def step_supremum(order: int) -> float:
    """Supremum of the magnitude of the derivative of ``order`` of ``Ψ(x) = exp(1 - 1 / (2 x - 1)^2)``, ``x > 1/2``.

    With ``u = 1 / (2 x - 1)`` every derivative is ``e P(u) exp(-u^2)`` for a polynomial ``P``, and its extrema are the roots of the next.
    """
    check_integer("order", order, 0)
    polynomial = _step_polynomial(order)
    if order == 0:
        return math.e
    points = _real_roots(_step_polynomial(order + 1))
    return float(max(math.e * abs(polynomial(u)) * math.exp(-u * u) for u in points if u > 0))


@cache
def ramp_supremum(order: int) -> float:
    """Supremum of the magnitude of the derivative of ``order`` of ``Φ(x) = sqrt(e)`` times the integral of ``exp(-t^2 / 2)``."""
    check_integer("order", order, 0)
    if order == 0:
        return math.sqrt(2 * math.pi * math.e)
    polynomial = hermite.HermiteE.basis(order - 1)
    roots = [0.0] if order == 1 else np.real(hermite.HermiteE.basis(order).roots()).tolist()
    values: list[float] = [math.exp(0.5) * abs(float(polynomial(x))) * math.exp(-x * x / 2) for x in roots]
    return max(values)


@cache
def smoothness_constant(order: int) -> float:
    """A Lipschitz constant, independent of ``T``, of the derivative of ``order`` of the chain function.

    The chain is a sum of ``g(x_{i-1}, x_i)``, so its derivative of order ``m = order + 1`` along a unit vector ``v`` is at most
    ``sum_k C(m, k) sup|Ψ^(k)| sup|Φ^(m-k)| sum_i |v_{i-1}|^k |v_i|^(m-k)``, and the inner sum is at most 1 for ``m >= 2``. For order 1 the
    papers' 152 is returned, which is this sum, 151.3, rounded up.
    """
    check_integer("order", order, 1, 12)
    return SMOOTHNESS if order == 1 else derivative_bound(order + 1)


def derivative_bound(m: int) -> float:
    """The sum of :func:`smoothness_constant` for the derivative of order ``m``."""
    return math.fsum(math.comb(m, k) * step_supremum(k) * ramp_supremum(m - k) for k in range(m + 1))


@cache
def _step_polynomial(order: int) -> Polynomial:
    if order == 0:
        return Polynomial([1.0])
    previous = _step_polynomial(order - 1)
    u = Polynomial([0.0, 1.0])
    return -2 * u**2 * (previous.deriv() - 2 * u * previous)


def _real_roots(polynomial: Polynomial) -> list[float]:
    roots = [complex(root) for root in polynomial.roots()]
    return [root.real for root in roots if abs(root.imag) < 1e-9 * max(1.0, abs(root))]
