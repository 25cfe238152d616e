from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.kick import bootstrap

ONES = torch.ones(40, dtype=torch.float64)


def right(seed: int, share: float = 0.5, n: int = 40) -> torch.Tensor:
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share).double()


@pytest.mark.parametrize("seed", range(5))
def test_a_model_against_itself_has_ratio_one_and_difference_zero(seed: int):
    scores = right(seed)
    paired = bootstrap(scores, scores, ONES)
    assert paired.ratio is not None
    assert (paired.ratio.low, paired.ratio.value, paired.ratio.high) == (1, 1, 1)
    assert (paired.difference.low, paired.difference.high) == (0, 0)
    assert paired.score.value in paired.score


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_interval_of_a_share_is_the_binomial_one(share: int):
    scores = right(0, share, 400)
    paired = bootstrap(scores, scores, torch.ones(400), 4000)
    mean = float(scores.mean())
    width = 2 * 1.96 * (mean * (1 - mean) / 400) ** 0.5
    assert paired.score.high - paired.score.low == pytest.approx(width, rel=0.1)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = [0.6 in bootstrap(right(seed, 0.6, 100), ONES.new_ones(100), ONES.new_ones(100), 500, seed).score for seed in range(300)]
    # 95 % less three standard errors, and what percentile intervals of 100 items are known to be too short.
    assert 0.89 <= np.mean(held) <= 1


def test_pairing_makes_the_interval_of_the_difference_narrow():
    dense = right(3, 0.5, 200)
    small = dense.clone()
    small[:5] = 0
    paired = bootstrap(small, dense, torch.ones(200))
    assert paired.difference.high - paired.difference.low < (paired.score.high - paired.score.low) / 3


def test_a_weight_is_so_many_copies():
    own, reference = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0])
    weighted = bootstrap(own, reference, torch.tensor([1.0, 2.0, 3.0]))
    copies = bootstrap(own[[0, 1, 1, 2, 2, 2]], reference[[0, 1, 1, 2, 2, 2]], torch.ones(6))
    assert weighted.score.value == pytest.approx(copies.score.value)
    assert weighted.ratio is not None
    assert copies.ratio is not None
    assert weighted.ratio.value == pytest.approx(copies.ratio.value)


def test_the_same_seed_gives_the_same_interval_and_no_global_generator_is_used():
    state = np.random.get_state()[1].copy()
    first, again, other = (bootstrap(right(1), right(2), ONES, 50, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert (np.random.get_state()[1] == state).all()


def test_an_original_that_scores_nothing_has_no_ratio():
    assert bootstrap(right(0), torch.zeros(40), ONES).ratio is None


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(InvalidArgument, match="equal lengths"):
        bootstrap(right(0), right(0, n=39), ONES)
    with pytest.raises(InvalidArgument, match="weights above 0"):
        bootstrap(right(0), right(0), torch.zeros(40))
    with pytest.raises(InvalidArgument, match="finite"):
        bootstrap(ONES * float("nan"), ONES, ONES)
