from __future__ import annotations

import json

import pytest
import torch

import tersor
from tersor.allocation import fill
from tersor.allocation.problem import make_allocation
from tersor.errors import InvalidArgument
from tersor.models import load
from tersor.pipeline.job import Job
from tersor.pipeline.progress import Silent, Timed
from tersor.pipeline.reporting import make_report


def test_the_written_file_is_within_one_per_cent_below_the_budget(stories, recipe, tmp_path):
    small = tersor.compress(stories, recipe, output=tmp_path / "out")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0.99 * 140_000 <= size <= 140_000
    assert small.report.rows[-1].nbytes == size


def test_saved_and_loaded_it_is_the_same_model(stories, recipe, tmp_path):
    small = tersor.compress(stories, recipe, output=tmp_path / "out")
    again = load(tmp_path / "out")
    tokens = torch.arange(32)[None] % stories.vocabulary
    assert again.fingerprint() == small.fingerprint()
    assert torch.equal(again.module(tokens).logits, small.module(tokens).logits)


def test_the_original_is_not_changed(stories, recipe):
    before = stories.fingerprint()
    tersor.compress(stories, recipe)
    assert stories.fingerprint() == before


def test_the_same_seed_gives_the_same_file(stories, recipe, tmp_path):
    for name in ("a", "b"):
        tersor.compress(stories, recipe, output=tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_one_method_everywhere_leaves_the_embeddings_alone(stories):
    small = tersor.compress(stories, "rtn", bits=3, group_size=-1, evaluation={"tokens": 0}, calibration={"tokens": 64})
    assert set(small.weights()) == set(stories.linears())
    assert all(weight.bits == 3 for weight in small.weights().values())


def test_the_report_names_every_layer_and_every_text(stories, recipe):
    report = tersor.compress(stories, recipe).report
    assert {row.name for row in report.layers} == {*stories.linears(), *stories.embeddings()}
    assert {"calibration", "held_out", "search", "evaluation"} <= set(report.texts)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("method", "options", "saved"), [("keep", {}, False), ("rtn", {"bits": 4}, True)], ids=["keep", "rtn"])
def test_a_result_that_saves_nothing_is_warned_of(stories, method, options, saved):
    report = tersor.compress(stories, method, **options).report
    assert any(warning.startswith("nothing was saved") for warning in report.warnings) == (not saved)
    assert (report.rows[-1].nbytes < report.rows[0].nbytes) == saved


def test_a_resumed_search_says_what_its_counters_leave_out(stories, recipe, tmp_path):
    def report_of(job):
        found = job.search(job.budget)
        return make_report(job, found, job.assemble(found.choices), Timed(Silent()))

    first, second = (report_of(Job(stories, recipe, tmp_path / "out")) for _ in range(2))
    assert [any("earlier process" in warning for warning in report.warnings) for report in (first, second)] == [False, True]
    assert second.counters["evaluations"] < first.counters["evaluations"]


def test_a_search_never_ends_behind_what_it_started_from(stories, recipe, tmp_path, monkeypatch):
    def astray(problem, fitness, **_):
        cheapest = [min(range(len(unit.costs)), key=unit.costs.__getitem__) for unit in problem.units]
        return make_allocation(problem, cheapest, "evopress")

    monkeypatch.setattr("tersor.pipeline.allocate.evopress", astray)
    job = Job(stories, recipe, tmp_path / "out")
    found, problem = job.search(job.budget), job.problem(job.budget)
    uniform = fill(problem, job.uniform(job.budget))
    assert problem.cost(found.choices) == found.cost <= problem.budget
    values = job.judge([found.choices, uniform], parent=uniform, tokens=job.judge.available_tokens, seed=0)
    assert values[0] <= values[1]


def test_prefix_reuse_changes_no_value(stories, recipe, tmp_path):
    from tersor.pipeline.fitness import KLFitness

    job = Job(stories, recipe, tmp_path / "out")
    menu = job.menu
    plain = KLFitness(stories, job.database, menu.layers, job.texts.search, tmp_path / "teacher.npy", job.judge.dtype, reuse=False)
    parent = tuple(1 for _ in menu.layers)
    candidates = [tuple(min(2, c + (i == unit)) for i, c in enumerate(parent)) for unit in range(len(parent))]
    reused = job.judge(candidates, parent=parent, tokens=200, seed=3)
    assert reused == plain(candidates, parent=parent, tokens=200, seed=3)
    assert job.judge.blocks_skipped > 0


def test_minibatches_hold_exactly_the_tokens_asked_for(stories, recipe, tmp_path):
    judge = Job(stories, recipe, tmp_path / "out").judge
    for tokens in (1, 127, 128, 129, 1000, 1024):
        parts = judge.minibatch(tokens, seed=0)
        rows = [row for part, _ in parts for row in part]
        assert sum(len(part) * length for part, length in parts) == tokens
        assert len(set(rows)) == len(rows)
    with pytest.raises(InvalidArgument, match="only 1024 are set aside"):
        judge.minibatch(1025, seed=0)


def test_calibration_held_out_and_search_windows_are_disjoint(stories, recipe, tmp_path):
    texts = Job(stories, recipe, tmp_path / "out").texts
    rows = [tuple(row.tolist()) for part in (texts.calibration, texts.held_out, texts.search) for row in part]
    assert len(set(rows)) == len(rows)


def test_depth_search_drops_whole_sublayers(stories, small_recipe):
    levels = [{"method": "keep"}, {"method": "drop"}]
    recipe = small_recipe(levels=levels, embeddings=[], budget="400KB", fused="sublayer", propagate="dense")
    small = tersor.compress(stories, recipe)
    dropped = {name for name, weight in small.weights().items() if weight.kind == "zero"}
    assert dropped
    for name in dropped:
        part = name.rsplit(".", 1)[0]
        assert all(other in dropped for other in small.weights() if other.startswith(part))


def test_a_sparse_search_measures_as_many_models_as_it_may(stories, small_recipe, tmp_path):
    search = {"method": "sparse", "generations": 6, "tokens": 512, "stages": [[1, 128]]}
    job = Job(stories, small_recipe(search=search), tmp_path / "out")
    found = job.search(job.budget)
    assert (found.method, found.evaluations, job.counters["evaluations"]) == ("sparse", 6, 6)
    problem = job.problem(job.budget)
    assert problem.cost(found.choices) <= problem.budget
    assert found.fitness == min(row["fitness"] for row in found.history)


def test_fused_inputs_share_their_level(stories, small_recipe):
    small = tersor.compress(stories, small_recipe(fused="inputs"))
    for block in range(5):
        for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({small.weights()[f"model.layers.{block}.{name}"].bits for name in names}) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": "20KB"}, "below the smallest reachable size"),
        ({"levels": [{"method": "gptq", "bits": 3, "group_size": 48}], "embeddings": []}, "48"),
        ({"levels": [{"method": "gptq", "bits": 0}], "embeddings": []}, "bits"),
        ({"calibration": {"text": "tinystories", "tokens": 10_000_000}}, "are needed"),
        ({"evaluation": {"text": "tinystories", "tokens": 512}}, "same"),
        ({"calibration": {"text": "no-such-text"}}, "no-such-text"),
    ],
    ids=["budget", "group size", "bits", "too little text", "evaluation is calibration", "missing text"],
)
def test_what_cannot_work_is_refused_in_one_sentence(stories, small_recipe, tmp_path, changes, said):
    with pytest.raises(InvalidArgument) as caught:
        tersor.compress(stories, small_recipe(**changes), output=tmp_path / "out")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_changed_recipe_on_resume_is_refused(stories, recipe, small_recipe, tmp_path):
    tersor.compress(stories, recipe, output=tmp_path / "out")
    with pytest.raises(InvalidArgument, match="seed"):
        tersor.compress(stories, small_recipe(search={**recipe.search.model_dump(), "seed": 1}), output=tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "options"), [("gptq", {"bits": 3}), ("rtn", {"bits": 3, "clip": "mse"}), ("sparsegpt", {"sparsity": 0.5})], ids=str
)
def test_making_up_for_what_was_lost_brings_other_text_nearer(stories, data_dir, tmp_path, method, options):
    """A tenth less divergence at the same bytes, whatever the method; three times that is usual."""
    text = (data_dir / "text" / "tinystories.txt").read_text(encoding="utf-8")
    for name, part in (("fit", text[:60_000]), ("judge", text[-20_000:])):
        (tmp_path / f"{name}.txt").write_text(part, encoding="utf-8")
    rows = []
    for share in (0.0, 0.25):
        calibration = {"text": str(tmp_path / "fit.txt"), "tokens": 4096, "context": 128, "held_out": 0, "correction": share}
        judged = {"text": str(tmp_path / "judge.txt"), "tokens": 2048, "context": 128}
        rows.append(tersor.compress(stories, method, calibration=calibration, evaluation=judged, **options).report.rows[-1])
    assert rows[0].nbytes == rows[1].nbytes
    assert rows[1].kl < 0.9 * rows[0].kl


def test_a_first_block_has_nothing_to_make_up_for(stories, data_dir, tmp_path):
    """Its inputs are those of the original, so its levels are the same bytes."""
    files = []
    for share in (0.0, 0.25):
        folder = tmp_path / str(share)
        calibration = {"text": "tinystories", "tokens": 1024, "context": 128, "held_out": 0, "correction": share}
        tersor.compress(stories, "gptq", bits=3, calibration=calibration, evaluation={"tokens": 0}, output=folder)
        files.append(load(folder))
    first, second = (each.weights() for each in files)
    same = {name: torch.equal(first[name].dense(), second[name].dense()) for name in first}
    assert all(value == (".layers.0." in name) for name, value in same.items())
