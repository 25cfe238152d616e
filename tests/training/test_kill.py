"""A training that was killed goes on in another process to the weights of an undisturbed one, for every method."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import killed_training
import pytest
import torch
import training_cases as cases

CASES = [case for case in cases.CASES if case.id in killed_training.METHODS]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a killed process leaves."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("this system cannot kill a process like that")
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, killed_training.__file__, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as the killed process had: sums in another order are other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_killed_training_goes_on_to_the_same_weights(case: cases.Case, left: Path) -> None:
    resumed, optimizer = killed_training.start(case)
    assert resumed.load(left / f"{case.id}.safetensors")
    assert resumed.step == killed_training.KILLED_AFTER - 1
    killed_training.train(resumed, optimizer, killed_training.STEPS)
    whole, optimizer = killed_training.start(case)
    killed_training.train(whole, optimizer, killed_training.STEPS)
    found, expected = resumed.finalize().state_dict(), whole.finalize().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_every_method_is_tried() -> None:
    assert {case.id for case in CASES} == set(killed_training.METHODS)
