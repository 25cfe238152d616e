"""Real processes over gloo: the hook, checkpoints, refusals and a lost worker. All checks share one start of the processes.

Three of them, because two numbers add up to the same bits in any order.
"""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tersor.distributed import ErrorFeedbackState, load_checkpoint
from tersor.papers.gloo_workers import run_workers

NAMES = [
    "csgd topk", "econtrol topk", "ef21_sgdm quant", "ef lowrank", "ef sign", "econtrol randk", "ef lgreco lowrank", "econtrol lgreco topk",
]  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first worker saw; the second one leaves at the end."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("gloo")
    codes = run_workers([str(Path(__file__).with_name("gloo_checks.py"))], 3, folder)
    assert codes == [0, 7, 0], (folder / "output-0.txt").read_text() + (folder / "output-1.txt").read_text()
    found: dict[str, Any] = json.loads((folder / "seen-0.json").read_text())
    return {**found, "folder": folder}


@pytest.mark.parametrize("name", NAMES)
def test_replicas_stay_bit_equal_and_follow_the_simulator(seen: dict[str, Any], name: str):
    run = seen["training"][name]
    assert run["moved"] > 0.01
    assert run["replicas equal"]
    assert run["simulator"] < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes_bit_identically_with_other_buckets(seen: dict[str, Any], name: str):
    assert seen["training"][name]["resumed equal"]


def test_every_state_is_tried(seen: dict[str, Any]):
    assert set(seen["training"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_wire_carries_what_is_counted(seen: dict[str, Any], name: str):
    run = seen["training"][name]
    if run["socket"] is None:
        pytest.skip("this kernel does not count the bytes of a connection")
    # Besides the payload, every message has a header and is announced: some fifty bytes each, for dozens of messages in 8 steps.
    assert run["traffic"]["ring_bytes"] <= run["socket"] < 1.2 * run["traffic"]["ring_bytes"] + 8 * 4500


def test_two_workers_go_on_from_the_checkpoint_of_three(seen: dict[str, Any]):
    place = seen["folder"] / "econtrol-topk"
    folder = seen["folder"] / "smaller"
    folder.mkdir()
    assert run_workers([str(Path(__file__).with_name("gloo_checks.py"))], 2, folder) == [0, 0], (folder / "output-0.txt").read_text()
    found = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]
    stored = [load_file(place / f"exchange-{rank:05d}.safetensors")["0.weight/error"] for rank in range(3)]
    # The sequence that error feedback follows hangs on the mean of the errors, which the change leaves as it was.
    for worker in found:
        torch.testing.assert_close(torch.tensor(worker["error"]), torch.stack(stored).mean(0).flatten())
        assert worker["replicas equal"]
        assert worker["moved"] > 0.01


def test_layers_were_adjusted(seen: dict[str, Any]):
    for name in ("ef lgreco lowrank", "econtrol lgreco topk"):
        assert set(seen["training"][name]["knobs"]) == {"0.weight", "2.weight", "4.weight"}


def test_what_cannot_work_is_refused_in_one_sentence(seen: dict[str, Any]):
    refusals = seen["refusals"]
    assert "a GradScaler changes the scale of gradients" in refusals["scaler"]
    assert "workers disagree on the shape of w: [10, 10] on rank 0, [11, 10] on rank 1" in refusals["unequal"]
    assert "workers disagree on mode: 'ef21' on rank 0, 'ef' on rank 1" in refusals["settings"]
    assert "needs a model wrapped in DistributedDataParallel, got Sequential" in refusals["bare"]


def test_a_lost_worker_is_an_error_that_says_what_to_do(seen: dict[str, Any]):
    assert seen["lost"].startswith("TersorError: worker 0 of 3 lost contact with another worker")
    assert seen["lost"].endswith("restart all workers from the last checkpoint")


def test_the_script_of_the_documentation_trains_and_its_checkpoint_loads(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    (script,) = (code for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "torchrun" in code)
    short = script.replace("STEPS, SAVE_EVERY = 200, 50", "STEPS, SAVE_EVERY = 4, 2")
    # What torchrun would set, from the arguments that workers of tests are given.
    head = "import os, sys\nos.environ.update(RANK=sys.argv[1], WORLD_SIZE=sys.argv[2])\nos.chdir(sys.argv[3])\n"
    with socket.create_server(("127.0.0.1", 0)) as free:
        head += f"os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='{free.getsockname()[1]}')\n"
    (tmp_path / "train.py").write_text(head + short, encoding="utf-8")
    assert run_workers([str(tmp_path / "train.py")], 2, tmp_path) == [0, 0], (tmp_path / "output-0.txt").read_text()
    assert "rank 1, step 4: loss" in (tmp_path / "output-1.txt").read_text()
    state = ErrorFeedbackState(mode="econtrol", compressor="topk:0.05")
    load_checkpoint(state, tmp_path / "checkpoints" / "000004")
    assert state.step == 4
    assert set(state.local) == {"0.weight", "2.weight"}
