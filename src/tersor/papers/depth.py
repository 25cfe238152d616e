"""Depth pruning of the EvoPress experiment: which quarter of the attention and feed-forward sub-blocks to drop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.allocation.problem import Choices
from tersor.papers.frame import Row
from tersor.pipeline.job import Job

SETTING = "25 % depth"
RANDOM = 64


def depth_rows(model: Any, size: Any, folder: Path, seeds: tuple[int, ...]) -> Iterator[Row]:
    """Rows of the cosine score, leave-one-out, the best of 64 random sets and the evolved set, all dropping a quarter of the blocks.

    Whole blocks are units, so that all sets of a size have the same bytes and the published scores apply.
    """
    from tersor.allocation import evopress
    from tersor.papers.workbench import divergence_on, workbench

    job, evaluation = workbench(
        model, [{"method": "keep", "dtype": "float16"}, {"method": "drop"}], size, folder, fused="block", propagate="dense",
    )  # fmt: skip
    blocks = sorted({_block(name) for name in job.menu.layers})
    drop = max(1, round(len(blocks) / 4))
    units = [_block(name) for name in job.menu.layers]

    def choices(dropped: set[int]) -> Choices:
        return tuple(int(block in dropped) for block in units)

    # Names of later blocks are longer, so their headers are: the budget is that of the dearest set of this size.
    tables = [unit.costs for unit in job.problem().merged()[0].units]
    kept = sorted((max(costs) for costs in tables), reverse=True)[: len(blocks) - drop]
    problem = job.problem(job.menu.fixed + sum(kept) + drop * max(min(costs) for costs in tables))
    judge = job.fitness

    def row(method: str, chosen: Choices, seed: int | None = None, evaluations: int = 0) -> Row:
        measured = divergence_on(model, job.assemble(chosen), evaluation)
        return {
            "setting": SETTING, "method": method, "seed": seed, "bytes": problem.cost(chosen) + job.menu.fixed,
            "kl": measured.kl, "perplexity": measured.perplexity, "evaluations": evaluations, "sets": math.comb(len(blocks), drop),
        }

    yield row("cosine score", choices(_lowest(_cosine_scores(job), drop)))
    full = choices(set())
    tokens = size.stages[-1][1]
    alone = judge([choices({block}) for block in blocks], parent=full, tokens=tokens, seed=0)
    yield row("leave-one-out", choices(_lowest(torch.tensor(alone), drop)), evaluations=len(blocks))
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sets = [choices(set(torch.randperm(len(blocks), generator=generator)[:drop].tolist())) for _ in range(RANDOM)]
        values = judge(sets, parent=full, tokens=tokens, seed=seed)
        best = min(range(RANDOM), key=lambda index: values[index])
        yield row("best of 64 random", sets[best], seed, RANDOM)
        found = evopress(
            problem, judge, generations=min(size.generations, round(drop * (len(blocks) - drop) / 1.5)), offspring=size.offspring,
            stages=size.stages, seed=seed, groups="size", initial=sets[best],
        )  # fmt: skip
        yield row("evopress", found.choices, seed, found.evaluations + RANDOM)


def is_exhausted(rows: Sequence[Row]) -> bool:
    """Whether the random sets of ``rows`` are all the sets there are, so that no search can do better."""
    return any(row["setting"] == SETTING and row["evaluations"] > row["sets"] for row in rows if row["method"] == "best of 64 random")


def _block(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def _lowest(scores: Tensor, count: int) -> set[int]:
    return set(scores.argsort()[:count].tolist())


@torch.inference_mode()
def _cosine_scores(job: Job) -> Tensor:
    """One minus the mean cosine between what goes into a block and what comes out, for every block (ShortGPT, Men et al., 2024)."""
    from tersor.models.blocks import find_blocks

    tokens = job.texts.search
    assert tokens is not None
    scores: list[Tensor] = []

    def compare(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        scores.append(1 - torch.cosine_similarity(before, after, dim=-1).mean())

    handles = [block.register_forward_hook(compare, with_kwargs=True) for block in find_blocks(job.model)]
    try:
        job.model.module(tokens[:4], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(scores)
