"""Choosing the band of a network with frozen random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_number
from tersor.limits.bandlimited.bounds import norm_needed
from tersor.limits.bandlimited.features import mean_gram
from tersor.limits.checking import check_array, optional

Criterion = Literal["loo", "bound"]
DEFAULT_BANDWIDTHS = tuple(float(2.0**power) for power in range(-5, 8))


@dataclass(frozen=True)
class Selection:
    """A chosen bandwidth.

    Attributes:
        bandwidth: The choice.
        scores: Score of every bandwidth of the grid: the error of leaving one out, or the norm of the coefficients that is needed.
    """

    bandwidth: float
    scores: dict[float, float]


def select_bandwidth(
    inputs: Any, targets: Any, *, bandwidths: Sequence[float] = DEFAULT_BANDWIDTHS, criterion: Criterion = "loo", tolerance: float = 0.05,
    radius: float = 100.0, draws: int = 1, seed: int = 0, **options: Any,
) -> Selection:  # fmt: skip
    """The bandwidth of a grid that suits the data.

    Args:
        inputs: ``[n, d]``.
        targets: ``[n]``; for ``"loo"`` also ``[n, m]``.
        bandwidths: The grid, positive.
        criterion: ``"loo"`` for the least error of leaving one row out, which is exact and costs one decomposition each; ``"bound"``
            for the smallest bandwidth with which coefficients of norm ``radius`` can reach a relative error of ``tolerance`` at
            infinite width, and where none can, the one that needs the smallest norm.
        tolerance: Relative error to reach, for ``"bound"``.
        radius: Norm of the coefficients in units of the targets' deviation, for ``"bound"``.
        draws: Networks averaged over, for ``"loo"``.
        seed: Of the draws; the networks of one seed share theirs over the grid.
        **options: Of :class:`RandomNet`, such as ``width`` and ``activation``.

    Raises:
        InvalidArgument: On an empty grid or an argument out of range.
    """
    points = check_array("inputs", inputs, 2)
    grid = [check_number("a bandwidth", value, float(np.finfo(float).tiny)) for value in bandwidths]
    if not grid:
        raise InvalidArgument("bandwidths must hold at least one bandwidth")
    check_choice("criterion", criterion, Criterion)
    if criterion == "loo":
        optional("sklearn")
        from tersor.limits.bandlimited.random_net import RandomNet

        scores = {
            width: float(np.mean([
                RandomNet(bandwidth=width, random_state=seed + draw, **options).fit(points, targets).loo_error_ for draw in range(draws)
            ])) for width in grid
        }  # fmt: skip
        return Selection(min(scores, key=scores.__getitem__), scores)
    values = check_array("targets", targets, 1, (len(points),))
    deviation = float(values.std())
    if deviation == 0:
        raise InvalidArgument("targets must not be constant")
    standard = (points - points.mean(0)) / np.where(points.std(0) > 0, points.std(0), 1.0)
    wanted = (values - values.mean()) / deviation
    activation = options.get("activation", "tanh")
    needed = {
        width: norm_needed(mean_gram(standard, bandwidth=width, activation=activation, samples=4096, seed=seed), wanted, tolerance)
        for width in grid
    }
    enough = [width for width, norm in needed.items() if norm <= radius]
    return Selection(min(enough) if enough else min(needed, key=needed.__getitem__), needed)
