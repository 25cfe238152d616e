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


@_compile(fastmath={"reassoc", "nsz", "contract"})
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
            best, most = -1, np.float32(-1.0)
            for atom in range(k):
                # Chosen and dependent atoms have nothing free.
                if free[atom] > _DEPENDENT:
                    score = alpha[atom] * alpha[atom]
                    if orthogonal:
                        score /= free[atom]
                    if score > most:
                        best, most = atom, score
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
        for step in range(size, n_chosen):
            chosen[signal, step] = -1
            codes[signal, step] = _ZERO
        # Back substitution through the columns of the chosen atoms.
        for step in range(size - 1, -1, -1):
            value = codes[signal, step]
            for later in range(step + 1, size):
                value -= rows[step, chosen[signal, later]] * codes[signal, later]
            codes[signal, step] = value / rows[step, chosen[signal, step]]


@_compile(fastmath={"reassoc", "nsz", "contract"})
def update_atoms(residual: Any, atoms: Any, codes: Any, iterations: Any) -> None:
    """One sweep of K-SVD: every atom and its codes become the leading singular pair of what the other atoms leave on its signals.

    Args:
        residual: float32 ``[n, d]``, signals minus their reconstruction; updated.
        atoms: float32 ``[k, d]`` of norm one; updated.
        codes: float32 ``[k, n]``; updated where they are not zero.
        iterations: Power iterations from the present atom; each can only lower the error.
    """
    n, d = residual.shape
    k = atoms.shape[0]
    users = np.empty(n, np.int64)
    projected = np.empty(n, np.float32)
    direction = np.empty(d, np.float32)
    for atom in range(k):
        own, code = atoms[atom], codes[atom]
        count = 0
        for signal in range(n):
            if code[signal] != _ZERO:
                users[count] = signal
                count += 1
        if count == 0:
            continue
        # The errors of the signals without this atom are residual + code * atom; they are never formed.
        old = own.copy()
        for iteration in range(iterations + 1):
            along = _ZERO
            for entry in range(d):
                along += old[entry] * own[entry]
            for user in range(count):
                row = residual[users[user]]
                dot = _ZERO
                for entry in range(d):
                    dot += row[entry] * own[entry]
                projected[user] = dot + code[users[user]] * along
            if iteration == iterations:
                break
            direction[:] = _ZERO
            shared = _ZERO
            for user in range(count):
                row, factor = residual[users[user]], projected[user]
                shared += factor * code[users[user]]
                for entry in range(d):
                    direction[entry] += factor * row[entry]
            norm = _ZERO
            for entry in range(d):
                direction[entry] += shared * old[entry]
                norm += direction[entry] * direction[entry]
            if not norm > _ZERO:
                break
            inverse = _ONE / np.sqrt(norm)
            for entry in range(d):
                own[entry] = direction[entry] * inverse
        for user in range(count):
            row, before, after = residual[users[user]], code[users[user]], projected[user]
            for entry in range(d):
                row[entry] += before * old[entry] - after * own[entry]
            code[users[user]] = after
