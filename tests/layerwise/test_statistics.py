"""Calibration statistics and the two numbers taken from them: the layer error and the healed factorisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, StatsAccumulator, factorize, layer_error, rtn
from tersor.layerwise import stats as stats_module
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.masks import keep_highest


def tokens(n: int, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 0.3


def test_moments_are_those_of_the_inputs() -> None:
    inputs = tokens(500)
    stats = LayerStats.from_inputs(inputs)
    exact = inputs.double()
    assert torch.allclose(stats.hessian, exact.T @ exact / 500, rtol=1e-6, atol=1e-6)
    assert torch.allclose(stats.mean_abs, exact.abs().mean(0), rtol=1e-6)
    assert torch.allclose(stats.mean, exact.mean(0), rtol=1e-5)
    assert torch.equal(stats.mean_square, stats.hessian.diagonal())
    assert stats.n_tokens == 500


def test_batches_of_any_size_and_order_add_up_to_the_same() -> None:
    inputs = tokens(120)
    whole = LayerStats.from_inputs(inputs)
    parts = LayerStats.from_inputs(inputs[100:], inputs[:60].reshape(3, 20, 12), inputs[60:100])
    assert torch.allclose(whole.hessian, parts.hessian, rtol=1e-6, atol=1e-7)
    assert parts.n_tokens == 120


def test_masked_tokens_do_not_count() -> None:
    inputs = tokens(40).reshape(4, 10, 12)
    mask = torch.rand(4, 10, generator=torch.Generator().manual_seed(1)) > 0.4
    masked = StatsAccumulator(12)
    masked.update(inputs, mask)
    assert torch.allclose(masked.finish().hessian, LayerStats.from_inputs(inputs[mask]).hessian)
    assert masked.n_tokens == int(mask.sum())


def test_accumulator_refuses_what_it_cannot_count() -> None:
    accumulator = StatsAccumulator(12)
    with pytest.raises(InvalidArgument, match="saw no calibration token"):
        accumulator.finish()
    with pytest.raises(InvalidArgument, match="expected inputs with 12 features"):
        accumulator.update(tokens(3, 11))
    with pytest.raises(InvalidArgument, match="NaN or Inf"):
        accumulator.update(tokens(3) * torch.inf)
    with pytest.raises(InvalidArgument, match="at least one batch"):
        LayerStats.from_inputs()


def test_layer_error_is_that_of_the_outputs(layer: Any) -> None:
    inputs = tokens(300, 64)
    compressed = rtn(layer.weight, bits=3, group_size=16)
    outputs = inputs.double() @ layer.weight.double().T
    lost = inputs.double() @ (compressed.dense() - layer.weight).double().T
    expected = float(lost.square().sum() / outputs.square().sum())
    assert layer_error(layer.weight, compressed, LayerStats.from_inputs(inputs)) == pytest.approx(expected, rel=1e-5)
    assert layer_error(layer.weight, layer.weight, layer.stats) == 0
    assert layer_error(layer.weight, torch.zeros_like(layer.weight), layer.stats) == 1


def test_statistics_with_another_hessian_do_not_get_the_old_factor(layer: Any) -> None:
    before = factorize(layer.stats, 0.01)
    other = replace(layer.stats, hessian=layer.held_out.hessian)
    assert not torch.equal(factorize(other, 0.01).diagonal, before.diagonal)


def test_damping_grows_only_as_far_as_needed() -> None:
    singular = torch.ones(6, 6, dtype=torch.float64)
    lower, used = damped_cholesky(singular, 0.0)
    assert used == 1e-6
    assert torch.allclose(lower @ lower.T, singular + 1e-6 * torch.eye(6))
    indefinite = singular - 0.05 * torch.eye(6)
    assert damped_cholesky(indefinite, 1e-3)[1] == pytest.approx(0.1)
    assert damped_cholesky(torch.eye(6, dtype=torch.float64), 0.0)[1] == 0.0


def test_a_matrix_that_is_no_second_moment_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not positive semi-definite"):
        damped_cholesky(-torch.eye(4, dtype=torch.float64), 0.01)


@pytest.mark.parametrize("levels", [2, 5, 10_000], ids=["many-ties", "ties", "distinct"])
@pytest.mark.parametrize("removed", [0, 1, 17, 59, 60])
def test_keep_highest_equals_a_stable_sort(levels: int, removed: int) -> None:
    score = torch.randint(0, levels, (6, 10), generator=torch.Generator().manual_seed(levels)).float()
    expected = torch.ones(60, dtype=torch.bool)
    expected[torch.argsort(score.flatten(), stable=True)[:removed]] = False
    assert torch.equal(keep_highest(score, removed), expected.view(6, 10))


def test_the_error_of_a_large_layer_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch):
    weight = torch.randn(37, 12, generator=torch.Generator().manual_seed(0))
    changed = weight + 0.1 * torch.randn(37, 12, generator=torch.Generator().manual_seed(1))
    stats = LayerStats.from_inputs(torch.randn(50, 12, generator=torch.Generator().manual_seed(2)))
    whole = layer_error(weight, changed, stats)
    monkeypatch.setattr(stats_module, "_ENTRIES", 5 * 12)
    assert layer_error(weight, changed, stats) == pytest.approx(whole, rel=1e-12)


def test_without_statistics_every_weight_counts_alike():
    weight = torch.randn(37, 12, generator=torch.Generator().manual_seed(0))
    changed = weight.round()
    assert layer_error(weight, changed, None) == layer_error(weight, changed, LayerStats.identity(12))
    assert layer_error(weight, changed, None) == pytest.approx(float((weight - changed).square().sum() / weight.square().sum()))
