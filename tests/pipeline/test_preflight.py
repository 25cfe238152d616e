"""What a job says before it starts, against what it then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tersor.errors import TersorError
from tersor.layerwise.stats import LayerStats
from tersor.models import Model
from tersor.pipeline import footprint, preflight, probing
from tersor.pipeline.job import Job, single_method
from tersor.pipeline.recipe import parse_recipe


def build(blocks: int = 2, width: int = 64, inner: int = 128) -> Model:
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(transformers.LlamaForCausalLM(config))


def gptq(model: Model, folder: Path, **calibration: Any) -> Job:
    options = {"bits": 4, "group_size": 64, "calibration": {"tokens": 256, "held_out": 64, "context": 32, "correction": 0, **calibration}}
    return Job(model, single_method("gptq", {**options, "evaluation": {"tokens": 0}}), folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every timed call takes a second, so that predictions can be counted; the names of the calls."""
    calls: list[str] = []

    def one(call: Any) -> np.ndarray:
        call()
        calls.append(call.__qualname__)
        return np.ones(2)

    monkeypatch.setattr(probing, "_seconds", one)
    return calls


def test_the_distinct_inputs_of_a_block_are_found(tmp_path: Path):
    job = gptq(build(), tmp_path)
    parts = probing.probe(job.model, job.plan, job.recipe)
    assert sorted(parts.inputs) == [64, 64, 64, 128]  # q/k/v, o, gate/up, down
    assert min(parts.walk, parts.plain, parts.original, parts.head, parts.step, parts.fitting) > 0


def test_a_job_without_inputs_walks_nothing(tmp_path: Path):
    job = Job(build(), single_method("rtn", {"bits": 4, "group_size": 64, "evaluation": {"tokens": 0}}), tmp_path)
    parts = probing.probe(job.model, job.plan, job.recipe)
    assert (parts.walk, parts.inputs) == (0.0, ())


def test_each_method_is_timed_once_a_width(clock: list[str], tmp_path: Path):
    job = gptq(build(blocks=5), tmp_path)
    clock.clear()
    fitting = probing._Fitting(job.model, job.plan, {}, True)
    seconds, _ = fitting.total()
    assert len(clock) == 2 * 2  # cold and warm, of 64 and of 128 inputs
    # The first layer of each width stands for all: 64 rows of q_proj, 64 of down_proj.
    assert seconds == pytest.approx(5 * ((64 + 32 + 32 + 64 + 128 + 128) / 64 + 64 / 64))


@pytest.mark.parametrize("tokens", [256, 512])
def test_seconds_grow_with_tokens_and_blocks(clock: list[str], tokens: int, tmp_path: Path):
    def walked(blocks: int, tokens: int, correction: float = 0.0) -> float:
        job = gptq(build(blocks), tmp_path, tokens=tokens, held_out=0, text="some file", correction=correction)
        parts = probing.Probe(walk=1.0, plain=0.0, original=0.0, head=0.0, step=0.0, inputs=(), fitting=0.0)
        return probing.predicted_seconds(job.model, job.recipe, parts, len(job.plan.choices))

    assert walked(2, tokens) == 2 * tokens
    assert walked(2, tokens, correction=0.25) == 4 * tokens  # the original runs beside it
    assert walked(4, tokens) == 2 * walked(2, tokens)


def test_a_search_counts_candidates_prefixes_and_sensitivities():
    levels = {"levels": [{"method": "rtn", "bits": [3, 4]}], "budget": "3.6bpw", "evaluation": {"tokens": 0}}
    search = {"tokens": 1024, "generations": 10, "offspring": 6, "stages": [[2, 128], [1, 256]], "initial": "fittest"}
    recipe = parse_recipe({**levels, "search": search, "calibration": {"text": "some file"}})
    parts = probing.Probe(walk=0.0, plain=0.0, original=0.0, head=1.0, step=0.0, inputs=(), fitting=0.0)
    searched = 10 * ((6 / 2 + 1) * 128 + (2 / 2 + 1) * 256)
    # The original, every layer alone, two starts and the end: on all tokens, of which there are few.
    expected = 1024 + (14 / 2 + 1) * 1024 + 2 * 1024 + searched + 1024
    assert probing.predicted_seconds(build(), recipe, parts, units=14) == expected


def test_sampling_counts_steps_of_a_batch_and_logits_of_every_sequence(tmp_path: Path):
    parts = probing.Probe(walk=0.0, plain=0.0, original=0.0, head=1.0, step=1000.0, inputs=(), fitting=0.0)
    few, many = (gptq(build(), tmp_path, tokens=tokens, held_out=0) for tokens in (256, 32 * 300))
    assert probing.predicted_seconds(few.model, few.recipe, parts, 14) == 32 * (2 * 1000 + 8)
    assert probing.predicted_seconds(many.model, many.recipe, parts, 14) == 32 * (3 * 2 * 1000 + 300)


def test_on_a_busy_machine_processor_time_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def waiting(call: Any) -> np.ndarray:
        call()
        return np.array([90.0, 3.0]) if call.__name__ == "everything" else np.array([7.0, 0.1])

    monkeypatch.setattr(probing, "_seconds", waiting)
    job = gptq(build(), tmp_path)
    parts = probing.probe(job.model, job.plan, job.recipe)
    assert parts.step == pytest.approx(2 * 0.1 * 30)  # the block and the copy of its keys
    monkeypatch.setattr(probing, "_BUSY", 100)
    assert probing.probe(job.model, job.plan, job.recipe).step == pytest.approx(2 * 7)


def test_wide_layers_are_timed_in_part(monkeypatch: pytest.MonkeyPatch, clock: list[str], tmp_path: Path):
    monkeypatch.setattr(probing, "WIDEST", 64)
    job = gptq(build(blocks=1), tmp_path)
    name = "model.layers.0.mlp.down_proj"
    seen: list[LayerStats] = []
    original = probing.fit_levels

    def noted(name: str, matrix: torch.Tensor, stats: LayerStats, *rest: Any) -> Any:
        seen.append(stats)
        return original(name, matrix, stats, *rest)

    monkeypatch.setattr(probing, "fit_levels", noted)
    shared, row = probing._Fitting(job.model, job.plan, {}, False)._call(name, job.plan.choices[name][0])
    assert {stats.in_features for stats in seen} == {64}
    assert (shared[0], row[0]) == (0.0, pytest.approx(2**2 / 64))


def test_memory_counts_what_the_stages_hold(tmp_path: Path):
    def extra(blocks: int, tokens: int) -> int:
        job = gptq(build(blocks), tmp_path, tokens=tokens, text="some file")
        levels = dict.fromkeys(job.plan.choices, 1000)
        return footprint._fitting(job.model, job.plan, job.recipe, (64, 64, 64, 128), levels)

    assert extra(2, 256) == extra(8, 256)  # one block, whatever their number
    assert extra(2, 1280) - extra(2, 256) == 1024 * 64 * footprint.fast_dtype().itemsize  # hidden states


def test_too_little_memory_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(preflight, "predicted_memory", lambda *_: 1 << 60)
    with pytest.raises(TersorError, match="GB of memory but"):
        _ = gptq(build(), tmp_path / "out").preflight
    assert not (tmp_path / "out").exists()


def test_the_probe_changes_nothing(tmp_path: Path):
    model = build()
    before = model.fingerprint()
    _ = gptq(model, tmp_path / "out").preflight
    assert model.fingerprint() == before
    assert not (tmp_path / "out").exists()


def test_a_search_that_lacks_its_solver_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tersor.allocation.sparse.find_spec", lambda name: None)
    recipe = parse_recipe({"levels": {"method": "rtn", "bits": [3, 4], "group_size": 64}, "budget": 0.5, "search": {"method": "sparse"}})
    job = Job(build(), recipe, tmp_path)
    with pytest.raises(TersorError, match=r"needs scipy, which is not installed; it comes with pip install 'tersor\[limits\]'"):
        _ = job.preflight
