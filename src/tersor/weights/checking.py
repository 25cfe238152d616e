"""Reading the stored description of a weight: nothing is allocated from a field that was not checked here."""

from __future__ import annotations

from typing import Any

import torch

from tersor.errors import CorruptFile

FLOAT_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# No layer of any published model comes near; a larger product of sizes is a damaged file, not a weight.
_MAX_ENTRIES = 1 << 36


def read_shape(config: dict[str, Any], key: str = "shape") -> tuple[int, int]:
    """``(rows, columns)`` from a description.

    Raises:
        CorruptFile: If it is not two positive integers of a credible product.
    """
    shape = config[key]
    credible = isinstance(shape, (list, tuple)) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)
    if not credible or shape[0] * shape[1] > _MAX_ENTRIES:
        raise CorruptFile(f"a stored weight has the impossible {key} {shape!r}; it must be two positive sizes")
    return shape[0], shape[1]


def read_int(config: dict[str, Any], key: str, low: int, high: int) -> int:
    """The integer ``config[key]``, within ``low`` and ``high``.

    Raises:
        CorruptFile: If it is not an integer or out of range.
    """
    value = config[key]
    if type(value) is not int or not low <= value <= high:
        raise CorruptFile(f"a stored weight has {key}={value!r}; it must be an integer from {low} to {high}")
    return value


def read_choice(config: dict[str, Any], key: str, allowed: tuple[Any, ...]) -> Any:
    """``config[key]``, one of ``allowed``.

    Raises:
        CorruptFile: If it is none of them.
    """
    value = config[key]
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        raise CorruptFile(f"a stored weight has {key}={value!r}; it must be one of {', '.join(map(str, allowed))}")
    return value


def read_dtype(config: dict[str, Any], key: str) -> torch.dtype:
    """The floating type named by ``config[key]``."""
    return FLOAT_TYPES[read_choice(config, key, tuple(FLOAT_TYPES))]


def dtype_name(dtype: torch.dtype) -> str:
    """``"float16"`` for ``torch.float16``: how descriptions spell a type."""
    return str(dtype).removeprefix("torch.")


def read_group_size(config: dict[str, Any], in_features: int) -> int:
    """``config["group_size"]``, a divisor of ``in_features``.

    Raises:
        CorruptFile: If it does not divide.
    """
    group_size = read_int(config, "group_size", 1, in_features)
    if in_features % group_size:
        raise CorruptFile(f"a stored weight has group_size={group_size}, which does not divide its {in_features} columns")
    return group_size
