"""The search for codes in the metric of the inputs, compiled: coordinate descent over the groups of a row, or a beam of such descents.

Importing this module imports numba, so import it where the loops are about to run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.layerwise._compiled import _compile


@_compile()
def _best(
    residual: Any, block: Any, scale: Any, entries: Any, energies: Any, code: Any, start: Any, changes: Any, pull: Any
) -> None:  # fmt: skip
    """Change of a row's loss for every replacement of one code; ``residual`` is the row's error times the hessian."""
    size = entries.shape[1]
    for k in range(size):
        total = np.float32(0.0)
        for i in range(size):
            total += block[k, i] * entries[code, i]
        pull[k] = np.float32(2.0) * (residual[start + k] + scale * total)
    kept = np.float32(0.0)
    for k in range(size):
        kept += pull[k] * entries[code, k]
    kept = scale * kept - scale * scale * energies[code]
    for c in range(entries.shape[0]):
        total = np.float32(0.0)
        for k in range(size):
            total += pull[k] * entries[c, k]
        changes[c] = scale * scale * energies[c] - scale * total + kept


@_compile()
def _move(residual: Any, hessian: Any, scale: Any, entries: Any, old: Any, new: Any, start: Any) -> None:
    """Update ``residual`` for one replaced code."""
    for k in range(entries.shape[1]):
        step = scale * (entries[new, k] - entries[old, k])
        if step != 0:
            for i in range(residual.shape[0]):
                residual[i] -= step * hessian[start + k, i]


@_compile()
def descend(residuals: Any, hessian: Any, scales: Any, codebooks: Any, energies: Any, codes: Any) -> int:
    """One sweep of coordinate descent over every code of every row.

    Args:
        residuals: float32 ``[rows, in_features]``: the error of a row times the hessian; kept up to date.
        hessian: float32 ``[in_features, in_features]``, symmetric.
        scales: float32 ``[rows]``.
        codebooks: float32 ``[n_codebooks, entries, group_size]``.
        energies: float32 ``[groups, n_codebooks, entries]``: every entry's own square in the block of the hessian.
        codes: uint8 ``[rows, groups, n_codebooks]``, replaced in place.

    Returns:
        How many codes changed.
    """
    size, changed = codebooks.shape[2], 0
    changes, pull = np.empty(codebooks.shape[1], np.float32), np.empty(size, np.float32)
    for row in range(codes.shape[0]):
        for group in range(codes.shape[1]):
            start = group * size
            block = hessian[start : start + size, start : start + size]
            for m in range(codes.shape[2]):
                old = codes[row, group, m]
                _best(residuals[row], block, scales[row], codebooks[m], energies[group, m], old, start, changes, pull)
                new = np.argmin(changes)
                if new != old and changes[new] < 0:
                    _move(residuals[row], hessian, scales[row], codebooks[m], old, new, start)
                    codes[row, group, m] = new
                    changed += 1
    return changed


@_compile()
def _same(first: Any, second: Any, group: Any, m: Any) -> bool:
    """Whether two states agree in every code but that of ``group`` and ``m``."""
    for j in range(first.shape[0]):
        for n in range(first.shape[1]):
            if first[j, n] != second[j, n] and not (j == group and n == m):
                return False
    return True


@_compile()
def _select(losses: Any, table: Any, codes: Any, alive: Any, group: Any, m: Any, parents: Any, chosen: Any) -> int:
    """The states to go on with, best first: the parent and the code of each, no two of them the same."""
    count = 0
    while count < parents.shape[0]:
        best, parent, code = np.float32(np.inf), -1, -1
        for b in range(alive):
            for c in range(table.shape[1]):
                value = losses[b] + table[b, c]
                if value < best:
                    best, parent, code = value, b, c
        if parent < 0:
            break
        table[parent, code] = np.float32(np.inf)
        double = False
        for earlier in range(count):
            if chosen[earlier] == code and _same(codes[parents[earlier]], codes[parent], group, m):
                double = True
        if not double:
            parents[count], chosen[count] = parent, code
            count += 1
    return count


@_compile()
def beam_search(residuals: Any, hessian: Any, scales: Any, codebooks: Any, energies: Any, codes: Any, width: Any) -> int:
    """One sweep as :func:`descend`, with the ``width`` best states of each row kept at every code; returns how many codes changed."""
    size, changed, entries = codebooks.shape[2], 0, codebooks.shape[1]
    n, groups, count = residuals.shape[1], codes.shape[1], codes.shape[2]
    table, pull = np.empty((width, entries), np.float32), np.empty(size, np.float32)
    losses, next_losses = np.zeros(width, np.float32), np.zeros(width, np.float32)
    states, next_states = np.empty((width, groups, count), np.uint8), np.empty((width, groups, count), np.uint8)
    errors, next_errors = np.empty((width, n), np.float32), np.empty((width, n), np.float32)
    parents, chosen = np.empty(width, np.int64), np.empty(width, np.int64)
    for row in range(codes.shape[0]):
        alive = 1
        losses[0] = 0
        states[0], errors[0] = codes[row], residuals[row]
        for group in range(groups):
            start = group * size
            block = hessian[start : start + size, start : start + size]
            for m in range(count):
                for b in range(alive):
                    _best(errors[b], block, scales[row], codebooks[m], energies[group, m], states[b, group, m], start, table[b], pull)
                    table[b, states[b, group, m]] = 0
                for b in range(alive):
                    next_losses[b] = losses[b]
                kept = _keep(table, losses, states, errors, alive, group, m, parents, chosen, next_losses, next_states, next_errors)
                for b in range(kept):
                    old, new = states[parents[b], group, m], chosen[b]
                    if old != new:
                        _move(next_errors[b], hessian, scales[row], codebooks[m], old, new, start)
                        next_states[b, group, m] = new
                alive = kept
                losses, next_losses = next_losses, losses
                states, next_states = next_states, states
                errors, next_errors = next_errors, errors
        if losses[0] < 0:
            for group in range(groups):
                for m in range(count):
                    changed += codes[row, group, m] != states[0, group, m]
            codes[row], residuals[row] = states[0], errors[0]
    return changed


@_compile()
def _keep(
    table: Any, losses: Any, states: Any, errors: Any, alive: Any, group: Any, m: Any, parents: Any, chosen: Any,
    next_losses: Any, next_states: Any, next_errors: Any,
) -> int:  # fmt: skip
    """Copy the chosen parents into the next generation, with their new losses."""
    before = table[:alive].copy()
    kept = _select(losses, table, states, alive, group, m, parents, chosen)
    for b in range(kept):
        next_losses[b] = losses[parents[b]] + before[parents[b], chosen[b]]
        next_states[b], next_errors[b] = states[parents[b]], errors[parents[b]]
    return int(kept)
