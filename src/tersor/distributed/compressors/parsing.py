"""Compressors by name, as a command line or a configuration file gives them, and as a checkpoint records them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tersor.distributed.compressors.base import COMPRESSORS, Compressor
from tersor.distributed.compressors.identity import Identity
from tersor.distributed.compressors.low_rank import LowRank
from tersor.distributed.compressors.quant import UniformQuant
from tersor.distributed.compressors.randk import RandK
from tersor.distributed.compressors.sign import ScaledSign
from tersor.distributed.compressors.topk import TopK
from tersor.errors import InvalidArgument

_EXAMPLES = "topk:0.01, randk:0.01, sign, quant:4, lowrank:4, identity"


def parse_compressor(given: str | Compressor) -> Compressor:
    """A compressor from ``"topk:0.01"``, ``"randk:0.01"``, ``"sign"``, ``"quant:4"`` (bits), ``"lowrank:4"`` (rank) or ``"identity"``.

    Args:
        given: A name with its number, or a compressor, which is handed back.

    Raises:
        InvalidArgument: If there is no such compressor, or its number is missing, superfluous or out of range.
    """
    if isinstance(given, Compressor):
        return given
    name, _, number = str(given).partition(":")
    if name not in COMPRESSORS:
        raise InvalidArgument(f"unknown compressor {given!r}; choose one like {_EXAMPLES}")
    if name in ("sign", "identity"):
        if number:
            raise InvalidArgument(f"the compressor {name} takes no number, got {given!r}")
        return ScaledSign() if name == "sign" else Identity()
    try:
        value = float(number)
    except ValueError:
        raise InvalidArgument(f"the compressor {name} needs a number, got {given!r}; write it like {_EXAMPLES}") from None
    if name in ("topk", "randk"):
        return TopK(ratio=value) if name == "topk" else RandK(ratio=value)
    if not value.is_integer():
        raise InvalidArgument(f"the compressor {name} needs a whole number, got {given!r}")
    return UniformQuant(bits=int(value)) if name == "quant" else LowRank(rank=int(value))


def describe_compressor(compressor: Compressor) -> dict[str, Any]:
    """Plain data that identify a compressor: its kind and its options."""
    return {"kind": compressor.kind, **asdict(compressor)}  # type: ignore[call-overload]
