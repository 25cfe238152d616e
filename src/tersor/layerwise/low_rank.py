"""Low rank by truncated singular values, one routine with a choice of what the inputs are weighted by."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.weights import LowRankWeight
from tersor.weights.base import check_matrix

FactorType = Literal["float16", "bfloat16", "float32"]


def rank_of(shape: tuple[int, int], keep: float | None, rank: int | None) -> int:
    """The rank that ``keep`` (fraction of the parameters) or ``rank`` asks of a matrix of ``shape``.

    Raises:
        InvalidArgument: If neither or both are given, a value is out of range, or the factors would hold as many numbers as the matrix.
    """
    rows, columns = shape
    if (keep is None) == (rank is None):
        raise InvalidArgument("give keep (fraction of the parameters to keep) or rank, one of the two")
    if keep is not None:
        if not 0 < keep <= 1:
            raise InvalidArgument(f"keep is the fraction of parameters to keep, above 0 and at most 1, got {keep}")
        return max(1, int(keep * rows * columns / (rows + columns)))
    assert rank is not None
    if not 1 <= rank <= min(rows, columns):
        raise InvalidArgument(f"rank must be from 1 to {min(rows, columns)} for a {rows}x{columns} matrix, got {rank}")
    if rank * (rows + columns) >= rows * columns:
        most = (rows * columns - 1) // (rows + columns)
        raise InvalidArgument(f"rank {rank} saves nothing on a {rows}x{columns} matrix; use at most {most} or keep the layer")
    return rank


def truncate(weight: Tensor, root: Tensor | None, rank: int, dtype: FactorType) -> LowRankWeight:
    """The rank-``rank`` matrix nearest to ``weight`` in ``||(W - W') R||_F``, as balanced factors.

    Args:
        weight: ``[out_features, in_features]``.
        root: ``R``, lower triangular ``[in_features, in_features]``, or a diagonal ``[in_features]``; ``None`` is the identity.
        rank: Singular values to keep.
        dtype: Type of the stored factors.

    Returns:
        The weight; ``report["discarded"]`` is the energy of the singular values left out, the squared error before rounding the factors.
    """
    matrix = weight.double()
    weighted = matrix if root is None else matrix * root if root.ndim == 1 else matrix @ root
    left, values, right = torch.linalg.svd(weighted, full_matrices=False)
    square = values[:rank].sqrt()
    inner = square[:, None] * right[:rank]
    if root is not None:
        # X R^-1 by a triangular solve: the inverse itself is never formed.
        inner = inner / root if root.ndim == 1 else torch.linalg.solve_triangular(root, inner, upper=False, left=False)
    kind = getattr(torch, dtype)
    factors = (left[:, :rank] * square).to(kind), inner.to(kind)
    check_matrix(factors[0], f"the left factor in {dtype}")
    check_matrix(factors[1], f"the right factor in {dtype}")
    compressed = LowRankWeight(*factors)
    compressed.report = {"rank": rank, "discarded": float(values[rank:].square().sum())}
    return compressed
