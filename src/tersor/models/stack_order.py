"""Which residual block of a model matters next: measured on the model, or estimated from its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.layerwise.stats import LayerStats
from tersor.models.model import Model, token_table
from tersor.models.structure import logits_of, run_model
from tersor.weights import ResidualStack


def order_by_fitness(model: Model, fitness: Callable[[Model], float], *, per_byte: bool = False) -> list[str]:
    """The order of the paper: at every height, each layer alone gets its next block and the model is measured.

    Costs one measurement for every block of the model; :func:`order_by_error` costs none.

    Args:
        model: Its layers hold residual stacks; not changed.
        fitness: Lower is better: perplexity or divergence on text that nothing was fitted to.
        per_byte: Rank by gain a byte, not by gain; matters where layers differ in size.

    Returns:
        Layer names for :func:`tersor.models.stack.save_stack`. Heights never differ by more than one along it.

    Raises:
        InvalidArgument: If no layer holds a stack, or every measurement at a height is NaN or infinite.
    """
    full = _stacks(model)

    def gains(height: int) -> dict[str, float]:
        found = measured_gains(model, fitness, height)
        if not any(math.isfinite(gain) for gain in found.values()):
            raise InvalidArgument(f"the fitness is NaN or infinite for every layer at {height} blocks; use order_by_error instead")
        return found

    return _order(full, gains, per_byte)


def measured_gains(model: Model, fitness: Callable[[Model], float], height: int) -> dict[str, float]:
    """By how much the fitness falls when, with every stack at ``height`` blocks, one layer alone gets its next block.

    Args:
        model: Its layers hold residual stacks; not changed.
        fitness: Lower is better.
        height: Blocks that every layer holds before, at least 1; layers without another block above are left out.
    """
    full, work = _stacks(model), model.copy()
    low = {name: weight.prefix(min(height, len(weight))) for name, weight in full.items()}
    for name, weight in low.items():
        work.replace(name, weight)
    before, found = fitness(work), {}
    if not math.isfinite(before):
        # So coarse that it overflows: candidates still compare with each other.
        before = 0.0
    for name, weight in full.items():
        if len(weight) > height:
            low[name].push(list(weight)[height])
            found[name] = before - fitness(work)
            low[name].pop()
    return found


def order_by_error(
    model: Model, original: Model, stats: Mapping[str, LayerStats], sensitivity: Mapping[str, Tensor] | None = None, *,
    per_byte: bool = False,
) -> list[str]:  # fmt: skip
    """An order from the layers alone: by how much the next block lowers the error of the layer's output.

    Args:
        model: Its layers hold residual stacks; not changed.
        original: The model they were made from.
        stats: Statistics of the inputs of every such layer.
        sensitivity: What a squared error of each output costs, ``[out_features]`` a layer, from :func:`output_sensitivity`. Without
            it errors are taken relative to the output of the layer, which compares layers of different use poorly.
        per_byte: As for :func:`order_by_fitness`.

    Raises:
        InvalidArgument: If no layer holds a stack, or the statistics of one are missing.
    """
    full = _stacks(model)
    if missing := sorted(full.keys() - stats.keys()):
        raise InvalidArgument(f"no statistics of the inputs of layer {missing[0]}; observe every layer that holds a stack")
    costs = {
        name: block_costs(original.matrix(name), weight, stats[name], None if sensitivity is None else sensitivity[name])
        for name, weight in full.items()
    }
    return order_by_cost(model, costs, per_byte=per_byte)


def order_by_cost(model: Model, costs: Mapping[str, Sequence[float]], *, per_byte: bool = False) -> list[str]:
    """The order in which blocks lower the costs of their layers most: :func:`order_by_error` for costs that are known.

    Args:
        model: Its layers hold residual stacks; not changed.
        costs: What :func:`block_costs` gave for each of them.
        per_byte: As for :func:`order_by_fitness`.

    Raises:
        InvalidArgument: If no layer holds a stack.
    """
    full = _stacks(model)

    def gains(height: int) -> dict[str, float]:
        return {name: costs[name][height - 1] - costs[name][height] for name, weight in full.items() if len(weight) > height}

    return _order(full, gains, per_byte)


def block_costs(original: Tensor, weight: ResidualStack, stats: LayerStats, sensitivity: Tensor | None = None) -> list[float]:
    """What the output error of one layer costs with 1, 2, ... of its blocks.

    Args:
        original: ``[out_features, in_features]`` before compression.
        weight: The whole stack.
        stats: Of the layer's inputs.
        sensitivity: ``[out_features]`` from :func:`output_sensitivity`; without it the error relative to the output.
    """
    importance = torch.ones(original.shape[0]) if sensitivity is None else sensitivity
    unit = float(importance.double() @ _outputs(original, stats)) if sensitivity is None else 1.0
    remaining = original - weight.prefix(1).dense()
    scale = torch.ones(original.shape[1]) if weight.input_scale is None else weight.input_scale.float()
    found = [float(importance.double() @ _outputs(remaining, stats))]
    for block in list(weight)[1:]:
        remaining = remaining - block.values(slice(None)) * scale
        found.append(float(importance.double() @ _outputs(remaining, stats)))
    return [cost / unit if unit > 0 else 0.0 for cost in found]


def output_sensitivity(model: Model, tokens: Tensor) -> dict[str, Tensor]:
    """Mean squared gradient of the loss by each output of each linear layer, float32 ``[out_features]``: one backward pass.

    Args:
        model: The original; a language model.
        tokens: int64 ``[n_sequences, length]``; a few thousand tokens are enough.

    Raises:
        InvalidArgument: If the model has no token table to start from.
    """
    table = token_table(model.module)
    if table is None:
        raise InvalidArgument(f"{model.architecture} has no token embedding; the sensitivity needs a language model")
    totals: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                squared = gradient.float().square().reshape(-1, gradient.shape[-1]).sum(0)
                totals[name] = totals.get(name, torch.zeros_like(squared)) + squared

            output.register_hook(add)

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in model.linears().items()]
    # Parameters carry no gradient here: the embedded tokens are where the graph begins.
    handles.append(table.register_forward_hook(lambda layer, args, output: output.detach().requires_grad_()))
    try:
        with torch.enable_grad():
            for sequence in tokens:
                logits = logits_of(run_model(model.module, sequence[None], None))[0, :-1]
                F.cross_entropy(logits.float(), sequence[1:], reduction="sum").backward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / tokens.numel() for name, total in totals.items()}


def _stacks(model: Model) -> dict[str, ResidualStack]:
    found = {name: weight for name, weight in model.weights().items() if isinstance(weight, ResidualStack)}
    if not found:
        raise InvalidArgument("no layer of the model holds a residual stack; compress it with the method 'bitstack' first")
    return found


def _order(stacks: dict[str, ResidualStack], gains: Callable[[int], dict[str, float]], per_byte: bool) -> list[str]:
    order: list[str] = []
    for height in range(1, max(len(weight) for weight in stacks.values())):
        # A measurement that overflowed says nothing in favour of its layer.
        known = {name: gain if math.isfinite(gain) else -math.inf for name, gain in gains(height).items()}
        worth = {name: gain / (stacks[name].block_bytes if per_byte else 1) for name, gain in known.items()}
        order += sorted(worth, key=lambda name: -worth[name])
    return order


def _outputs(matrix: Tensor, stats: LayerStats) -> Tensor:
    """Mean square of each output of ``matrix``, float64 ``[out_features]``."""
    exact = matrix.double()
    return ((exact @ stats.hessian) * exact).sum(1)
