"""Which parameters of a model a method works on: named once, each storage once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from tersor.errors import InvalidArgument

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *_CONVOLUTIONS)


def prunable(model: nn.Module, targets: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The weights of ``model`` that may be pruned, by the name of the parameter.

    Those are the matrices of linear, convolution and recurrent layers. A depthwise convolution (few weights, each of them needed), an
    embedding and a head that shares its table are left out unless ``targets`` names them.

    Args:
        model: Any module.
        targets: Dotted names of layers or parameters, or patterns such as ``"layer3.*"``; ``None`` for all.
        ignore: The same, of what to leave out.

    Raises:
        InvalidArgument: If a name fits nothing, no weight is left, or a text was given where a list is wanted.
    """
    for key, value in (("targets", targets), ("ignore", ignore)):
        if isinstance(value, str):
            raise InvalidArgument(f"{key} must be a list of names, got the text {value!r}; write [{value!r}]")
    tables = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    unused = set(targets or ()) | set(ignore)
    for layer_name, layer in model.named_modules():
        for name, parameter in layer.named_parameters(layer_name, recurse=False):
            # A norm's weight is a vector, and so is every bias.
            if parameter.ndim < 2 or id(parameter) in seen:
                continue
            wanted = _fits(layer_name, name, targets, unused) if targets else _by_default(layer) and id(parameter) not in tables
            if wanted and not _fits(layer_name, name, ignore, unused):
                seen.add(id(parameter))
                found[name] = parameter
            elif wanted:
                seen.add(id(parameter))
    if unused:
        raise InvalidArgument(f"the model has no weight that {sorted(unused)[0]!r} names; {_known(model)}")
    if not found:
        raise InvalidArgument(f"{type(model).__name__} has no layer to compress; {_known(model)}")
    return found


def layers_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """The layers, by dotted name, that own the ``parameters`` that :func:`prunable` found."""
    return {name.rpartition(".")[0]: model.get_submodule(name.rpartition(".")[0]) for name in parameters}


def _by_default(layer: nn.Module) -> bool:
    if isinstance(layer, _CONVOLUTIONS):
        return layer.groups == 1 or layer.groups < layer.in_channels
    return isinstance(layer, (nn.Linear, nn.RNNBase)) or type(layer).__name__ == "Conv1D"


def _fits(layer_name: str, name: str, patterns: Sequence[str], unused: set[str]) -> bool:
    fitting = [pattern for pattern in patterns if fnmatchcase(layer_name, pattern) or fnmatchcase(name, pattern)]
    unused.difference_update(fitting)
    return bool(fitting)


def _known(model: nn.Module) -> str:
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    if not names:
        return "it has no weight of two dimensions"
    return f"its weights are {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
