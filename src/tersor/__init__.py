"""tersor: make models, caches, gradients and data smaller, with an honest account of what that cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.compress import compress
from tersor.errors import CorruptFile, InvalidArgument, TersorError

if TYPE_CHECKING:
    from tersor.models import Model, load
    from tersor.pipeline.recipe import Recipe

__version__ = "0.1.0"

_LAZY = {
    "Model": "tersor.models", "load": "tersor.models", "evaluate": "tersor.evaluation", "Recipe": "tersor.pipeline.recipe",
    "Level": "tersor.pipeline.levels", "LevelDatabase": "tersor.pipeline.levels", "load_recipe": "tersor.pipeline.recipe",
}  # fmt: skip
_ROOMS = (
    "weights", "kernels", "layerwise", "allocation", "models", "evaluation", "coding", "distributed", "finetuning", "training",
    "information", "limits", "kvcache", "attention", "papers", "data",
)  # fmt: skip

__all__ = [
    "CorruptFile", "InvalidArgument", "Level", "LevelDatabase", "Model", "Recipe", "TersorError", "compress", "evaluate", "load",
    "load_recipe",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return import_module(f"tersor.{name}")
    raise AttributeError(f"module 'tersor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
