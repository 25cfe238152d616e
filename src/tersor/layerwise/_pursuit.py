"""The inner loops of dictionary learning: matching pursuit of one signal after another, and the update of one atom after another.

Importing this module imports numba, so import it where the loops are about to run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.layerwise._compiled import _compile

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# Squared norm that is left of an atom below which it lies in the span of those chosen before it.
_DEPENDENT = np.float32(1e-5)
# Sums in the order that vectorises best.
_FAST = {"reassoc", "nsz", "contract"}


@_compile(fastmath=_FAST)
def _best(alpha: Any, free: Any, orthogonal: Any) -> Any:
    """The atom to choose, -1 if none is left: chosen and dependent atoms have nothing free."""
    best, most = -1, np.float32(-1.0)
    for atom in range(alpha.shape[0]):
        if free[atom] > _DEPENDENT:
            score = alpha[atom] * alpha[atom]
            if orthogonal:
                score /= free[atom]
            if score > most:
                best, most = atom, score
    return best


@_compile(fastmath=_FAST)
def _back_substitute(rows: Any, chosen: Any, codes: Any, size: Any) -> None:
    """Solve for the coefficients through the columns of the chosen atoms."""
    for step in range(size - 1, -1, -1):
        value = codes[step]
        for later in range(step + 1, size):
            value -= rows[step, chosen[later]] * codes[later]
        codes[step] = value / rows[step, chosen[step]]


@_compile(fastmath=_FAST)
def pursue(products: Any, gram: Any, n_chosen: Any, orthogonal: Any, chosen: Any, codes: Any) -> None:
    """For every signal choose atoms one by one and solve least squares on those chosen.

    The factorisation of the Gram matrix of the chosen atoms grows by a row a step (pivoted Cholesky). A row is kept for all atoms, not
    only for the chosen ones, which makes the correlations with the residual one subtraction a step and needs no triangular solve until
    the end.

    Args:
        products: float32 ``[n, k]``, ``atom . signal``; overwritten.
        gram: float32 ``[k, k]``, ``atom . atom``.
        n_chosen: Atoms a signal gets.
        orthogonal: Choose the atom whose addition lowers the error most (orthogonal least squares) instead of the one most correlated
            with the residual (matching pursuit).
        chosen: int64 ``[n, n_chosen]``, written: the atoms, ``-1`` once every other atom is dependent.
        codes: float32 ``[n, n_chosen]``, written: their coefficients.
    """
    n, k = products.shape
    rows = np.empty((n_chosen, k), np.float32)
    free = np.empty(k, np.float32)
    for signal in range(n):
        alpha = products[signal]
        for atom in range(k):
            free[atom] = gram[atom, atom]
        size = 0
        for step in range(n_chosen):
            best = _best(alpha, free, orthogonal)
            if best < 0:
                break
            row = rows[step]
            row[:] = gram[best]
            for earlier in range(step):
                factor = rows[earlier, best]
                before = rows[earlier]
                for atom in range(k):
                    row[atom] -= factor * before[atom]
            pivot = np.sqrt(free[best])
            weight = alpha[best] / pivot
            scale = _ONE / pivot
            for atom in range(k):
                row[atom] *= scale
                alpha[atom] -= weight * row[atom]
                free[atom] -= row[atom] * row[atom]
            free[best] = _ZERO
            chosen[signal, step] = best
            codes[signal, step] = weight
            size += 1
        chosen[signal, size:] = -1
        codes[signal, size:] = _ZERO
        _back_substitute(rows, chosen[signal], codes[signal], size)


@_compile(fastmath=_FAST)
def _project(residual: Any, code: Any, users: Any, old: Any, new: Any, projected: Any) -> None:
    """The errors without the atom ``old``, which are ``residual + code * old``, along ``new``."""
    along = _ZERO
    for entry in range(old.shape[0]):
        along += old[entry] * new[entry]
    for user in range(users.shape[0]):
        row = residual[users[user]]
        dot = _ZERO
        for entry in range(old.shape[0]):
            dot += row[entry] * new[entry]
        projected[user] = dot + code[users[user]] * along


@_compile(fastmath=_FAST)
def _turn(residual: Any, code: Any, users: Any, old: Any, new: Any, projected: Any, direction: Any) -> Any:
    """One power iteration of ``new``; false if there is no error left to turn to."""
    direction[:] = _ZERO
    shared, norm = _ZERO, _ZERO
    for user in range(users.shape[0]):
        row, factor = residual[users[user]], projected[user]
        shared += factor * code[users[user]]
        for entry in range(old.shape[0]):
            direction[entry] += factor * row[entry]
    for entry in range(old.shape[0]):
        direction[entry] += shared * old[entry]
        norm += direction[entry] * direction[entry]
    if not norm > _ZERO:
        return False
    inverse = _ONE / np.sqrt(norm)
    for entry in range(old.shape[0]):
        new[entry] = direction[entry] * inverse
    return True


@_compile(fastmath=_FAST)
def update_atoms(residual: Any, atoms: Any, codes: Any, iterations: Any) -> None:
    """One sweep of K-SVD: every atom and its codes become the leading singular pair of what the other atoms leave on its signals.

    Args:
        residual: float32 ``[n, d]``, signals minus their reconstruction; updated.
        atoms: float32 ``[k, d]`` of norm one; updated.
        codes: float32 ``[k, n]``; updated where they are not zero.
        iterations: Power iterations from the present atom; each can only lower the error.
    """
    n, d = residual.shape
    users = np.empty(n, np.int64)
    projected, direction = np.empty(n, np.float32), np.empty(d, np.float32)
    for atom in range(atoms.shape[0]):
        new, code = atoms[atom], codes[atom]
        count = 0
        for signal in range(n):
            if code[signal] != _ZERO:
                users[count] = signal
                count += 1
        old, own = new.copy(), users[:count]
        _project(residual, code, own, old, new, projected)
        for _ in range(iterations):
            if not _turn(residual, code, own, old, new, projected, direction):
                break
            _project(residual, code, own, old, new, projected)
        for user in range(count):
            row, before, after = residual[own[user]], code[own[user]], projected[user]
            for entry in range(d):
                row[entry] += before * old[entry] - after * new[entry]
            code[own[user]] = after
