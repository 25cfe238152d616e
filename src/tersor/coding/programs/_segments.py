"""The compiled part of the search: the cheapest way to put a sequence together from segments. Importing this module imports numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

LITERAL, CONSTANT, RAMP, FALL, COPY, REVERSED, SHIFTED, REPEAT, KNOWN = range(9)
# How far back copies reach and how long they and periods get: more than a block of the usual size has.
_REACH = 256
# Places in the vector of prices: a header, a constant, a small number, a count, a reference, and joining one more segment.
HEADER, VALUE, SMALL, COUNT, REFERENCE, GLUE = range(6)


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # No directory that the cache could be written to: compile for this process alone.
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compile
def _gamma(value: Any) -> Any:
    bits = 1.0
    while value > 1:
        value >>= 1
        bits += 2.0
    return bits


@_compile
def _ramp_length(x: Any, begin: Any) -> Any:
    """Items from ``begin`` on that differ by the same number."""
    end = begin + 1
    while end < len(x) and x[end] - x[end - 1] == x[begin + 1] - x[begin]:
        end += 1
    return end - begin


@_compile
def _ramp_price(x: Any, begin: Any, prices: Any, largest_step: Any) -> Any:
    """Price of a rising or falling ramp that starts here, with its step; infinite if the step is none or too large."""
    step = abs(x[begin + 1] - x[begin]) if begin + 1 < len(x) else 0
    if step == 0 or step > largest_step:
        return np.inf
    price = prices[HEADER] + 2 * prices[VALUE]
    if step > 1:
        price += prices[SMALL] + (1 + _gamma(step - 7) if step >= 8 else 0.0)
    if x[begin + 1] < x[begin]:
        price += prices[HEADER] + prices[REFERENCE]
    return price


@_compile
def _longest_copies(x: Any) -> Any:
    """For every place, the longest stretch before it that comes again: as it is, backwards, and with a number added; and where it is."""
    n = len(x)
    lengths, sources = np.zeros((3, n + 1), np.int64), np.zeros((3, n + 1), np.int64)
    for place in range(1, n):
        for source in range(max(0, place - _REACH), place):
            equal, shifted = 0, 1
            while equal < _REACH and source + equal < place and place + equal < n and x[source + equal] == x[place + equal]:
                equal += 1
            offset = x[place] - x[source]
            while (
                shifted < _REACH and source + shifted < place and place + shifted < n and x[place + shifted] - x[source + shifted] == offset
            ):
                shifted += 1
            back = 0
            while back < _REACH and source - back >= 0 and place + back < n and x[source - back] == x[place + back]:
                back += 1
            for kind, length in ((0, equal), (1, back), (2, shifted)):
                if length > lengths[kind, place]:
                    lengths[kind, place], sources[kind, place] = length, source
    return lengths, sources


@_compile
def _relax(cost: Any, back: Any, begin: Any, end: Any, price: Any, kind: Any, first: Any, second: Any) -> None:
    if price < cost[end]:
        cost[end] = price
        back[end, 0], back[end, 1], back[end, 2], back[end, 3] = begin, kind, first, second


@_compile
def segment(
    x: Any, prices: Any, moves: Any, largest_step: Any, known: Any, known_starts: Any, known_prices: Any,
) -> Any:  # fmt: skip
    """Cheapest segmentations of every beginning of ``x``.

    Args:
        x: int64 ``[n]``.
        prices: float64, by the places named above.
        moves: bool ``[9]``: which kinds of segments are allowed.
        largest_step: Of a ramp.
        known: int64, contents of lines that are there for little, one after the other.
        known_starts: int64 ``[m + 1]``: where each begins.
        known_prices: float64 ``[m]``.

    Returns:
        ``cost [n + 1]`` in bits, and ``back [n + 1, 4]``: begin of the last segment, its kind, and two numbers that the kind explains.
    """
    n = len(x)
    cost, back = np.full(n + 1, np.inf), np.zeros((n + 1, 4), np.int64)
    cost[0] = 0.0
    if moves[COPY] or moves[REVERSED] or moves[SHIFTED]:
        lengths, sources = _longest_copies(x)
    else:
        lengths, sources = np.zeros((3, n + 1), np.int64), np.zeros((3, n + 1), np.int64)
    for begin in range(n):
        base = cost[begin] + (prices[GLUE] if begin > 0 else 0.0)
        for end in range(begin + 1, n + 1):
            price = base + prices[HEADER] + _gamma(end - begin + 1) + prices[VALUE] * (end - begin)
            _relax(cost, back, begin, end, price, LITERAL, 0, 0)
        _runs(x, begin, base, prices, moves, largest_step, cost, back)
        copy = base + prices[HEADER] + prices[REFERENCE] + 2 * prices[VALUE]
        extra = prices[HEADER] + prices[REFERENCE]
        for index in range(3):
            if moves[COPY + index]:
                price = copy + (0.0 if index == 0 else extra if index == 1 else extra + prices[VALUE])
                for length in range(1, lengths[index, begin] + 1):
                    _relax(cost, back, begin, begin + length, price, COPY + index, sources[index, begin], 0)
        if moves[REPEAT]:
            _repeats(x, begin, base, prices, largest_step, cost, back)
        for index in range(len(known_prices)):
            first, length = known_starts[index], known_starts[index + 1] - known_starts[index]
            same = 0
            while same < length and begin + same < n and x[begin + same] == known[first + same]:
                same += 1
            if same == length:
                _relax(cost, back, begin, begin + length, base + known_prices[index], KNOWN, index, 0)
    return cost, back


@_compile
def _runs(x: Any, begin: Any, base: Any, prices: Any, moves: Any, largest_step: Any, cost: Any, back: Any) -> None:
    end = begin + 1
    while end <= len(x) and x[end - 1] == x[begin]:
        _relax(cost, back, begin, end, base + prices[HEADER] + prices[COUNT] + prices[VALUE], CONSTANT, 0, 0)
        end += 1
    price = _ramp_price(x, begin, prices, largest_step)
    if price < np.inf:
        kind = RAMP if x[begin + 1] > x[begin] else FALL
        if moves[kind]:
            for length in range(2, _ramp_length(x, begin) + 1):
                _relax(cost, back, begin, begin + length, base + price, kind, 0, 0)


@_compile
def _repeats(x: Any, begin: Any, base: Any, prices: Any, largest_step: Any, cost: Any, back: Any) -> None:
    """A unit of one segment, several times over."""
    ramp, ramp_price = (_ramp_length(x, begin) if begin + 1 < len(x) else 1), _ramp_price(x, begin, prices, largest_step)
    for period in range(2, min((len(x) - begin) // 2, _REACH) + 1):
        same = begin + period
        while same < len(x) and same < begin + 4 * _REACH and x[same] == x[same - period]:
            same += 1
        times = (same - begin) // period
        if times < 2:
            continue
        unit = prices[HEADER] + _gamma(period + 1) + prices[VALUE] * period
        if ramp >= period:
            unit = min(unit, ramp_price)
        for count in range(2, times + 1):
            price = base + unit + prices[HEADER] + prices[SMALL] + prices[REFERENCE] + (1 + _gamma(count - 7) if count >= 8 else 0.0)
            _relax(cost, back, begin, begin + count * period, price, REPEAT, period, count)
