"""Two real processes under DistributedDataParallel come to what one process does on the whole batch, method by method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import training_cases as cases

from tersor.papers.gloo_workers import run_workers

EVERY = pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each worker saw."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    folder = tmp_path_factory.mktemp("gloo")
    codes = run_workers([str(Path(__file__).with_name("ddp_checks.py"))], 2, folder)
    assert codes == [0, 0], (folder / "output-0.txt").read_text() + (folder / "output-1.txt").read_text()
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]


@EVERY
def test_two_processes_train_as_one(case: cases.Case, seen: list[dict[str, Any]]) -> None:
    for found in seen:
        assert found[case.id]["replicas equal"]
        assert found[case.id]["apart"] < 1e-6


def test_a_change_of_shapes_asks_for_a_new_wrapper(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["lapp"]["reshaped"]
    assert seen[0]["lapp-no-bypass"]["reshaped"]
    assert not seen[0]["maestro"]["reshaped"]
    for found in seen:
        assert found["refusal"].startswith("step 4: gradients differ between the processes since step 3")
