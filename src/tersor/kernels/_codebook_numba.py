"""Rows of outputs as sums of table entries, one a stored byte, four sums at a time to hide the latency of the loads."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray

from tersor.kernels import _simd as simd
from tersor.kernels._compiling import FIRST, LAST, compile_body, compile_entry, launch, share

# Slots of the argument block, after those of `launch`.
TABLE, CODES, SCALE, Y, LOOKUPS, ENTRIES = range(4, 10)
SLOTS = 10


@cache
def sum_body() -> Any:
    """The C function that sums the looked-up entries of some rows."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        lookups, step = a[LOOKUPS], 4 * a[ENTRIES]
        whole = lookups - lookups % 4
        for n in range(start, stop):
            code, table = a[CODES] + n * lookups, a[TABLE]
            first, second = np.float32(0), np.float32(0)
            third, fourth = np.float32(0), np.float32(0)
            for i in range(0, whole, 4):
                first += simd.read_float(table + 4 * simd.read_byte(code + i))
                second += simd.read_float(table + step + 4 * simd.read_byte(code + i + 1))
                third += simd.read_float(table + 2 * step + 4 * simd.read_byte(code + i + 2))
                fourth += simd.read_float(table + 3 * step + 4 * simd.read_byte(code + i + 3))
                table += 4 * step
            for i in range(whole, lookups):
                first += simd.read_float(table + 4 * simd.read_byte(code + i))
                table += step
            simd.write_float(a[Y] + 4 * n, ((first + second) + (third + fourth)) * simd.read_float(a[SCALE] + 4 * n))

    return compile_body(body, "codebook_sum_body")


@cache
def entry() -> Any:
    """What Python calls to compute all outputs of one row of inputs."""
    def run(
        table: int, codes: int, scale: int, y: int, lookups: int, entries: int, outputs: int,
        body: int, launcher: int, thread: int, team: int, threads: int,
    ) -> None:
        data = np.empty(SLOTS, np.int64)
        data[FIRST], data[LAST] = 0, outputs
        data[TABLE], data[CODES], data[SCALE], data[Y], data[LOOKUPS], data[ENTRIES] = table, codes, scale, y, lookups, entries
        launch(body, np.int64(data.ctypes.data), launcher, thread, team, threads)
        data[0] = 0  # numba frees an array after its last use by name

    return compile_entry(run, "codebook_entry", 12)
