"""How well sparse regression can be done in the local model, as orders in n, d, k and epsilon."""

from __future__ import annotations

import math
from typing import Literal

from tersor.errors import InvalidArgument
from tersor.information.ldp_regression.privacy import check_epsilon
from tersor.layerwise.checking import check_choice, check_integer

RateKind = Literal["nldp_lower", "nldp_upper", "nldp_public_upper", "interactive_lower", "interactive_upper", "non_private"]


def error_rate(kind: RateKind, n: int, d: int, k: int, epsilon: float) -> float:
    """The order of the Euclidean error, constants and logarithms of upper bounds left out, never more than 1, the length of the truth.

    Args:
        kind: ``"nldp_lower"``: ``sqrt(d k log d) / (sqrt(n) epsilon)`` is the least if every user sends one message without hearing
            anything first. ``"nldp_upper"``: ``d sqrt(k) / (sqrt(n) epsilon)`` is reached. ``"nldp_public_upper"``:
            ``sqrt(d k) / (sqrt(n) epsilon)`` is reached where inputs without targets are public. ``"interactive_lower"`` and
            ``"interactive_upper"``: ``sqrt(d k)`` and ``k sqrt(d)`` over the same, if users may hear what earlier ones led to.
            ``"non_private"``: ``sqrt(k log d / n)``.
        n: Users.
        d: Features.
        k: Features that matter.
        epsilon: Of differential privacy.

    Returns:
        The order.

    Raises:
        InvalidArgument: If a number is out of range.

    Reference:
        Zhu, Ding, Aggarwal, Xu, Wang: "Improved Analysis of Sparse Linear Regression in Local Differential Privacy Model", 2024.
    """
    check_choice("kind", kind, RateKind)
    for name, value in (("n", n), ("d", d), ("k", k)):
        check_integer(name, value, 1)
    if k > d:
        raise InvalidArgument(f"k must be at most d = {d}, got {k}")
    check_epsilon(epsilon)
    logarithm = math.log(max(d, 2))
    orders = {
        "nldp_lower": math.sqrt(d * k * logarithm), "nldp_upper": d * math.sqrt(k), "nldp_public_upper": math.sqrt(d * k),
        "interactive_lower": math.sqrt(d * k), "interactive_upper": k * math.sqrt(d), "non_private": math.sqrt(k * logarithm) * epsilon,
    }  # fmt: skip
    return min(orders[kind] / (math.sqrt(n) * epsilon), 1.0)
