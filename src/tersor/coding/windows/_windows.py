"""Compiled loops of Equal-Info windows over an n-gram byte model, all in 64-bit integers. Importing this module imports numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

EXACT, GREEDY, DELAY = range(3)
_UNIT = 30  # bits of the mixed probabilities before they become a table
_FRACTION = 60  # bits of the interval of greedy and delay; twice its end still fits


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # No directory that the cache could be written to: compile for this process alone.
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compile
def find_nodes(model: Any, data: Any, begin: Any, position: Any, nodes: Any) -> Any:
    """Contexts of 0, 1, ... bytes before ``position``, none from before ``begin``, as far as they were seen; how many there are."""
    firsts, keys = model[0], model[1]
    key, count = np.int64(0), 0
    for order in range(firsts.shape[0] - 1):
        if order > 0:
            if position - order < begin:
                break
            key |= np.int64(data[position - order]) << (8 * (order - 1))
        low, high = firsts[order], firsts[order + 1]
        while low < high:
            middle = (low + high) >> 1
            if keys[middle] < key:
                low = middle + 1
            else:
                high = middle
        if low == firsts[order + 1] or keys[low] != key:
            break
        nodes[count] = low
        count += 1
    return count


@_compile
def cumulative(model: Any, nodes: Any, count: Any, symbol: Any, bits: Any) -> Any:
    """Weight of all bytes below ``symbol`` of ``2**bits``; every byte has at least one.

    Every order is mixed with the shorter ones as ``n / (n + 1.5 u)``, with n occurrences and u different successors of the context.
    """
    starts, symbols, before = model[2], model[3], model[4]
    mixed = np.int64(symbol) << (_UNIT - 8)
    for index in range(count):
        begin, end = starts[nodes[index]], starts[nodes[index] + 1]
        low, high = begin, end
        while low < high:
            middle = (low + high) >> 1
            if symbols[middle] < symbol:
                low = middle + 1
            else:
                high = middle
        # `before` counts on through all contexts, one entry more than there are.
        total, below, different = before[end] - before[begin], before[low] - before[begin], end - begin
        mixed = ((2 * below << _UNIT) + 3 * different * mixed) // (2 * total + 3 * different)
    return symbol + (mixed * ((1 << bits) - 256) >> _UNIT)


@_compile
def bounds(model: Any, data: Any, bits: Any, lows: Any, weights: Any) -> None:
    """Lower end and weight of every byte of ``data`` given all that is before it."""
    nodes = np.zeros(16, np.int64)
    for position in range(len(data)):
        count = find_nodes(model, data, 0, position, nodes)
        symbol = np.int64(data[position])
        lows[position] = cumulative(model, nodes, count, symbol, bits)
        weights[position] = cumulative(model, nodes, count, symbol + 1, bits) - lows[position]


@_compile
def _search(model: Any, nodes: Any, count: Any, bits: Any, share: Any, target: Any, extra: Any) -> Any:
    """The last byte whose part, ``floor(C(x) * share / 2**bits) + extra * x``, begins at or below ``target``."""
    low, high = np.int64(0), np.int64(256)
    while high - low > 1:
        middle = (low + high) >> 1
        if _part(cumulative(model, nodes, count, middle, bits), share, bits) + extra * middle <= target:
            low = middle
        else:
            high = middle
    return low


@_compile
def _part(weight: Any, share: Any, bits: Any) -> Any:
    """``floor(weight * share / 2**bits)`` without leaving 64 bits."""
    return weight * (share >> bits) + ((weight * (share & ((1 << bits) - 1))) >> bits)


@_compile
def _child(model: Any, data: Any, begin: Any, position: Any, nodes: Any, bits: Any, low: Any, codes: Any) -> Any:
    """Codes of the byte at ``position`` below the node that owns ``codes`` codes from ``low`` on."""
    count = find_nodes(model, data, begin, position, nodes)
    symbol = np.int64(data[position])
    lower = cumulative(model, nodes, count, symbol, bits)
    upper = cumulative(model, nodes, count, symbol + 1, bits)
    if position == begin:
        start = _part(lower, codes - 256, bits) + symbol
        return low + start, _part(upper, codes - 256, bits) + symbol + 1 - start
    start = _part(lower, codes - 1, bits)
    return low + 1 + start, _part(upper, codes - 1, bits) - start


@_compile
def _narrowed(model: Any, data: Any, begin: Any, position: Any, nodes: Any, bits: Any, low: Any, width: Any) -> Any:
    """The interval of the byte at ``position`` within ``[low, low + width)``."""
    count = find_nodes(model, data, begin, position, nodes)
    symbol, unit = np.int64(data[position]), width >> bits
    lower = cumulative(model, nodes, count, symbol, bits)
    return low + unit * lower, unit * (cumulative(model, nodes, count, symbol + 1, bits) - lower)


@_compile
def _padded(low: Any, width: Any, window: Any) -> Any:
    """The shortest dyadic interval inside of ``[low, low + width)`` as a code padded with zeros to ``window`` bits; -1 if it is longer."""
    for length in range(window + 1):
        gap = _FRACTION - length
        first = (low + (np.int64(1) << gap) - 1) >> gap
        if ((first + 1) << gap) <= low + width:
            return first << (window - length)
    return np.int64(-1)


@_compile
def encode(model: Any, data: Any, bits: Any, window: Any, mode: Any, codes: Any, lengths: Any) -> Any:
    """Fill ``codes`` with one code a window and ``lengths`` with its bytes; how many there are. There is room for one a byte."""
    nodes, made, begin = np.zeros(16, np.int64), 0, 0
    history = np.zeros(len(data) + 1, np.int64)
    while begin < len(data):
        position, low, size = begin, np.int64(0), np.int64(1) << (window if mode == EXACT else _FRACTION)
        code = np.int64(-1)
        if mode == EXACT:
            while position < len(data):
                next_low, next_size = _child(model, data, begin, position, nodes, bits, low, size)
                if next_size < 1:
                    break
                low, size, position = next_low, next_size, position + 1
            code = low
        else:
            while position < len(data):
                low, size = _narrowed(model, data, begin, position, nodes, bits, low, size)
                padded = _padded(low, size, window)
                if padded < 0:
                    break
                position += 1
                history[position] = code = padded
            if mode == DELAY:
                # The decoder stops at the first text with this code, which need not be among the last ones.
                position = begin + 1
                while history[position] != code:
                    position += 1
        codes[made], lengths[made] = code, position - begin
        made += 1
        begin = position
    return made


@_compile
def decode(model: Any, codes: Any, bits: Any, window: Any, mode: Any, out: Any) -> Any:
    """Fill ``out`` with what the windows stand for; how many bytes, or -1 if a code stands for nothing or for more than there is room."""
    nodes, begin = np.zeros(16, np.int64), 0
    for code in codes:
        if mode == EXACT:
            end = _decode_exact(model, code, bits, window, out, begin, nodes)
        else:
            end = _decode_interval(model, code, bits, window, mode, out, begin, nodes)
        if end < 0:
            return -1
        begin = end
    return begin


@_compile
def _decode_exact(model: Any, code: Any, bits: Any, window: Any, out: Any, begin: Any, nodes: Any) -> Any:
    low, size, position = np.int64(0), np.int64(1) << window, begin
    while position == begin or code != low:
        if position >= len(out):
            return -1
        count = find_nodes(model, out, begin, position, nodes)
        if position == begin:
            out[position] = _search(model, nodes, count, bits, size - 256, code, 1)
        else:
            out[position] = _search(model, nodes, count, bits, size - 1, code - low - 1, 0)
        low, size = _child(model, out, begin, position, nodes, bits, low, size)
        position += 1
    return position


@_compile
def _decode_interval(model: Any, code: Any, bits: Any, window: Any, mode: Any, out: Any, begin: Any, nodes: Any) -> Any:
    """Follow the point of the code; the last prefix with this code is the paper's answer, the first one that of delay."""
    point, low, size = code << (_FRACTION - window), np.int64(0), np.int64(1) << _FRACTION
    position, found = begin, -1
    while True:
        if position >= len(out):
            return -1
        count = find_nodes(model, out, begin, position, nodes)
        unit = size >> bits
        offset = (point - low) // unit
        if offset >= 1 << bits:
            return found
        out[position] = _search(model, nodes, count, bits, np.int64(1) << bits, offset, 0)
        low, size = _narrowed(model, out, begin, position, nodes, bits, low, size)
        padded = _padded(low, size, window)
        if padded < 0:
            return found
        position += 1
        if padded == code:
            found = position
            if mode == DELAY:
                return found
