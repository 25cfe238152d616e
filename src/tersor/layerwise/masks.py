"""Which weights a pruning method keeps: exact counts, never a threshold that ties could break."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.weights import SparseWeight

ValueType = Literal["float16", "bfloat16", "float32"]
_DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True)
class Pattern:
    """Unstructured sparsity, or N:M: keep ``keep_n`` of every ``of_m`` neighbouring inputs.

    Attributes:
        sparsity: Fraction removed.
        keep_n: Kept of each group; 0 when unstructured.
        of_m: Inputs in a group; 1 when unstructured.
    """

    sparsity: float
    keep_n: int = 0
    of_m: int = 1

    @classmethod
    def of(cls, in_features: int, sparsity: float | None, keep_n: int | None, of_m: int | None) -> Pattern:
        """The pattern that the options of a pruning method ask for; half the weights if they say nothing.

        Raises:
            InvalidArgument: If they contradict each other, are out of range, or ``of_m`` does not divide the inputs.
        """
        if (keep_n is None) != (of_m is None):
            raise InvalidArgument("keep_n and of_m go together (2 and 4 for 2:4); give both or neither")
        if keep_n is None or of_m is None:
            return cls(check_number("sparsity", _DEFAULT_SPARSITY if sparsity is None else sparsity, 0.0, 1.0))
        if sparsity is not None:
            raise InvalidArgument("give sparsity or keep_n and of_m, not both")
        check_integer("of_m", of_m, 2)
        check_integer("keep_n", keep_n, 1, of_m - 1)
        if in_features % of_m:
            raise InvalidArgument(f"{keep_n}:{of_m} sparsity needs of_m to divide the {in_features} input features; {of_m} does not")
        return cls(1 - keep_n / of_m, keep_n, of_m)

    @property
    def is_grouped(self) -> bool:
        """Whether this is an N:M pattern."""
        return self.of_m > 1

    def keep_by_row(self, score: Tensor) -> Tensor:
        """Mask that removes ``round(sparsity * in_features)`` of the lowest ``score`` in every row, or follows N:M."""
        if self.is_grouped:
            return self.keep_in_groups(score)
        mask = torch.ones_like(score, dtype=torch.bool)
        removed = torch.argsort(score, dim=1, stable=True)[:, : round(self.sparsity * score.shape[1])]
        return mask.scatter_(1, removed, False)

    def keep_in_matrix(self, score: Tensor) -> Tensor:
        """Mask that removes ``round(sparsity * numel)`` of the lowest ``score`` of the matrix, or follows N:M."""
        return self.keep_in_groups(score) if self.is_grouped else keep_highest(score, round(self.sparsity * score.numel()))

    def keep_in_groups(self, score: Tensor) -> Tensor:
        """Mask that keeps the ``keep_n`` of highest ``score`` in every ``of_m`` neighbours of a row."""
        groups = score.reshape(score.shape[0], -1, self.of_m)
        removed = torch.argsort(groups, dim=-1, stable=True)[..., : self.of_m - self.keep_n]
        return torch.ones_like(groups, dtype=torch.bool).scatter_(-1, removed, False).flatten(1)

    def store(self, values: Tensor, mask: Tensor, value_dtype: ValueType) -> SparseWeight:
        """The sparse weight of ``values`` where ``mask`` is true."""
        keep_n, of_m = (self.keep_n, self.of_m) if self.is_grouped else (None, None)
        return SparseWeight.from_dense(values, mask, getattr(torch, value_dtype), keep_n=keep_n, of_m=of_m)


def keep_highest(score: Tensor, removed: int) -> Tensor:
    """Mask that removes exactly ``removed`` entries of the lowest ``score``; of equal ones, those that come first."""
    flat = score.flatten()
    if removed == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = flat.kthvalue(removed).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    kept_ties = flat.numel() - removed - int(mask.sum())
    mask[ties[ties.numel() - kept_ties :]] = True
    return mask.view(score.shape)
