"""Removing whole filters, so that smaller dense layers are left: what depends on them is found by torch-pruning's dependency graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.training.compression import Compression

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)
# What layers say of their own sizes; a removal changes some of them.
_SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels", "normalized_shape")


@dataclass(frozen=True)
class Links:
    """What goes with a filter of a layer when it is removed.

    Attributes:
        outputs: Other layers that lose an output of their own, as those do whose results are added to this one's.
        readers: Layers that lose inputs, and how many they lose if the whole layer is taken away.
    """

    outputs: tuple[str, ...]
    readers: dict[str, int]


@dataclass(frozen=True)
class _Plan:
    """Sizes by module and attribute, and for every tensor that changes the flat positions of what is kept, in the new shape."""

    sizes: dict[str, dict[str, Any]]
    positions: dict[str, Tensor]


def remove_filters(
    model: nn.Module, kept: Mapping[str, Tensor | Sequence[int]], example_inputs: tuple[Any, ...], compression: Compression | None = None,
) -> nn.Module:  # fmt: skip
    """Take filters out of layers, and out of everything that depends on them: norms, readers, layers on the same residual stream.

    Where the removed channels are zero after their norm (its scale and shift are), the outputs of evaluation stay as they were. Nothing is
    changed unless all of it can be done, and was tried on a copy.

    Args:
        model: Plain layers, without parametrizations; changed in place, with new parameters where shapes change.
        kept: By dotted name of a linear layer or convolution, the indices of the outputs that stay, in any order.
        example_inputs: Arguments of one forward pass that runs all branches.
        compression: Where an optimizer is attached: it goes on with the new parameters and what it knew of the old ones.

    Returns:
        The model.

    Raises:
        InvalidArgument: If torch-pruning is missing, a name or an index is not in the model, nothing of a layer would be left, two named
            layers share their filters, or the removal would change what the model computes or puts out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> remove_filters(model, {"0": [1, 5, 6]}, (torch.ones(1, 1, 8, 8),))[3]
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    removed = {name: _removed(model, name, indices) for name, indices in kept.items()}
    removed = {name: indices for name, indices in removed.items() if indices}
    if removed:
        inputs = _doubled(example_inputs)
        plan = _plan(model, removed, inputs)
        _check_plan(model, plan, inputs, list(removed))
        _apply(model, plan, compression)
    return model


def filter_links(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, Links]:
    """What depends on the filters of each convolution and linear layer of ``model``; a layer without readers makes the model's output.

    Args:
        model: Plain layers; not changed.
        example_inputs: Arguments of one forward pass that runs all branches.

    Raises:
        InvalidArgument: If torch-pruning is missing, or the forward pass fails.
    """
    copy = _copy(model)
    graph = _graph(copy, _doubled(example_inputs))
    names = {layer: name for name, layer in copy.named_modules()}
    links = {}
    for layer, name in names.items():
        if isinstance(layer, _LAYERS) and layer in graph.module2node:
            readers: dict[str, int] = {}
            outputs = []
            for dependency, indices in _group(graph, layer, list(range(_outputs(layer)))):
                target = dependency.target.module
                if not isinstance(target, _LAYERS):
                    continue
                if graph.is_out_channel_pruning_fn(dependency.handler):
                    outputs += [names[target]] if target is not layer else []
                else:
                    readers[names[target]] = len(indices)
            links[name] = Links(tuple(outputs), readers)
    return links


@torch.no_grad()
def layer_products(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, int]:
    """Multiplications for one input in each convolution and linear layer, by name, as torch's counter of operations has them.

    Args:
        model: Run once in evaluation mode; the mode is left as it was.
        example_inputs: Arguments of the pass; the first dimension of the first is the batch.
    """
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        found[name] = found.get(name, 0) + output.numel() // len(example_inputs[0]) * weight[0].numel()

    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
        for name, layer in model.named_modules() if isinstance(layer, _LAYERS)
    ]  # fmt: skip
    try:
        with evaluating(model):
            model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; every module is left in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _removed(model: nn.Module, name: str, kept: Tensor | Sequence[int]) -> list[int]:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = nn.Identity()
    if not isinstance(layer, _LAYERS):
        known = [other for other, module in model.named_modules() if isinstance(module, _LAYERS)]
        raise InvalidArgument(f"the model has no convolution or linear layer {name!r}; it has {', '.join(known[:4]) or 'none'}")
    count = _outputs(layer)
    indices = {int(index) for index in kept}
    if not indices:
        raise InvalidArgument(f"nothing of {name} would be left; keep at least one of its {count} filters")
    if min(indices) < 0 or max(indices) >= count:
        raise InvalidArgument(f"{name} has filters 0 to {count - 1}, which {max(indices, key=lambda index: abs(index - count / 2))} is not")
    return sorted(set(range(count)) - indices)


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _copy(model: nn.Module) -> nn.Module:
    """A copy in float64, every parameter of which takes part in the graph of gradients, by which dependencies are traced."""
    if any("parametrizations" in key for key, _ in model.named_parameters()):
        raise InvalidArgument("the model is still being compressed by parametrizations; finalize it before filters are removed")
    copy = deepcopy(model).double().eval()
    for parameter in copy.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return copy


def _doubled(example_inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in example_inputs)


def _graph(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise InvalidArgument("torch-pruning is not installed; pip install 'tersor[training]'") from None
    with torch.enable_grad():
        try:
            model(*inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InvalidArgument(f"example_inputs do not run through the model ({reason}); pass those of a forward pass") from None
        return torch_pruning.DependencyGraph().build_dependency(model, inputs, verbose=False)


def _group(graph: Any, layer: nn.Module, indices: list[int]) -> Any:
    from torch_pruning import prune_conv_out_channels, prune_linear_out_channels

    return graph.get_pruning_group(layer, prune_linear_out_channels if isinstance(layer, nn.Linear) else prune_conv_out_channels, indices)


def _plan(model: nn.Module, removed: Mapping[str, list[int]], inputs: tuple[Any, ...]) -> _Plan:
    """Let torch-pruning work on a copy whose values are their own positions, and read from it what it kept."""
    copy = _copy(model)
    graph = _graph(copy, inputs)
    for tensor in (*copy.parameters(), *copy.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape))
    for name, indices in removed.items():
        layer = copy.get_submodule(name)
        if layer not in graph.module2node:
            raise InvalidArgument(f"the forward pass of example_inputs does not reach {name}; pass inputs that run all branches")
        if _outputs(layer) != _outputs(model.get_submodule(name)):
            raise InvalidArgument(f"{name} shares its filters with another layer that was named, through an addition; name one of them")
        group = _group(graph, layer, indices)
        if not graph.check_pruning_group(group):
            raise InvalidArgument(f"removing {len(indices)} filters of {name} leaves nothing of a layer that depends on it; keep more")
        group.prune()
    sizes: dict[str, dict[str, Any]] = {}
    for (name, old), (_, new) in zip(model.named_modules(), copy.named_modules(), strict=True):
        changed = {key: getattr(new, key) for key in _SIZES if getattr(old, key, None) != getattr(new, key, None)}
        if changed:
            sizes[name] = changed
    found = dict(copy.named_parameters()) | dict(copy.named_buffers())
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    return _Plan(sizes, {name: found[name].detach().long() for name, old in before.items() if found[name].shape != old.shape})


def _check_plan(model: nn.Module, plan: _Plan, inputs: tuple[Any, ...], names: list[str]) -> None:
    """On random values: the smaller model computes what the whole one does when nobody reads the removed channels."""
    whole = _copy(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in (*whole.parameters(), *whole.buffers()):
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) / max(tensor[0].numel(), 1) ** 0.5
            tensor.data.copy_(values.abs() + 0.5 if tensor.ndim == 1 else values)
    small = deepcopy(whole)
    _apply(small, plan, None)
    for name, parameter in whole.named_parameters():
        positions = plan.positions.get(name)
        if positions is not None and parameter.ndim > 1 and positions.shape[1] != parameter.shape[1]:
            # Only the inputs that are gone: what goes of the outputs is read by nobody.
            inputs_kept = torch.zeros(parameter.shape[1], dtype=torch.bool)
            inputs_kept[(positions // parameter[0, 0].numel() % parameter.shape[1]).unique()] = True
            parameter.data[:, ~inputs_kept] = 0
    with torch.no_grad():
        expected = whole(*inputs)
        try:
            found = small(*inputs)
        except RuntimeError:
            found = None
    subject = f"the filters of {', '.join(names)}"
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        raise InvalidArgument(f"{subject} cannot be removed: the layers that are left do not fit each other; name others")
    if found.shape != expected.shape:
        raise InvalidArgument(f"{subject} cannot be removed: they are outputs of the model; name layers before the last")
    if float((found - expected).norm()) > 1e-8 * float(expected.norm()):
        raise InvalidArgument(f"{subject} cannot be removed: what reads them depends on their number or order; name other layers")


@torch.no_grad()
def _apply(model: nn.Module, plan: _Plan, compression: Compression | None) -> None:
    for name, changed in plan.sizes.items():
        for key, value in changed.items():
            setattr(model.get_submodule(name), key, value)
    for name, positions in plan.positions.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, leaf)
        chosen = positions.to(old.device)

        def select(values: Tensor, chosen: Tensor = chosen) -> Tensor:
            return values.detach().flatten()[chosen]

        if isinstance(old, nn.Parameter):
            new = nn.Parameter(select(old), old.requires_grad)
            setattr(module, leaf, new)
            if compression is not None:
                compression.replace_parameter(old, new, select)
        else:
            setattr(module, leaf, select(old))
