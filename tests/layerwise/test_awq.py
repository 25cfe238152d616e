"""Activation-aware scaling: what it promises in-sample, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tersor.layerwise import LayerStats, awq, layer_error, rtn


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "float_min"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("clip", [False, True], ids=["scaled", "clipped"])
def test_never_worse_than_rounding_on_the_calibration_inputs(bits: int, scheme: Any, clip: bool, make_layer: Callable[..., Any]) -> None:
    for seed in range(3):
        problem = make_layer(seed)
        plain = layer_error(problem.weight, rtn(problem.weight, bits=bits, group_size=16, scheme=scheme), problem.stats)
        compressed = awq(problem.weight, problem.stats, bits=bits, group_size=16, scheme=scheme, clip=clip)
        error = layer_error(problem.weight, compressed, problem.stats)
        assert error <= plain * (1 + 1e-5)
        assert compressed.report["error_ratio"] == pytest.approx(error / plain, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_better_than_rounding_on_held_out_inputs(seed: int, make_layer: Callable[..., Any]) -> None:
    problem = make_layer(seed)
    for bits in (2, 3, 4):
        plain = layer_error(problem.weight, rtn(problem.weight, bits=bits, group_size=16), problem.held_out)
        assert layer_error(problem.weight, awq(problem.weight, problem.stats, bits=bits, group_size=16), problem.held_out) < 0.95 * plain


def test_one_grid_point_without_clipping_is_plain_rounding(layer: Any) -> None:
    compressed = awq(layer.weight, layer.stats, bits=3, group_size=16, grid_points=1, clip=False)
    assert compressed.input_scale is None
    assert compressed.report["alpha"] == 0
    assert torch.equal(compressed.dense(), rtn(layer.weight, bits=3, group_size=16).dense())


def test_inputs_of_one_size_need_no_scale() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    assert awq(weight, LayerStats.identity(32), bits=4, group_size=16).input_scale is None


def test_the_scale_follows_the_magnitude_of_the_inputs(layer: Any) -> None:
    compressed = awq(layer.weight, layer.stats, bits=3, group_size=16, clip=False)
    scale = compressed.input_scale.double()
    alpha = compressed.report["alpha"]
    assert 0 < alpha < 1
    expected = layer.stats.mean_abs**-alpha
    ratio = scale / expected
    assert torch.allclose(ratio, ratio.mean().expand(64), rtol=2e-3)
    assert float(scale.max() * scale.min()) == pytest.approx(1, rel=2e-3)


def test_the_chosen_alpha_is_the_best_of_the_grid(layer: Any) -> None:
    compressed = awq(layer.weight, layer.stats, bits=3, group_size=16, grid_points=10, clip=False)
    errors = []
    for point in range(10):
        scale = layer.stats.mean_abs ** (-point / 10)
        scale = (scale / (scale.max() * scale.min()).sqrt()).half().float()
        dense = rtn(layer.weight / scale, bits=3, group_size=16).dense() * scale
        errors.append(layer_error(layer.weight, dense, layer.stats))
    assert layer_error(layer.weight, compressed, layer.stats) == pytest.approx(min(errors), rel=1e-3)


def test_dead_and_outlier_inputs_keep_the_scale_within_half_precision(layer: Any) -> None:
    inputs = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, 0] = 0
    inputs[:, 1] *= 1e4
    stats = LayerStats.from_inputs(inputs)
    compressed = awq(layer.weight, stats, bits=4, group_size=16)
    assert torch.isfinite(compressed.dense()).all()
    assert layer_error(layer.weight, compressed, stats) < 0.01
