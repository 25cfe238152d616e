"""The best code of limited entropy for a discrete source: entropy-bounded information maximisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_distribution
from tersor.information.coupling import Coupling, entropy
from tersor.layerwise.checking import check_number

# Bell numbers: 21147 partitions of nine symbols take a second.
_LARGEST_EXACT = 9
_HALVINGS = 44
# Entropies of equal codes differ by rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class _Move:
    """A deterministic code and the one cell of it that mass may be moved out of, to meet the entropy asked for.

    Attributes:
        labels: ``[n]``, the code of each symbol.
        bits: Entropy of the code.
        symbol: The row that mass moves in.
        target: Code that it moves to; a new one for ``-1``.
        source: Mass of the code that it leaves.
        goal: Mass of the code that it moves to.
    """

    labels: Array
    bits: float
    symbol: int = 0
    target: int = -1
    source: float = 0.0
    goal: float = 0.0


def ebim(p: Any, rate: float, *, close_gap: bool = True, exact: bool = False) -> Coupling:
    """A code ``T`` of the source with ``H(T) <= rate`` and nearly the most information ``I(X; T)``.

    The greedy search merges the two likeliest codes again and again, until merging them, or the two least likely, meets the rate; the
    code is then a function of the source and ``I = H(T)`` falls short of the rate by at most the binary entropy of the second largest
    probability. Closing the gap splits one symbol between two codes so that the rate is met exactly, starting from every code on the
    path of the search, and takes the best.

    Args:
        p: Distribution ``[n]`` of the source.
        rate: Bits that ``T`` may have, at least 0.
        close_gap: Whether one symbol may be coded at random.
        exact: Search all partitions of the source instead of the greedy ones; for at most 9 symbols of positive probability.

    Returns:
        The coupling ``p(x, t)`` ``[n, m]``; no column is empty.

    Raises:
        InvalidArgument: If ``p`` is no distribution, the rate negative or not finite, or ``exact`` asks for too much.

    Reference:
        Ebrahimi, Chen, Khisti: "Minimum Entropy Coupling with Bottleneck", 2024.

    Example:
        >>> round(ebim([0.7, 0.2, 0.1], 0.5).information, 3), round(ebim([0.7, 0.2, 0.1], 0.5, close_gap=False).information, 3)
        (0.476, 0.469)
    """
    whole = check_distribution("p", p)
    check_number("rate", rate, 0.0)
    support = np.flatnonzero(whole > 0)
    source = whole[support]
    if exact and len(source) > _LARGEST_EXACT:
        raise InvalidArgument(f"exact goes through all partitions, for at most {_LARGEST_EXACT} symbols, got {len(source)}; leave it off")
    if rate >= entropy(source):
        return Coupling(_embed(np.diag(source), support, len(whole)))
    codes = list(_partitions(len(source))) if exact else _path(source, rate, close_gap)
    return Coupling(_embed(_best(source, codes, rate, close_gap), support, len(whole)))


def uniform_quantiser(p: Any, rate: float) -> Coupling:
    """The baseline: ``floor(2 ** rate)`` bins that hold about as many neighbouring symbols each, whatever their probabilities.

    Symbols without probability are not counted, so that bins of a belief get finer as messages are ruled out.

    Args:
        p: Distribution ``[n]`` of the source.
        rate: Bits, at least 0.

    Returns:
        The coupling ``p(x, t)`` with ``H(T) <= rate``; no column is empty.

    Raises:
        InvalidArgument: If ``p`` is no distribution or the rate negative or not finite.
    """
    source = check_distribution("p", p)
    check_number("rate", rate, 0.0)
    support = np.flatnonzero(source > 0)
    bins = max(min(int(2 ** min(rate, 60.0)), len(support)), 1)
    joint = np.zeros((len(source), bins))
    joint[support, np.arange(len(support)) * bins // len(support)] = source[support]
    return Coupling(joint[:, joint.any(0)])


def _path(source: Array, rate: float, all_of_it: bool) -> list[Array]:
    """Labels of the codes of the greedy search: the likeliest ``k`` merged, with and without the two least likely merged too.

    Merging the two largest masses makes the largest, so the ``k``-th code of the path merges the ``k`` likeliest symbols.
    """
    order = np.argsort(-source, kind="stable")
    n = len(source)
    ordered = source[order]
    pieces = np.append(np.cumsum((ordered * np.log2(ordered))[::-1])[::-1], 0.0)
    merged = np.minimum(np.cumsum(ordered), 1.0)
    merged[-1] = 1.0  # Whatever rounding says, or a rate of 0 is out of reach.
    bits = -(merged * np.log2(merged)) - pieces[1:]
    # The first k at which either merge meets the rate; the gap is closed from its neighbours, earlier and later codes are further off.
    last = int(np.argmax(bits <= rate + _ROUNDING))
    kept = range(max(last - 2, 0), min(last + 2, n)) if all_of_it else range(max(last - 1, 0), last + 1)
    codes = []
    for k in kept:
        labels = np.empty(n, dtype=np.int64)
        labels[order] = np.maximum(np.arange(n) - k, 0)
        codes.append(labels)
        if n - k > 2:
            codes.append(np.where(labels == n - 1 - k, n - 2 - k, labels))
    return codes


def _partitions(n: int) -> Iterator[Array]:
    """Every partition of ``n`` symbols once, as labels in order of first use."""

    def grow(labels: list[int], used: int) -> Iterator[Array]:
        if len(labels) == n:
            yield np.array(labels)
            return
        for label in range(used + 1):
            yield from grow([*labels, label], max(used, label + 1))

    return grow([0], 1)


def _best(source: Array, codes: list[Array], rate: float, close_gap: bool) -> Array:
    moves = [move for labels in codes for move in _moves(source, labels, rate, close_gap)]
    moved, reached = _amounts(moves, rate)
    own = np.array([source[move.symbol] for move in moves])
    # H(T) - H(T | X) where the entropy was met, minus infinity where it could not be.
    parts = np.clip(moved / own, 0.0, 1.0)
    lost = own * (_plogp(parts) + _plogp(1 - parts))
    value = np.where((reached <= rate + _ROUNDING) & (moved <= own + 1e-15), reached - lost, -np.inf)
    choice = int(value.argmax())
    return _joint(source, moves[choice], float(moved[choice]))


def _moves(source: Array, labels: Array, rate: float, close_gap: bool) -> Iterator[_Move]:
    masses = np.bincount(labels, weights=source)
    bits = entropy(masses)
    if bits <= rate + _ROUNDING:
        yield _Move(labels, bits)
    if not close_gap:
        return
    share = source / masses[labels]
    if bits < rate - _ROUNDING and share.min() < 1:
        symbol = int(share.argmin())
        yield _Move(labels, bits, symbol, -1, float(masses[labels[symbol]]), 0.0)
    if bits > rate + _ROUNDING:
        light, heavy = int(masses.argmin()), int(masses.argmax())
        if light == heavy:
            heavy = (light + 1) % len(masses)
        symbol = int(np.where(labels == light, source, np.inf).argmin())
        yield _Move(labels, bits, symbol, heavy, float(masses[light]), float(masses[heavy]))


def _plogp(values: Array) -> Array:
    """``-x log2 x``, 0 at 0."""
    found: Array = -values * np.log2(np.where(values > 0, values, 1.0))
    return found


def _amounts(moves: list[_Move], rate: float) -> tuple[Array, Array]:
    """The amount by which each move meets the rate, more than there is where it cannot, and the entropy that it comes to.

    By bisection of all at once.
    """
    both = np.array([[move.source, move.goal] for move in moves]).T
    source, goal = both
    rest = np.array([move.bits for move in moves]) - _plogp(both).sum(0)

    def reached(amount: Array) -> Array:
        bits: Array = rest + _plogp(np.stack([np.maximum(source - amount, 0), goal + amount])).sum(0)
        return bits

    # Between nothing and the point where both codes weigh the same (splitting) or all of the light code (merging) entropy is monotone.
    splitting = goal == 0
    low, high = np.zeros(len(moves)), np.where(splitting, source / 2, source)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = reached(middle) > rate
        low = np.where(above == splitting, low, middle)
        high = np.where(above == splitting, middle, high)
    # The side on which the rate is kept; nothing moves where nothing has to.
    amount = np.where(source == 0, 0.0, np.where(splitting, low, high))
    return amount, reached(amount)


def _joint(source: Array, move: _Move, amount: float) -> Array:
    codes = int(move.labels.max()) + 1
    joint = np.zeros((len(source), codes + 1))
    joint[np.arange(len(source)), move.labels] = source
    amount = min(amount, float(source[move.symbol]))
    joint[move.symbol, move.labels[move.symbol]] -= amount
    joint[move.symbol, move.target] += amount
    kept: Array = joint[:, joint.any(0)]
    return kept


def _embed(joint: Array, support: Array, n: int) -> Array:
    whole = np.zeros((n, joint.shape[1]))
    whole[support] = joint
    return whole
