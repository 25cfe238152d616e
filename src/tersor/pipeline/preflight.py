"""What a job will take, said before it starts; what cannot work, refused before it starts."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tersor.allocation.sparse import require_solver
from tersor.errors import InvalidArgument, TersorError
from tersor.finetuning.discrete import is_tunable
from tersor.layerwise import find_method
from tersor.layerwise.stats import LayerStats
from tersor.models import Model
from tersor.pipeline.calibrate import LevelChoice, Plan
from tersor.pipeline.footprint import predicted_memory
from tersor.pipeline.probing import predicted_seconds, probe
from tersor.pipeline.recipe import Recipe

SAMPLE_ROWS = 16
MARGIN = 0.98  # sizes predicted from a sample of rows are exact for row-wise formats, within two per cent for low rank


@dataclass(frozen=True)
class Preflight:
    """Predictions for a job.

    Attributes:
        peak_memory: Resident bytes of the whole process at the worst moment.
        disk: Bytes written under the output folder at the worst moment.
        seconds: Wall time on this machine as it is now.
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


def predicted(shape: tuple[int, int], choice: LevelChoice) -> tuple[int, bool]:
    """Bytes that a level of this shape will take, from running its method on a few rows of noise, and whether it could be tuned.

    Raises:
        InvalidArgument: If the method refuses the shape or the options: the refusal comes before any work.
    """
    rows, columns = shape
    name, options = choice
    method = find_method(name)
    sample = min(rows, SAMPLE_ROWS) if "keep" not in options and "rank" not in options else rows
    noise = torch.randn(sample, columns, generator=torch.Generator().manual_seed(0))
    weight = method.function(noise, LayerStats.identity(columns), **options)
    return round(weight.nbytes * rows / sample), is_tunable(weight)


def preflight(model: Model, plan: Plan, recipe: Recipe, budget: int | None, output: Path | None) -> Preflight:
    """Predict and check a job from its shapes and a few seconds of its work, see :mod:`tersor.pipeline.probing`.

    Raises:
        InvalidArgument: If a level does not fit a layer or the budget is out of reach, naming the smallest reachable size.
        TersorError: If the disk is too full, the memory too small, or a package missing that the search needs.
    """
    if recipe.search.method == "sparse":
        require_solver()
    known: dict[tuple[tuple[int, int], str], tuple[int, bool]] = {}

    def size(name: str, choice: LevelChoice) -> int:
        key = (model.shape(name), repr(choice))
        if key not in known:
            try:
                known[key] = predicted(model.shape(name), choice)
            except InvalidArgument as error:
                raise InvalidArgument(f"layer {name}: {error}") from None
        return known[key][0]

    table = {name: [size(name, choice) for choice in choices] for name, choices in plan.choices.items()}
    if recipe.finetuning.steps and not any(tunable for _, tunable in known.values()):
        raise InvalidArgument("finetuning trains codebooks, grids and sparse floats, and no level is one of these; leave it out or add one")
    weights = sum(model.shape(name)[0] * model.shape(name)[1] for name in plan.choices)
    rest = 2 * (model.n_parameters - weights)
    smallest, largest = (rest + sum(pick(levels) for levels in table.values()) for pick in (min, max))
    if budget is not None and budget < MARGIN * smallest:
        raise InvalidArgument(
            f"a budget of {budget:,} bytes is below the smallest reachable size of about {smallest:,} bytes with these levels; "
            "raise the budget or add smaller levels"
        )
    disk = sum(map(sum, table.values())) + _teacher_bytes(model, recipe) + largest
    parts = probe(model, plan, recipe)
    levels = {name: sum(sizes) for name, sizes in table.items()}
    memory = predicted_memory(model, plan, recipe, parts.inputs, levels, budget or largest)
    result = Preflight(memory, disk, predicted_seconds(model, recipe, parts, len(table)), smallest, largest, budget)
    _check_room(result, output)
    return result


def _teacher_bytes(model: Model, recipe: Recipe) -> int:
    return 2 * recipe.search.tokens * model.vocabulary if recipe.budget is not None and recipe.search.measures else 0


def _check_room(needs: Preflight, output: Path | None) -> None:
    import psutil

    available = psutil.virtual_memory().available
    if needs.peak_memory - psutil.Process().memory_info().rss > available:
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
