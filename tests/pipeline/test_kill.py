"""A run that is killed at any moment and started again writes the file that an undisturbed run writes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

# A few in the suite; set TERSOR_KILLS=20 for the thorough version.
KILLS = int(os.environ.get("TERSOR_KILLS", "3"))


def _start(recipe: Path, model: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tersor", "compress", str(model), "--recipe", str(recipe), "-o", str(output)]
    # Whoever started the suite in the background may have it ignore interrupts, which children would inherit.
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )


@pytest.fixture
def recipe_file(small_recipe, tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    recipe = small_recipe(finetuning={"steps": 6, "pilot": 2})
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    return path


def test_killed_and_resumed_it_writes_the_same_bytes(recipe_file, stories_path, tmp_path):
    began = time.monotonic()
    undisturbed = _start(recipe_file, stories_path, tmp_path / "whole")
    assert undisturbed.wait() == 0, undisturbed.stderr.read().decode()
    duration = time.monotonic() - began
    moments = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        run = _start(recipe_file, stories_path, tmp_path / "killed")
        time.sleep(moments.uniform(0.2, 1.0) * duration)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            killed += 1
        run.wait()
    last = _start(recipe_file, stories_path, tmp_path / "killed")
    assert last.wait() == 0, last.stderr.read().decode()
    assert killed > 0
    for name in ("model.safetensors", "tersor.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_run_says_how_to_go_on(recipe_file, stories_path, tmp_path):
    run = _start(recipe_file, stories_path, tmp_path / "out")
    while not (tmp_path / "out" / "run" / "job.json").exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, messages = run.communicate()
    assert run.returncode == 1
    assert "the same command resumes" in messages.decode()
    assert "Traceback" not in messages.decode()
