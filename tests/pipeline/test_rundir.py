from __future__ import annotations

import pytest

from tersor.errors import CorruptFile, InvalidArgument
from tersor.pipeline.rundir import RunDirectory

JOB = {"model": "abc", "recipe": {"budget": "60MB", "search": {"seed": 0}}}


def test_the_same_job_resumes(tmp_path):
    first = RunDirectory.open(tmp_path / "out", JOB)
    (first.levels / "layer.safetensors").write_bytes(b"x")
    again = RunDirectory.open(tmp_path / "out", JOB)
    assert (again.levels / "layer.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, "model"),
        ({"recipe": {"budget": "50MB", "search": {"seed": 0}}}, "budget"),
        ({"recipe": {"budget": "60MB", "search": {"seed": 1}}}, "search.seed"),
    ],
    ids=["model", "budget", "seed"],
)
def test_a_changed_input_is_refused_and_named(tmp_path, change, named):
    run = RunDirectory.open(tmp_path / "out", JOB)
    (run.levels / "layer.safetensors").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match=named):
        RunDirectory.open(tmp_path / "out", {**JOB, **change})


def test_a_job_that_stopped_before_any_work_does_not_bind_the_next_one(tmp_path):
    RunDirectory.open(tmp_path / "out", JOB)
    other = {**JOB, "model": "other"}
    run = RunDirectory.open(tmp_path / "out", other)
    run.search_state.write_text("{}")
    assert RunDirectory.open(tmp_path / "out", other) == run
    with pytest.raises(InvalidArgument, match="model"):
        RunDirectory.open(tmp_path / "out", JOB)


def test_a_finished_model_is_never_taken_for_an_idle_job(tmp_path):
    run = RunDirectory.open(tmp_path / "out", JOB)
    (run.output / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="model"):
        RunDirectory.open(tmp_path / "out", {**JOB, "model": "other"})


def test_restart_throws_the_old_state_away(tmp_path):
    first = RunDirectory.open(tmp_path / "out", JOB)
    (first.levels / "layer.safetensors").write_bytes(b"x")
    again = RunDirectory.open(tmp_path / "out", {**JOB, "model": "other"}, restart=True)
    assert not (again.levels / "layer.safetensors").exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(InvalidArgument, match="not empty"):
        RunDirectory.open(tmp_path, JOB)
    with pytest.raises(InvalidArgument, match="not empty"):
        RunDirectory.open(tmp_path, JOB, restart=True)
    assert [child.name for child in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidArgument, match="is a file"):
        RunDirectory.open(tmp_path / "out", JOB)


def test_a_folder_killed_before_its_job_was_written_is_taken_over(tmp_path):
    (tmp_path / "out" / "run" / "levels").mkdir(parents=True)
    assert RunDirectory.open(tmp_path / "out", JOB).levels.is_dir()


@pytest.mark.parametrize("content", ["", "{", "[1]"], ids=["empty", "broken", "list"])
def test_damaged_state_is_named(tmp_path, content):
    run = RunDirectory.open(tmp_path / "out", JOB)
    (run.work / "job.json").write_text(content)
    with pytest.raises(CorruptFile, match=r"job\.json"):
        RunDirectory.open(tmp_path / "out", JOB)
