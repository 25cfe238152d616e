"""The PQ index: how unequal the magnitudes of a vector are, and with it how many of its entries can go."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_number


def check_norms(p: float, q: float) -> None:
    """Refuse orders of norms that make no index.

    Raises:
        InvalidArgument: Unless ``0 < p < q``.
    """
    for name, value in (("p", p), ("q", q)):
        check_number(name, value, 0.0)
    if not 0 < p < q:
        raise InvalidArgument(f"p must be above 0 and below q, got p = {p:g} and q = {q:g}; (0.5, 1) and (1, 2) are the usual pairs")


def pq_index(values: Tensor, p: float = 0.5, q: float = 1.0, *, mask: Tensor | None = None, dim: int | None = None) -> Tensor:
    """``1 - d ** (1/q - 1/p) * ||x||_p / ||x||_q``: 0 for equal magnitudes, most for a single entry that is not zero.

    It does not change with the scale, the order or the signs of the entries, nor when the vector is repeated. Unlike a count of zeros it
    also sees entries that are merely small.

    Args:
        values: Of any shape and floating type; computed in float64.
        p: Order of the smaller norm, above 0; at most 1 for an index that never rises when a large entry gives to a smaller one.
        q: Order of the larger norm, above ``p``; at least 1 for the same.
        mask: Boolean, of the shape of ``values``: entries that are not there, as opposed to entries that are zero, are ``False``.
        dim: Dimension over which an index is taken; ``None`` for one index of all entries.

    Returns:
        float64, from 0 to ``1 - d ** (1/q - 1/p)`` where ``d`` entries are there; 0 where none is, or all are zero.

    Raises:
        InvalidArgument: On an order out of range, a mask of another shape, or values that hold NaN or Inf.

    Reference: Diao, Wang, Zhang, Yang, Ding, Tarokh (2023), "Pruning Deep Neural Networks from a Sparsity Perspective".
    """
    check_norms(p, q)
    if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
        raise InvalidArgument("the values must be finite floating-point numbers; NaN or Inf has no index")
    if mask is not None and (mask.shape != values.shape or mask.dtype != torch.bool):
        raise InvalidArgument(f"mask must be boolean of shape {tuple(values.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}")
    if dim is not None and not -values.ndim <= dim < values.ndim:
        raise InvalidArgument(f"dim {dim} is not a dimension of values of shape {tuple(values.shape)}")
    magnitudes = values.detach().double().abs()
    there = torch.ones_like(magnitudes, dtype=torch.bool) if mask is None else mask
    if dim is None:
        magnitudes, there, dim = magnitudes.flatten(), there.flatten(), 0
    if magnitudes.shape[dim] == 0:
        return magnitudes.sum(dim)
    magnitudes = magnitudes.masked_fill(~there, 0.0)
    # Only ratios count; dividing by the largest keeps powers of tiny and huge entries in range.
    largest = magnitudes.amax(dim, keepdim=True)
    relative = magnitudes / torch.where(largest > 0, largest, 1.0)
    count = there.sum(dim).clamp(min=1)
    smaller, larger = ((relative.pow(order).sum(dim) / count).pow(1 / order) for order in (p, q))
    return torch.where(larger > 0, 1 - smaller / larger, 0.0).clamp(min=0.0)


def kept_at_least(index: Tensor | float, count: Tensor | int, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> Tensor:
    """How many of ``count`` entries are at least left, by their PQ index, when what goes is little beside what stays.

    If the sum of ``|x|^p`` over the entries that go is at most ``eta`` times that over the ``r`` that stay, then
    ``r >= count * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p q / (q - p))``, which is returned.

    Args:
        index: What :func:`pq_index` gave for the entries with the same ``p`` and ``q``.
        count: Entries.
        p: As for :func:`pq_index`.
        q: As for :func:`pq_index`.
        eta: At least 0; 0 bounds the entries that are not zero.

    Returns:
        float64, from 0 to ``count``.

    Raises:
        InvalidArgument: On an order or ``eta`` out of range.

    Reference: Diao, Wang, Zhang, Yang, Ding, Tarokh (2023), "Pruning Deep Neural Networks from a Sparsity Perspective".
    """
    check_norms(p, q)
    check_number("eta", eta, 0.0)
    left = (1 - torch.as_tensor(index, dtype=torch.float64)).clamp(min=0.0).pow(p * q / (q - p))
    return torch.as_tensor(count, dtype=torch.float64) * (1 + eta) ** (-q / (q - p)) * left
