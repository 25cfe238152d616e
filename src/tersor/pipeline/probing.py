"""How long a job will take, from a few seconds of its own work: one block on a few tokens, one call of each method a width."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.finetuning import PVConfig
from tersor.layerwise import find_method
from tersor.layerwise.stats import LayerStats
from tersor.models import Model
from tersor.models.blocks import BlockWalk, find_blocks
from tersor.models.casting import converted, lean_copy
from tersor.models.structure import run_block
from tersor.pipeline.allocate import sensitivity_tokens
from tersor.pipeline.calibrate import LevelChoice, Plan, fit_levels
from tersor.pipeline.dtypes import fast_dtype
from tersor.pipeline.recipe import Recipe
from tersor.pipeline.texts import SAMPLED_AT_ONCE, needed_tokens

PROBE_TOKENS = 512
SAMPLE_ROWS = 512
WIDEST = 2048  # inputs of a timed call; wider layers are extrapolated
_VOCABULARY = 4096  # rows of the head that are timed
_SLOW = 3.0  # seconds of a call above which it is not repeated to see what its levels share
_BUSY = 1.25  # seconds for each second of processor time above which the machine counts as busy

# Wall and processor time, ``[2]``.
Cost: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


@dataclass(frozen=True)
class Probe:
    """Seconds of the parts of a job.

    Attributes:
        walk: Of a token in a block: observed once and passed on once.
        plain: Of a token in a block in the type that searches compute in.
        original: Of a token in a block in the model's own type.
        head: Of a token's logits and their probabilities.
        step: Of one more token for each of the sequences that are sampled at once, in a block.
        inputs: Widths of the distinct inputs of a block's layers; empty if nothing is fitted to inputs.
        fitting: Of all levels of all layers.
    """

    walk: float
    plain: float
    original: float
    head: float
    step: float
    inputs: tuple[int, ...]
    fitting: float


def probe(model: Model, plan: Plan, recipe: Recipe) -> Probe:
    """Time one block, the head and the methods of ``recipe`` on ``model``; seconds for models that a laptop can compress."""
    length = min(recipe.calibration.context, model.max_context, PROBE_TOKENS)
    count = max(1, PROBE_TOKENS // length)
    tokens = torch.randint(model.vocabulary, (count, length), generator=torch.Generator().manual_seed(0))
    parts: list[Cost] = []
    stats: dict[str, LayerStats] = {}

    def everything() -> None:
        walk = np.zeros(2)
        if recipe.needs_inputs:
            steps = iter(BlockWalk(model, tokens, batch_size=count, dtype=fast_dtype()))
            stats.update(next(steps).stats)  # the first pass also pays for set-up
            walk = _seconds(lambda: next(steps, None)) / tokens.numel()
            steps.close()
        fitting = _Fitting(model, plan, stats, recipe.calibration.held_out > 0).total()
        parts.extend([walk, *_passes(model, tokens, min(sampled_sequences(model, recipe), SAMPLED_AT_ONCE)), _head(model), fitting])

    wall, cpu = _seconds(everything)
    # On a busy machine a short call waits by chance: then its processor time counts, stretched as the whole probe was.
    wait = wall / max(cpu, 1e-9)
    walk, plain, original, step, head, fitting = (float(part[0] if wait <= _BUSY else part[1] * wait) for part in parts)
    inputs = tuple(each.in_features for each in {id(each): each for each in stats.values()}.values())
    return Probe(walk, plain, original, head, step, inputs, fitting)


def predicted_seconds(model: Model, recipe: Recipe, parts: Probe, units: int) -> float:
    """Wall time of the whole job.

    Args:
        model: The original.
        recipe: The job.
        parts: From :func:`probe`.
        units: Layers that get a level.
    """
    blocks = len(find_blocks(model.module))
    fitted, held_out, search = needed_tokens(recipe)
    # The original runs beside it where layers make up for what was lost.
    walked = blocks * parts.walk * (fitted * (2 if recipe.correction else 1) + held_out)
    token = blocks * parts.plain + parts.head
    sequences, length = sampled_sequences(model, recipe), min(recipe.calibration.context, model.max_context)
    sampled = length * (-(-sequences // SAMPLED_AT_ONCE) * blocks * parts.step + sequences * parts.head)
    judged = token * search  # the original, recorded once
    if search:
        stages = recipe.search.stages
        candidates = [recipe.search.offspring, *(survivors for survivors, _ in stages)]
        # A candidate begins at its first change, halfway on average; the parent's prefix is computed for each minibatch.
        generation = sum((n / 2 + 1) * tokens for n, (_, tokens) in zip(candidates, stages, strict=False))
        sensitivities = (units / 2 + 1) * sensitivity_tokens(recipe.search) if recipe.search.initial == "fittest" else 0
        chosen = 3 * search if sensitivities else 0  # two starts and the end
        judged += token * (recipe.search.generations * generation + sensitivities + chosen)
    exact = blocks * parts.original + parts.head
    evaluated = (4 if recipe.finetuning.steps else 3) * recipe.evaluation.tokens * exact
    return sampled + walked + parts.fitting + judged + exact * _tuned_tokens(recipe, length) + evaluated


def _tuned_tokens(recipe: Recipe, length: int) -> int:
    """Tokens of forward passes that the finetuning takes as long as."""
    plan = recipe.finetuning
    # The best of the three short tunings is gone on from.
    steps = plan.steps + 2 * plan.short
    measured = steps // PVConfig.check_every + (3 if plan.short else 1) if plan.steps else 0
    # Original and student, and backwards, which takes twice as long as forwards.
    return 4 * steps * plan.batch * length + 2 * measured * needed_tokens(recipe)[1]


def sampled_sequences(model: Model, recipe: Recipe) -> int:
    """Sequences that the model writes itself to be calibrated on; 0 where the recipe names a text or needs none."""
    if recipe.calibration.text != "auto":
        return 0
    length = min(recipe.calibration.context, model.max_context)
    return sum(-(-tokens // length) for tokens in needed_tokens(recipe))


def _seconds(call: Callable[[], Any]) -> Cost:
    """Wall and processor time of a call, ``[2]``."""
    began = time.perf_counter(), time.process_time()
    call()
    return np.array([time.perf_counter() - began[0], time.process_time() - began[1]])


def _fastest(call: Callable[[], Any]) -> Cost:
    """The least of three calls: one of milliseconds is first cold and then, on a busy machine, as long as it happens to wait."""
    return np.min([_seconds(call) for _ in range(3)], axis=0)


@torch.no_grad()
def _passes(model: Model, tokens: Tensor, sequences: int) -> tuple[Cost, Cost, Cost]:
    """Seconds a token and block in the fast type and in the model's own, and of a block in a step of sampling ``sequences``."""
    twin = lean_copy(model, fast_dtype())
    blocks, own = find_blocks(twin.module), find_blocks(model.module)
    starts = tokens.reshape(-1, 1)[: max(sequences, 1)]
    with converted(blocks[0], fast_dtype()):
        run_block(twin.module, blocks, 0, None, tokens[:, :1])
        plain = _fastest(lambda: run_block(twin.module, blocks, 0, None, tokens)) / tokens.numel()
        step = _fastest(lambda: run_block(twin.module, blocks, 0, None, starts))
    original = _fastest(lambda: run_block(model.module, own, 0, None, tokens)) / tokens.numel()
    # Keys and values so far are copied with every token.
    kept = torch.zeros(len(starts), max(tokens.shape[1] // 2, 1), 2 * key_value_width(model), dtype=fast_dtype())
    return plain, original, step + _fastest(lambda: torch.cat([kept, kept[:, :1]], 1))


def key_value_width(model: Model) -> int:
    """Entries of a token's keys in a block, and of its values."""
    config = model.config
    heads = getattr(config, "num_attention_heads", None) or 1
    return int((getattr(config, "num_key_value_heads", None) or heads) * (getattr(config, "head_dim", None) or model.hidden_size // heads))


@torch.no_grad()
def _head(model: Model) -> Cost:
    rows, tokens = min(_VOCABULARY, model.vocabulary), 64
    hidden, table = torch.zeros(tokens, model.hidden_size, dtype=fast_dtype()), torch.zeros(rows, model.hidden_size, dtype=fast_dtype())
    return _fastest(lambda: F.linear(hidden, table).float().log_softmax(-1).exp()) / tokens * model.vocabulary / rows


@dataclass
class _Fitting:
    """Adds up the levels of every layer from a cold and a warm call of each method for each width."""

    model: Model
    plan: Plan
    stats: dict[str, LayerStats]
    judged_twice: bool
    _calls: dict[tuple[str, int], tuple[Cost, Cost]] = field(default_factory=dict)

    def total(self) -> Cost:
        """Seconds of all layers; what levels of one input share, such as a factor, once for each input."""
        inside = f"{find_blocks(self.model.module).name}."
        distinct = max(len({id(each) for each in self.stats.values()}), 1)
        share = distinct / max(len(self.stats), 1) if self.stats else 1.0
        seconds = np.zeros(2)
        for name, choices in self.plan.choices.items():
            rows, _ = self.model.shape(name)
            methods = {choice[0]: choice for choice in choices}
            for method, choice in methods.items():
                shared, row = self._call(name, choice)
                levels = sum(other == method for other, _ in choices)
                seconds += row * rows * levels + shared * (share if name.startswith(inside) else 1.0)
        return seconds

    def _call(self, name: str, choice: LevelChoice) -> tuple[Cost, Cost]:
        """Seconds before the first level of an input, and of a row of one level."""
        width = self.model.shape(name)[1]
        key = (choice[0], width)
        if key not in self._calls:
            try:
                self._calls[key] = self._timed(name, choice, min(width, WIDEST))
            except InvalidArgument:  # a group size that does not divide the part that would be timed
                self._calls[key] = self._timed(name, choice, width)
        return self._calls[key]

    def _timed(self, name: str, choice: LevelChoice, width: int) -> tuple[Cost, Cost]:
        rows, whole = self.model.shape(name)
        needs_inputs = find_method(choice[0]).needs != "nothing"
        found = self.stats.get(name) or next((each for each in self.stats.values() if each.in_features == whole), None)
        stats = _narrowed(found, width) if found is not None else LayerStats.identity(width) if needs_inputs else None
        # A rank is a share of both sides, so as many rows as inputs.
        sample = min(rows, SAMPLE_ROWS if "rank" not in choice[1] and "keep" not in choice[1] else max(SAMPLE_ROWS, whole))
        matrix = self.model.matrix(name)[:sample, :width].contiguous()
        held_out = stats if self.judged_twice else None
        cold = _seconds(lambda: fit_levels(name, matrix, stats, held_out, [choice]))
        warm = _seconds(lambda: fit_levels(name, matrix, stats, held_out, [choice])) if cold[1] < _SLOW else cold
        ratio = whole / width
        return np.maximum(cold - warm, 0) * ratio**3, warm / sample * ratio ** (2 if needs_inputs else 1)


def _narrowed(stats: LayerStats, width: int) -> LayerStats:
    if width == stats.in_features:
        return LayerStats(stats.hessian, stats.mean_abs, stats.mean, stats.n_tokens)
    return LayerStats(stats.hessian[:width, :width].contiguous(), stats.mean_abs[:width], stats.mean[:width], stats.n_tokens)
