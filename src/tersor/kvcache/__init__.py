"""Caches of keys and values that take less memory, for ``generate`` of ``transformers``: GEAR and what it is compared with."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.kvcache.config import GearConfig
from tersor.kvcache.segments import Segments

if TYPE_CHECKING:
    from tersor.kvcache.cache import EvictionCache, GearCache, KiviCache, MeasuredCache, PlainCache, make_cache
    from tersor.kvcache.eviction import EvictionLayer
    from tersor.kvcache.layer import GearLayer

# These subclass classes of transformers, which takes seconds to import.
_LAZY = {
    "EvictionCache": "cache", "GearCache": "cache", "KiviCache": "cache", "MeasuredCache": "cache", "PlainCache": "cache",
    "make_cache": "cache", "EvictionLayer": "eviction", "GearLayer": "layer",
}  # fmt: skip

__all__ = [
    "EvictionCache", "EvictionLayer", "GearCache", "GearConfig", "GearLayer", "KiviCache", "MeasuredCache", "PlainCache", "Segments",
    "make_cache",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"tersor.kvcache.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tersor.kvcache' has no attribute {name!r}")
