"""Means with standard errors that know that the tokens of one window are not independent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class Estimate:
    """A mean and how far it may be off.

    Attributes:
        value: The estimate.
        stderr: Its standard error; ``None`` where one window or question alone cannot tell.
    """

    value: float
    stderr: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" if self.stderr is None else f"{self.value:.4g} ± {self.stderr:.2g}"


def cluster_mean(sums: Tensor, counts: Tensor) -> Estimate:
    """Mean over tokens of a quantity summed by window, with the standard error of a ratio of sums over independent windows.

    Neighbouring tokens share their context, so the error is taken between windows; a plain standard error over tokens is too small.

    Args:
        sums: Sum of the quantity in each window, ``[n_windows]``.
        counts: Tokens in each window, ``[n_windows]``.

    Reference:
        Cochran, "Sampling Techniques", 3rd edition, section 6.4 (1977).
    """
    sums, counts = sums.double(), counts.double()
    total = float(counts.sum())
    if total <= 0:
        raise InvalidArgument("a mean needs at least one scored token")
    mean = float(sums.sum()) / total
    n = sums.shape[0]
    if n < 2 or not math.isfinite(mean):
        return Estimate(mean)
    residuals = sums - mean * counts
    return Estimate(mean, math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total)


def proportion(right: Tensor) -> Estimate:
    """Share of true entries in ``right`` ``[n]``, with its binomial standard error."""
    if right.numel() == 0:
        raise InvalidArgument("a share needs at least one question")
    return cluster_mean(right.double(), torch.ones(right.shape[0]))


def exponential(log: Estimate) -> Estimate:
    """``exp`` of an estimate, its error propagated to first order; infinite where it does not fit a float."""
    value = math.exp(log.value) if log.value < 700 else math.inf if not math.isnan(log.value) else math.nan
    return Estimate(value, None if log.stderr is None or not math.isfinite(value) else value * log.stderr)


def finite(value: float | None) -> float | None:
    """``value``, or ``None`` where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None
