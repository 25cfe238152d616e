"""Integers to bytes and back, bit for bit: tables, coders, learned priors, the file format and what it checks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.coding.entropy.coders import Coder, decode_indexed, decode_symbols, encode_indexed, encode_symbols
from tersor.coding.entropy.container import Container, read_container, read_varint, write_varint
from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.entropy.tables import IntTable, quantise_pmf

if TYPE_CHECKING:
    from tersor.coding.entropy.factorised import EntropyBottleneck
    from tersor.coding.entropy.fingerprints import check_model, check_numerics, fingerprint, numerics_profile
    from tersor.coding.entropy.gaussian import GaussianConditional

# What needs torch waits until it is asked for: plain files are coded without it.
_LAZY = {
    "EntropyBottleneck": "factorised", "GaussianConditional": "gaussian", "check_model": "fingerprints", "check_numerics": "fingerprints",
    "fingerprint": "fingerprints", "numerics_profile": "fingerprints",
}  # fmt: skip

__all__ = [
    "Coder",
    "Container",
    "EntropyBottleneck",
    "GaussianConditional",
    "IntTable",
    "RangeDecoder",
    "RangeEncoder",
    "check_model",
    "check_numerics",
    "decode_indexed",
    "decode_symbols",
    "encode_indexed",
    "encode_symbols",
    "fingerprint",
    "numerics_profile",
    "quantise_pmf",
    "read_container",
    "read_varint",
    "write_varint",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
