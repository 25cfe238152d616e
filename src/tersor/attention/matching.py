"""A task that one head of tensor attention solves and one of ordinary attention cannot: which numbers complete a triple to zero."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.attention.tensor import tensor_attention
from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer


class MatchHead(NamedTuple):
    """Inputs of :func:`~tersor.attention.tensor_attention` whose output is above one half exactly where there is a match."""

    q: Tensor
    k1: Tensor
    k2: Tensor
    v1: Tensor
    v2: Tensor
    scale: float


def match_head(x: Tensor, modulus: int) -> MatchHead:
    """The head for the numbers ``x``: ``cos`` of the sum of three angles is a sum of four products, largest where they sum to zero.

    A further key scores between a match and the closest miss and gathers the weight where there is none. The scale grows with the square
    of the modulus: these are the large logits for which no near-linear algorithm can exist.

    Args:
        x: int64 ``[n]``, at least two numbers from 0 to ``modulus - 1``.
        modulus: At least 2.

    Raises:
        InvalidArgument: If numbers are out of range.
    """
    check_integer("modulus", modulus, 2)
    if x.ndim != 1 or len(x) < 2 or x.is_floating_point() or int(x.min()) < 0 or int(x.max()) >= modulus:
        given = f"got {x.dtype} of shape {tuple(x.shape)}"
        raise InvalidArgument(f"match-3 takes a row of at least two integers from 0 to {modulus - 1}, {given}")
    angle = 2 * math.pi * x.double() / modulus
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    gap = 1 - math.cos(2 * math.pi / modulus)
    nothing = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    q = torch.stack([cos, -cos, -sin, -sin, (1 - gap / 2) * one], -1)
    k1 = torch.cat([torch.stack([cos, sin, cos, sin, zero], -1), nothing])
    k2 = torch.cat([torch.stack([cos, sin, sin, cos, zero], -1), nothing])
    v1 = torch.cat([one, zero[:1]])[:, None]
    return MatchHead(q, k1, k2, v1, torch.ones_like(v1), 8 * math.log(len(x)) / gap)


def match_three(x: Tensor, modulus: int) -> Tensor:
    """For each number, whether two of ``x`` (repetition allowed) sum with it to zero: bool ``[n]``, by one head.

    Args:
        x: int64 ``[n]``, numbers from 0 to ``modulus - 1``.
        modulus: At least 2.

    Reference:
        Sanford, Hsu, Telgarsky: "Representational Strengths and Limitations of Transformers", 2023.
    """
    head = match_head(x, modulus)
    return tensor_attention(*head[:5], scale=head.scale, method="exact")[:, 0] > 0.5
