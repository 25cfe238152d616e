"""What every method refuses at its door, in the same words."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.stats import LayerStats
from tersor.weights import check_matrix


def check_weight(weight: Tensor, stats: LayerStats | None) -> Tensor:
    """``weight`` as an own-typed float32 matrix without a gradient; the caller's tensor is never written to.

    Raises:
        InvalidArgument: If it is not a finite matrix, or ``stats`` describe inputs of another width or hold NaN.
    """
    check_matrix(weight)
    if stats is not None:
        if stats.in_features != weight.shape[1]:
            raise InvalidArgument(
                f"the statistics describe {stats.in_features} input features, the weight of shape {tuple(weight.shape)} has "
                f"{weight.shape[1]}; pass the statistics of this layer"
            )
        if not torch.isfinite(stats.hessian).all() or not torch.isfinite(stats.mean_abs).all():
            raise InvalidArgument("the statistics hold NaN or Inf; collect them again from a sound model")
    return weight.detach().float()


def check_stats(method: str, stats: LayerStats | None) -> LayerStats:
    """``stats``, which ``method`` cannot do without.

    Raises:
        InvalidArgument: If they are missing.
    """
    if stats is None:
        raise InvalidArgument(f"{method} needs the statistics of the layer's inputs; pass stats=LayerStats.from_inputs(...)")
    return stats


def check_choice(name: str, value: object, literal: object) -> None:
    """Refuse a ``value`` that is not in the ``Literal`` type ``literal``.

    Raises:
        InvalidArgument: Listing what is allowed.
    """
    allowed = get_args(literal)
    if value not in allowed:
        raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_integer(name: str, value: object, lowest: int, highest: int | None = None) -> int:
    """``value`` as an int from ``lowest`` to ``highest``.

    Raises:
        InvalidArgument: If it is of another type or out of range.
    """
    span = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest or (highest is not None and value > highest):
        raise InvalidArgument(f"{name} must be an integer {span}, got {value!r}")
    return value


def check_number(name: str, value: object, lowest: float, highest: float = math.inf) -> float:
    """``value`` as a float with ``lowest <= value < highest``.

    Raises:
        InvalidArgument: If it is not a number or out of range.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not lowest <= float(value) < highest:  # type: ignore[arg-type]
        span = f"at least {lowest:g}" + (f" and below {highest:g}" if highest < math.inf else "")
        raise InvalidArgument(f"{name} must be a number of {span}, got {value!r}")
    return float(value)  # type: ignore[arg-type]
