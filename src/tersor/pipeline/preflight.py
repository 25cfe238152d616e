"""What a job will take, said before it starts; what cannot work, refused before it starts."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise import find_method
from tersor.layerwise.stats import LayerStats
from tersor.models import Model
from tersor.pipeline.calibrate import LevelChoice, Plan
from tersor.pipeline.recipe import Recipe

SAMPLE_ROWS = 16
MARGIN = 0.98  # sizes predicted from a sample of rows are exact for row-wise formats, within two per cent for low rank


@dataclass(frozen=True)
class Preflight:
    """Predictions for a job.

    Attributes:
        peak_memory: Bytes of resident memory at the worst moment.
        disk: Bytes written under the output folder at the worst moment.
        seconds: Rough wall time on this machine.
        smallest: Bytes of the smallest model that the levels reach.
        largest: Bytes of the largest.
        budget: Bytes asked for, if a budget was given.
    """

    peak_memory: int
    disk: int
    seconds: float
    smallest: int
    largest: int
    budget: int | None

    def sentence(self) -> str:
        """One line for the user."""
        asked = f", budget {self.budget / 1e6:.1f} MB" if self.budget is not None else ""
        return (
            f"about {self.seconds / 60:.0f} min, {self.peak_memory / 1e9:.1f} GB of memory and {self.disk / 1e6:.0f} MB of disk; "
            f"reachable sizes {self.smallest / 1e6:.1f} to {self.largest / 1e6:.1f} MB{asked}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return asdict(self)


def predicted_nbytes(shape: tuple[int, int], choice: LevelChoice) -> int:
    """Bytes that a level of this shape will take, from running its method on a few rows of noise.

    Raises:
        InvalidArgument: If the method refuses the shape or the options: the refusal comes before any work.
    """
    rows, columns = shape
    name, options = choice
    method = find_method(name)
    sample = min(rows, SAMPLE_ROWS) if "keep" not in options and "rank" not in options else rows
    noise = torch.randn(sample, columns, generator=torch.Generator().manual_seed(0))
    return round(method.function(noise, LayerStats.identity(columns), **options).nbytes * rows / sample)


def preflight(model: Model, plan: Plan, recipe: Recipe, budget: int | None, output: Path | None) -> Preflight:
    """Predict and check a job without touching its weights.

    Raises:
        InvalidArgument: If a level does not fit a layer or the budget is out of reach, naming the smallest reachable size.
        TersorError: If the disk is too full or the memory too small.
    """
    sizes: dict[tuple[tuple[int, int], str], int] = {}

    def size(name: str, choice: LevelChoice) -> int:
        key = (model.shape(name), repr(choice))
        if key not in sizes:
            try:
                sizes[key] = predicted_nbytes(model.shape(name), choice)
            except InvalidArgument as error:
                raise InvalidArgument(f"layer {name}: {error}") from None
        return sizes[key]

    table = {name: [size(name, choice) for choice in choices] for name, choices in plan.choices.items()}
    weights = sum(model.shape(name)[0] * model.shape(name)[1] for name in plan.choices)
    rest = 2 * (model.n_parameters - weights)
    smallest, largest = (rest + sum(pick(levels) for levels in table.values()) for pick in (min, max))
    if budget is not None and budget < MARGIN * smallest:
        raise InvalidArgument(
            f"a budget of {budget:,} bytes is below the smallest reachable size of about {smallest:,} bytes with these levels; "
            "raise the budget or add smaller levels"
        )
    levels_bytes = sum(map(sum, table.values()))
    disk = levels_bytes + _teacher_bytes(model, recipe) + largest
    result = Preflight(_memory(model, plan, recipe), disk, _seconds(model, plan, recipe), smallest, largest, budget)
    _check_room(result, output)
    return result


def _teacher_bytes(model: Model, recipe: Recipe) -> int:
    return 2 * recipe.search.tokens * model.vocabulary if recipe.budget is not None and recipe.search.method == "evopress" else 0


def _memory(model: Model, plan: Plan, recipe: Recipe) -> int:
    dense = 4 * model.n_parameters
    widest = max(model.shape(name)[1] for name in plan.choices)
    hidden = 2 * 4 * (recipe.calibration.tokens + recipe.calibration.held_out) * model.hidden_size
    fitting = hidden + 6 * 8 * widest**2
    levels = max(map(len, plan.choices.values()))
    # Dense levels in half precision, a working copy, the teacher's file in the page cache, and logits of one minibatch.
    logits = 4 * max(tokens for _, tokens in recipe.search.stages) * model.vocabulary
    searching = min(4 << 30, 2 * levels * model.n_parameters) + dense // 2 + _teacher_bytes(model, recipe) + logits
    return 700_000_000 + dense + max(fitting + dense // 2, searching if recipe.budget is not None else 0)


@torch.inference_mode()
def _seconds(model: Model, plan: Plan, recipe: Recipe) -> float:
    probe = min(256, model.max_context)
    tokens = torch.zeros(1, probe, dtype=torch.long)
    model.module(tokens)  # the first pass also pays for set-up
    began = time.perf_counter()
    model.module(tokens)
    per_token = (time.perf_counter() - began) / probe
    fit = recipe.needs_inputs
    walked = 2.5 * (recipe.calibration.tokens + recipe.calibration.held_out) * fit
    judged = 0.0
    if recipe.budget is not None and recipe.search.method == "evopress":
        candidates = [recipe.search.offspring, *(survivors for survivors, _ in recipe.search.stages)]
        stages = zip(candidates, recipe.search.stages, strict=False)
        judged = recipe.search.generations * sum((n / 2 + 1) * tokens for n, (_, tokens) in stages)
    solved = sum(1e-9 * model.shape(name)[1] * len(choices) * model.shape(name)[0] * 40 for name, choices in plan.choices.items() if fit)
    return per_token * (walked + judged + 3 * recipe.evaluation.tokens) + solved


def _check_room(needs: Preflight, output: Path | None) -> None:
    import psutil

    available = psutil.virtual_memory().available
    if needs.peak_memory > available:
        raise TersorError(
            f"this job needs about {needs.peak_memory / 1e9:.1f} GB of memory but {available / 1e9:.1f} GB are free; "
            "lower calibration.tokens or search.tokens, or use a machine with more"
        )
    if output is None:
        return
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needs.disk > free:
        raise TersorError(f"this job writes about {needs.disk / 1e6:.0f} MB but {free / 1e6:.0f} MB are free on the disk of {output}")
