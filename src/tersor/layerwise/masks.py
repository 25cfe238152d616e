"""Choosing exactly as many weights as asked, and no tie more."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument


def check_sparsity(sparsity: float | None, keep_n: int | None, of_m: int | None, in_features: int) -> None:
    """Refuse what is not either a sparsity in [0, 1) or a pattern of ``keep_n`` kept ``of_m`` neighbours.

    Raises:
        InvalidArgument: Naming the option, what was given and what is allowed.
    """
    if (keep_n is None) != (of_m is None):
        raise InvalidArgument("keep_n and of_m go together, for example keep_n=2, of_m=4")
    if keep_n is not None and of_m is not None:
        if sparsity is not None:
            raise InvalidArgument("give sparsity, or keep_n and of_m, not both")
        if not 1 <= keep_n <= of_m:
            raise InvalidArgument(f"keep_n must be from 1 to of_m, got keep_n={keep_n}, of_m={of_m}")
        if in_features % of_m:
            raise InvalidArgument(f"of_m={of_m} does not divide the {in_features} input features")
    elif sparsity is None:
        raise InvalidArgument("say what to remove: sparsity, or keep_n and of_m")
    elif not 0 <= sparsity < 1:
        raise InvalidArgument(f"sparsity is the fraction to remove, at least 0 and below 1, got {sparsity}")


def lowest_mask(scores: Tensor, count: int) -> Tensor:
    """True except at the ``count`` lowest scores of each row, ties broken by position, so that the number is exact.

    Args:
        scores: ``[rows, n]``.
        count: From 0 to ``n``.
    """
    keep = torch.ones(scores.shape, dtype=torch.bool)
    if count:
        keep.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], False)
    return keep


def pattern_mask(scores: Tensor, keep_n: int, of_m: int) -> Tensor:
    """True at the ``keep_n`` highest scores of every ``of_m`` neighbours in a row of ``scores`` ``[rows, n]``."""
    runs = scores.reshape(-1, of_m)
    return lowest_mask(runs, of_m - keep_n).reshape(scores.shape)
