"""From a level database and a budget to one level for each layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.allocation import ALLOCATORS, Allocation, Problem, Unit, configuration_search, evopress, fill, lgreco, with_sensitivities
from tersor.errors import InvalidArgument
from tersor.files import write_json
from tersor.models import Model
from tersor.pipeline.calibrate import Plan
from tersor.pipeline.levels import Level, LevelDatabase
from tersor.pipeline.progress import Progress
from tersor.pipeline.recipe import Search
from tersor.weights.zero import ZeroWeight

if TYPE_CHECKING:
    from tersor.allocation.problem import Choices, Fitness

# On fewer, what each layer is worth drowns in noise.
SENSITIVITY_TOKENS = 1024


@dataclass(frozen=True)
class Menu:
    """Every layer's levels with what they really cost in the file, header included.

    Attributes:
        layers: Layer names, in the order of the model.
        levels: Levels of each layer.
        costs: Bytes in the written file of each level.
        sizes: Weights in each layer.
        fixed: Bytes of everything that is not chosen: norms, biases, kept embeddings.
    """

    layers: tuple[str, ...]
    levels: tuple[tuple[Level, ...], ...]
    costs: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    fixed: int

    @classmethod
    def of(cls, model: Model, plan: Plan, database: LevelDatabase) -> Menu:
        """Read the menu from a complete database."""
        from tersor.models.storage import safetensors_size

        layers = tuple(plan.choices)
        levels = tuple(tuple(database.levels(name)) for name in layers)
        digits = len(str(sum(max(level.nbytes for level in menu) for menu in levels)))
        costs = tuple(
            tuple(level.nbytes + database.header_bytes(name, index, digits) for index, level in enumerate(menu))
            for name, menu in zip(layers, levels, strict=True)
        )
        shapes = [model.shape(name) for name in layers]
        bare = model.copy()
        for name, shape in zip(layers, shapes, strict=True):
            bare.replace(name, ZeroWeight(shape))
        return cls(layers, levels, costs, tuple(rows * columns for rows, columns in shapes), safetensors_size(bare))

    def problem(self, budget: int, fused: dict[str, str]) -> Problem:
        """The allocation problem under ``budget`` bytes for the whole file.

        Raises:
            InvalidArgument: If even the cheapest levels do not fit; the message names the smallest reachable size.
        """
        units = tuple(
            Unit(name, costs, tuple(map(_judged_error, menu)), size, fused.get(name))
            for name, menu, costs, size in zip(self.layers, self.levels, self.costs, self.sizes, strict=True)
        )
        unbounded = Problem(units, sum(max(costs) for costs in self.costs))
        smallest = unbounded.smallest_cost + self.fixed
        if smallest > budget:
            raise InvalidArgument(
                f"a budget of {budget:,} bytes is below the smallest reachable size of {smallest:,} bytes with these levels; "
                "raise the budget or add smaller levels"
            )
        return Problem(units, budget - self.fixed)


def _judged_error(level: Level) -> float:
    return level.error if level.held_out_error is None else level.held_out_error


def fused_groups(layers: tuple[str, ...], shared_inputs: dict[str, int], fusion: str, block_prefix: str) -> dict[str, str]:
    """The fused-group key of each layer that has one.

    Args:
        layers: Names of the layers.
        shared_inputs: Number of the input each block layer reads.
        fusion: ``"none"``, ``"inputs"``, ``"sublayer"`` or ``"block"``.
        block_prefix: Dotted name of the list of blocks.
    """
    if fusion == "none":
        return {}
    inside = [name for name in layers if name.startswith(f"{block_prefix}.")]
    if fusion == "inputs":
        return {name: f"input {shared_inputs[name]}" for name in inside if name in shared_inputs}
    groups = {}
    for name in inside:
        index, *path = name.removeprefix(f"{block_prefix}.").split(".")
        part = "attention" if "att" in path[0].lower() else "mlp"
        groups[name] = f"block {index}" if fusion == "block" else f"block {index} {part}"
    return groups


def allocate(problem: Problem, search: Search, fitness: Fitness | None, state: Path, progress: Progress) -> Allocation:
    """Run ``search`` on ``problem``.

    Args:
        problem: Units, costs and budget.
        search: Which allocator, and its options.
        fitness: Judges whole models; needed by evopress and sparse.
        state: File in which evopress keeps its state, so that a killed search resumes.
        progress: Told of every generation.

    Raises:
        InvalidArgument: If the search needs a fitness and there is none.
    """
    if all(len(unit.costs) == 1 for unit in problem.units):
        return ALLOCATORS["uniform"](problem)
    if search.method in ("evopress", "sparse"):
        if fitness is None:
            raise InvalidArgument(f"{search.method} needs search tokens; set search.tokens")
        if search.method == "sparse":
            return _few(problem, search, fitness, progress)
        if search.initial == "fittest":
            problem = _weighed(problem, search, fitness, state.with_name(f"{state.stem}-sensitivities.json"), progress)
        progress.start("searching", search.generations)

        def shown(generation: int, value: float) -> None:
            progress.advance(note=f"KL {value:.4f}")

        starts = [fill(problem, ALLOCATORS["uniform"](problem).choices), lgreco(problem).choices] if search.initial == "fittest" else []
        reached = _judged(starts, search, fitness)
        initial: Any = starts[reached.index(min(reached))] if starts else search.initial
        found = evopress(
            problem, fitness, generations=search.generations, offspring=search.offspring, stages=search.stages, seed=search.seed,
            groups=search.groups, initial=initial, state_path=state, progress=shown,
        )
        # A step is taken on the minibatch that it was chosen by: all tokens tell whether the steps together led anywhere.
        if not starts or _judged([found.choices], search, fitness)[0] <= min(reached):
            return found
        return replace(found, choices=initial, cost=problem.cost(initial), error=problem.error(initial), fitness=min(reached))
    progress.start("searching", 1)
    if search.method == "random":
        found = ALLOCATORS["random"](problem, fitness=fitness, n=search.offspring, seed=search.seed, tokens=search.stages[-1][1])
    else:
        found = lgreco(problem) if search.method == "knapsack" else ALLOCATORS[search.method](problem)
    progress.advance()
    return found


def _few(problem: Problem, search: Search, fitness: Fitness, progress: Progress) -> Allocation:
    """The sparse search, with every model that it measures told to ``progress``."""
    progress.start("searching", search.generations)

    def judge(candidates: Sequence[Choices], *, parent: Choices, tokens: int, seed: int) -> list[float]:
        values: list[float] = []
        for candidate in candidates:
            values += fitness([candidate], parent=parent, tokens=tokens, seed=seed)
            progress.advance(note=f"KL {values[-1]:.4f}")
        return values

    return configuration_search(problem, judge, evaluations=search.generations, tokens=search.stages[-1][1], seed=search.seed)


def sensitivity_tokens(search: Search) -> int:
    """Tokens that each layer's weight in the sum of errors is measured on."""
    return min(SENSITIVITY_TOKENS, search.tokens)


def _weighed(problem: Problem, search: Search, fitness: Fitness, path: Path, progress: Progress) -> Problem:
    """``problem`` with measured sensitivities, kept at ``path`` for a run that resumes."""
    if path.is_file():
        errors = json.loads(path.read_text(encoding="utf-8"))
        return replace(problem, units=tuple(replace(unit, errors=tuple(errors[unit.name])) for unit in problem.units))
    progress.start("measuring layers", 1)
    weighed = with_sensitivities(problem, fitness, tokens=sensitivity_tokens(search), seed=search.seed)
    write_json(path, {unit.name: unit.errors for unit in weighed.units})
    progress.advance()
    return weighed


def _judged(candidates: list[Choices], search: Search, fitness: Fitness) -> list[float]:
    """The fitness of ``candidates`` on all tokens that are set aside for the search."""
    tokens = min(search.tokens, getattr(fitness, "available_tokens", search.tokens))
    return list(fitness(candidates, parent=candidates[0], tokens=tokens, seed=search.seed)) if candidates else []


def fill_up(problem: Problem, allocation: Allocation) -> Allocation:
    """``allocation`` with leftover budget spent where it lowers the summed error most; the search's own record is kept."""
    choices: Choices = fill(problem, allocation.choices)
    return replace(allocation, choices=choices, cost=problem.cost(choices), error=problem.error(choices))


def assemble(model: Model, menu: Menu, database: LevelDatabase, choices: tuple[int, ...]) -> Model:
    """A copy of ``model`` in which every layer holds its chosen level."""
    small = model.copy()
    for name, index in zip(menu.layers, choices, strict=True):
        small.replace(name, database.weight(name, index))
    return small
