"""The two inner loops that calibration spends its time in: the column sweep and the search for a group's range.

Plain torch spells both out in a few dozen small calls a column; here a tile of output rows stays in the cache for a whole block, which
is two to three times as fast. Importing this module imports numba, so import it where the loops are about to run. The functions are
at the top level because numba keys its cache on what a function closes over: nested ones would be compiled anew in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# Numbers of the grids: the compiled loops branch on them outside of their inner loops.
SYMMETRIC, ASYMMETRIC, FLOAT_MIN, SIGN = range(4)

# Output rows that go through a block together: 128 columns of them fill the first-level cache.
_TILE = 64
# 2^13 + 1: Dekker's constant that splits a float32 at the 11 significant bits of float16.
_HALF = np.float32(8193.0)
_ZERO, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)


def _compile(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:
            # No directory that the cache could be written to: compile for this process alone.
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


@_compile()
def _choose(columns: Any, diagonal: Any, keep: Any, keep_n: Any, of_m: Any, first: Any, low: Any, high: Any) -> None:
    """Mark the ``keep_n`` dearest of ``of_m`` columns from ``first`` on, for rows ``low`` to ``high``."""
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


@_compile()
def _round_column(values: Any, scale: Any, zero: Any, kind: Any, top: Any, codes: Any, rounded: Any) -> None:
    """Codes of ``values`` and what they stand for, bit for bit as :class:`tersor.layerwise.Grid` has them."""
    for row in range(values.shape[0]):
        if kind == SIGN:
            # Not by division: the scale of an all-zero group is zero.
            code = _ONE if values[row] >= _ZERO else _ZERO
        elif kind == FLOAT_MIN:
            code = np.rint((values[row] - zero[row]) / scale[row])
        else:
            code = np.rint(values[row] / scale[row]) + zero[row]
        code = min(max(code, _ZERO), top)
        codes[row] = np.uint8(code)
        if kind == FLOAT_MIN:
            rounded[row] = code * scale[row] + zero[row]
        else:
            rounded[row] = (code - zero[row]) * (_TWO * scale[row] if kind == SIGN else scale[row])


@_compile()
def replace_block(
    columns: Any, coefficients: Any, diagonal: Any, scale: Any, zero: Any, group: Any, kind: Any, top: Any,
    keep: Any, keep_n: Any, of_m: Any, codes: Any, errors: Any,
) -> None:  # fmt: skip
    """Visit the columns of a block in order, replace each by its rounded or pruned value and spread the error over the rest of the block.

    Args:
        columns: float32 ``[n, out_features]``, updated in place to the replaced values.
        coefficients: float32 ``[n, n]``, how an error in one column moves to a later one.
        diagonal: float32 ``[n]``, cost of an error; scores N:M choices.
        scale: float32 ``[groups, out_features]``; no groups leaves values as they are.
        zero: Likewise.
        group: int64 ``[n]``, group of each column.
        kind: One of the numbers above.
        top: float32, the largest code.
        keep: uint8 ``[n, out_features]``, zero where the weight is pruned; written where ``of_m`` is positive.
        keep_n: With ``of_m > 0``, keep the ``keep_n`` dearest of every ``of_m`` columns as they are when the sweep reaches them.
        of_m: See ``keep_n``.
        codes: uint8 ``[n, out_features]``, written if there are groups.
        errors: float32 ``[n, out_features]``, written: value before replacement minus value after.
    """
    count, rows = columns.shape
    rounded = np.empty(_TILE, np.float32)
    for low in range(0, rows, _TILE):
        high = min(low + _TILE, rows)
        width = high - low
        for column in range(count):
            if of_m > 0 and column % of_m == 0:
                _choose(columns, diagonal, keep, keep_n, of_m, column, low, high)
            values, kept, error = columns[column, low:high], keep[column, low:high], errors[column, low:high]
            if scale.shape[0] > 0:
                g = group[column]
                _round_column(values, scale[g, low:high], zero[g, low:high], kind, top, codes[column, low:high], rounded[:width])
            else:
                rounded[:width] = values
            for row in range(width):
                new = rounded[row] if kept[row] else _ZERO
                error[row] = values[row] - new
                values[row] = new
            for later in range(column + 1, count):
                factor = coefficients[column, later]
                target = columns[later, low:high]
                for row in range(width):
                    target[row] -= factor * error[row]


@_compile(fastmath={"reassoc", "nsz", "contract"})
def _error(values: Any, importance: Any, scale: Any, zero: Any, top: Any, kind: Any) -> Any:
    """``sum importance * error ** 2`` of a group on a grid; sums in the order that vectorises best."""
    inverse = _ONE / scale
    shift = -zero * inverse if kind == FLOAT_MIN else zero
    total = _ZERO
    for index in range(values.shape[0]):
        code = np.rint(values[index] * inverse + shift)
        code = min(max(code, _ZERO), top)
        error = values[index] - (code * scale + zero if kind == FLOAT_MIN else (code - zero) * scale)
        total += error * error * importance[index]
    return total


@_compile()
def _error_of_range(values: Any, importance: Any, low: Any, high: Any, factor: Any, top: Any, kind: Any) -> Any:
    """The error of a group on the grid over its range shrunk by ``factor``, its scale rounded to float16."""
    if kind == FLOAT_MIN:
        middle, half = (low + high) / _TWO, (high - low) / _TWO * factor
        low, high = middle - half, middle + half
    else:
        low, high = low * factor, high * factor
    scale = (high - low) / top
    split = scale * _HALF
    scale = split - (split - scale)
    if not scale > _ZERO:
        return _ZERO
    if kind == SYMMETRIC:
        zero = (top + _ONE) / _TWO
    elif kind == ASYMMETRIC:
        zero = min(max(np.rint(-low / scale), _ZERO), top)
    else:
        zero = low
    return _error(values, importance, scale, zero, top, kind)


@_compile()
def search_range(
    groups: Any, importance: Any, low: Any, high: Any, coarse: Any, fine: Any, top: Any, kind: Any, best: Any,
) -> None:  # fmt: skip
    """For every group of weights, the factor by which shrinking its range lowers the error most.

    Args:
        groups: float32 ``[out_features, n_groups, group_size]``.
        importance: float32 ``[n_groups, group_size]``, weight of each squared error.
        low: float32 ``[out_features, n_groups]``, lower end of the full range.
        high: Upper end.
        coarse: float32, factors tried.
        fine: float32, offsets then tried about the best of them.
        top: float32, the largest code.
        kind: ``SYMMETRIC``, ``ASYMMETRIC`` or ``FLOAT_MIN``.
        best: float32 ``[out_features, n_groups]``, written.
    """
    for row in range(groups.shape[0]):
        for g in range(groups.shape[1]):
            values, weights, a, b = groups[row, g], importance[g], low[row, g], high[row, g]
            chosen = _ONE
            lowest = _error_of_range(values, weights, a, b, chosen, top, kind)
            for factor in coarse:
                error = _error_of_range(values, weights, a, b, factor, top, kind)
                if error < lowest:
                    chosen, lowest = factor, error
            centre = chosen
            for offset in fine:
                factor = min(centre + offset, _ONE)
                error = _error_of_range(values, weights, a, b, factor, top, kind)
                if error < lowest:
                    chosen, lowest = factor, error
            best[row, g] = chosen
