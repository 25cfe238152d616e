"""Computing in another type without holding the model in it: blocks are converted one at a time, tables row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tersor.models.model import Model, output_head
from tersor.models.structure import find_blocks
from tersor.weights.base import CompressedWeight
from tersor.weights.modules import CompressedEmbedding


def lean_copy(model: Model, dtype: torch.dtype) -> Model:
    """A model of its own that shares the stored values and computes in ``dtype`` up to its head, block by block in :func:`converted`.

    What lies outside the blocks is small and converted here, except plain embedding tables, whose rows are converted as they are looked
    up, and the head, which must not be run. Every hidden state is that of ``model.copy(dtype)`` bit for bit.

    Args:
        model: Shared, not changed.
        dtype: Floating type.
    """
    twin = model.copy()
    blocks = find_blocks(twin.module)
    inside = {id(part) for block in blocks for part in block.modules()}
    head = output_head(twin.module)
    made: dict[int, nn.Parameter] = {}
    for part in list(twin.module.modules()):
        if isinstance(part, (CompressedWeight, CompressedEmbedding)):
            part.to(dtype)
        elif isinstance(part, nn.Embedding) and type(part).forward is nn.Embedding.forward:
            part.register_forward_hook(lambda _, inputs, rows: rows.to(dtype))
        elif id(part) not in inside and part is not head:
            _convert(part, dtype, made)
    if head is not None:
        head._parameters.update({name: made.get(id(value), value) for name, value in head._parameters.items()})
    return twin


@contextmanager
def converted(block: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, ``block`` holds its parameters in ``dtype``; afterwards the ones that it held before, whatever was put in their place."""
    before = [(part, dict(part._parameters)) for part in block.modules()]
    made: dict[int, nn.Parameter] = {}
    try:
        for part, _ in before:
            _convert(part, dtype, made)
        yield
    finally:
        for part, parameters in before:
            part._parameters.clear()
            part._parameters.update(parameters)


def _convert(part: nn.Module, dtype: torch.dtype, made: dict[int, nn.Parameter]) -> None:
    """Give ``part`` new parameters of ``dtype``; one that several names share stays one, remembered in ``made`` by the id of the old."""
    for name, value in part._parameters.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            if id(value) not in made:
                made[id(value)] = nn.Parameter(value.detach().to(dtype), requires_grad=False)
            part._parameters[name] = made[id(value)]
