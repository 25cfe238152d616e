"""What a rehearsal counts is what a worker of that many would send; ``tersor comm-bench`` from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.distributed import ErrorFeedbackState, parse_compressor, rehearse
from tersor.errors import InvalidArgument

SHAPES = {"matrix": (64, 48), "vector": (48,), "kernel": (16, 8, 3, 3)}


@pytest.mark.parametrize("mode", ["csgd", "ef21_sgdm", "econtrol"])
@pytest.mark.parametrize("name", ["topk:0.05", "sign", "quant:4", "randk:0.05", "lowrank:2", "identity"])
def test_bytes_are_those_of_the_messages_on_a_ring(name: str, mode: str):
    state, compressor = ErrorFeedbackState(mode, name, min_numel=100), parse_compressor(name)
    seen = rehearse(state, SHAPES, workers=5)
    gathered = name in ("topk:0.05", "sign", "quant:4")
    messages = sum(compressor.nbytes(shape) for shape in (SHAPES["matrix"], SHAPES["kernel"]))
    assert seen.sent == pytest.approx(messages * (4 if gathered else 1.6) + 1.6 * 4 * 48)
    assert seen.dense == pytest.approx(1.6 * 4 * (64 * 48 + 48 + 16 * 72))
    assert seen.seconds > 0
    assert not state.local
    assert not state.shared
    assert state.traffic() == {"payload_bytes": 0, "ring_bytes": 0, "ideal_bits": 0}


def test_what_cannot_be_rehearsed_is_refused():
    with pytest.raises(InvalidArgument, match="at least 2 workers, got 3 and 1"):
        rehearse(ErrorFeedbackState(), SHAPES, workers=1)
    state = ErrorFeedbackState()
    state.advance()
    with pytest.raises(InvalidArgument, match="needs a new state"):
        rehearse(state, SHAPES)


def test_the_command_tells_bytes_of_each_compressor(stories_path: Path):
    asked = ["comm-bench", str(stories_path), "--compressor", "topk:0.01", "--compressor", "sign", "--json"]
    done = subprocess.run([sys.executable, "-m", "tersor", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    topk, sign = said["rows"]
    assert (topk["compressor"], sign["compressor"]) == ("topk:0.01", "sign")
    assert topk["sent"] < sign["sent"] < 0.2 * topk["dense"]
