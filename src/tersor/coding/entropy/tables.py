"""Probabilities as integers, so that encoder and decoder cannot disagree about them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tersor.errors import InvalidArgument

# What constriction resolves probabilities to, and the widest table that is exact in it.
MAX_BITS = 24

Weights = NDArray[np.int64]


def quantise_pmf(pmf: NDArray[np.floating], bits: int) -> Weights:
    """Integer weights of total ``2**bits``, at least one for every symbol, so that whatever occurs can be coded.

    Args:
        pmf: ``[..., n_symbols]``, probabilities up to a common factor for each row.
        bits: ``2**bits`` is the total; 16 does for a few thousand symbols, 24 for the vocabulary of a language model.

    Returns:
        int64 of the same shape: ``1 + floor(p * (2**bits - n))``, the remainder given to the largest entry, the first if several are.

    Raises:
        InvalidArgument: If the table is empty, has negative, NaN or infinite entries, a row without mass, or more symbols than weights.
    """
    p = np.asarray(pmf, dtype=np.float64)
    if p.ndim == 0 or p.shape[-1] == 0:
        raise InvalidArgument(f"a table needs at least one symbol, got shape {p.shape}")
    if not 1 <= bits <= MAX_BITS or p.shape[-1] > 1 << bits:
        raise InvalidArgument(
            f"{p.shape[-1]} symbols in a table of {bits} bits: bits must be 1 to {MAX_BITS} and 2**bits at least the symbols"
        )
    if not np.isfinite(p).all() or (p < 0).any():
        raise InvalidArgument("the probabilities hold NaN, Inf or negative values")
    total = p.sum(-1, keepdims=True)
    if (total <= 0).any():
        raise InvalidArgument("a row of probabilities sums to zero")
    weights = 1 + np.floor(p / total * ((1 << bits) - p.shape[-1])).astype(np.int64)
    left = (1 << bits) - weights.sum(-1, keepdims=True)
    largest = weights.argmax(-1)[..., None]
    np.put_along_axis(weights, largest, np.take_along_axis(weights, largest, -1) + left, -1)
    return weights


class IntTable:
    """Weights of symbols ``0 .. n - 1``: what the coders of this room take. Save these, never the floats that they came from.

    Args:
        weights: ``[n_symbols]``, positive integers whose sum is a power of two up to ``2**24``.

    Raises:
        InvalidArgument: If they are not.

    Example:
        >>> table = IntTable.from_pmf([0.5, 0.25, 0.25], bits=4)
        >>> table.weights.tolist(), round(table.ideal_bits([0, 1]), 3)
        ([8, 4, 4], 3.0)
    """

    def __init__(self, weights: NDArray[np.integer] | list[int]) -> None:
        values = np.array(weights, dtype=np.int64)
        if values.ndim != 1 or values.size == 0 or values.min() < 1:
            raise InvalidArgument("a table is a row of positive integers, one a symbol")
        total = int(values.sum())
        if total & (total - 1) or total > 1 << MAX_BITS:
            raise InvalidArgument(f"the weights of a table sum to a power of two up to 2**{MAX_BITS}, got {total}")
        self.weights: Weights = values
        self.bits = total.bit_length() - 1

    @classmethod
    def from_pmf(cls, pmf: NDArray[np.floating] | list[float], bits: int = 16) -> IntTable:
        """The table nearest to probabilities ``[n_symbols]``; see :func:`quantise_pmf`."""
        return cls(quantise_pmf(np.asarray(pmf, dtype=np.float64), bits))

    @classmethod
    def from_counts(cls, symbols: NDArray[np.integer], n_symbols: int, bits: int = 16) -> IntTable:
        """The table of how often each of ``n_symbols`` occurs in ``symbols``, plus one half."""
        return cls.from_pmf(np.bincount(np.asarray(symbols).reshape(-1), minlength=n_symbols) + 0.5, bits)

    def __len__(self) -> int:
        return int(self.weights.size)

    @cached_property
    def cumulative(self) -> Weights:
        """``[n_symbols + 1]``: the sum of the weights before each symbol, and the total."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.weights)])

    def ideal_bits(self, symbols: NDArray[np.integer] | list[int]) -> float:
        """``sum -log2(weight / total)``: what no coder of this table can go below on average."""
        values = np.asarray(symbols, dtype=np.int64)
        return float((self.bits - np.log2(self.weights[values].astype(np.float64))).sum())
