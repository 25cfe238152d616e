"""Reading rows to the end of a buffer and writing rows of results, for every compiled kernel."""

from __future__ import annotations

from numba import njit

from tersor.kernels import _simd as simd

FLOAT32, BFLOAT16, FLOAT16 = range(3)


@njit
def _copied(address: int, step: int, rows: int, n: int, end: int, spare: int) -> tuple[int, int]:
    for r in range(rows):
        for i in range(n):
            place = address + r * step + i
            simd.write_byte(spare + 64 * r + i, simd.read_byte(place) if place < end else 0)
    return spare, 64


@njit(inline="always")
def guarded(address: int, step: int, rows: int, n: int, end: int, spare: int) -> tuple[int, int]:
    """``address, step`` of ``rows`` pieces of ``n`` bytes, or of copies in ``spare`` where reading would cross the end of the buffer."""
    found = address, step
    if address + (rows - 1) * step + n > end:
        found = _copied(address, step, rows, n, end, spare)
    return found


@njit
def write_totals(y: int, kind: int, m_total: int, n_total: int, m: int, n: int, rows: int, batch: int, totals: int) -> None:
    """Write the results ``totals [rows, batch]`` to ``y [m_total, n_total]`` at column ``n`` and row ``m``."""
    for j in range(min(batch, m_total - m)):
        for i in range(rows):
            at, value = (m + j) * n_total + n + i, simd.read_float(totals + 4 * (i * batch + j))
            if kind == BFLOAT16:
                simd.write_bfloat(y + 2 * at, value)
            else:
                simd.write_float(y + 4 * at, value)


@njit
def write_row(values: int, y: int, k: int, bfloat: bool) -> None:
    """Copy ``k`` float32 to ``y``, as they are or rounded to bfloat16."""
    whole = k - k % 16
    for i in range(0, whole, 16):
        if bfloat:
            simd.store_bfloat(y + 2 * i, simd.load(values + 4 * i, 1))
        else:
            simd.store(y + 4 * i, simd.load(values + 4 * i, 1))
    for i in range(whole, k):
        if bfloat:
            simd.write_bfloat(y + 2 * i, simd.read_float(values + 4 * i))
        else:
            simd.write_float(y + 4 * i, simd.read_float(values + 4 * i))
