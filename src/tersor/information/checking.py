"""What the functions of this room refuse at their door, in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument, TersorError

Array = np.ndarray[Any, np.dtype[Any]]


def check_rows(name: str, values: Any) -> Array:
    """``values``, an array or a tensor, as a finite float64 matrix with at least one entry; floats of another width are converted.

    Raises:
        InvalidArgument: If it is not a matrix, is empty, or holds NaN or Inf.
    """
    matrix = _as_floats(name, values)
    if matrix.ndim != 2 or matrix.size == 0:
        raise InvalidArgument(f"{name} must be a matrix [rows, columns] with at least one entry, got shape {matrix.shape}")
    return _finite(name, matrix)


def check_vector(name: str, values: Any, length: int | None = None) -> Array:
    """``values`` as a finite float64 vector that is not empty.

    Raises:
        InvalidArgument: If it is not a vector of ``length`` entries, or holds NaN or Inf.
    """
    vector = _as_floats(name, values)
    if vector.ndim != 1 or vector.size == 0 or (length is not None and vector.size != length):
        wanted = "at least one entry" if length is None else f"{length} entries"
        raise InvalidArgument(f"{name} must be a vector of {wanted}, got shape {vector.shape}")
    return _finite(name, vector)


def check_distribution(name: str, values: Any) -> Array:
    """``values`` as probabilities: a vector, none negative, of sum 1 up to rounding, which is divided out.

    Raises:
        InvalidArgument: If it is no distribution.
    """
    vector = check_vector(name, values)
    if vector.min() < 0:
        raise InvalidArgument(f"{name} must hold probabilities, got {vector.min():g}")
    total = float(vector.sum())
    if abs(total - 1) > 1e-6:
        raise InvalidArgument(f"{name} must sum to 1, got {total:.9g}; divide it by its sum")
    return vector / total


def optional(module: str) -> ModuleType:
    """The installed ``module``, which comes with the extra ``information``.

    Raises:
        TersorError: If it is not installed, with the command that mends it.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise TersorError(f"this needs {package}, which is not installed; pip install 'tersor[information]'") from None


def _as_floats(name: str, values: Any) -> Array:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        kind = "a ragged sequence" if isinstance(values, Sequence) else type(values).__name__
        raise InvalidArgument(f"{name} must be an array of numbers, got {kind}") from None


def _finite(name: str, values: Array) -> Array:
    if not np.isfinite(values).all():
        raise InvalidArgument(f"{name} holds NaN or Inf; remove or replace those entries")
    return values
