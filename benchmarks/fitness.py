"""How many candidate models a minute a search judges: with and without prefix reuse, and in the plain loop that it replaces.

Every variant runs the same seeded evolutionary search over the same level database. The plain loop is what a search without
machinery does: put the candidate's weights into the model, run transformers' whole forward in float32, compare with the
recorded logits of the original.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common


@dataclass(frozen=True)
class Setting:
    """Size of the experiment."""

    model: str
    text: str
    tokens: int
    context: int
    generations: int
    offspring: int
    stages: tuple[tuple[int, int], ...]
    group_size: int


# Stages as in the recipe's default; one sequence a stage keeps a forward pass whole.
FULL = Setting("smollm2-135m", "wikitext2.valid", 8192, 512, 2, 8, ((2, 512), (1, 2048)), 64)
QUICK = Setting("stories260k", "tinystories", 2048, 256, 3, 8, ((3, 256), (1, 512)), 4)


class PlainLoop:
    """The search's measure without its machinery: load weights, full float32 forward, divergence from recorded logits."""

    def __init__(self, judge: Any, job: Any) -> None:
        import torch

        self._judge, self._job = judge, job
        self._model = job.model.copy()
        with torch.inference_mode():
            self._logits = torch.stack([self._forward(sequence[None])[0].half() for sequence in judge.tokens])
        self.evaluations = self.blocks_run = self.blocks_skipped = 0

    def _forward(self, tokens: Any) -> Any:
        return self._model.module(input_ids=tokens, use_cache=False).logits

    def __call__(self, candidates: Sequence[Sequence[int]], *, parent: Sequence[int], tokens: int, seed: int) -> list[float]:
        """Mean divergence of every candidate on the minibatch that the search's own measure draws."""
        import torch

        from tersor.weights.modules import set_matrix

        layers = self._model.linears() | self._model.embeddings()
        values = []
        with torch.inference_mode():
            for candidate in candidates:
                for name, level in zip(self._job.menu.layers, candidate, strict=True):
                    set_matrix(layers[name], self._job.database.weight(name, level).dense())
                total = 0.0
                for rows, length in self._judge.minibatch(tokens, seed):
                    p = self._logits[rows, :length].float().log_softmax(-1)
                    q = self._forward(self._judge.tokens[rows, :length]).float().log_softmax(-1)
                    total += float((p.exp() * (p - q)).sum())
                values.append(total / tokens)
                self.evaluations += 1
                self.blocks_run += self._blocks * len(self._judge.minibatch(tokens, seed))
        return values

    @property
    def _blocks(self) -> int:
        from tersor.models.structure import find_blocks

        return len(find_blocks(self._model.module))


def make_job(setting: Setting, folder: Path) -> Any:
    """A job whose level database is rounded at four widths: what the levels are does not matter for speed."""
    from tersor.models import load
    from tersor.pipeline.job import Job
    from tersor.pipeline.recipe import parse_recipe

    recipe = {
        "levels": [{"method": "rtn", "bits": [2, 3, 4, 6], "group_size": setting.group_size}],
        "budget": "1GB",
        "search": {"tokens": setting.tokens, "stages": setting.stages, "generations": setting.generations, "offspring": setting.offspring},
        "calibration": {"text": setting.text, "context": setting.context, "held_out": 0, "correction": 0},
        "evaluation": {"tokens": 0},
    }
    return Job(load(setting.model), parse_recipe(recipe), folder)


def variants(job: Any, folder: Path) -> dict[str, Any]:
    """Every measure by name; all share the original's recorded predictions where they use them."""
    import torch

    from tersor.pipeline.dtypes import fast_dtype
    from tersor.pipeline.fitness import KLFitness

    def judge(dtype: torch.dtype, reuse: bool) -> KLFitness:
        teacher = folder / f"teacher-{dtype}.npy".replace("torch.", "")
        known = recorded.get(dtype, teacher)
        made = KLFitness(job.model, job.database, job.menu.layers, job.texts.search, known, dtype, reuse)
        recorded[dtype] = made.teacher
        return made

    recorded: dict[torch.dtype, Any] = {}
    fast = fast_dtype()
    found: dict[str, Any] = {}
    for dtype in dict.fromkeys((fast, torch.float32)):
        name = str(dtype).removeprefix("torch.")
        found[f"tersor, {name}, prefix reuse"] = judge(dtype, True)
        found[f"tersor, {name}, no reuse"] = judge(dtype, False)
    found["plain loop, float32"] = PlainLoop(found["tersor, float32, no reuse"], job)
    return found


def search(job: Any, fitness: Any, setting: Setting) -> dict[str, float]:
    """One seeded search from the uniform assignment; what it took and what was judged."""
    from tersor.allocation import evopress

    uniform = tuple(1 for _ in job.menu.layers)
    budget = job.problem().cost(uniform) + job.menu.fixed
    problem = job.problem(budget)
    before = (fitness.evaluations, fitness.blocks_run, fitness.blocks_skipped)
    began = time.perf_counter()
    found = evopress(
        problem,
        fitness,
        generations=setting.generations,
        offspring=setting.offspring,
        stages=setting.stages,
        seed=0,
        groups="none",
        initial=uniform,
    )
    seconds = time.perf_counter() - began
    after = (fitness.evaluations, fitness.blocks_run, fitness.blocks_skipped)
    evaluations, run, skipped = (b - a for a, b in zip(before, after, strict=True))
    return {
        "seconds": seconds,
        "evaluations": evaluations,
        "blocks_run": run,
        "blocks_skipped": skipped,
        "fitness": float(found.fitness or 0.0),
    }


def measure(session: common.Session, setting: Setting, folder: Path) -> None:
    """Fill ``session`` with one row a variant."""
    session.say("building the level database")
    job = make_job(setting, folder / "job")
    found = variants(job, folder)
    calls = {name: (lambda measure=measure: search(job, measure, setting)) for name, measure in found.items()}
    for name, call in calls.items():
        session.say(f"warming {name}")
        call()  # decompressed levels are cached from the second search on, as in the long run of a real search
    results = common.interleaved(session.repeats, calls)
    plain = _rate(results["plain loop, float32"])
    for name, runs in results.items():
        last = runs[-1]
        session.rows.append(
            {
                "measure": name, "evaluations": last["evaluations"], "seconds": common.median(run["seconds"] for run in runs),
                "evaluations_per_minute": _rate(runs), "times_plain_loop": _rate(runs) / plain, "blocks_run": last["blocks_run"],
                "blocks_skipped": last["blocks_skipped"], "last_fitness": last["fitness"],
            }
        )  # fmt: skip
    _conclude(session, setting)


def _rate(runs: Sequence[dict[str, float]]) -> float:
    return 60 * common.median(run["evaluations"] / run["seconds"] for run in runs)


def _conclude(session: common.Session, setting: Setting) -> None:
    by_name = {row["measure"]: row for row in session.rows}
    reused = next(name for name in by_name if name.endswith("prefix reuse"))
    without = reused.replace("prefix reuse", "no reuse")
    gain = by_name[reused]["evaluations_per_minute"] / by_name[without]["evaluations_per_minute"]
    session.claims.append(common.Claim("prefix reuse against none, same type, evaluations a minute", gain, 1.0, at_least=True))
    session.claims.append(common.Claim("against the plain float32 loop", by_name[reused]["times_plain_loop"], 1.0, at_least=True))
    exact = abs(by_name[reused]["last_fitness"] - by_name[without]["last_fitness"])
    session.claims.append(common.Claim("prefix reuse changes the search's final fitness by, in nats", exact, 1e-3))
    session.notes.append(
        "one evaluation is one candidate on one minibatch; early stages use short ones, so rates compare only within this table"
    )
    session.notes.append(f"stages (survivors, tokens): {setting.stages}, {setting.generations} generations of {setting.offspring}")
    session.data += [setting.model, setting.text]


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=common.cores()).parse_args()
    import torch

    torch.set_num_threads(flags.threads)
    session = common.Session("fitness", flags)
    with TemporaryDirectory() as folder:
        measure(session, QUICK if flags.quick else FULL, Path(folder))
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
