"""Finding the linear layers of any module, and putting others in their place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tersor.errors import InvalidArgument


def linear_layers(model: nn.Module, skip: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """The plain linear layers of ``model`` by dotted name.

    Args:
        model: Any module.
        skip: Layers whose name contains one of these are left out.

    Raises:
        InvalidArgument: If none is left.
    """
    found = {
        name: layer for name, layer in model.named_modules()
        if type(layer) is nn.Linear and not any(part in name for part in skip)
    }  # fmt: skip
    if not found:
        beside = f" beside those that skip names ({', '.join(skip)})" if skip else ""
        raise InvalidArgument(f"{type(model).__name__} has no plain linear layer{beside}")
    return found


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where ``model`` has another under ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
