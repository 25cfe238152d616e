"""Fill the level database block by block: fit every level of every layer, then let the next block see the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise import corrected, find_method
from tersor.layerwise.stats import LayerStats, layer_error
from tersor.models import Model
from tersor.models.blocks import BlockStep, BlockWalk
from tersor.pipeline.dtypes import fast_dtype
from tersor.pipeline.levels import Level, LevelDatabase
from tersor.pipeline.progress import Progress
from tersor.pipeline.recipe import Recipe
from tersor.pipeline.texts import Texts
from tersor.weights import CompressedWeight
from tersor.weights.modules import bias_of, dense_shape, set_matrix, set_offset

SPILL_ABOVE = 1 << 30  # bytes of hidden states that are kept in memory rather than in the run directory
GROUP_SIZE = 64  # inputs that share a scale unless the user says otherwise

LevelChoice = tuple[str, dict[str, Any]]
Fitted = list[tuple[Level, CompressedWeight]]


class Pool(Protocol):
    """Runs independent pure calls, in this process or elsewhere, and yields results in order."""

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*call)`` for every call."""


class Serial:
    """The pool of one process."""

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Run one call after the other."""
        return (function(*call) for call in calls)


def fit_levels(name: str, weight: Tensor, stats: LayerStats | None, held_out: LayerStats | None, choices: list[LevelChoice]) -> Fitted:
    """Every level of one layer, with its errors.

    Raises:
        TersorError: If a method cannot handle the layer; the message names the layer.
    """
    fitted: Fitted = []
    for method_name, options in choices:
        method = find_method(method_name)
        began = time.perf_counter()
        try:
            compressed = method.function(weight, stats, **options)
        except InvalidArgument as error:
            raise InvalidArgument(f"layer {name}: {error}") from None
        except TersorError as error:
            raise TersorError(f"layer {name}: {error}") from None
        seconds = time.perf_counter() - began
        level = Level(method_name, options, compressed.nbytes, layer_error(weight, compressed, stats), None, seconds, compressed.report)
        if held_out is not None:
            level = replace(level, held_out_error=layer_error(weight, compressed, held_out))
        fitted.append((level, compressed))
    return fitted


@dataclass(frozen=True)
class Plan:
    """Which layers get which levels.

    Attributes:
        choices: For each layer name, its ``(method, options)`` pairs.
        fraction: Size that the budget leaves, as a fraction of the 16-bit size; picks the level that the next block is fitted to.
    """

    choices: dict[str, list[LevelChoice]]
    fraction: float | None

    @classmethod
    def of(cls, model: Model, recipe: Recipe, fraction: float | None) -> Plan:
        """The plan of ``recipe`` on ``model``.

        Raises:
            InvalidArgument: If ``skip`` leaves no layer, or the target has no place for a bias that a method is to bring.
        """
        kept = [name for name in model.linears() if not any(part in name for part in recipe.skip)]
        tables = list(model.embeddings()) if recipe.embeddings else []
        wanted = {name: recipe.expanded("levels") for name in kept} | {name: recipe.expanded("embeddings") for name in tables}
        choices = {name: [with_group_size(choice, model.shape(name)[1]) for choice in pairs] for name, pairs in wanted.items()}
        if recipe.target != "native":
            layers = model.linears()
            bare = [name for name in choices if name not in layers or bias_of(layers[name]) is None]
            choices |= {name: [without_bias(choice, name) for choice in choices[name]] for name in bare}
        if not choices:
            raise InvalidArgument("nothing to compress: the model has no linear layers, or 'skip' names them all")
        return cls(choices, fraction)


def build_levels(
    model: Model, plan: Plan, recipe: Recipe, texts: Texts, database: LevelDatabase, progress: Progress, pool: Pool | None = None,
) -> dict[str, int]:
    """Fit every level that is not in the database yet, walking the blocks in order.

    Returns:
        For each layer of the blocks, the number of the input that it shares with its siblings (q/k/v share one).
    """
    pool = pool or Serial()
    progress.start("fitting layers", len(plan.choices))
    shared: dict[str, int] = {}
    done: set[str] = set()
    if texts.calibration is not None:
        spill = database.folder.parent / "hidden" if hidden_bytes(model, recipe) > SPILL_ABOVE else None
        walk = BlockWalk(
            model, texts.calibration, held_out=texts.held_out, batch_size=recipe.calibration.batch_size, spill_dir=spill,
            dtype=fast_dtype(), lags=recipe.correction > 0,
        )  # fmt: skip
        for step in walk:
            names = [name for name in step.layers if name in plan.choices]
            inputs = {id(stats): len(shared) + index for index, stats in enumerate(step.stats.values())}
            shared |= {name: inputs[id(step.stats[name])] for name in step.layers}
            target = _Target(model, step, recipe.correction)
            _fit_missing(names, target, plan, step.stats, step.held_out, database, pool, progress)
            done.update(names)
            if recipe.propagate == "compressed":
                _propagate(names, step.layers, plan, database)
            # Otherwise the statistics of a block would stay until those of the next are complete.
            del step, target
        outside = [name for name in plan.choices if name not in done]
        # An untied table is read by look-up: its inputs are one-hot, every row counts alike.
        stats = {name: walk.outside.get(name) or LayerStats.identity(model.shape(name)[1]) for name in outside}
        _fit_missing(outside, model.matrix, plan, stats, walk.outside_held_out, database, pool, progress)
    else:
        _fit_missing(list(plan.choices), model.matrix, plan, {}, {}, database, pool, progress)
    return shared


def hidden_bytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the hidden states between two blocks: those of the original as well where layers make up for what was lost."""
    calibration = recipe.calibration
    tokens = calibration.tokens * (2 if recipe.correction else 1) + calibration.held_out
    return tokens * model.hidden_size * fast_dtype().itemsize


@dataclass(frozen=True)
class _Target:
    """What to compress in a block: its matrices, corrected for what was lost before where the recipe asks for it."""

    model: Model
    step: BlockStep
    share: float

    def __call__(self, name: str) -> Tensor:
        matrix, lag = self.model.matrix(name), self.step.lags.get(name)
        return matrix if lag is None else corrected(matrix, lag, self.share)


def _fit_missing(
    names: list[str], matrix: Callable[[str], Tensor], plan: Plan, stats: dict[str, LayerStats], held_out: dict[str, LayerStats],
    database: LevelDatabase, pool: Pool, progress: Progress,
) -> None:
    missing = [name for name in names if name not in database]
    progress.advance(len(names) - len(missing))
    calls = ((name, matrix(name), stats.get(name), held_out.get(name), plan.choices[name]) for name in missing)
    for name, fitted in zip(missing, pool.map(fit_levels, calls), strict=True):
        database.write(name, fitted)
        del fitted  # before the next layer is fitted
        progress.advance(note=name)


def _propagate(names: list[str], layers: dict[str, nn.Module], plan: Plan, database: LevelDatabase) -> None:
    for name in names:
        layer = layers[name]
        index = propagated_level(database.levels(name), math.prod(dense_shape(layer)), plan.fraction)
        weight = database.weight(name, index)
        set_matrix(layer, weight.dense())
        set_offset(layer, weight.offset, bias_of(layer))


def with_group_size(choice: LevelChoice, in_features: int) -> LevelChoice:
    """``choice`` with a group size that divides the layer, where its method takes one and the user named none.

    The largest multiple of 8 up to :data:`GROUP_SIZE`, since scales of smaller groups cost more than they gain; else whole rows.
    """
    method, options = choice
    if "group_size" not in find_method(method).options or "group_size" in options:
        return choice
    fits = (size for size in range(GROUP_SIZE, 7, -8) if in_features % size == 0)
    return method, {**options, "group_size": next(fits, -1)}


def without_bias(choice: LevelChoice, name: str) -> LevelChoice:
    """``choice`` for a layer that no format of other runtimes gives a bias: a method that might bring one is told not to.

    Raises:
        InvalidArgument: If the user asked for one.
    """
    method, options = choice
    if "center" not in find_method(method).options:
        return choice
    if options.get("center") is True:
        mend = "leave out 'center' or 'target'"
        raise InvalidArgument(f"layer {name} has no bias, so what {method} with center=True adds to it cannot be exported; {mend}")
    return method, {**options, "center": False}


def propagated_level(levels: list[Level], numel: int, fraction: float | None) -> int:
    """Index of the level whose size is nearest to what the budget leaves for a layer: the next block is fitted to its outputs."""
    if fraction is None:
        return 0
    return min(range(len(levels)), key=lambda index: abs(levels[index].nbytes - fraction * 2 * numel))
