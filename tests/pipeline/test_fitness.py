"""What the search measures is what the assembled model does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tersor.evaluation.divergence import token_scores
from tersor.layerwise import METHODS, LayerStats, lord
from tersor.models import BlockWalk, Model
from tersor.pipeline.fitness import KLFitness
from tersor.pipeline.job import Job
from tersor.pipeline.recipe import parse_recipe
from tersor.weights import BiasedWeight

# What methods need on layers of a few dozen inputs to be worth their bytes.
OPTIONS: dict[str, dict[str, Any]] = {
    "additive_codebooks": {"group_size": 4, "bits": 4, "rounds": 1}, "bitstack": {"blocks": 3}, "cospadi": {"iterations": 2},
    "eora": {"bits": 3, "rank": 4}, "lord": {"center": True}, "magnitude": {"sparsity": 0.5}, "sparsegpt": {"sparsity": 0.5},
    "wanda": {"sparsity": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def scene(stories: Model, data_dir, tmp_path_factory) -> SimpleNamespace:
    """The last two blocks and the tied table by every method, and the judge of a search among them."""
    levels = [{"method": name, **OPTIONS.get(name, {})} for name in sorted(METHODS)]
    recipe = parse_recipe(
        {
            "levels": levels, "embeddings": [{"method": "keep"}, {"method": "lord", "center": True}], "budget": "1MB",
            "skip": ["layers.0.", "layers.1.", "layers.2."], "search": {"tokens": 256, "stages": [[1, 256]]},
            "calibration": {"text": "tinystories", "tokens": 3072, "held_out": 256, "context": 128}, "evaluation": {"tokens": 0},
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("fitness")
    job = Job(stories, recipe, folder / "out")
    judge = KLFitness(stories, job.database, job.menu.layers, job.texts.search, folder / "teacher.npy", torch.float32)
    return SimpleNamespace(job=job, judge=judge, tokens=job.texts.search)


def exact(scene: SimpleNamespace, choices: tuple[int, ...]) -> float:
    """Divergence of the assembled model, compressed weights and all."""
    small = scene.job.assemble(choices)
    with torch.inference_mode():
        ours, theirs = (model.module(scene.tokens).logits.flatten(0, 1) for model in (small, scene.job.model))
    kl = token_scores(ours, scene.tokens.flatten(), theirs).kl
    assert kl is not None
    return float(kl.double().mean())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_search_judges_the_model_that_is_assembled(method, scene):
    menus = scene.job.menu.levels
    start, other = (tuple(_index(menu, name) for menu in menus) for name in ("keep", method))
    # Back and forth, so that what one candidate leaves behind would show in the next.
    judged = scene.judge([other, start, other], parent=start, tokens=scene.tokens.numel(), seed=0)
    assert judged[0] == judged[2] == pytest.approx(exact(scene, other), rel=1e-5, abs=1e-5)
    assert judged[1] == pytest.approx(0, abs=1e-5)


def test_tokens_in_pieces_are_judged_as_all_at_once(scene, monkeypatch):
    menus = scene.job.menu.levels
    start, other = (tuple(_index(menu, name) for menu in menus) for name in ("keep", "rtn"))
    judged = []
    for at_once in (1, 200, 1 << 20):
        monkeypatch.setattr("tersor.pipeline.fitness.AT_ONCE", at_once)
        judged += scene.judge([other], parent=start, tokens=scene.tokens.numel(), seed=0)
    assert judged == pytest.approx([judged[0]] * 3, rel=1e-5)


def test_a_centred_level_brings_its_bias_also_where_it_is_the_tied_head(scene):
    menus = scene.job.menu.levels
    choices = tuple(_index(menu, "lord") for menu in menus)
    assert all(isinstance(weight, BiasedWeight) for weight in scene.job.assemble(choices).weights().values())
    assert len(menus[-1]) == 2
    table = (*(_index(menu, "keep") for menu in menus[:-1]), 1)
    judged = scene.judge([choices, table], parent=choices, tokens=scene.tokens.numel(), seed=0)
    assert judged == pytest.approx([exact(scene, choices), exact(scene, table)], rel=1e-5, abs=1e-5)


def test_the_next_block_is_fitted_to_what_the_bias_did(stories, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("tersor.pipeline.calibrate.fast_dtype", lambda: torch.float32)
    recipe = parse_recipe(
        {
            "levels": [{"method": "lord", "rank": 8, "center": True}], "skip": ["layers.2.", "layers.3.", "layers.4."],
            "calibration": {"text": "tinystories", "tokens": 1024, "held_out": 0, "context": 128, "correction": 0},
            "evaluation": {"tokens": 0},
        }
    )  # fmt: skip
    job = Job(stories, recipe, tmp_path / "out")
    assert job.menu.layers
    name = "model.layers.1.self_attn.q_proj"
    found = job.database.weight(name, 0).offset
    expected, without = (
        lord(stories.matrix(name), stats_behind(job, name, whole), rank=8, center=True).offset for whole in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)  # stored in float16
    assert float((found - without).abs().max()) > 1e-2


def stats_behind(job: Job, name: str, whole: bool) -> LayerStats:
    """Statistics of a layer of the second block, behind a first block that is compressed, with its biases or without."""
    work = job.model.copy()
    for step in BlockWalk(work, job.texts.calibration):
        if name in step.stats:
            return step.stats[name]
        for other in step.layers:
            weight = job.database.weight(other, 0)
            assert isinstance(weight, BiasedWeight)
            work.replace(other, weight if whole else weight.body)
    raise AssertionError(name)


def _index(menu: tuple[Any, ...], method: str) -> int:
    """The level of a method; ``keep`` where a layer has none of it."""
    names = [level.method for level in menu]
    return names.index(method if method in names else "keep")
