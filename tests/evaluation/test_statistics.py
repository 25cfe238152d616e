from __future__ import annotations

import math

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.statistics import Estimate, cluster_mean, exponential, finite, proportion


def test_windows_of_one_token_give_the_textbook_standard_error():
    from scipy.stats import sem

    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = cluster_mean(values, torch.ones(40))
    assert found.value == pytest.approx(float(values.mean()))
    assert found.stderr == pytest.approx(sem(values.numpy()))


@pytest.mark.parametrize("seed", range(3))
def test_the_error_between_windows_is_that_of_repeated_experiments(seed: int):
    """Tokens of a window are perfectly dependent: a standard error over tokens would be eight times too small."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(32, 96, (400, 50), generator=generator)
    levels = torch.randn(400, 50, generator=generator, dtype=torch.float64)
    estimates = [cluster_mean(level * count, count) for level, count in zip(levels, counts, strict=True)]
    spread = torch.tensor([estimate.value for estimate in estimates]).std()
    claimed = torch.tensor([estimate.stderr for estimate in estimates]).mean()
    assert float(claimed / spread) == pytest.approx(1, abs=0.12)


def test_one_window_says_nothing_about_its_error():
    assert cluster_mean(torch.tensor([3.0]), torch.tensor([2])) == Estimate(1.5, None)


def test_nothing_has_no_mean():
    with pytest.raises(InvalidArgument, match="at least one scored token"):
        cluster_mean(torch.zeros(0), torch.zeros(0))


def test_proportion_is_binomial():
    found = proportion(torch.tensor([True] * 30 + [False] * 70))
    assert found.value == pytest.approx(0.3)
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


@pytest.mark.parametrize(("log", "value"), [(0.0, 1.0), (1e4, math.inf), (-math.inf, 0.0)])
def test_exponential_never_overflows(log: float, value: float):
    assert exponential(Estimate(log, 0.1)).value == value


@pytest.mark.parametrize(("value", "kept"), [(1.5, 1.5), (math.inf, None), (math.nan, None), (None, None)])
def test_finite(value: float | None, kept: float | None):
    assert finite(value) == kept
