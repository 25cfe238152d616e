"""Products with packed low-bit rows: a matrix-vector and small-batch kernel, and the dequantiser of a tile.

A row is read in chunks of sixteen 32-bit lanes, each lane holding 8 (up to 4 bits) or 4 consecutive codes. The activations are laid
out once a call so that step ``k`` of a chunk meets code ``k`` of every lane. Scale and zero are applied once a chunk and lane:

    y = sum over chunks and lanes of  scale * (sum over k of code * x)  +  offset * (sum over k of x)

where a code enters as ``1 + code / 2 ** bits``, the float whose mantissa it is. Every output is summed by one thread in one order, so
results do not depend on the number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit
from numba.core.registry import cpu_target

from tersor.kernels import _simd as simd
from tersor.kernels import _simd_bytes as fixed
from tersor.kernels._compiling import FIRST, LAST, compile_body, compile_entry, launch, share
from tersor.kernels._llvm import has
from tersor.kernels._rows import BFLOAT16, FLOAT16, guarded, write_row, write_totals

SYMMETRIC, ASYMMETRIC, FLOAT_MIN = range(3)

# Slots of the argument block that the threads of a team share, after those of `launch`.
CODES, SCALE, SCALE_KIND, ZERO, SCHEME, Y, Y_KIND, M, N, K, GROUP, GROUPS, CHUNKS, LAID, SUMS, INDEX, BASE, FIXED, UNITS = range(4, 23)
SLOTS = 23

# Bytes by which the codes are asked for before they are needed: short rows, several at once, defeat the processor's own prefetching.
AHEAD = 8192


@njit(inline="always")
def _floats(address: int, kind: int, end: int, spare: int) -> Any:
    if kind == FLOAT16:
        return simd.load_half(guarded(address, 0, 1, 32, end, spare)[0])
    return simd.load(guarded(address, 0, 1, 64, end, spare)[0], 1)


@njit(inline="always")
def write_grid(a: Any, row: int, bits: int, levels: int, lead: int, scales: int, offsets: int, spare: int) -> None:
    """Write scale and offset of each group of ``row``: a weight is ``scale * (lead + code / levels) + offset``."""
    kind, scheme, groups = a[SCALE_KIND], a[SCHEME], a[GROUPS]
    item = 2 if kind == FLOAT16 else 4
    start, size = row * groups * item, a[N] * groups * item
    width = (groups * bits + 7) >> 3
    factor, minus_lead = simd.splat(np.float32(levels)), simd.splat(np.float32(-lead))
    minus, middle = simd.splat(np.float32(-1)), simd.splat(np.float32(-(1 << (bits - 1)) + (0.5 if bits == 1 else 0)))
    for g in range(0, groups, 16):
        step = _floats(a[SCALE] + start + g * item, kind, a[SCALE] + size, spare)
        if scheme == ASYMMETRIC:
            packed = guarded(a[ZERO] + row * width + (g * bits >> 3), 0, 1, 2 * bits, a[ZERO] + a[N] * width, spare)[0]
            first = simd.mul(simd.mul(step, minus), simd.to_float(simd.load_codes(packed, bits)))
        elif scheme == FLOAT_MIN:
            first = _floats(a[ZERO] + start + g * item, kind, a[ZERO] + size, spare)
        else:
            if bits == 1:
                step = simd.add(step, step)
            first = simd.mul(step, middle)
        scale = simd.mul(step, factor)
        simd.store(scales + 4 * g, scale)
        simd.store(offsets + 4 * g, simd.fma(scale, minus_lead, first))


@njit
def _lay_out(a: Any, x: int, x_kind: int, per_lane: int, batch: int) -> None:
    """Activations as ``[block of rows, chunk, code of lane, row, lane]``, their sums over a lane, and the group of every lane."""
    length, chunks, last_group = 16 * per_lane, a[CHUNKS], a[GROUPS] - 1
    for c in range(chunks):
        base = c * length // a[GROUP]
        simd.write_int(a[BASE] + 8 * c, 4 * base)
        for lane in range(16):
            simd.write_byte(a[INDEX] + 16 * c + lane, min((c * length + lane * per_lane) // a[GROUP], last_group) - base)
    for m in range(a[M]):
        row = x + m * a[K] * (2 if x_kind == BFLOAT16 else 4)
        for c in range(chunks):
            block = m // batch * chunks + c
            to = a[LAID] + block * per_lane * batch * 64 + m % batch * 64
            for lane in range(16):
                first = c * length + lane * per_lane
                for k in range(min(per_lane, a[K] - first)):
                    value = simd.read_bfloat(row + 2 * (first + k)) if x_kind == BFLOAT16 else simd.read_float(row + 4 * (first + k))
                    simd.write_float(to + 64 * k * batch + 4 * lane, value)
            sums = simd.zeros(1, 1)
            for k in range(per_lane):
                sums = simd.add(sums, simd.load(to + 64 * k * batch, 1))
            simd.store(a[SUMS] + (block * batch + m % batch) * 64, sums)


@njit(inline="always")
def _products(a: Any, block: int, row: int, step: int, end: int, bits: int, rows: int, batch: int, tables: int, spare: int) -> Any:
    """A tile ``[rows, batch]`` of vectors whose lanes sum to the products of packed rows with a block of laid out activations."""
    per_lane, chunks = simd.codes_per_lane(bits), a[CHUNKS]
    length, groups = 2 * per_lane * bits, 4 * (a[GROUPS] + 16)
    index, base = a[INDEX], a[BASE]
    laid, sums = a[LAID] + block * chunks * per_lane * batch * 64, a[SUMS] + block * chunks * batch * 64
    total = simd.zeros(rows, batch)
    for c in range(chunks):
        if c == chunks - 1:
            row, step = guarded(row, step, rows, length, end, spare)
        for i in range(rows):
            simd.prefetch(row + i * step + AHEAD)
        lanes = simd.load_chunk(row, step, bits, rows)
        partial = simd.zeros(rows, batch)
        for k in range(per_lane):
            partial = simd.add_outer(simd.decode(lanes, k, bits), simd.load(laid + 64 * batch * k, batch), partial)
        pick, table = simd.load_bytes(index + 16 * c), tables + simd.read_int(base + 8 * c)
        total = simd.add_scaled(simd.lookup(table, 2 * groups, pick, rows), partial, total)
        total = simd.add_outer(simd.lookup(table + groups, 2 * groups, pick, rows), simd.load(sums, batch), total)
        row += length
        laid += 64 * per_lane * batch
        sums += 64 * batch
    return total


@cache
def product_body(bits: int, rows: int, batch: int) -> Any:
    """The C function that multiplies tiles of ``rows`` packed rows with ``batch`` rows of x.

    Even for one row of x several packed rows go together, because loads of x, not arithmetic, would bound a single one.
    """
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        table, width = 8 * (a[GROUPS] + 16), (a[K] * bits + 7) >> 3
        room = np.empty(rows * (64 + table) + 4 * rows * batch, np.uint8)
        spare = np.int64(room.ctypes.data)
        tables = spare + 64 * rows
        totals = tables + rows * table
        for tile in range(start, stop):
            # A matrix of fewer rows than a tile is taken row by row, each repeated; else the last tile overlaps the one before it.
            n, step = (min(rows * tile, a[N] - rows), 1) if a[N] >= rows else (tile, 0)
            for i in range(rows):
                write_grid(a, n + i * step, bits, 1 << bits, 1, tables + i * table, tables + i * table + (table >> 1), spare)
            for m in range(0, a[M], batch):
                row = a[CODES] + n * width
                made = _products(a, m // batch, row, step * width, a[CODES] + a[N] * width, bits, rows, batch, tables, spare)
                simd.store_totals(totals, made)
                write_totals(a[Y], a[Y_KIND], a[M], a[N], m, n, rows if step else 1, batch, totals)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "product_body", bits, rows, batch)


@njit
def _fix(a: Any, per_lane: int, digits: int) -> None:
    """Write laid out activations as integers of ``digits`` bits in a unit for each lane, split into three signed bytes, and the units.

    Byte ``b`` of a lane of vector ``part`` belongs to the code at ``part`` in byte ``b`` of that lane of packed codes.
    """
    parts = per_lane >> 2
    for block in range(a[M] * a[CHUNKS]):
        laid, to = a[LAID] + block * per_lane * 64, a[FIXED] + block * 3 * parts * 64
        most = fixed.int_zeros(1, 1)
        for k in range(per_lane):
            most = fixed.max_magnitude(most, simd.load(laid + 64 * k, 1))
        simd.store(a[UNITS] + block * 64, fixed.unit_below(most, digits))
        for part in range(parts):
            high = middle = low = fixed.int_zeros(1, 1)
            for b in range(4):
                value = fixed.in_units(simd.load(laid + 64 * (b * parts + part), 1), most, digits)
                low = fixed.with_byte(low, value, b)
                value = fixed.without_byte(value)
                middle = fixed.with_byte(middle, value, b)
                high = fixed.with_byte(high, fixed.without_byte(value), b)
            fixed.store_ints(to + 64 * part, high)
            fixed.store_ints(to + 64 * (parts + part), middle)
            fixed.store_ints(to + 64 * (2 * parts + part), low)


@njit(inline="always")
def _byte_products(a: Any, m: int, row: int, step: int, end: int, bits: int, rows: int, tables: int, spare: int) -> Any:
    """As :func:`_products`, for codes that do not cross bytes and activations in fixed point: exact sums of 32 bits in every lane."""
    parts, chunks, groups = 8 // bits, a[CHUNKS], 4 * (a[GROUPS] + 16)
    index, base = a[INDEX], a[BASE]
    x, sums, units = a[FIXED] + m * chunks * parts * 192, a[SUMS] + m * chunks * 64, a[UNITS] + m * chunks * 64
    total = simd.zeros(rows, 1)
    for c in range(chunks):
        if c == chunks - 1:
            row, step = guarded(row, step, rows, 64, end, spare)
        for i in range(rows):
            simd.prefetch(row + i * step + AHEAD)
        words = fixed.load_words(row, step, rows)
        partial = fixed.int_zeros(rows, 1)
        for digit in range(3):
            partial = fixed.shift_byte(partial)
            for part in range(parts):
                codes = fixed.bytes_of_codes(words, part, bits)
                partial = fixed.add_byte_products(codes, fixed.load_ints(x + 64 * (digit * parts + part)), partial)
        pick, table = simd.load_bytes(index + 16 * c), tables + simd.read_int(base + 8 * c)
        scaled = fixed.mul_each(simd.to_float(partial), simd.load(units + 64 * c, 1))
        total = simd.fma(simd.lookup(table, 2 * groups, pick, rows), scaled, total)
        total = simd.add_outer(simd.lookup(table + groups, 2 * groups, pick, rows), simd.load(sums + 64 * c, 1), total)
        row += 64
        x += 192 * parts
    return total


@cache
def has_byte_products() -> bool:
    """Whether the processor multiplies and adds bytes at once."""
    return has(cpu_target.target_context, "avx512vnni")


@cache
def byte_body(bits: int, rows: int) -> Any:
    """The C function of :func:`_byte_products`, one row of x at a time."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        table, width = 8 * (a[GROUPS] + 16), (a[K] * bits + 7) >> 3
        room = np.empty(rows * (64 + table + 4), np.uint8)
        spare = np.int64(room.ctypes.data)
        tables = spare + 64 * rows
        totals = tables + rows * table
        for tile in range(start, stop):
            n, step = (min(rows * tile, a[N] - rows), 1) if a[N] >= rows else (tile, 0)
            for i in range(rows):
                write_grid(a, n + i * step, bits, 1, 0, tables + i * table, tables + i * table + (table >> 1), spare)
            for m in range(a[M]):
                row = a[CODES] + n * width
                simd.store_totals(totals, _byte_products(a, m, row, step * width, a[CODES] + a[N] * width, bits, rows, tables, spare))
                write_totals(a[Y], a[Y_KIND], a[M], a[N], m, n, rows if step else 1, 1, totals)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "byte_body", bits, rows)


@cache
def dequantise_body(bits: int, bfloat: bool) -> Any:
    """The C function that writes its share of the rows as float32 or bfloat16, in order."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        k, group, table, width = a[K], a[GROUP], 4 * (a[GROUPS] + 16), (a[K] * bits + 7) >> 3
        room = np.empty(64 + 2 * table + 4 * (k + 16), np.uint8)
        spare = np.int64(room.ctypes.data)
        scales = spare + 64
        offsets, codes = scales + table, scales + 2 * table
        for n in range(start, stop):
            write_grid(a, n, bits, 1, 0, scales, offsets, spare)
            row, y = a[CODES] + n * width, a[Y] + (n - a[FIRST]) * k * (2 if bfloat else 4)
            if group % 16 == 0:
                for g in range(a[GROUPS]):
                    scale, offset = simd.splat(simd.read_float(scales + 4 * g)), simd.splat(simd.read_float(offsets + 4 * g))
                    for _ in range(group >> 4):
                        value = simd.fma(scale, simd.to_float(simd.load_codes(row, bits)), offset)
                        if bfloat:
                            simd.store_bfloat(y, value)
                        else:
                            simd.store(y, value)
                        row += 2 * bits
                        y += 32 if bfloat else 64
            else:
                for i in range(0, k, 16):
                    packed = guarded(row + (i * bits >> 3), 0, 1, 2 * bits, a[CODES] + a[N] * width, spare)[0]
                    simd.store(codes + 4 * i, simd.to_float(simd.load_codes(packed, bits)))
                _write_groups(a, scales, offsets, codes, y)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "dequantise_body", bits, bfloat)


@njit
def _write_groups(a: Any, scales: int, offsets: int, codes: int, y: int) -> None:
    """Finish a row whose groups do not begin on multiples of sixteen."""
    k, group, bfloat = a[K], a[GROUP], a[Y_KIND] == BFLOAT16
    values = carray(simd.float_pointer(codes), k)
    for g in range(a[GROUPS]):
        scale, offset = simd.read_float(scales + 4 * g), simd.read_float(offsets + 4 * g)
        for i in range(g * group, (g + 1) * group):
            values[i] = scale * values[i] + offset
    write_row(codes, y, k, bfloat)


@njit
def _describe(
    data: Any, codes: int, scale: int, scale_kind: int, zero: int, scheme: int, y: int, y_kind: int, n: int, k: int, group: int
) -> None:
    data[CODES], data[SCALE], data[SCALE_KIND], data[ZERO], data[SCHEME] = codes, scale, scale_kind, zero, scheme
    data[Y], data[Y_KIND], data[N], data[K], data[GROUP], data[GROUPS] = y, y_kind, n, k, group, k // group


@cache
def product_entry() -> Any:
    """What Python calls for a product: lay the activations out, in fixed point of ``digits`` bits if that is not 0, then start the team."""
    def entry(
        codes: int, scale: int, scale_kind: int, zero: int, scheme: int, y: int, kind: int, n: int, k: int, group: int, x: int, m: int,
        per_lane: int, digits: int, rows: int, batch: int, body: int, launcher: int, thread: int, team: int, threads: int,
    ) -> None:
        chunks = (k + 16 * per_lane - 1) // (16 * per_lane)
        blocks = (m + batch - 1) // batch * batch * chunks
        data = np.empty(SLOTS, np.int64)
        scratch = np.zeros(64 + (blocks * (2 * per_lane + 2) if digits else blocks * (per_lane + 1)) * 64 + chunks * 24, np.uint8)
        _describe(data, codes, scale, scale_kind, zero, scheme, y, kind, n, k, group)
        data[FIRST], data[LAST] = 0, (n + rows - 1) // rows if n >= rows else n
        data[M], data[CHUNKS] = m, chunks
        data[LAID] = (np.int64(scratch.ctypes.data) + 63) & ~63
        data[SUMS] = data[LAID] + blocks * per_lane * 64
        data[UNITS] = data[SUMS] + blocks * 64
        data[FIXED] = data[UNITS] + (blocks * 64 if digits else 0)
        data[INDEX] = data[FIXED] + (blocks * per_lane * 64 if digits else 0)
        data[BASE] = data[INDEX] + chunks * 16
        _lay_out(data, x, kind, per_lane, batch)
        if digits:
            _fix(data, per_lane, digits)
        launch(body, np.int64(data.ctypes.data), launcher, thread, team, threads)
        data[0] = scratch[0] = 0  # numba frees an array after its last use by name

    return compile_entry(entry, "product_entry", 21)


@cache
def dequantise_entry() -> Any:
    """What Python calls to write the rows ``first`` to ``last``."""
    def entry(
        codes: int, scale: int, scale_kind: int, zero: int, scheme: int, y: int, kind: int, n: int, k: int, group: int, first: int,
        last: int, body: int, launcher: int, thread: int, team: int, threads: int,
    ) -> None:
        data = np.empty(SLOTS, np.int64)
        _describe(data, codes, scale, scale_kind, zero, scheme, y, kind, n, k, group)
        data[FIRST], data[LAST] = first, last
        launch(body, np.int64(data.ctypes.data), launcher, thread, team, threads)
        data[0] = 0  # numba frees an array after its last use by name

    return compile_entry(entry, "dequantise_entry", 17)
