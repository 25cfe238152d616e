"""Layers that a method may take out of a model and put something trainable in their place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tersor.errors import InvalidArgument
from tersor.training.targets import layers_of, prunable

Layer = nn.Linear | nn.Conv2d


def swappable(model: nn.Module, targets: Sequence[str] | None, ignore: Sequence[str], *, grouped: bool = True) -> dict[str, Layer]:
    """The plain linear layers and two-dimensional convolutions of ``model`` by dotted name.

    Args:
        model: Any module.
        targets: See :func:`tersor.training.prunable`; ``None`` for all of those types.
        ignore: What to leave out.
        grouped: Whether convolutions in groups are among them.

    Raises:
        InvalidArgument: If ``targets`` name a layer of another type, a weight is tied to another, or no layer is left.
    """
    layers = layers_of(model, prunable(model, targets, ignore))
    found: dict[str, Layer] = {}
    for name, layer in layers.items():
        if reason := _refusal(layer, grouped):
            if targets is not None:
                raise InvalidArgument(f"{name} is {reason}; name it in ignore")
        elif layer is model:
            raise InvalidArgument("the model is itself the layer, which leaves no place to put another; wrap it in torch.nn.Sequential")
        else:
            assert isinstance(layer, (nn.Linear, nn.Conv2d))
            found[name] = layer
    if not found:
        raise InvalidArgument(f"{type(model).__name__} has no plain linear layer or two-dimensional convolution to compress")
    _refuse_ties(model, found)
    return found


def _refusal(layer: nn.Module, grouped: bool) -> str:
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"a {type(layer).__name__}, neither a plain linear layer nor a two-dimensional convolution"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"a convolution with padding_mode {layer.padding_mode!r}, of which only 'zeros' is supported"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1 and not grouped:
        return f"a convolution in {layer.groups} groups, which is not one matrix"
    return ""


def _refuse_ties(model: nn.Module, layers: dict[str, Layer]) -> None:
    owners: dict[int, list[str]] = {}
    for owner, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(owner)
    for name, layer in layers.items():
        others = [owner for owner in owners[id(layer.weight)] if owner != name]
        if others:
            raise InvalidArgument(f"{name} shares its weight with {others[0]}, which would be parted from it; name it in ignore")


def swap_layer(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``model`` has ``old``: a layer that is used in two places stays one."""
    for module in list(model.modules()):
        for key, child in list(module._modules.items()):
            if child is old:
                setattr(module, key, new)
