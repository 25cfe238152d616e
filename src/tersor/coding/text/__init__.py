"""Text and other bytes: by a language model, or by a byte model that is exact on every machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.coding.text.byte_model import compress_bytes, decompress_bytes

if TYPE_CHECKING:
    from tersor.coding.text.language_model import LanguageModelCoder

__all__ = ["LanguageModelCoder", "compress_bytes", "decompress_bytes"]


def __getattr__(name: str) -> Any:
    # It needs torch, which plain files are coded without.
    if name == "LanguageModelCoder":
        return import_module("tersor.coding.text.language_model").LanguageModelCoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
