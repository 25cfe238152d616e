"""Intervals by drawing the items again, the model's and the original's answer to an item always together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tersor.errors import InvalidArgument

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the range that holds it in 95 % of the resamples.

    Attributes:
        value: Measured on all items.
        low: 2.5th percentile; equal to the value where items cannot tell.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Paired:
    """Two models on the same items.

    Attributes:
        score: Weighted mean of the model.
        reference: Of the original.
        difference: ``score - reference``.
        ratio: ``score / reference``; ``None`` where the original scores 0.
    """

    score: Interval
    reference: Interval
    difference: Interval
    ratio: Interval | None


def bootstrap(own: Tensor, reference: Tensor, weights: Tensor, resamples: int = 2000, seed: int = 0) -> Paired:
    """Percentile intervals of both means, their difference and their ratio.

    Items are drawn with replacement, and both answers to an item come along: models share most of their luck with the items, so the
    interval of the difference is much narrower than two intervals side by side suggest.

    Args:
        own: Scores ``[n]`` of the model.
        reference: Scores ``[n]`` of the original on the same items.
        weights: ``[n]``, above 0: how many items of a pool each stands for.
        resamples: At least 1.
        seed: Of the draws.

    Raises:
        InvalidArgument: If the lengths differ, there are no items, or a weight is not above 0.

    Reference:
        Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapter 13.
    """
    first, second, weight = (np.asarray(values.double()) for values in (own, reference, weights))
    if not len(first) or not first.shape == second.shape == weight.shape:
        raise InvalidArgument(f"paired items need equal lengths of at least 1, got {first.shape}, {second.shape} and {weight.shape}")
    if resamples < 1 or not (weight > 0).all() or not np.isfinite([*first, *second, *weight]).all():
        raise InvalidArgument("a bootstrap needs at least 1 resample, finite scores and weights above 0")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(first), size=(resamples, len(first)))
    total = weight[drawn].sum(1)
    means = (weight * first)[drawn].sum(1) / total, (weight * second)[drawn].sum(1) / total
    own_mean, reference_mean = (float((weight * values).sum() / weight.sum()) for values in (first, second))
    defined = means[1] > 0
    ratios = means[0][defined] / means[1][defined]
    return Paired(
        _interval(own_mean, means[0]), _interval(reference_mean, means[1]), _interval(own_mean - reference_mean, means[0] - means[1]),
        _interval(own_mean / reference_mean, ratios) if reference_mean > 0 else None,
    )  # fmt: skip


def _interval(value: float, drawn: np.ndarray) -> Interval:
    if not len(drawn):
        return Interval(value, value, value)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # Rounding of sums in another order must not put the value outside.
    return Interval(value, min(float(low), value), max(float(high), value))
