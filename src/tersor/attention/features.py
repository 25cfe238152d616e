"""Monomials as features: a polynomial of a product of several vectors becomes one inner product."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number

# Beyond this degree the remainder of a logit bound that any float can serve has long vanished.
_HIGHEST = 400


def feature_count(d: int, degree: int) -> int:
    """The number of monomials of at most ``degree`` in ``d`` variables, ``C(d + degree, degree)``."""
    return math.comb(check_integer("d", d, 1) + check_integer("degree", degree, 0), degree)


def poly_features(x: Tensor, degree: int) -> Tensor:
    """All monomials of at most ``degree`` in the entries of each row, by rising degree.

    Args:
        x: ``[..., d]``.
        degree: At least 0.

    Returns:
        ``[..., feature_count(d, degree)]``; with :func:`taylor_coefficients` for weights, the inner product of the features of several
        rows is the Taylor polynomial of ``exp`` at the sum of the products of their entries.
    """
    parents = _parents(x.shape[-1], check_integer("degree", degree, 0))
    levels = [torch.ones_like(x[..., :1])]
    for parent, variable in parents:
        levels.append(levels[-1][..., parent] * x[..., variable])
    return torch.cat(levels, -1)


def taylor_coefficients(d: int, degree: int) -> Tensor:
    """Of each monomial ``a`` in the Taylor polynomial of ``exp(x_1 + ... + x_d)``: ``1 / (a_1! ... a_d!)``, float64."""
    levels = [torch.ones(1, dtype=torch.float64)]
    exponents = torch.zeros(1, d, dtype=torch.long)
    for parent, variable in _parents(d, degree):
        index = torch.arange(len(variable))
        exponents = exponents[parent].clone()
        exponents[index, variable] += 1
        levels.append(levels[-1][parent] / exponents[index, variable])
    return torch.cat(levels)


def required_degree(logit_bound: float, eps: float, value_bound: float = 1.0) -> int:
    """The least even degree whose certificate promises an error of at most ``eps``.

    Even, because the Taylor polynomials of exp of even degree are positive everywhere, so that no denominator can vanish.

    Args:
        logit_bound: No logit is larger than this in magnitude.
        eps: Largest error of an output.
        value_bound: No product of values is larger than this in magnitude.

    Raises:
        InvalidArgument: If no degree will do.
    """
    check_number("logit_bound", logit_bound, 0.0)
    if not check_number("eps", eps, 0.0):
        raise InvalidArgument("eps must be above 0; method='exact' has no error but rounding")
    for degree in range(2, _HIGHEST + 1, 2):
        if truncation_error(logit_bound, degree) * value_bound <= eps:
            return degree
    raise InvalidArgument(f"logits up to {logit_bound:.3g} are too large for a polynomial of degree {_HIGHEST}; use method='exact'")


def truncation_error(logit_bound: float, degree: int) -> float:
    """Largest error of an average with the weights of the Taylor polynomial, for values of at most 1; infinite where nothing is promised.

    With ``r = exp(b) * sum_{t > degree} b^t / t!``, the relative error of a weight, it is ``2 r / (1 - r)``.

    Args:
        logit_bound: ``b``.
        degree: Of the polynomial.
    """
    if logit_bound == 0:
        return 0.0
    exponent = logit_bound + (degree + 1) * math.log(logit_bound) - math.lgamma(degree + 2)
    if exponent > 0:
        return math.inf
    term = total = math.exp(exponent)
    order = degree + 1
    while term > total * 1e-17:
        order += 1
        term *= logit_bound / order
        total += term
    return 2 * total / (1 - total) if total < 1 else math.inf


@cache
def _parents(d: int, degree: int) -> list[tuple[Tensor, Tensor]]:
    """For each degree from 1, which monomial of the degree before and which variable make each monomial."""
    levels = []
    # A monomial is extended by its last variable or a later one, so that each is made once.
    lasts = torch.zeros(1, dtype=torch.long)
    for _ in range(degree):
        parent = torch.repeat_interleave(torch.arange(len(lasts)), d - lasts)
        starts = torch.repeat_interleave((d - lasts).cumsum(0) - (d - lasts), d - lasts)
        variable = torch.arange(len(parent)) - starts + lasts[parent]
        levels.append((parent, variable))
        lasts = variable
    return levels
