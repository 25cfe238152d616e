"""``tersor limits attention-io`` from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tersor.attention import io


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tersor", "limits", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_bound_for_given_sizes_with_a_plot(tmp_path: Path):
    done = run("attention-io", "n=1024", "d=32", "m=2048", "--json", "--plot", tmp_path / "io.svg")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["value"]["lower_bound"] == io.lower_bound(1024, 32, 2048)
    assert said["value"]["flash2"] == io.count("flash2", 1024, 32, 2048).words
    assert all(row["measured"] >= row["bound"] for row in said["measured"])
    assert "square tuned" in (tmp_path / "io.svg").read_text()


def test_a_memory_that_is_none_is_refused():
    done = run("attention-io", "m=0", "--no-measure")
    assert done.returncode == 2
    assert done.stderr.startswith("tersor: words must be an integer of at least 1")
