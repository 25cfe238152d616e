"""In which order a vector goes through a chain of cores: the fewest multiplications decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations, pairwise
from math import prod

import torch
from torch import Tensor

Site = tuple[int, int, int, int]  # left bond, row factor J, column factor I, right bond
Sites = tuple[Site, ...]

# Runs of a chain of n sites are counted by 2^(n-1); from here on only single sites and the whole chain are considered.
_MAX_SEARCHED = 10


@dataclass(frozen=True)
class Order:
    """An order of contraction.

    Attributes:
        blocks: Runs ``(start, end)`` of sites that are merged before x goes through them; one run is the dense matrix.
        from_left: Whether x goes through the first block first.
        cost: Multiplications, those of the merging included.
        width: Floats a token that the largest intermediate result holds.
    """

    blocks: tuple[tuple[int, int], ...]
    from_left: bool
    cost: int
    width: int


@lru_cache(maxsize=4096)
def best_order(sites: Sites, tokens: int) -> Order:
    """The cheapest order for ``tokens`` rows of x, by exhaustion over runs of neighbouring sites and both directions."""
    orders = (order_of(sites, blocks, from_left, tokens) for blocks in _runs(len(sites)) for from_left in (True, False))
    return min(orders, key=lambda order: order.cost)


def order_of(sites: Sites, blocks: tuple[tuple[int, int], ...], from_left: bool, tokens: int) -> Order:
    """The cost of one order.

    Args:
        sites: The chain.
        blocks: As in :class:`Order`.
        from_left: As in :class:`Order`.
        tokens: Rows of x.
    """
    merged = [_merged(sites[start:end]) for start, end in blocks]
    merging = sum(_merging_cost(sites[start:end]) for start, end in blocks)
    applying, width = 0, 0
    done, remaining = 1, prod(site[2] for site in sites)
    for left, rows, columns, right in merged if from_left else reversed(merged):
        remaining //= columns
        bonds_in, bonds_out = (left, right) if from_left else (right, left)
        applying += done * remaining * bonds_in * columns * rows * bonds_out
        width = max(width, done * remaining * max(bonds_in * columns, rows * bonds_out))
        done *= rows
    return Order(blocks, from_left, merging + tokens * applying, width)


def merge_cores(cores: Sequence[Tensor]) -> Tensor:
    """One core ``[left, J, I, right]`` for a run of neighbouring ones."""
    merged, *others = cores
    for core in others:
        left, rows, columns, _ = merged.shape
        _, more_rows, more_columns, right = core.shape
        product = torch.tensordot(merged, core, dims=1).permute(0, 1, 3, 2, 4, 5)
        merged = product.reshape(left, rows * more_rows, columns * more_columns, right)
    return merged


def _runs(n: int) -> Iterator[tuple[tuple[int, int], ...]]:
    if n > _MAX_SEARCHED:
        yield tuple((site, site + 1) for site in range(n))
        yield ((0, n),)
        return
    for cuts in (cut for count in range(n) for cut in combinations(range(1, n), count)):
        edges = (0, *cuts, n)
        yield tuple(pairwise(edges))


def _merged(sites: Sites) -> Site:
    return sites[0][0], prod(site[1] for site in sites), prod(site[2] for site in sites), sites[-1][3]


def _merging_cost(sites: Sites) -> int:
    """Multiplications of merging from the left."""
    sizes = accumulate((rows * columns for _, rows, columns, _ in sites), lambda size, entries: size * entries)
    left = sites[0][0]
    pairs = zip(sizes, sites, sites[1:], strict=False)
    return sum(left * size * site[3] * prod(following[1:]) for size, site, following in pairs)
