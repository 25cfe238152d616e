"""What the functions of this room refuse at their door, in the same words."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument, TersorError

Array = np.ndarray[Any, np.dtype[Any]]


def check_array(name: str, values: Any, dimensions: int, shape: tuple[int | None, ...] | None = None) -> Array:
    """``values`` as a finite float64 array with at least one entry.

    Args:
        name: What the sentence calls it.
        values: An array, a list or a tensor.
        dimensions: How many axes it must have.
        shape: Sizes that its axes must have; ``None`` for any.

    Raises:
        InvalidArgument: If it is of another shape, empty, no numbers, or holds NaN or Inf.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} must be an array of numbers") from None
    fits = shape is None or (array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True)))
    if array.ndim != dimensions or array.size == 0 or not fits:
        wanted = (
            f"shape {tuple('any' if size is None else size for size in shape)}" if shape else f"{dimensions} axes and at least one entry"
        )
        raise InvalidArgument(f"{name} must have {wanted}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidArgument(f"{name} holds NaN or Inf")
    return array


def optional(module: str) -> ModuleType:
    """The installed ``module``, which comes with the extra ``limits``.

    Raises:
        TersorError: If it is not installed, with the command that mends it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise TersorError(f"{module} is not installed; it comes with pip install 'tersor[limits]'") from None
