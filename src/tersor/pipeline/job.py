"""A compression job, stage by stage: texts, level database, menu, search, assembly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tersor.allocation import ALLOCATORS, Allocation, parse_budget
from tersor.allocation.problem import Choices, Fitness, Problem
from tersor.errors import InvalidArgument
from tersor.finetuning import PVConfig, Tuned
from tersor.finetuning.discrete import is_tunable
from tersor.models import Model
from tersor.models.structure import find_blocks
from tersor.pipeline.allocate import Menu, allocate, assemble, fill_up, fused_groups
from tersor.pipeline.calibrate import Plan, build_levels
from tersor.pipeline.dtypes import fast_dtype
from tersor.pipeline.fitness import KLFitness
from tersor.pipeline.levels import LevelDatabase
from tersor.pipeline.preflight import Preflight, preflight
from tersor.pipeline.progress import Progress, Silent
from tersor.pipeline.recipe import Recipe, Search, parse_recipe
from tersor.pipeline.rundir import RunDirectory
from tersor.pipeline.texts import Texts, prepare_texts
from tersor.pipeline.tuning import forget, tune_windows
from tersor.pipeline.workers import make_fitness, make_pool

_SECTIONS = ("calibration", "evaluation", "search", "propagate", "fused", "target", "skip", "embeddings", "finetuning")


def single_method(method: str | None, options: dict[str, Any]) -> Recipe:
    """The recipe of one method with the same options everywhere.

    Raises:
        InvalidArgument: If there is no method, or an option that it does not take.
    """
    if method is None:
        raise InvalidArgument("name a method, such as 'gptq', or give a recipe")
    sections = {key: options[key] for key in _SECTIONS if key in options}
    own = {key: value for key, value in options.items() if key not in _SECTIONS}
    return parse_recipe({"levels": [{"method": method, **own}], **sections}, f"method {method}")


@dataclass
class Job:
    """A recipe at work on a model in a folder. Every stage is computed when it is first asked for and resumes from disk.

    One level database serves any number of budgets and searches, which is how experiments compare them:
    ``job.search(budget)`` and ``job.assemble(choices)`` may be called again and again.

    Args:
        model: The original model; never changed.
        recipe: What to do.
        folder: The run directory.
        on: Where to run; see :func:`tersor.compress`.
        restart: Throw away the state of an earlier run.
        progress: Receives stages and steps.

    Attributes:
        resumed: Whether the last search went on from a state that it found.
    """

    model: Model
    recipe: Recipe
    folder: Path
    on: str | None = None
    restart: bool = False
    progress: Progress = field(default_factory=Silent)
    resumed: bool = field(default=False, init=False)

    @cached_property
    def budget(self) -> int | None:
        """The recipe's budget in bytes of the written tensor file."""
        return None if self.recipe.budget is None else self.bytes_of(self.recipe.budget)

    def bytes_of(self, budget: str | float | int) -> int:
        """``budget`` in bytes; ratios are of the 16-bit size.

        Raises:
            InvalidArgument: If it is not a size.
        """
        return parse_budget(budget, dense_bytes=2 * self.model.n_parameters, n_weights=self.model.n_parameters)

    @cached_property
    def plan(self) -> Plan:
        """Which layers get which levels."""
        fraction = None if self.budget is None else self.budget / (2 * self.model.n_parameters)
        return Plan.of(self.model, self.recipe, fraction)

    @cached_property
    def preflight(self) -> Preflight:
        """Predicted memory, disk, time and sizes; impossible jobs are refused here, before any work."""
        if self.recipe.target != "native":
            from tersor.models.export import check_target

            check_target(self.model, self.recipe.target)
        return preflight(self.model, self.plan, self.recipe, self.budget, self.folder)

    @cached_property
    def run(self) -> RunDirectory:
        """The run directory, created or resumed."""
        return RunDirectory.open(self.folder, self._identity(), self.restart)

    @cached_property
    def texts(self) -> Texts:
        """The token windows of every purpose."""
        self.progress.start("preparing texts", 1)
        texts = prepare_texts(self.model, self.recipe, self.run.work)
        self.progress.advance()
        return texts

    @cached_property
    def database(self) -> LevelDatabase:
        """The level database, possibly still incomplete; :attr:`menu` completes it."""
        return LevelDatabase(self.run.levels)

    @cached_property
    def shared_inputs(self) -> dict[str, int]:
        """Completes the level database and says which layers read the same input."""
        return build_levels(self.model, self.plan, self.recipe, self.texts, self.database, self.progress, make_pool(self.on))

    @cached_property
    def menu(self) -> Menu:
        """Every level of every layer with its real cost."""
        _ = self.shared_inputs
        return Menu.of(self.model, self.plan, self.database)

    def problem(self, budget: int | None = None) -> Problem:
        """The allocation problem under ``budget`` bytes of the whole file; without one, everything fits."""
        fused = fused_groups(self.menu.layers, self.shared_inputs, self.recipe.fusion, find_blocks(self.model).name)
        limit = budget if budget is not None else self.menu.fixed + sum(max(costs) for costs in self.menu.costs)
        return self.menu.problem(limit, fused)

    @cached_property
    def judge(self) -> KLFitness:
        """The fitness in this process: divergence from the original on the search tokens.

        Raises:
            InvalidArgument: If the recipe sets no search tokens aside.
        """
        if self.texts.search is None:
            raise InvalidArgument("this recipe sets no search tokens aside; give it a budget and a search that measures models")
        self.progress.start("recording the original", 1)
        judge = KLFitness(self.model, self.database, self.menu.layers, self.texts.search, self.run.work / "teacher.npy", fast_dtype())
        self.progress.advance()
        return judge

    @cached_property
    def fitness(self) -> Fitness:
        """:attr:`judge`, or the same spread over workers."""
        return make_fitness(self.on, self.judge, self.model)

    def search(self, budget: int | None = None, search: Search | None = None, state: Path | None = None) -> Allocation:
        """Choose a level for every layer under ``budget``, by default as the recipe says.

        Args:
            budget: Bytes of the whole tensor file; those of the recipe if not given.
            search: Another search than the recipe's.
            state: Where the search keeps its state; by default in the run directory.
        """
        chosen = search or self.recipe.search
        problem = self.problem(self.budget if budget is None else budget)
        measured = self.texts.search is not None and any(len(unit.costs) > 1 for unit in problem.units)
        fitness = self.fitness if measured and chosen.measures else None
        kept = state or self.run.search_state
        self.resumed = kept.is_file()
        return fill_up(problem, allocate(problem, chosen, fitness, kept, self.progress))

    @property
    def counters(self) -> dict[str, int]:
        """Candidates and tokens judged so far, blocks run and blocks that prefix reuse saved; empty without a measured search."""
        judge = self.__dict__.get("judge")
        if judge is None:
            return {}
        return {name: getattr(judge, name) for name in ("evaluations", "tokens_judged", "blocks_run", "blocks_skipped")}

    def uniform(self, budget: int) -> Choices:
        """The same level everywhere: the largest that fits ``budget``."""
        return ALLOCATORS["uniform"](self.problem(budget)).choices

    def assemble(self, choices: Choices) -> Model:
        """A copy of the model in which every layer holds its chosen level."""
        return assemble(self.model, self.menu, self.database, choices)

    def tuned(self, small: Model) -> Tuned | None:
        """``small`` trained towards the original as the recipe says; ``None`` if it says nothing of it, or nothing of it can be trained."""
        plan, windows, held_out = self.recipe.finetuning, self.texts.calibration, self.texts.held_out
        if not plan.steps or windows is None or held_out is None or not any(map(is_tunable, small.weights().values())):
            return None
        config = PVConfig(mode=plan.mode, steps=plan.steps, batch=plan.batch, seed=plan.seed)
        return tune_windows(small, self.model, windows, held_out, config, plan.pilot, self.run.tuning_state, self.progress)

    def _identity(self) -> dict[str, Any]:
        from tersor import __version__, data

        names = {"calibration": self.recipe.calibration.text, "evaluation": self.recipe.evaluation.text}
        texts = {key: hashlib.sha256(data.text(name).encode()).hexdigest() for key, name in names.items() if name != "auto"}
        recipe = self.recipe.model_dump(mode="json", exclude={"model"})
        return {"version": __version__, "model": self.model.fingerprint(), "recipe": recipe, "texts": texts}


def run_job(
    model: Model, recipe: Recipe, folder: Path, *, keep: bool, on: str | None, restart: bool, progress: Progress,
    confirm: Callable[[str], None] | None,
) -> Model:
    """Carry out ``recipe`` on ``model`` in ``folder`` and report; see :func:`tersor.compress`."""
    from tersor.files import write_json
    from tersor.pipeline.progress import Timed
    from tersor.pipeline.reporting import make_report

    clock = Timed(progress)
    job = Job(model, recipe, folder, on, restart, clock)
    sentence = job.preflight.sentence()
    clock.message(sentence)
    if confirm is not None:
        confirm(sentence)
    found = job.search(job.budget)
    assembled = job.assemble(found.choices)
    tuned = job.tuned(assembled)
    small = assembled if tuned is None else tuned.model
    small.report = make_report(job, found, assembled, clock, tuned)
    if keep:
        small.save(job.run.output)
        write_json(job.run.report, small.report.to_dict())
        job.run.clean()
        forget(job.run.tuning_state)
    return small
