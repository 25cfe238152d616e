"""EvoPress: an evolutionary search over whole-model divergence finds better mixtures than uniform levels or sums of layer errors."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor.papers.depth import SETTING as DEPTH
from tersor.papers.depth import depth_rows, is_exhausted
from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="evopress",
    claim="At equal bytes the evolved assignment has a lower held-out divergence from the original than the uniform one: at about 3 bits, "
    "at 50 % sparsity, and at 25 % depth (there against the cosine score, leave-one-out and the best of 64 random sets).",
    where="tersor.allocation.evopress, tersor compress --search evopress",
)

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """One of the three searches of the experiment."""

    name: str
    levels: list[dict[str, Any]]
    uniform: int  # index of the uniform level that sets the budget


SETTINGS = (
    Setting("about 3 bits of {2,3,4,5}", [{"method": "gptq", "bits": [2, 3, 4, 5], "act_order": True}], 1),
    Setting("50 % sparsity", [{"method": "sparsegpt", "sparsity": [0.3, 0.4, 0.5, 0.6, 0.7]}], 2),
)


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends."""

    model: str
    calibration: int
    search: int
    stages: tuple[tuple[int, int], ...]
    generations: int
    offspring: int
    evaluation: int
    context: int
    text: str
    held_out: str


FULL = Size("smollm2-135m", 20480, 8192, ((3, 256), (1, 1024)), 15, 8, 8192, 256, "wikitext2.valid", "wikitext2.test")
QUICK = Size("stories260k", 8192, 4096, ((4, 512), (1, 2048)), 40, 12, 4096, 256, "tinystories", "tinystories.tail")


def run(quick: bool) -> Result:
    """Measure uniform, knapsack and evolved assignments at equal bytes, three seeds, and depth pruning with its baselines."""
    from tersor.models import load

    size = QUICK if quick else FULL
    model = load(size.model)
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        for number, setting in enumerate(SETTINGS):
            rows.extend(measured(_searched(model, setting, size, folder / str(number))))
        rows.extend(measured(depth_rows(model, size, folder / "depth", SEEDS)))
    names = list(dict.fromkeys(row["setting"] for row in rows))
    notes = [note for name in names for note in _non_monotone(rows, name)]
    if is_exhausted(rows):
        names.remove(DEPTH)
        notes.append(f"{DEPTH}: not judged, as the random sets are all the sets that so few blocks have")
    margins = [_margin(rows, name) for name in names]
    return Result(
        rows, "uniform levels (depth: the best of cosine score, leave-one-out and best-of-64)", min(margins), SEEDS, min(margins) > 0,
        (size.model, size.text, size.held_out), notes,
    )


def _searched(model: Any, setting: Setting, size: Size, folder: Path) -> Iterator[Row]:
    from tersor.papers.workbench import divergence_on, workbench
    from tersor.pipeline.recipe import Search

    job, evaluation = workbench(model, setting.levels, size, folder)
    uniform = tuple(setting.uniform for _ in job.menu.layers)
    problem = job.problem()
    budget = problem.cost(uniform) + job.menu.fixed
    knapsack = job.search(budget, Search(method="knapsack"))

    def row(method: str, choices: tuple[int, ...], seed: int | None = None, evaluations: int = 0) -> Row:
        judged = divergence_on(model, job.assemble(choices), evaluation)
        return {
            "setting": setting.name, "method": method, "seed": seed, "bytes": problem.cost(choices) + job.menu.fixed,
            "layer_error": problem.error(choices), "kl": judged.kl, "perplexity": judged.perplexity, "evaluations": evaluations,
        }

    yield row("uniform", uniform)
    yield row("knapsack", knapsack.choices)
    for seed in SEEDS:
        search = Search(generations=size.generations, offspring=size.offspring, stages=size.stages, tokens=size.search, seed=seed)
        found = job.search(budget, search, folder / f"search-{seed}.json")
        yield row("evopress", found.choices, seed, found.evaluations)


def _margin(rows: list[Row], setting: str) -> float:
    """Relative reduction of divergence against the best baseline that the claim names, each method at its mean over seeds."""
    own = [row for row in rows if row["setting"] == setting]
    means = {name: statistics.mean(row["kl"] for row in own if row["method"] == name) for name in {row["method"] for row in own}}
    return 1 - means.pop("evopress") / min(value for name, value in means.items() if name != "knapsack")


def _non_monotone(rows: list[Row], setting: str) -> list[str]:
    own = [row for row in rows if row["setting"] == setting and row.get("layer_error") is not None]
    pairs = [(a, b) for a in own for b in own if a["layer_error"] < b["layer_error"] and a["perplexity"] > b["perplexity"]]
    if not pairs:
        return [f"{setting}: no pair with a lower sum of layer errors and a higher perplexity was met"]
    a, b = max(pairs, key=lambda pair: pair[0]["perplexity"] - pair[1]["perplexity"])
    return [
        f"{setting}: not monotone: {a['method']} has the lower sum of layer errors ({a['layer_error']:.3f} against {b['layer_error']:.3f}) "
        f"and the higher perplexity ({a['perplexity']:.2f} against {b['perplexity']:.2f} of {b['method']})"
    ]
