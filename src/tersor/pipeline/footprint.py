"""How much memory a job will take at its worst moment, from the shapes of the model and what each stage holds."""

from __future__ import annotations

import math

from tersor.models import Model
from tersor.models.blocks import find_blocks
from tersor.pipeline.calibrate import SPILL_ABOVE, Plan, hidden_bytes
from tersor.pipeline.dtypes import fast_dtype
from tersor.pipeline.fitness import AT_ONCE
from tersor.pipeline.probing import key_value_width, sampled_sequences
from tersor.pipeline.recipe import Recipe
from tersor.pipeline.texts import SAMPLED_AT_ONCE, needed_tokens

_DENSE_LEVELS = 4 << 30  # of the search's cache at most
_PIECE = 1 << 21  # weights whose error is measured at once, see tersor.layerwise.stats


def predicted_memory(model: Model, plan: Plan, recipe: Recipe, inputs: tuple[int, ...], levels: dict[str, int], result: int) -> int:
    """Resident bytes of this process at the worst moment of the job: what it holds now, and the largest stage.

    Args:
        model: The original, loaded.
        plan: Which layers get which levels.
        recipe: The job.
        inputs: Widths of the distinct inputs of a block's layers.
        levels: Bytes of all levels of each layer.
        result: Bytes of the compressed model.
    """
    import psutil

    stages = [_sampling(model, recipe), _fitting(model, plan, recipe, inputs, levels)]
    # What the search holds stays until the end: the report reads its counters.
    following = max(_evaluating(model, recipe), result + _tuning(model, plan, recipe))
    stages.append(result + _searching(model, plan, recipe) + following)
    return int(psutil.Process().memory_info().rss) + max(stages)


def _cast(model: Model) -> int:
    """Bytes of a copy of the model in the type of fast forward passes."""
    return sum(fast_dtype().itemsize * each.numel() for each in model.module.parameters() if each.dtype != fast_dtype())


def _sampling(model: Model, recipe: Recipe) -> int:
    sequences = min(SAMPLED_AT_ONCE, sampled_sequences(model, recipe))
    if not sequences:
        return 0
    length, blocks = min(recipe.calibration.context, model.max_context), len(find_blocks(model.module))
    cached = 2 * fast_dtype().itemsize * sequences * length * blocks * key_value_width(model)
    return _cast(model) + cached + 5 * 4 * sequences * model.vocabulary


def _fitting(model: Model, plan: Plan, recipe: Recipe, inputs: tuple[int, ...], levels: dict[str, int]) -> int:
    fast = fast_dtype().itemsize
    sizes = {name: _layer(math.prod(model.shape(name)), levels[name]) for name in plan.choices}
    _, held_out, _ = needed_tokens(recipe)
    if not inputs:
        return max(sizes.values())
    block = sum(each.numel() for each in find_blocks(model.module)[0].parameters())
    sets = 2 if held_out else 1
    statistics = sets * 8 * sum(width**2 for width in inputs)
    hidden = hidden_bytes(model, recipe)
    # The original's block, and of every layer what it lacks, with moments of the inputs and the widest's factor.
    beside = (fast + 4) * block + 8 * (sum(width**2 for width in inputs) + max(inputs) ** 2) if recipe.correction else 0
    batch = recipe.calibration.batch_size * min(recipe.calibration.context, model.max_context)
    # Observing: activations of a batch, the widest in float32, its product and the mean. Fitting: the factor and a layer of a block.
    observing = batch * (fast * 2 * sum(inputs) + 4 * max(inputs)) + (4 + 8) * max(inputs) ** 2
    tables = model.embeddings()
    solving = 3 * 8 * max(inputs) ** 2 + max((size for name, size in sizes.items() if name not in tables), default=0)
    return fast * block + beside + statistics + (hidden if hidden <= SPILL_ABOVE else 0) + max(observing, solving, *sizes.values())


def _layer(weights: int, levels: int) -> int:
    """Bytes of fitting one layer: its float32 matrix and what the method makes of it, errors, levels as they are and as a file."""
    return 4 * 4 * weights + 4 * 8 * min(weights, _PIECE) + 2 * levels


def _searching(model: Model, plan: Plan, recipe: Recipe) -> int:
    search = needed_tokens(recipe)[2]
    if not search:
        return 0
    minibatch, fast = min(search, max(AT_ONCE, min(recipe.calibration.context, model.max_context))), fast_dtype().itemsize
    weights = {name: math.prod(model.shape(name)) for name in plan.choices}
    dense = min(_DENSE_LEVELS, sum(fast * weights[name] * len(choices) for name, choices in plan.choices.items()))
    prefix = fast * minibatch * model.hidden_size * len(find_blocks(model.module))
    teacher = 2 * search * model.vocabulary  # a mapped file
    return _cast(model) + dense + prefix + teacher + 2 * fast * minibatch * model.vocabulary


def _tuning(model: Model, plan: Plan, recipe: Recipe) -> int:
    """Bytes of the student, its gradients, buffer, moments and codes, their file twice as it is written, a matrix, and activations."""
    if not recipe.finetuning.steps:
        return 0
    tokens = recipe.finetuning.batch * min(recipe.calibration.context, model.max_context)
    largest = max(math.prod(model.shape(name)) for name in plan.choices)
    # What a block keeps for its gradient is about its outputs: as many as its matrices have rows.
    outputs = sum(model.shape(name)[0] for name in plan.choices if name not in model.embeddings())
    return 9 * 4 * model.n_parameters + 8 * 4 * largest + 2 * 4 * tokens * outputs + 4 * 4 * tokens * model.vocabulary


def _evaluating(model: Model, recipe: Recipe) -> int:
    return 4 * 4 * min(recipe.evaluation.tokens, recipe.evaluation.context, model.max_context) * model.vocabulary
