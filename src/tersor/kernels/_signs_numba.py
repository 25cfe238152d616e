"""The dense form of a tile of rows of signs times low-rank magnitudes, summed over blocks, sixteen columns in registers at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit

from tersor.kernels import _simd as simd
from tersor.kernels._compiling import FIRST, LAST, compile_body, compile_entry, launch, share
from tersor.kernels._rows import BFLOAT16, guarded, write_row

# Slots of the argument block, after those of `launch`. SIGNS holds one address for each block.
SIGNS, LEFT, RIGHT, Y, Y_KIND, N, K, BLOCKS, RANK = range(4, 13)
SLOTS = 13
_SPARE = 64


@njit(inline="always")
def _sixteen(a: Any, n: int, c: int, spare: int) -> Any:
    """Columns ``c`` to ``c + 15`` of row ``n``; the right factor is padded to sixteen columns, the bits are not."""
    width, padded = (a[K] + 7) >> 3, (a[K] + 15) >> 4 << 4
    left, right = a[LEFT] + 4 * n * a[BLOCKS] * a[RANK], a[RIGHT] + 4 * c
    total = simd.zeros(1, 1)
    for block in range(a[BLOCKS]):
        magnitude = simd.zeros(1, 1)
        for _ in range(a[RANK]):
            magnitude = simd.fma(simd.splat(simd.read_float(left)), simd.load(right, 1), magnitude)
            left += 4
            right += 4 * padded
        signs = simd.read_int(a[SIGNS] + 8 * block)
        bits = guarded(signs + n * width + (c >> 3), 0, 1, 2, signs + a[N] * width, spare)[0]
        positive = simd.mul(simd.to_float(simd.load_codes(bits, 1)), simd.splat(np.float32(2)))
        total = simd.fma(simd.add(positive, simd.splat(np.float32(-1))), magnitude, total)
    return total


@cache
def fill_body() -> Any:
    """The C function that writes rows densely."""
    def body(data: int) -> None:
        a = carray(simd.pointer(data), SLOTS)
        start, stop = share(data)
        bfloat = a[Y_KIND] == BFLOAT16
        room = np.zeros(_SPARE + 4 * (a[K] + 16), np.uint8)
        spare = np.int64(room.ctypes.data)
        dense = spare + _SPARE
        for n in range(start, stop):
            for c in range(0, a[K], 16):
                simd.store(dense + 4 * c, _sixteen(a, n, c, spare))
            write_row(dense, a[Y] + (n - a[FIRST]) * a[K] * (2 if bfloat else 4), a[K], bfloat)
        room[0] = 0  # numba frees an array after its last use by name

    return compile_body(body, "sign_fill_body")


@cache
def entry() -> Any:
    """What Python calls to write the rows ``first`` to ``last``."""
    def run(
        signs: int, left: int, right: int, y: int, kind: int, n: int, k: int, blocks: int, rank: int, first: int, last: int,
        body: int, launcher: int, thread: int, team: int, threads: int,
    ) -> None:
        data = np.empty(SLOTS, np.int64)
        data[FIRST], data[LAST] = first, last
        data[SIGNS], data[LEFT], data[RIGHT], data[Y], data[Y_KIND], data[N], data[K] = signs, left, right, y, kind, n, k
        data[BLOCKS], data[RANK] = blocks, rank
        launch(body, np.int64(data.ctypes.data), launcher, thread, team, threads)
        data[0] = 0  # numba frees an array after its last use by name

    return compile_entry(run, "sign_entry", 16)
