"""Products with pruned rows and the dense form of a tile of them: kept values beside a bit map, N:M patterns or column indices.

A row of bits is read 64 columns at a time; the next sixteen values are spread over the lanes whose bits are set and meet sixteen
entries of x. N:M patterns become such bits in a row of scratch first. Column indices are followed one by one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit

from tersor.kernels import _simd as simd
from tersor.kernels._compiling import FIRST, LAST, compile_body, compile_entry, launch, share
from tersor.kernels._rows import BFLOAT16, FLOAT16, FLOAT32, guarded, write_row, write_totals

# Slots of the argument block that the threads of a team share, after those of `launch`. WHERE holds bits, pattern numbers or columns.
WHERE, STARTS, VALUES, Y, Y_KIND, M, N, K, TABLE, COUNT, OF_M, LAID = range(4, 16)
SLOTS = 16
_SPARE = 136
BITS, FOURS, PATTERNS = range(3)


@njit(inline="always")
def _load_values(address: int, kind: int) -> Any:
    if kind == FLOAT32:
        return simd.load(address, 1)
    return simd.load_half(address) if kind == FLOAT16 else simd.load_bfloat(address)


@njit
def _row_values(a: Any, n: int, item: int, copy: int) -> int:
    """The address of the values of row ``n``, after which sixteen more can be read: near the end of the buffer that of a copy."""
    first, last = simd.read_int(a[STARTS] + 8 * n), simd.read_int(a[STARTS] + 8 * n + 8)
    values = a[VALUES] + item * first
    if last + 16 <= simd.read_int(a[STARTS] + 8 * a[N]):
        return values
    for i in range(item * (last - first)):
        simd.write_byte(copy + i, simd.read_byte(values + i))
    return copy


@njit(inline="always")
def _read_value(address: int, kind: int) -> float:
    if kind == FLOAT32:
        return simd.read_float(address)
    return simd.read_half(address) if kind == FLOAT16 else simd.read_bfloat(address)


@njit
def _bits_for(count: int) -> int:
    """Bits that the number of one of ``count`` patterns takes."""
    bits = 0
    while 1 << bits < count:
        bits += 1
    return bits


@njit
def _unfold_fours(row: int, end: int, words: int, k: int, table: int, spare: int) -> None:
    """Write the bits of a row of patterns of four columns, 64 columns at a time; four patterns have numbers of 2 bits, six of 3."""
    pairs = simd.read_int(table + 64) == 4
    for c in range(0, k, 64):
        if pairs:
            numbers = simd.load_codes(guarded(row + (c >> 4), 0, 1, 4, end, spare)[0], 2)
        else:
            numbers = simd.load_codes(guarded(row + (c * 3 >> 5), 0, 1, 6, end, spare)[0], 3)
        simd.write_int(words + (c >> 3), simd.bits_of_patterns(table, numbers))


@njit
def _unfold_patterns(row: int, words: int, k: int, table: int, count: int, bits: int, of_m: int) -> None:
    """Write the bits of a row of any N:M patterns; a pattern is at most 63 bits, so it ends in this word or the next."""
    word = filled = 0
    for group in range(k // of_m):
        bit = group * bits
        code = simd.read_byte(row + (bit >> 3)) >> (bit & 7)
        if (bit & 7) + bits > 8:
            code |= simd.read_byte(row + (bit >> 3) + 1) << (8 - (bit & 7))
        pattern = simd.read_int(table + 8 * min(code & ((1 << bits) - 1), count - 1))
        word |= pattern << filled
        if filled + of_m >= 64:
            simd.write_int(words, word)
            words += 8
            word = pattern >> (64 - filled)
        filled = (filled + of_m) & 63
    simd.write_int(words, word)


@njit
def _copy_bits(row: int, words: int, k: int) -> None:
    """A row of a bit map, padded with zeros."""
    for byte in range((k + 7) >> 3):
        simd.write_byte(words + byte, simd.read_byte(row + byte))


@njit(inline="always")
def _row_words(a: Any, n: int, layout: int, words: int, spare: int) -> int:
    """The address of the bits that mark the columns kept in row ``n``, sixteen at a time, none beyond the last column.

    ``spare`` has room for a guarded read, a table of sixteen int32 and its length.
    """
    k = a[K]
    if layout == BITS:
        row = a[WHERE] + n * ((k + 7) >> 3)
        if k & 15 == 0:
            return row
        _copy_bits(row, words, k)
    else:
        bits = _bits_for(a[COUNT])
        width = (k // a[OF_M] * bits + 7) >> 3
        row, last = a[WHERE] + n * width, words + (k >> 6 << 3)
        if layout == FOURS:
            for i in range(a[COUNT]):
                simd.write_byte(spare + 64 + 4 * i, simd.read_int(a[TABLE] + 8 * i))
            simd.write_int(spare + 128, a[COUNT])
            _unfold_fours(row, a[WHERE] + a[N] * width, words, k, spare + 64, spare)
            if k & 63:
                simd.write_int(last, simd.read_int(last) & ((1 << (k & 63)) - 1))
        else:
            _unfold_patterns(row, words, k, a[TABLE], a[COUNT], bits, a[OF_M])
    return words


@njit(inline="always")
def _bit_product(a: Any, words: int, values: int, m: int, kind: int, batch: int) -> Any:
    """A tile of ``batch`` vectors whose lanes sum to the products of one row with a block of x."""
    item = 4 if kind == FLOAT32 else 2
    x = a[LAID] + m * ((a[K] + 63) >> 6) * 256
    total = simd.zeros(1, batch)
    for _ in range((a[K] + 15) >> 4):
        part = simd.read_short(words)
        total = simd.add_outer(simd.expand(_load_values(values, kind), part), simd.load(x, batch), total)
        values += item * simd.count_bits(part & 0xFFFF)
        words += 2
        x += 64 * batch
    return total


@cache
def bit_product_body(layout: int, kind: int, batch: int) -> Any:
    """The C function that multiplies rows of a bit map or of patterns, with values of one kind, with ``batch`` rows of x at a time."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        item, words_size = 4 if kind == FLOAT32 else 2, (a[K] >> 3) + 24
        room = np.zeros(_SPARE + 4 * batch + words_size + item * (a[K] + 16), np.uint8)
        spare = np.int64(room.ctypes.data)
        totals = spare + _SPARE
        for n in range(start, stop):
            words = _row_words(a, n, layout, totals + 4 * batch, spare)
            values = _row_values(a, n, item, totals + 4 * batch + words_size)
            for m in range(0, a[M], batch):
                simd.store_totals(totals, _bit_product(a, words, values, m, kind, batch))
                write_totals(a[Y], a[Y_KIND], a[M], a[N], m, n, 1, batch, totals)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "bit_product_body", layout, kind, batch)


@cache
def bit_fill_body(layout: int, kind: int) -> Any:
    """The C function that writes rows of a bit map or of patterns densely."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        item, words_size, bfloat = 4 if kind == FLOAT32 else 2, (a[K] >> 3) + 24, a[Y_KIND] == BFLOAT16
        room = np.zeros(_SPARE + words_size + (item + 4) * (a[K] + 16), np.uint8)
        spare = np.int64(room.ctypes.data)
        dense = spare + _SPARE + words_size
        for n in range(start, stop):
            words = _row_words(a, n, layout, spare + _SPARE, spare)
            values = _row_values(a, n, item, dense + 4 * (a[K] + 16))
            for c in range(0, a[K], 16):
                part = simd.read_short(words + (c >> 3))
                simd.store(dense + 4 * c, simd.expand(_load_values(values, kind), part))
                values += item * simd.count_bits(part & 0xFFFF)
            write_row(dense, a[Y] + (n - a[FIRST]) * a[K] * (2 if bfloat else 4), a[K], bfloat)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "bit_fill_body", layout, kind)


@njit(inline="always")
def _read_column(address: int, size: int) -> int:
    if size == 1:
        return simd.read_byte(address)
    return simd.read_short(address) if size == 2 else simd.read_word(address)


@cache
def column_product_body(size: int, kind: int) -> Any:
    """The C function that multiplies rows of column indices of ``size`` bytes; four sums, because one would wait for itself."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        item = 4 if kind == FLOAT32 else 2
        room = np.zeros(1, np.float32)
        spare = np.int64(room.ctypes.data)
        for n in range(start, stop):
            first, last = simd.read_int(a[STARTS] + 8 * n), simd.read_int(a[STARTS] + 8 * n + 8)
            for m in range(a[M]):
                x = a[LAID] + m * ((a[K] + 63) >> 6) * 256
                s0 = s1 = s2 = s3 = np.float32(0)
                where, value = a[WHERE] + first * size, a[VALUES] + first * item
                for _ in range((last - first) >> 2):
                    s0 += _read_value(value, kind) * simd.read_float(x + 4 * _read_column(where, size))
                    s1 += _read_value(value + item, kind) * simd.read_float(x + 4 * _read_column(where + size, size))
                    s2 += _read_value(value + 2 * item, kind) * simd.read_float(x + 4 * _read_column(where + 2 * size, size))
                    s3 += _read_value(value + 3 * item, kind) * simd.read_float(x + 4 * _read_column(where + 3 * size, size))
                    where += 4 * size
                    value += 4 * item
                for i in range((last - first) & 3):
                    s0 += _read_value(value + i * item, kind) * simd.read_float(x + 4 * _read_column(where + i * size, size))
                simd.write_float(spare, (s0 + s1) + (s2 + s3))
                write_totals(a[Y], a[Y_KIND], a[M], a[N], m, n, 1, 1, spare)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "column_product_body", size, kind)


@cache
def column_fill_body(size: int, kind: int) -> Any:
    """The C function that writes rows of column indices densely."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        item, bfloat = 4 if kind == FLOAT32 else 2, a[Y_KIND] == BFLOAT16
        dense = np.zeros(a[K], np.float32)
        to = np.int64(dense.ctypes.data)
        for n in range(start, stop):
            dense[:] = 0
            for i in range(simd.read_int(a[STARTS] + 8 * n), simd.read_int(a[STARTS] + 8 * n + 8)):
                column = _read_column(a[WHERE] + i * size, size)
                simd.write_float(to + 4 * column, _read_value(a[VALUES] + i * item, kind))
            write_row(to, a[Y] + (n - a[FIRST]) * a[K] * (2 if bfloat else 4), a[K], bfloat)
        dense[:1] = 0  # numba frees an array after its last use by name

    return compile_body(body, "column_fill_body", size, kind)


@njit
def _lay_out(x: int, kind: int, m_total: int, k: int, batch: int, to: int) -> None:
    """Activations as float32 ``[block of rows, sixteen columns, row, column]``, padded with zeros to 64 columns."""
    steps = ((k + 63) >> 6) << 2
    for m in range(m_total):
        row, at = x + m * k * (2 if kind == BFLOAT16 else 4), to + (m // batch * steps * batch + m % batch) * 64
        for i in range(k):
            value = simd.read_bfloat(row + 2 * i) if kind == BFLOAT16 else simd.read_float(row + 4 * i)
            simd.write_float(at + (i >> 4) * batch * 64 + (i & 15) * 4, value)


@cache
def entry() -> Any:
    """What Python calls: to multiply with ``m`` rows of x, or, where m is 0, to write the rows ``first`` to ``last``."""
    def run(
        where: int, starts: int, values: int, y: int, kind: int, n: int, k: int, table: int, count: int, of_m: int, x: int, m: int,
        batch: int, first: int, last: int, body: int, launcher: int, thread: int, team: int, threads: int,
    ) -> None:
        data = np.empty(SLOTS, np.int64)
        scratch = np.zeros(64 + (m + batch - 1) // batch * batch * ((k + 63) >> 6) * 256, np.uint8)
        data[FIRST], data[LAST] = first, last
        data[WHERE], data[STARTS], data[VALUES], data[Y], data[Y_KIND], data[M], data[N], data[K] = where, starts, values, y, kind, m, n, k
        data[TABLE], data[COUNT], data[OF_M] = table, count, of_m
        data[LAID] = (np.int64(scratch.ctypes.data) + 63) & ~63
        _lay_out(x, kind, m, k, batch, data[LAID])
        launch(body, np.int64(data.ctypes.data), launcher, thread, team, threads)
        data[0] = scratch[0] = 0  # numba frees an array after its last use by name

    return compile_entry(run, "sparse_entry", 20)
