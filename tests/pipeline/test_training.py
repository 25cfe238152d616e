"""Training with compression on board: a kill loses nothing, zeros are packed, and it beats pruning at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.errors import InvalidArgument
from tersor.layerwise import magnitude
from tersor.pipeline.progress import Silent
from tersor.pipeline.training import train
from tersor.training import GradualPruning
from tersor.weights import SparseWeight

OPTIONS = {"steps": 60, "batch": 2, "rate": 1e-3, "context": 128}


class Killed(Exception):
    pass


class KillAt(Silent):
    """Dies after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= steps
        if self.left < 0:
            raise Killed


def methods() -> list[GradualPruning]:
    return [GradualPruning(0.7, frequency=5)]


@pytest.fixture(scope="module")
def stories() -> tersor.Model:
    try:
        return tersor.load("stories260k")
    except InvalidArgument as missing:
        pytest.skip(str(missing))


def test_a_killed_training_goes_on_to_the_same_bytes(stories: tersor.Model, tmp_path: Path) -> None:
    whole = train(stories, methods(), "tinystories", tmp_path / "whole", **OPTIONS)
    with pytest.raises(Killed):
        train(stories, methods(), "tinystories", tmp_path / "killed", **OPTIONS, progress=KillAt(53))
    assert not (tmp_path / "killed").exists()
    resumed = train(stories, methods(), "tinystories", tmp_path / "killed", **OPTIONS)
    assert len(resumed.losses) == 10
    assert resumed.losses == whole.losses[50:]
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert first == second
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"] == []


def test_it_beats_removing_as_many_at_once(stories: tersor.Model, tmp_path: Path) -> None:
    from tersor.evaluation import evaluate

    trained = train(stories, methods(), "tinystories", tmp_path / "out", **OPTIONS).model
    at_once = stories.copy()
    for name, weight in trained.weights().items():
        assert isinstance(weight, SparseWeight)
        assert weight.sparsity == pytest.approx(0.7, abs=1e-3)
        at_once.replace(name, magnitude(stories.matrix(name), sparsity=0.7))
    text = stories.encode(tersor.data.text("tinystories"))[-4096:]
    assert evaluate(trained, text, stories, context=256).kl < 0.8 * evaluate(at_once, text, stories, context=256).kl
    loaded = tersor.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded.module(text[None, :64]).logits, trained.module(text[None, :64]).logits)


def test_another_job_is_not_resumed(stories: tersor.Model, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(stories, methods(), "tinystories", tmp_path / "out", **OPTIONS, progress=KillAt(52))
    with pytest.raises(InvalidArgument, match="another job"):
        train(stories, methods(), "tinystories", tmp_path / "out", **{**OPTIONS, "rate": 2e-3})


def test_short_texts_and_compressed_models_are_refused(stories: tersor.Model, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Once upon a time. " * 20)
    with pytest.raises(InvalidArgument, match="give more text"):
        train(stories, methods(), str(tmp_path / "short.txt"), tmp_path / "out")
    small = stories.copy()
    name = next(iter(small.linears()))
    small.replace(name, magnitude(small.matrix(name), sparsity=0.5))
    with pytest.raises(InvalidArgument, match="compressed already"):
        train(small, methods(), "tinystories", tmp_path / "out")


def test_from_the_command_line(stories: tersor.Model, tmp_path: Path) -> None:
    words = ["train", "prune", "stories260k", "--text", "tinystories", "--steps", "6", "--context", "64", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--pattern", "2:4", "--json"])
    assert done.exit_code == 0, done.output
    weights = tersor.load(tmp_path / "out").weights()
    assert weights
    assert all(weight.sparsity == 0.5 for weight in weights.values())
    assert isinstance(CliRunner().invoke(app, [*words, "--pattern", "24"]).exception, InvalidArgument)
