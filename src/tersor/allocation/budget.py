"""Budgets as people write them, in bytes."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real

from tersor.errors import InvalidArgument

_ALLOWED = 'write bytes (60000000), a size ("60MB", "45MiB"), a ratio of the original (0.25 or "25%") or "3.2bpw"'
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z%]*)")
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_budget(value: str | float | int, *, dense_bytes: int | None = None, n_weights: int | None = None) -> int:
    """The budget in bytes, rounded down.

    Args:
        value: A whole number of bytes; a size such as ``"60MB"`` (powers of 1000) or ``"45MiB"`` (powers of 1024); a ratio of the
            original above 0 and at most 1 (``0.25``, ``"0.25"``, ``"25%"``); or bits per weight such as ``"3.2bpw"``.
        dense_bytes: Size of the original, for ratios.
        n_weights: Number of weights, for bits per weight.

    Returns:
        At least one byte.

    Raises:
        InvalidArgument: If ``value`` is anything else, or what a ratio or bits per weight relate to is not given.
    """
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise InvalidArgument(f"the budget {value!r} is not a size; {_ALLOWED}")
    if isinstance(value, Integral):
        return _positive(Fraction(int(value)), value)
    if isinstance(value, str):
        return _positive(_parse_text(value, dense_bytes, n_weights), value)
    if not 0 < value <= 1:
        raise InvalidArgument(f"the budget {value!r} is a ratio, which must be above 0 and at most 1; {_ALLOWED}")
    return _positive(_of_original(Fraction(float(value)), dense_bytes, value), value)


def _parse_text(text: str, dense_bytes: int | None, n_weights: int | None) -> Fraction:
    match = _NUMBER.fullmatch(text.strip().replace("_", ""))
    if match is None:
        raise InvalidArgument(f"the budget {text!r} is not a size; {_ALLOWED}")
    number, unit = Fraction(Decimal(match[1])), match[2]
    if unit == "bpw":
        if n_weights is None:
            raise InvalidArgument(f"the budget {text!r} needs a known number of weights; give bytes instead")
        return number * n_weights / 8
    if unit == "%" or (unit == "" and "." in match[1]):
        ratio = number / 100 if unit == "%" else number
        if not 0 < ratio <= 1:
            raise InvalidArgument(f"the budget {text!r} is a ratio, which must be above 0 and at most 1; {_ALLOWED}")
        return _of_original(ratio, dense_bytes, text)
    return number * _bytes_of(unit, text)


def _bytes_of(unit: str, text: str) -> int:
    if re.fullmatch(r"[KMGT]i?b", unit):
        raise InvalidArgument(f"the budget {text!r} reads as bits; write {unit[:-1]}B for bytes")
    match = re.fullmatch(r"([kmgt]?)(i?)b", unit.lower())
    if unit and (match is None or (match[2] and not match[1])):
        raise InvalidArgument(f"the budget {text!r} has the unknown unit {unit!r}; {_ALLOWED}")
    if match is None:
        return 1
    return int((1024 if match[2] else 1000) ** _PREFIXES[match[1]])


def _of_original(ratio: Fraction, dense_bytes: int | None, value: object) -> Fraction:
    if dense_bytes is None:
        raise InvalidArgument(f"the budget {value!r} is a ratio and needs a known original size; give bytes instead")
    return ratio * dense_bytes


def _positive(amount: Fraction, value: object) -> int:
    if amount < 1:
        raise InvalidArgument(f"the budget {value!r} is less than one byte; {_ALLOWED}")
    return int(amount)
