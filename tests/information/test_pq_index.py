"""The PQ index against its closed forms, its laws on drawn vectors, and the bound that pruning rests on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import InvalidArgument
from tersor.information import gini_index, kept_at_least, pq_index

ORDERS = [(0.5, 1.0), (1.0, 2.0), (0.2, 1.5)]
EVERY_ORDER = pytest.mark.parametrize(("p", "q"), ORDERS, ids=lambda value: f"{value:g}")
# Zeros, ties and eight orders of magnitude, of both signs.
ENTRY = st.one_of(st.just(0.0), st.sampled_from([1.0, -1.0, 2.0]), st.floats(1e-4, 1e4), st.floats(-1e4, -1e-4))
VECTOR = st.lists(ENTRY, min_size=2, max_size=40).filter(lambda values: any(values)).map(lambda v: torch.tensor(v, dtype=torch.float64))
TOLERANCE = 1e-9


def heavy(seed: int, count: int, tail: float) -> torch.Tensor:
    """``count`` Gaussian draws to the power ``tail``."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.sign() * values.abs() ** tail


@EVERY_ORDER
@settings(max_examples=60, deadline=None)
@given(x=VECTOR)
def test_it_lies_between_equal_magnitudes_and_a_single_entry(p, q, x):
    assert 0 <= pq_index(x, p, q) <= 1 - len(x) ** (1 / q - 1 / p) + TOLERANCE


@EVERY_ORDER
@pytest.mark.parametrize("d", [1, 2, 10, 1000])
def test_known_answers(p, q, d):
    one = torch.zeros(d, dtype=torch.float64)
    one[d // 2] = -3.0
    assert float(pq_index(one, p, q)) == pytest.approx(1 - d ** (1 / q - 1 / p), abs=1e-12)
    assert float(pq_index(torch.full((d,), 7.0), p, q)) == pytest.approx(0.0, abs=1e-12)
    assert float(pq_index(torch.zeros(d), p, q)) == 0.0
    assert float(pq_index(torch.zeros(0), p, q)) == 0.0


def test_a_worked_example():
    # (1 + sqrt(4))^2 / (2 * (1 + 4)) of the two means.
    assert float(pq_index(torch.tensor([1.0, 4.0]))) == pytest.approx(1 - 9 / 10)
    assert float(pq_index(torch.tensor([3.0, 4.0]), 1.0, 2.0)) == pytest.approx(1 - 7 / (5 * math.sqrt(2)))


@EVERY_ORDER
@settings(max_examples=60, deadline=None)
@given(x=VECTOR, scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_scale_order_signs_and_copies_change_nothing(p, q, x, scale, seed):
    index = float(pq_index(x, p, q))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    signs = torch.randint(2, (len(x),), generator=generator) * 2 - 1
    for other in (scale * x, x[order], x * signs, torch.cat([x, x]), x.reshape(1, -1, 1)):
        assert float(pq_index(other, p, q)) == pytest.approx(index, abs=TOLERANCE)


@EVERY_ORDER
@settings(max_examples=60, deadline=None)
@given(x=VECTOR, share=st.floats(0.01, 0.49))
def test_giving_from_the_larger_to_the_smaller_never_raises_it(p, q, x, share):
    x = x.abs()
    rich, poor = int(x.argmax()), int(x.argmin())
    given_away = share * (x[rich] - x[poor])
    fairer = x.clone()
    fairer[rich] -= given_away
    fairer[poor] += given_away
    assert pq_index(fairer, p, q) <= pq_index(x, p, q) + TOLERANCE


@EVERY_ORDER
@settings(max_examples=60, deadline=None)
@given(x=VECTOR, amount=st.floats(0.1, 100.0))
def test_adding_to_all_lowers_it_and_a_zero_or_a_giant_raises_it(p, q, x, amount):
    x = x.abs()
    index = pq_index(x, p, q)
    assert pq_index(x + amount, p, q) <= index + TOLERANCE
    assert pq_index(torch.cat([x, torch.zeros(1, dtype=x.dtype)]), p, q) >= index - TOLERANCE
    giant = x.clone()
    giant[int(x.argmax())] *= 1e9
    assert pq_index(giant, p, q) >= index - TOLERANCE


@EVERY_ORDER
@pytest.mark.parametrize("tail", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("eta", [0.0, 0.01, 0.3])
def test_the_bound_holds_for_every_number_of_entries_that_stay(p, q, tail, eta):
    for seed in range(10):
        x = heavy(seed, 200, tail).abs().sort(descending=True).values
        x[150:] = 0
        powers = x.pow(p).cumsum(0)
        fits = powers[-1] - powers <= eta * powers + 1e-12 * powers[-1]
        fewest = int(fits.nonzero()[0]) + 1
        assert fewest >= kept_at_least(pq_index(x, p, q), len(x), p, q, eta) - TOLERANCE


@EVERY_ORDER
def test_the_bound_is_met_by_equal_magnitudes(p, q):
    x = torch.zeros(100)
    x[:30] = 2.0
    assert float(kept_at_least(pq_index(x, p, q), 100, p, q)) == pytest.approx(30, rel=1e-9)


@EVERY_ORDER
def test_masked_entries_do_not_count_and_rows_are_independent(p, q):
    x = heavy(0, 60, 2.0).reshape(6, 10)
    mask = torch.rand(6, 10, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0] = False
    rows = pq_index(x, p, q, mask=mask, dim=1)
    assert rows.shape == (6,)
    assert rows[0] == 0
    for row in range(1, 6):
        assert float(rows[row]) == pytest.approx(float(pq_index(x[row][mask[row]], p, q)), abs=1e-12)
    torch.testing.assert_close(pq_index(x.T, p, q, mask=mask.T, dim=0), rows)


def test_a_million_float32_entries_and_huge_or_tiny_ones_keep_their_index():
    x = heavy(0, 1_000_000, 1.0)
    exact = 1 - float(x.abs().sqrt().mean() ** 2 / x.abs().mean())
    assert float(pq_index(x.float())) == pytest.approx(exact, abs=1e-6)
    index = float(pq_index(x[:1000], 0.1, 4.0))
    for scale in (1e-150, 1e150):
        assert float(pq_index(scale * x[:1000], 0.1, 4.0)) == pytest.approx(index, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(x=VECTOR)
def test_the_gini_index_is_the_mean_difference(x):
    magnitudes = x.abs()
    differences = (magnitudes[:, None] - magnitudes[None]).abs().sum()
    assert gini_index(x) == pytest.approx(float(differences / (2 * len(x) * magnitudes.sum())), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pq_index(torch.ones(3), 1.0, 1.0), "below q"),
        (lambda: pq_index(torch.ones(3), 0.0, 1.0), "above 0"),
        (lambda: pq_index(torch.tensor([1.0, math.nan])), "NaN"),
        (lambda: pq_index(torch.ones(3, dtype=torch.int64)), "floating-point"),
        (lambda: pq_index(torch.ones(3), mask=torch.ones(2, dtype=torch.bool)), "mask"),
        (lambda: pq_index(torch.ones(3), dim=1), "dim 1"),
        (lambda: kept_at_least(0.5, 3, eta=-1.0), "eta"),
        (lambda: gini_index(torch.ones(0)), "at least one"),
    ],
)
def test_what_has_no_index_is_refused_in_one_sentence(call, said):
    with pytest.raises(InvalidArgument, match=said):
        call()
