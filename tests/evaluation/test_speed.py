from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.errors import InvalidArgument, TersorError
from tersor.evaluation import evaluate, measure_load, measure_speed
from tersor.models import Model

from .conftest import llama, tokens


def test_it_measures_without_touching_threads_or_generators():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    speed = measure_speed(llama(), new_tokens=4, repeats=2)
    assert speed.prefill > 0
    assert speed.decode > 0
    assert (speed.prompt_tokens, speed.new_tokens, speed.repeats, speed.threads) == (60, 4, 2, threads)
    assert speed.peak_memory >= speed.resident_memory > 10_000_000
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_part_of_an_evaluation_that_asks_for_it():
    found = evaluate(llama(), tokens(64), context=16, speed=True)
    assert found.speed is not None
    assert found.to_dict()["speed"]["decode"] == found.speed.decode
    assert "tokens/s" in str(found)


@pytest.mark.parametrize(("new_tokens", "repeats"), [(1, 3), (4, 0)])
def test_too_little_to_time_is_refused(new_tokens: int, repeats: int):
    with pytest.raises(InvalidArgument, match="at least 2 new tokens and 1 repeat"):
        measure_speed(llama(), new_tokens=new_tokens, repeats=repeats)


def test_loading_is_measured_in_a_process_of_its_own(stories_path: Path, stories: Model):
    load = measure_load(stories_path)
    assert load.seconds > 0
    assert load.peak_memory >= load.resident_memory >= load.baseline_memory > 10_000_000


def test_a_failure_to_load_is_reported(tmp_path: Path):
    with pytest.raises(TersorError, match=r"in a fresh process failed: .*holds no model"):
        measure_load(tmp_path)
