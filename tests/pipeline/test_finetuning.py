"""A job that ends with a tuning: closer to the original in the same bytes, or refused before any work."""

from __future__ import annotations

import json
from typing import Any

import pytest

import tersor
from tersor.errors import InvalidArgument
from tersor.evaluation import RunReport
from tersor.finetuning import rates
from tersor.pipeline import job as jobs
from tersor.pipeline import probing
from tersor.pipeline.defaults import job_recipe
from tersor.pipeline.job import Job
from tersor.pipeline.recipe import parse_recipe


def test_the_tuned_model_is_closer_on_other_text_and_takes_the_same_bytes(stories, small_recipe, tmp_path):
    recipe = small_recipe(finetuning={"steps": 25}, evaluation={"text": "python-docs", "tokens": 4096, "context": 128})
    small = tersor.compress(stories, recipe, output=tmp_path / "out")
    report = RunReport.read(tmp_path / "out")
    rows = {row.name: row for row in report.rows}
    assert report.rows[-1].name == "tuned"
    assert rows["tuned"].kl < 0.97 * rows["searched"].kl
    assert rows["tuned"].nbytes == rows["searched"].nbytes == (tmp_path / "out" / "model.safetensors").stat().st_size <= 140_000
    assert rows["tuned"].layer_error is None
    assert len(report.finetuning["losses"]) == 25
    assert tersor.load(tmp_path / "out").fingerprint() == small.fingerprint()
    assert not list((tmp_path / "out" / "run").glob("tuning*"))


def test_a_tuning_that_never_helps_changes_nothing_and_says_so(stories, small_recipe, monkeypatch):
    monkeypatch.setitem(rates.CANDIDATES, "p", ({"learning_rate": 1e3},))
    plain, tuned = (tersor.compress(stories, small_recipe(finetuning={"steps": steps, "mode": "p"})) for steps in (0, 5))
    assert tuned.report.finetuning["best_step"] == 0
    assert any("none was kept" in warning for warning in tuned.report.warnings)
    assert tuned.fingerprint() == plain.fingerprint()


def test_a_method_that_needs_no_text_gets_text_to_be_tuned_on(stories, data_dir):
    options = {"calibration": {"text": "tinystories", "tokens": 1024, "held_out": 512, "context": 64, "correction": 0}}
    small = tersor.compress(stories, "rtn", bits=2, group_size=-1, finetuning={"steps": 5}, evaluation={"tokens": 0}, **options)
    assert [row.name for row in small.report.rows] == ["original", "compressed", "tuned"]
    assert {"calibration", "held_out"} <= set(small.report.texts)
    assert {layer.tokens for layer in small.report.layers} == {0}
    json.dumps(small.report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": [{"method": "svd", "keep": [0.5, 0.7]}], "embeddings": []}, "no level is one of these"),
        ({"calibration": {"text": "tinystories", "held_out": 0}}, "calibration.held_out is 0"),
        ({"finetuning": {"steps": -1}}, "finetuning.steps"),
        ({"finetuning": {"steps": 4, "mode": "vp"}}, "finetuning.mode"),
        ({"finetuning": {"steps": 4, "pilot": 5}}, "a pilot of 5 steps does not fit before 4"),
        ({"finetuning": {"rate": 1}}, "allowed are steps, mode, batch, pilot, seed"),
    ],
    ids=["nothing to tune", "nothing held out", "steps", "mode", "pilot", "unknown key"],
)
def test_what_cannot_be_tuned_is_refused_before_any_work(stories, small_recipe, tmp_path, changes, said):
    with pytest.raises(InvalidArgument) as caught:
        tersor.compress(stories, small_recipe(**{"finetuning": {"steps": 5}, "budget": "300KB", **changes}), output=tmp_path / "out")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_result_without_anything_to_tune_says_so(stories, small_recipe, monkeypatch):
    # As where a search among several methods has chosen low ranks everywhere.
    monkeypatch.setattr(jobs, "is_tunable", lambda weight: False)
    report = tersor.compress(stories, small_recipe(finetuning={"steps": 5})).report
    assert report.rows[-1].name == "searched"
    assert any("nothing was tuned" in warning for warning in report.warnings)


def test_predictions_count_the_tuning(stories, small_recipe, tmp_path):
    def predicted(**plan: Any) -> float:
        recipe = small_recipe(finetuning=plan)
        parts = probing.Probe(walk=0.0, plain=0.0, original=0.0, head=1.0, step=0.0, inputs=(), fitting=0.0)
        return probing.predicted_seconds(stories, recipe, parts, 36)

    # Windows of 128 tokens, 512 held out and measured every 20 steps, original and student each; 512 more to evaluate.
    without = predicted() + 512
    assert predicted(steps=40, pilot=0, batch=3) - without == 4 * 40 * 3 * 128 + 2 * 3 * 512
    assert predicted(steps=40, batch=3) - without == 4 * (40 + 2 * 8) * 3 * 128 + 2 * 5 * 512
    plain, tuned = (Job(stories, small_recipe(finetuning={"steps": steps}), tmp_path).preflight.peak_memory for steps in (0, 5))
    assert tuned - plain > 9 * 4 * stories.n_parameters


def test_the_flag_is_the_section():
    flags = dict.fromkeys(
        ("method", "bits", "group_size", "sparsity", "size", "ratio", "search", "calibration", "correction", "evaluation", "target", "seed")
    )
    given = job_recipe(None, **{**flags, "method": "gptq", "bits": 2, "seed": 7, "tune": 30, "options": {}}).finetuning
    assert given == parse_recipe({"levels": {"method": "gptq"}, "finetuning": {"steps": 30, "seed": 7}}).finetuning
    assert given.short == 6
