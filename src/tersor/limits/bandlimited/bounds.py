"""How well a network with frozen random weights can do at best, in three versions that are proven."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_number
from tersor.limits.checking import Array, check_array

# Eigenvalues below this part of the largest, times their number, are rounding: they are taken to be that large, so that bounds stay bounds.
_ROUNDING = 1e-15


def norm_budget(gram: Any, target: Any, radius: float) -> float:
    """The least root mean squared error of any read-out whose coefficients have a norm of at most ``radius``.

    A network of ``m`` features with coefficients ``c`` is ``(1/m) sum_j gamma_j phi_j`` with ``gamma = m c``; its norm is the root of the
    mean of ``gamma^2``, ``sqrt(m) |c|``, which can be compared between widths. On given points these networks are a ball, and the closest
    point of a ball has a closed form up to one multiplier.

    Args:
        gram: ``[n, n]``, means over the features of products, ``features @ features.T / m``; or their expectation, for infinite width.
        target: ``[n]``, values of the function on the same points.
        radius: Largest norm of the coefficients.

    Returns:
        The error, in the unit of the target. Reached by some read-out, up to rounding, so it cannot be improved on these points. A norm
        above some ``1e7`` reaches what float64 cannot tell from 0: the bound is then too low, never too high.

    Raises:
        InvalidArgument: On other shapes, NaN or Inf, a gram matrix that is not symmetric and positive semidefinite, or a negative radius.
    """
    matrix = check_array("gram", gram, 2)
    values = check_array("target", target, 1, (len(matrix),))
    check_number("radius", radius, 0.0)
    eigenvalues, vectors = _decomposed(matrix)
    parts = vectors.T @ values / math.sqrt(len(values))
    return math.sqrt(_closest(eigenvalues, parts, radius))


def norm_needed(gram: Any, target: Any, error: float) -> float:
    """The least norm of the coefficients with which a root mean squared error of ``error`` can be reached; infinite if features are zero.

    Args:
        gram: As for :func:`norm_budget`, whose inverse this is.
        target: ``[n]``.
        error: In the unit of the target.

    Raises:
        InvalidArgument: As :func:`norm_budget`.
    """
    matrix = check_array("gram", gram, 2)
    values = check_array("target", target, 1, (len(matrix),))
    check_number("error", error, 0.0)
    eigenvalues, vectors = _decomposed(matrix)
    parts = vectors.T @ values / math.sqrt(len(values))
    if error**2 >= float(parts @ parts):
        return 0.0
    reachable = eigenvalues > 0
    if float((parts[~reachable] ** 2).sum()) > error**2:
        return math.inf
    multiplier = _multiplier(lambda nu: _lost(eigenvalues, parts, nu) >= error**2, float(eigenvalues.max()))
    return math.sqrt(float((parts**2 * eigenvalues / (eigenvalues + multiplier) ** 2)[reachable].sum()))


def _decomposed(gram: Array) -> tuple[Array, Array]:
    if gram.shape[0] != gram.shape[1] or not np.allclose(gram, gram.T, rtol=1e-8, atol=1e-12 * float(np.abs(gram).max())):
        raise InvalidArgument(f"gram must be a symmetric matrix, got shape {gram.shape}")
    eigenvalues, vectors = np.linalg.eigh((gram + gram.T) / 2 / len(gram))
    largest = float(eigenvalues[-1])
    if eigenvalues[0] < -1e-8 * max(largest, 1e-300) or largest < 0:
        raise InvalidArgument(f"gram must be positive semidefinite, its smallest eigenvalue is {eigenvalues[0]:g}")
    return np.maximum(eigenvalues, _ROUNDING * len(gram) * largest), vectors


def _lost(eigenvalues: Array, parts: Array, multiplier: float) -> float:
    """Squared error of the best function for a multiplier."""
    total = eigenvalues + multiplier
    kept = np.divide(multiplier, total, out=np.ones_like(total), where=total > 0)
    return float((parts * kept) @ (parts * kept))


def _closest(eigenvalues: Array, parts: Array, radius: float) -> float:
    reachable = eigenvalues > 0

    def norm(multiplier: float) -> float:
        return float((parts**2 * eigenvalues / (eigenvalues + multiplier) ** 2)[reachable].sum()) if reachable.any() else 0.0

    if norm(0.0) <= radius**2:
        return _lost(eigenvalues, parts, 0.0)
    if radius == 0:
        return float(parts @ parts)
    return _lost(eigenvalues, parts, _multiplier(lambda nu: norm(nu) <= radius**2, float(eigenvalues.max())))


def _multiplier(enough: Any, scale: float) -> float:
    """The least multiplier, to a relative 1e-13, for which ``enough`` is true; it is monotone. A little too small, so that bounds hold."""
    low, high = scale * 1e-40, scale
    while not enough(high):
        high *= 4
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
        if high <= low * (1 + 1e-13):
            break
    return low


def parseval(analysis: Any, target: Any, kept: Any) -> tuple[float, float]:
    """Between which relative errors a function lies if only the coefficients of ``kept`` parameters are used: both ends from the rest.

    With a Parseval frame, ``analysis.T @ analysis = 1``, and ``E`` the fraction of the energy of the canonical coefficients outside of
    ``kept``, the relative error is at least ``E`` and at most ``sqrt(E)``. This is what "the ridgelet spectrum outside of the band" means.

    Args:
        analysis: ``[parameters, n]``, such as :func:`parseval_frame` makes of any dictionary.
        target: ``[n]``, not zero.
        kept: ``[parameters]``, truth values.

    Returns:
        The lower and the upper end.

    Raises:
        InvalidArgument: On other shapes, NaN or Inf, a zero target, or an analysis that is no Parseval frame.
    """
    matrix, values, mask = _checked_frame(analysis, target, kept)
    outside = (matrix @ values)[~mask]
    energy = float(outside @ outside) / float(values @ values)
    return energy, math.sqrt(energy)


def truncation_error(analysis: Any, target: Any, kept: Any) -> float:
    """The relative error itself that :func:`parseval` encloses; same arguments."""
    matrix, values, mask = _checked_frame(analysis, target, kept)
    inside = np.where(mask, matrix @ values, 0.0)
    return float(np.linalg.norm(values - matrix.T @ inside) / np.linalg.norm(values))


def parseval_frame(dictionary: Any) -> Array:
    """The analysis operator ``[parameters, n]`` of the Parseval frame closest to a dictionary of functions.

    Args:
        dictionary: ``[n, parameters]``, one function a column; together they must span all of ``R^n``.

    Raises:
        InvalidArgument: If they do not.
    """
    matrix = check_array("dictionary", dictionary, 2)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    if len(s) < len(matrix) or s[-1] <= 1e-10 * s[0]:
        raise InvalidArgument(
            f"the functions of the dictionary span {int((s > 1e-10 * s[0]).sum())} of {len(matrix)} dimensions; add others"
        )
    frame: Array = (u @ vh).T
    return frame


def _checked_frame(analysis: Any, target: Any, kept: Any) -> tuple[Array, Array, Array]:
    matrix = check_array("analysis", analysis, 2)
    values = check_array("target", target, 1, (matrix.shape[1],))
    mask = np.asarray(kept, dtype=bool)
    if mask.shape != (len(matrix),):
        raise InvalidArgument(f"kept must hold one truth value for each of {len(matrix)} parameters, got shape {mask.shape}")
    if not values.any():
        raise InvalidArgument("target must not be zero everywhere")
    if not np.allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-8):
        raise InvalidArgument("analysis is no Parseval frame: analysis.T @ analysis must be the identity; see parseval_frame")
    return matrix, values, mask


def cosine_tail(target: Any, spacing: float, cutoff: float) -> float:
    """The least relative error on the whole line of functions whose spectrum lies in ``|omega| <= cutoff``: the root of the energy beyond.

    A network with the activation ``cos``, or any whose own spectrum ends at ``W``, and weights ``|a| <= lam`` has a spectrum that ends at
    ``lam W`` whatever its width; with a window, at ``lam W`` plus that of the window.

    Args:
        target: ``[n]``, samples that cover all of the function; read as one period of a periodic one.
        spacing: Distance of the samples.
        cutoff: In radians per unit of length.

    Raises:
        InvalidArgument: On NaN or Inf, a target that is zero everywhere, or a spacing or cutoff out of range.
    """
    values = check_array("target", target, 1)
    check_number("spacing", spacing, math.ulp(0.0))
    check_number("cutoff", cutoff, 0.0)
    energies = np.abs(np.fft.fft(values)) ** 2
    frequencies = 2 * math.pi * np.abs(np.fft.fftfreq(len(values), spacing))
    if not energies.any():
        raise InvalidArgument("target must not be zero everywhere")
    return math.sqrt(float(energies[frequencies > cutoff].sum() / energies.sum()))


def gaussian_tail(*, frequency: float = 20.0, width: float = 1.0, cutoff: float = 10.0) -> float:
    """:func:`cosine_tail` of ``cos(frequency x) exp(-x^2 / (2 width^2))`` in closed form.

    Args:
        frequency: Of the oscillation.
        width: Of the envelope.
        cutoff: Largest frequency of the approximation.

    Raises:
        InvalidArgument: On a width that is not positive, or another number that is negative.
    """
    for name, value in (("frequency", frequency), ("cutoff", cutoff)):
        check_number(name, value, 0.0)
    check_number("width", width, math.ulp(0.0))
    # The spectrum is two Gaussians at +-frequency; their squares overlap in a third at 0.
    low, high = (math.erfc(width * (cutoff - sign * frequency)) for sign in (-1, 1))
    overlap = math.exp(-((width * frequency) ** 2))
    return math.sqrt((low / 2 + high / 2 + overlap * math.erfc(width * cutoff)) / (1 + overlap))
