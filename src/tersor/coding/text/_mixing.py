"""The compiled loop of the byte model: contexts, a match model, a mixer and two corrections, all in integers.

The same loop codes and decodes, so the two cannot differ. Importing this module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

N_CONTEXTS = 11
EMPTY = 32768 << 16
# Two inputs a context, two of the match model, a constant.
_INPUTS = 2 * N_CONTEXTS + 3
# Bytes that a decoder has read beyond the last one that it needs.
AHEAD = 3
_MINIMUM = 16  # of 65536: no bit is coded as more certain than this, which bounds what a stream can expand to
_MATCH = 6  # bytes that must repeat before a match is followed
_LONGEST = 63
_BUCKETS = 33
_SETS = 3 * 256


@cache
def squash_table() -> NDArray[np.int64]:
    """``65536 / (1 + exp(-x / 256))`` for x from -2047 to 2047, computed in decimals: the same everywhere."""
    with localcontext() as context:
        context.prec = 28
        values = [int(65536 / (1 + (Decimal(-x) / 256).exp())) for x in range(-2047, 2048)]
    return np.array(values, dtype=np.int64)


@cache
def stretch_table() -> NDArray[np.int64]:
    """The inverse of :func:`squash_table` at ``16 i + 8``, for i from 0 to 4095."""
    return (np.searchsorted(squash_table(), np.arange(4096) * 16 + 8) - 2047).clip(-2047, 2047).astype(np.int64)


@cache
def rate_table() -> NDArray[np.int64]:
    """How far a probability moves on its n-th observation, of 65536."""
    return np.array([2 * 65536 // (2 * n + 3) for n in range(64)], dtype=np.int64)


def _compile(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # No directory that the cache could be written to: compile for this process alone.
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compile
def _clamped(value: Any, low: Any, high: Any) -> Any:
    return low if value < low else high if value > high else value


@_compile
def _find(table: Any, key: Any, mask: Any) -> Any:
    """Where the slot of ``key`` is in a table of ``probability << 16 | count << 10 | check``; a new one replaces the rarer of two."""
    mixed = (key * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed ^= mixed >> 15
    mixed = (mixed * 0x297A2D39) & 0xFFFFFFFF
    check = mixed & 1023
    place = (mixed >> 10) & mask
    if (table[place] & 1023) == check:
        return place
    other = place ^ 1
    if (table[other] & 1023) == check:
        return other
    if ((table[other] >> 10) & 63) < ((table[place] >> 10) & 63):
        place = other
    table[place] = EMPTY | check
    return place


@_compile
def _contexts(data: Any, position: Any, word: Any, keys: Any) -> None:
    """The hashes that the next byte is predicted from: orders 0 to 6, words, and bytes further back for tables and samples."""
    c1 = np.int64(data[position - 1]) if position > 0 else 0
    c2 = np.int64(data[position - 2]) if position > 1 else 0
    c3 = np.int64(data[position - 3]) if position > 2 else 0
    c4 = np.int64(data[position - 4]) if position > 3 else 0
    c5 = np.int64(data[position - 5]) if position > 4 else 0
    c6 = np.int64(data[position - 6]) if position > 5 else 0
    two = c1 | c2 << 8
    four = two | c3 << 16 | c4 << 24
    keys[0] = 0
    keys[1] = c1
    keys[2] = two
    keys[3] = two | c3 << 16
    keys[4] = four
    keys[5] = (four * 0x2F0B4C47 + c5 * 0x1000193) & 0xFFFFFFFF
    keys[6] = (four * 0x3D4D51CB + (c5 | c6 << 8) * 0x1000193) & 0xFFFFFFFF
    keys[7] = (word * 0x2545F491 + c1) & 0xFFFFFFFF
    keys[8] = c2 | c3 << 8
    keys[9] = c2 | c4 << 8
    keys[10] = c4 | (position & 3) << 8
    for index in range(N_CONTEXTS):
        keys[index] = ((keys[index] + (index + 1) * 0x1F3D5B79) * 0x2C9277B5) & 0xFFFFFFFF


@_compile
def _longest_match(data: Any, position: Any, heads: Any, mask: Any) -> Any:
    """Where the last occurrence of the last bytes goes on and how long it is; the place is remembered for later."""
    if position < _MATCH:
        return 0, 0
    key = np.int64(0)
    for back in range(1, _MATCH + 1):
        key = (key * 0x2F0B4C47 + np.int64(data[position - back]) + 1) & 0xFFFFFFFF
    key = (key ^ (key >> 15)) & mask
    place = np.int64(heads[key])
    heads[key] = position
    length = 0
    if place > 0:
        while length < _LONGEST and length < place and data[place - 1 - length] == data[position - 1 - length]:
            length += 1
    if length < _MATCH:
        return 0, 0
    return place, length


@_compile
def _corrected(table: Any, row: Any, stretched: Any, places: Any, index: Any) -> Any:
    """What really happened when the model said ``stretched`` in this context, between the two nearest entries."""
    shifted = (stretched + 2048) * (_BUCKETS - 1)
    low = shifted >> 12
    weight = shifted & 4095
    places[index] = row * _BUCKETS + low + (weight >> 11)
    base = row * _BUCKETS + low
    return (np.int64(table[base]) * (4096 - weight) + np.int64(table[base + 1]) * weight) >> 12


@_compile
def run(
    data: Any, size: Any, stream: Any, length: Any, decoding: Any, tables: Any, heads: Any, squash: Any, stretch: Any, rates: Any
) -> Any:
    """Code ``data[:size]`` into ``stream``, or the reverse.

    Args:
        data: uint8 ``[size]``: read when coding, written when decoding.
        size: Bytes to do; when decoding, the loop goes on from a state that only the whole message makes.
        stream: uint8 ``[length]``.
        length: Bytes of the stream there are (decoding) or room for (coding).
        decoding: Which of the two.
        tables: uint32 ``[N_CONTEXTS, 2**bits]``, all :data:`EMPTY`.
        heads: int32 ``[2**bits]``, zeros.
        squash, stretch, rates: The tables of this module.

    Returns:
        Bytes of the stream used; -1 if they do not suffice.
    """
    mask, head_mask = tables.shape[1] - 1, heads.shape[0] - 1
    weights = np.full((_SETS, _INPUTS), 4000, np.int32)
    first = np.empty((65536, _BUCKETS), np.uint16).reshape(-1)
    for row in range(65536):
        for bucket in range(_BUCKETS):
            first[row * _BUCKETS + bucket] = squash[min(max((bucket - 16) * 128 + 2047, 0), 4094)]
    second = first.copy()
    follow = np.full(_LONGEST + 1, 49152, np.int64)
    keys, slots = np.zeros(N_CONTEXTS, np.int64), np.zeros(N_CONTEXTS, np.int64)
    inputs, places = np.zeros(_INPUTS, np.int64), np.zeros(2, np.int64)
    low, high, code, used = np.int64(0), np.int64(0xFFFFFFFF), np.int64(0), np.int64(0)
    if decoding:
        for _ in range(4):
            code = code << 8 | (np.int64(stream[used]) if used < length else 0)
            used += 1
    word, match, matched = np.int64(0), np.int64(0), np.int64(0)
    for position in range(size):
        _contexts(data, position, word, keys)
        if matched > 0 and data[match] == data[position - 1]:
            match, matched = match + 1, _clamped(matched + 1, 0, _LONGEST)
            _longest_match(data, position, heads, head_mask)
        else:
            match, matched = _longest_match(data, position, heads, head_mask)
        low, high, code, used = _byte(
            data, position, stream, length, decoding, tables, mask, keys, slots, inputs, weights, first, second, places, follow,
            match, matched, low, high, code, used, squash, stretch, rates,
        )  # fmt: skip
        if used < 0 or used > length + AHEAD:
            return -1
        c = np.int64(data[position])
        lower = c | 32
        letter = (lower >= 97 and lower <= 122) or c >= 128
        word = ((word + lower + 1) * 0x2F0B4C47) & 0xFFFFFFFF if letter else np.int64(0)
    if not decoding:
        # Decoders read zeros after the end: one byte is enough to land between low and high.
        if used >= length:
            return -1
        stream[used] = high >> 24
        used += 1
    return used


@_compile
def _byte(
    data: Any, position: Any, stream: Any, length: Any, decoding: Any, tables: Any, mask: Any, keys: Any, slots: Any, inputs: Any,
    weights: Any, first: Any, second: Any, places: Any, follow: Any, match: Any, matched: Any,
    low: Any, high: Any, code: Any, used: Any, squash: Any, stretch: Any, rates: Any,
) -> Any:  # fmt: skip
    """One byte, bit by bit from the highest, updating everything that predicted it."""
    c1 = np.int64(data[position - 1]) if position > 0 else np.int64(0)
    c2 = np.int64(data[position - 2]) if position > 1 else np.int64(0)
    value = np.int64(data[position])
    guess = (np.int64(data[match]) | 256) if matched > 0 else np.int64(0)
    learning = 6 + max(0, 14 - (position >> 9))
    seen = np.int64(1)
    for step in range(8):
        known = _gather(tables, mask, keys, slots, inputs, seen, stretch)
        follows = guess > 0 and (guess >> (8 - step)) == seen
        expected = (guess >> (7 - step)) & 1
        _match_inputs(inputs, follows, expected, follow, matched, stretch)
        bucket = min(matched, 15) if follows else 0
        sets = ((bucket << 4 | known), 256 + seen, 512 + c1)
        total = np.int64(0)
        for index in range(_INPUTS):
            total += inputs[index] * (weights[sets[0], index] + weights[sets[1], index] + weights[sets[2], index])
        stretched = _clamped(total >> 16, -2047, 2047)
        mixed = squash[stretched + 2047]
        hashed = ((seen | c1 << 8 | c2 << 16) * 0x2C9277B5 & 0xFFFFFFFF) >> 16
        p: Any = (
            2 * mixed + _corrected(first, seen | c1 << 8, stretched, places, 0) + _corrected(second, hashed, stretched, places, 1)
        ) >> 2
        p = _clamped(p, _MINIMUM, 65536 - _MINIMUM)
        middle = low + ((high - low) >> 16) * p + ((((high - low) & 0xFFFF) * p) >> 16)
        bit = (np.int64(1) if code <= middle else np.int64(0)) if decoding else (value >> (7 - step)) & 1
        if bit:
            high = middle
        else:
            low = middle + 1
        while ((low ^ high) & 0xFF000000) == 0:
            if decoding:
                code = ((code << 8) & 0xFFFFFFFF) | (np.int64(stream[used]) if used < length else 0)
            elif used < length:
                stream[used] = high >> 24
            else:
                return low, high, code, np.int64(-1)
            used += 1
            low, high = (low << 8) & 0xFFFFFFFF, ((high << 8) & 0xFFFFFFFF) | 255
        _learn(tables, slots, inputs, weights, sets, ((bit << 16) - mixed) * learning, bit, rates)
        first[places[0]] += ((bit << 16) - bit - np.int64(first[places[0]])) >> 6
        second[places[1]] += ((bit << 16) - bit - np.int64(second[places[1]])) >> 6
        if follows:
            follow[min(matched, _LONGEST)] += ((65535 if bit == expected else 0) - follow[min(matched, _LONGEST)]) >> 6
        seen = seen << 1 | bit
    data[position] = seen & 0xFF
    return low, high, code, used


@_compile
def _gather(tables: Any, mask: Any, keys: Any, slots: Any, inputs: Any, seen: Any, stretch: Any) -> Any:
    """Fill the inputs of the contexts; how many of the higher orders have been seen before, 0 to 15."""
    known = 0
    for index in range(N_CONTEXTS):
        place = _find(tables[index], (keys[index] + seen * 0x3C6EF35F) & 0xFFFFFFFF, mask)
        slots[index] = place
        slot = np.int64(tables[index, place])
        count, p = (slot >> 10) & 63, slot >> 16
        if count:
            inputs[2 * index] = stretch[p >> 4]
            inputs[2 * index + 1] = (p - 32768) >> 5
            known += 1
        else:
            inputs[2 * index] = 0
            inputs[2 * index + 1] = 0
    return known


@_compile
def _match_inputs(inputs: Any, follows: Any, expected: Any, follow: Any, matched: Any, stretch: Any) -> None:
    inputs[_INPUTS - 1] = 256
    if follows:
        p = follow[min(matched, _LONGEST)]
        sign = 1 if expected else -1
        inputs[_INPUTS - 3] = sign * stretch[p >> 4]
        inputs[_INPUTS - 2] = sign * ((p - 32768) >> 4)
    else:
        inputs[_INPUTS - 3] = 0
        inputs[_INPUTS - 2] = 0


@_compile
def _learn(tables: Any, slots: Any, inputs: Any, weights: Any, sets: Any, error: Any, bit: Any, rates: Any) -> None:
    """Move the weights along the gradient of the code length, and the slots towards the bit."""
    for index in range(_INPUTS):
        change = (inputs[index] * error + (1 << 19)) >> 20
        for which in sets:
            weights[which, index] += change
    for index in range(N_CONTEXTS):
        slot = np.int64(tables[index, slots[index]])
        count, p = (slot >> 10) & 63, slot >> 16
        target = 65535 if bit else 0
        p += ((target - p) * rates[count]) >> 16
        limit = 60 if index < 3 else 24
        tables[index, slots[index]] = (p << 16) | (_clamped(count + 1, 0, limit) << 10) | (slot & 1023)
