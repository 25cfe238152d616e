"""The two inner loops that calibration spends its time in, compiled on first use: the column sweep and the search for a group's range.

Plain torch spells both out in a few dozen small calls a column; here a tile of output rows stays in the cache for a whole block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

TILE = 64  # output rows that go through a block together: 128 columns of them fill the first-level cache
SCHEME_NUMBERS = {"symmetric": 0, "asymmetric": 1, "float_min": 2}
MSE_NORM = np.float32(2.4)  # the exponent that Frantar et al. use: between squared error and the largest error
HALF = np.float32(8193.0)  # 2^13 + 1: Dekker's constant that splits a float32 at the 11 significant bits of float16


@cache
def replace_block() -> Callable[..., None]:
    """The compiled ``replace_block(columns, coefficients, diagonal, scale, zero, group, step, top, float_min, keep, keep_n, of_m, codes, errors)``.

    Visits the columns of a block in order, replaces each by its rounded or pruned value and spreads the error over the rest of the block.

    Args of the compiled function:
        columns: float32 ``[n, out_features]``, updated in place to the replaced values.
        coefficients: float32 ``[n, n]``, how an error in one column moves to a later one.
        diagonal: float32 ``[n]``, cost of an error; scores N:M choices.
        scale, zero: float32 ``[groups, out_features]``; no groups leaves values as they are.
        group: int64 ``[n]``, group of each column.
        step: Levels are ``step * scale`` apart.
        top: Largest code.
        float_min: Whether ``zero`` is the value of code 0.
        keep: uint8 ``[n, out_features]``, zero where the weight is pruned; written where ``of_m`` is positive.
        keep_n, of_m: With ``of_m > 0``, keep the ``keep_n`` dearest of every ``of_m`` columns as they are when the sweep reaches them.
        codes: uint8 ``[n, out_features]``, written.
        errors: float32 ``[n, out_features]``, written: value before replacement minus value after.
    """
    import numba

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def choose(columns: Any, diagonal: Any, keep: Any, keep_n: Any, of_m: Any, first: Any, low: Any, high: Any) -> None:
        for row in range(low, high):
            for column in range(first, first + of_m):
                keep[column, row] = 0
            for _ in range(keep_n):
                best, most = first, np.float32(-1.0)
                for column in range(first, first + of_m):
                    score = columns[column, row] * columns[column, row] * diagonal[column]
                    if keep[column, row] == 0 and score > most:
                        best, most = column, score
                keep[best, row] = 1

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def round_column(values: Any, scale: Any, zero: Any, step: Any, top: Any, float_min: Any, codes: Any, rounded: Any) -> None:
        for row in range(values.shape[0]):
            distance = scale[row] * step
            if float_min:
                code = np.rint((values[row] - zero[row]) / distance)
            else:
                code = np.rint(values[row] / distance) + zero[row] if step == 1 else np.rint(values[row] / distance + zero[row])
            code = min(max(code, np.float32(0.0)), top)
            codes[row] = np.uint8(code)
            rounded[row] = code * distance + zero[row] if float_min else (code - zero[row]) * distance

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def replace(
        columns: Any, coefficients: Any, diagonal: Any, scale: Any, zero: Any, group: Any, step: Any, top: Any, float_min: Any,
        keep: Any, keep_n: Any, of_m: Any, codes: Any, errors: Any,
    ) -> None:  # fmt: skip
        count, rows = columns.shape
        rounded = np.empty(TILE, np.float32)
        for low in range(0, rows, TILE):
            high = min(low + TILE, rows)
            width = high - low
            for column in range(count):
                if of_m > 0 and column % of_m == 0:
                    choose(columns, diagonal, keep, keep_n, of_m, column, low, high)
                values, kept, error = columns[column, low:high], keep[column, low:high], errors[column, low:high]
                if scale.shape[0] > 0:
                    g = group[column]
                    round_column(values, scale[g, low:high], zero[g, low:high], step, top, float_min, codes[column, low:high], rounded[:width])
                else:
                    rounded[:width] = values
                for row in range(width):
                    new = rounded[row] if kept[row] else np.float32(0.0)
                    error[row] = values[row] - new
                    values[row] = new
                for later in range(column + 1, count):
                    factor = coefficients[column, later]
                    target = columns[later, low:high]
                    for row in range(width):
                        target[row] -= factor * error[row]

    return replace


@cache
def search_range() -> Callable[..., None]:
    """The compiled ``search_range(groups, importance, low, high, coarse, fine, top, kind, power, best)``.

    For every group of weights, the factor by which shrinking its range lowers the error most: first of ``coarse``, then of ``fine`` about it.

    Args of the compiled function:
        groups: float32 ``[out_features, n_groups, group_size]``.
        importance: float32 ``[n_groups, group_size]``, weight of each squared error.
        low, high: float32 ``[out_features, n_groups]``, the full range.
        coarse, fine: float32 factors, and offsets from the best of them.
        top: Largest code.
        kind: One of :data:`SCHEME_NUMBERS`.
        power: Whether the error is ``|e| ** MSE_NORM`` instead of ``importance * e ** 2``.
        best: float32 ``[out_features, n_groups]``, written.
    """
    import numba

    @numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})
    def total(values: Any, importance: Any, scale: Any, zero: Any, top: Any, float_min: Any, power: Any) -> float:
        inverse = np.float32(1.0) / scale
        shift = -zero * inverse if float_min else zero
        error_sum = np.float32(0.0)
        for index in range(values.shape[0]):
            code = np.rint(values[index] * inverse + shift)
            code = min(max(code, np.float32(0.0)), top)
            error = values[index] - (code * scale + zero if float_min else (code - zero) * scale)
            error_sum += np.abs(error) ** MSE_NORM if power else error * error * importance[index]
        return error_sum

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def judge(values: Any, importance: Any, low: Any, high: Any, factor: Any, top: Any, kind: Any, power: Any) -> float:
        if kind == 2:
            middle, half = (low + high) / np.float32(2), (high - low) / np.float32(2) * factor
            low, high = middle - half, middle + half
        else:
            low, high = low * factor, high * factor
        scale = (high - low) / top
        big = scale * HALF
        scale = big - (big - scale)
        if not scale > 0:
            return np.float32(0.0)
        if kind == 0:
            zero = (top + np.float32(1)) / np.float32(2)
        elif kind == 1:
            zero = min(max(np.rint(-low / scale), np.float32(0.0)), top)
        else:
            zero = low
        return total(values, importance, scale, zero, top, kind == 2, power)

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def search(groups: Any, importance: Any, low: Any, high: Any, coarse: Any, fine: Any, top: Any, kind: Any, power: Any, best: Any) -> None:
        for row in range(groups.shape[0]):
            for g in range(groups.shape[1]):
                values, weights, a, b = groups[row, g], importance[g], low[row, g], high[row, g]
                chosen = np.float32(1.0)
                lowest = judge(values, weights, a, b, chosen, top, kind, power)
                for factor in coarse:
                    error = judge(values, weights, a, b, factor, top, kind, power)
                    if error < lowest:
                        chosen, lowest = factor, error
                centre = chosen
                for offset in fine:
                    factor = min(centre + offset, np.float32(1.0))
                    error = judge(values, weights, a, b, factor, top, kind, power)
                    if error < lowest:
                        chosen, lowest = factor, error
                best[row, g] = chosen

    return search
