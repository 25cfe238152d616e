"""From a model to a folder that serves every size: fit residual stacks block by block, sort their blocks, write them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import bitstack
from tersor.models import Model, load
from tersor.models.blocks import BlockWalk
from tersor.models.stack import StackedModel, load_stack, save_stack
from tersor.models.stack_order import block_costs, order_by_cost, output_sensitivity
from tersor.models.storage import check_target
from tersor.pipeline.progress import Progress, Silent
from tersor.pipeline.recipe import parse_recipe
from tersor.pipeline.texts import prepare_texts

# Tokens of the one backward pass that says what an error of each output costs; a few thousand change the order no more.
SENSITIVITY_TOKENS = 2048


def stack(
    model: Model | str | Path, output: str | Path, *, blocks: int = 8, calibration: str = "auto", tokens: int = 8192, seed: int = 0,
    progress: Progress | None = None,
) -> StackedModel:  # fmt: skip
    """Write ``model`` so that it can be loaded at, and changed to, any size: every linear layer a stack of one-bit residuals.

    For memory that is not known beforehand or changes; at one fixed size :func:`tersor.compress` is more accurate.

    Args:
        model: A loaded model, or what :func:`tersor.load` takes.
        output: A folder that does not exist, is empty, or is tersor's own.
        blocks: Of each layer, 1 to 32; the largest size takes a little over this many bits a weight.
        calibration: Text that scales and order are fitted to: a file, a name, or ``"auto"``, written by the model itself.
        tokens: Of that text.
        seed: Of sampling.
        progress: Receives stages and steps.

    Returns:
        The written model at its largest size, ready for :meth:`StackedModel.resize`.

    Raises:
        InvalidArgument: If an option is out of range, the text is too short, or the folder holds something else.
        TersorError: If the folder cannot be written; nothing is left behind.
    """
    target, progress = Path(output), progress or Silent()
    check_target(target)
    original = model if isinstance(model, Model) else load(model)
    recipe = parse_recipe(
        {
            "levels": [{"method": "bitstack", "blocks": blocks}], "evaluation": {"tokens": 0},
            "calibration": {"text": calibration, "tokens": tokens, "held_out": 0, "seed": seed},
        }
    )  # fmt: skip
    progress.start("preparing the text", 1)
    with TemporaryDirectory() as cache:
        windows = prepare_texts(original, recipe, Path(cache)).calibration
    progress.advance()
    if windows is None:
        raise InvalidArgument(f"a stack is fitted to text; tokens must be at least 1, got {tokens}")
    stacked, costs = _fit(original, windows, blocks, progress)
    save_stack(stacked, target, order_by_cost(stacked, costs))
    return load_stack(target)


def _fit(model: Model, windows: Tensor, blocks: int, progress: Progress) -> tuple[Model, dict[str, list[float]]]:
    """The model with a stack in every layer of its blocks, and what is lost at each height of each."""
    sensitivity = output_sensitivity(model, windows[: max(SENSITIVITY_TOKENS // windows.shape[1], 1)])
    stacked, costs = model.copy(), {}
    walk = BlockWalk(model, windows)
    progress.start("stacking blocks", len(walk))
    for step in walk:
        for name in step.layers:
            matrix = model.matrix(name)
            weight = bitstack(matrix, step.stats[name], blocks=blocks)
            stacked.replace(name, weight)
            costs[name] = block_costs(matrix, weight, step.stats[name], sensitivity.get(name, torch.ones(matrix.shape[0])))
        progress.advance(note=step.name)
    return stacked, costs
