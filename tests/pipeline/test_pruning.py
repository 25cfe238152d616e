"""A language model pruned in structure from the command line: the folder is plain, exact, and comes about whatever is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tersor.cli import app
from tersor.errors import InvalidArgument
from tersor.models import load
from tersor.pipeline.pruning import REPORT, prune
from tersor.training import Compresso, Schedule

SCHEDULE = Schedule(steps=8, batch=2, check_every=2)


@pytest.fixture
def text(data_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((data_dir / "text" / "tinystories.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    return path


def test_the_command_writes_a_folder_that_transformers_loads(stories_path: Path, text: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "small"
    command = ["train", "compresso", str(stories_path), "--text", str(text), "-o", str(out), "--keep", "0.7", "--steps", "8"]
    done = CliRunner().invoke(app, [*command, "--batch", "2", "--context", "32", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    small = AutoModelForCausalLM.from_pretrained(out)
    count = sum(parameter.numel() for parameter in small.parameters())
    assert count == found["parameters"] <= 0.7 * found["original_parameters"]
    assert found["sliced_loss"] == pytest.approx(found["masked_loss"], abs=1e-4)
    assert json.loads((out / REPORT).read_text(encoding="utf-8"))["parameters"] == count
    assert AutoTokenizer.from_pretrained(out)("Once upon a time")["input_ids"]
    windows = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load(out).module(windows).logits, small(windows).logits, atol=1e-4, rtol=1e-4)


def test_a_killed_run_goes_on_to_the_same_model(stories_path: Path, text: Path, tmp_path: Path):
    class Killed(Exception):
        pass

    class Kill:
        def __init__(self) -> None:
            self.done = 0

        def start(self, stage: str, total: int) -> None: ...

        def message(self, text: str) -> None: ...

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.done += 1
            if self.done == 5:
                raise Killed

    def run(name: str, progress: Kill | None = None) -> list[float]:
        done = prune(stories_path, str(text), tmp_path / name, method=Compresso(0.7), schedule=SCHEDULE, context=32, progress=progress)
        return done.pruned.losses

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", Kill())
    assert (tmp_path / ".killed.pruning.safetensors").is_file()
    assert run("killed") == whole
    assert not (tmp_path / ".killed.pruning.safetensors").exists()
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_what_cannot_work_is_said_before_training(stories_path: Path, text: Path, tmp_path: Path):
    with pytest.raises(InvalidArgument, match="leave per_layer off"):
        prune(stories_path, str(text), tmp_path / "out", method=Compresso(per_layer=True))
    with pytest.raises(InvalidArgument, match="give more text"):
        prune(stories_path, str(text), tmp_path / "out", context=4096)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="exists"):
        prune(stories_path, str(text), tmp_path / "mine")
    command = ["train", "compresso", str(stories_path), "--text", str(text), "-o", str(tmp_path / "out")]
    bad = CliRunner().invoke(app, [*command, "--keep", "1.5"])
    assert isinstance(bad.exception, InvalidArgument)
    assert "between 0 and 1" in str(bad.exception)
