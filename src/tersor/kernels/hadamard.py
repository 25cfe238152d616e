"""Rotation of the last dimension by orthonormal Hadamard blocks, which spreads outliers over their block."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InvalidArgument

# A block this large is one small matrix product; larger ones cost more and spread outliers little further.
LARGEST_BLOCK = 128


def block_of(features: int, largest: int = LARGEST_BLOCK) -> int:
    """The largest power of two that divides ``features`` and is at most ``largest``: 64 for 576."""
    return min(features & -features, 1 << (largest.bit_length() - 1))


def rotate(x: Tensor, block: int) -> Tensor:
    """``x`` times a block diagonal of Sylvester Hadamard matrices; symmetric and its own inverse. Differentiable.

    Sums and differences of halves, so every row is the same to the bit whatever else is in the batch; a matrix product takes a quarter of
    the time, but its rounding depends on the batch.

    Args:
        x: ``[..., features]``.
        block: A power of two that divides the features; 1 leaves ``x`` as it is.

    Raises:
        InvalidArgument: If the block is no power of two or does not divide the features.
    """
    if block < 1 or block & (block - 1) or x.shape[-1] % block:
        raise InvalidArgument(f"a Hadamard block must be a power of two that divides the {x.shape[-1]} features, got {block}")
    if block == 1:
        return x
    y, half = x.unflatten(-1, (-1, block)), 1
    while half < block:
        first, second = y.unflatten(-1, (-1, 2, half)).unbind(-2)
        y = torch.stack([first + second, first - second], -2).flatten(-3)
        half *= 2
    return (y * block**-0.5).flatten(-2)
