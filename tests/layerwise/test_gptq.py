"""GPTQ against the identities that its error compensation must satisfy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.layerwise import LayerStats, factorize, gptq, layer_error, rtn

SCHEMES = ["symmetric", "asymmetric", "float_min"]


def damped(stats: LayerStats, damping: float) -> Tensor:
    return stats.hessian + damping * stats.mean_square.mean() * torch.eye(stats.in_features)


def quadratic(error: Tensor, hessian: Tensor) -> float:
    return float(((error.double() @ hessian) * error.double()).sum())


def textbook(weight: Tensor, hessian: Tensor, quantise: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Optimal brain quantisation in a fixed order, by its definition: after each column solve for the best values of all later ones."""
    current, n = weight.double().clone(), weight.shape[1]
    for column in range(n):
        rounded = quantise(current[:, column].float(), column).double()
        error = rounded - current[:, column]
        later = slice(column + 1, n)
        # d/dD_later of D H D^T over the columns from here on, with D_column fixed.
        current[:, later] -= torch.outer(error, torch.linalg.solve(hessian[later, later], hessian[later, column]))
        current[:, column] = rounded
    return current


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act-order"])
def test_reported_error_is_the_error_in_the_damped_metric(bits: int, scheme: Any, act_order: bool, layer: Any) -> None:
    compressed = gptq(layer.weight, layer.stats, bits=bits, group_size=16, scheme=scheme, act_order=act_order)
    expected = quadratic(layer.weight - compressed.dense(), damped(layer.stats, 0.01))
    assert compressed.report["damped_error"] == pytest.approx(expected, rel=1e-4)


def test_equals_the_textbook_definition(make_layer: Callable[..., Any]) -> None:
    problem = make_layer(2, 8, 24)
    compressed = gptq(problem.weight, problem.stats, bits=3, group_size=-1, scheme="symmetric", damping=0.05)
    scale = compressed.scale.float()[:, 0]

    def quantise(values: Tensor, _: int) -> Tensor:
        return ((values / scale).round() + 4).clamp(0, 7).sub(4) * scale

    expected = textbook(problem.weight, damped(problem.stats, 0.05), quantise)
    assert torch.allclose(compressed.dense().double(), expected, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act-order"])
@pytest.mark.parametrize("clip", ["minmax", "mse", "hessian"])
def test_white_inputs_leave_nothing_to_compensate(bits: int, scheme: Any, act_order: bool, clip: Any, layer: Any) -> None:
    white = LayerStats.identity(64)
    options: dict[str, Any] = {"bits": bits, "group_size": 16, "scheme": scheme, "clip": clip}
    compressed = gptq(layer.weight, white, act_order=act_order, **options)
    assert torch.equal(compressed.dense(), rtn(layer.weight, white, **options).dense())


@pytest.mark.parametrize("block_size", [1, 16, 48, 96, 1000])
def test_block_size_does_not_change_the_result_on_static_grids(block_size: int, layer: Any) -> None:
    options: dict[str, Any] = {"bits": 3, "group_size": 16, "act_order": True}
    one, other = (gptq(layer.weight, layer.stats, block_size=size, **options) for size in (32, block_size))
    assert torch.equal(one.unpacked_codes(), other.unpacked_codes())


@pytest.mark.parametrize("group_size", [1, 4, 24, 48, -1])
def test_any_group_size_against_any_block_size(group_size: int, make_layer: Callable[..., Any]) -> None:
    problem = make_layer(4, 16, 48)
    one, other = (gptq(problem.weight, problem.stats, bits=4, group_size=group_size, block_size=size) for size in (16, 128))
    assert torch.equal(one.dense(), other.dense())


@pytest.mark.parametrize("act_order", [False, True], ids=["natural", "act-order"])
def test_rows_are_independent(act_order: bool, layer: Any) -> None:
    changed = layer.weight.clone()
    changed[5] *= -1.5
    one, other = (gptq(weight, layer.stats, bits=3, group_size=16, act_order=act_order).dense() for weight in (layer.weight, changed))
    same = torch.ones(48, dtype=torch.bool)
    same[5] = False
    assert torch.equal(one[same], other[same])
    assert not torch.equal(one[5], other[5])


def test_scale_of_the_hessian_does_not_matter(layer: Any) -> None:
    doubled = LayerStats(4 * layer.stats.hessian, 2 * layer.stats.mean_abs, layer.stats.mean, layer.stats.n_tokens)
    one, other = (gptq(layer.weight, stats, bits=3, group_size=16).dense() for stats in (layer.stats, doubled))
    assert torch.equal(one, other)


def test_act_order_is_the_natural_order_of_sorted_inputs(layer: Any) -> None:
    order = torch.argsort(layer.stats.mean_square, descending=True, stable=True)
    stats = LayerStats(
        layer.stats.hessian[order][:, order], layer.stats.mean_abs[order], layer.stats.mean[order], layer.stats.n_tokens
    )
    sorted_first = gptq(layer.weight[:, order], stats, bits=3, group_size=-1)
    compressed = gptq(layer.weight, layer.stats, bits=3, group_size=-1, act_order=True)
    assert torch.equal(compressed.dense()[:, order], sorted_first.dense())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_better_than_rounding_on_held_out_inputs(seed: int, scheme: Any, make_layer: Callable[..., Any]) -> None:
    problem = make_layer(seed)
    for bits in (2, 3, 4):
        options: dict[str, Any] = {"bits": bits, "group_size": 16, "scheme": scheme}
        plain = layer_error(problem.weight, rtn(problem.weight, **options), problem.held_out)
        assert layer_error(problem.weight, gptq(problem.weight, problem.stats, **options), problem.held_out) < 0.9 * plain


def test_more_inputs_than_tokens_heal_by_damping_that_is_reported(layer: Any) -> None:
    few = LayerStats.from_inputs(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    assert gptq(layer.weight, few, bits=4, group_size=16).report["damping"] == 0.01
    healed = gptq(layer.weight, few, bits=4, group_size=16, damping=0.0)
    assert healed.report["damping"] > 0
    assert torch.isfinite(healed.dense()).all()


def test_dead_inputs_are_counted_and_rounded_to_nearest(layer: Any) -> None:
    inputs = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, [3, 20, 21]] = 0
    compressed = gptq(layer.weight, LayerStats.from_inputs(inputs), bits=8, group_size=-1)
    assert compressed.report["dead_inputs"] == 3
    step = compressed.scale.float()
    assert ((compressed.dense() - layer.weight).abs()[:, [3, 20, 21]] <= 0.51 * step).all()


def test_one_factor_serves_all_bit_widths_and_layers(layer: Any) -> None:
    stats = LayerStats(layer.stats.hessian, layer.stats.mean_abs, layer.stats.mean, layer.stats.n_tokens)
    factor = factorize(stats, 0.01)
    gptq(layer.weight, stats, bits=2, group_size=16)
    gptq(layer.weight[:5], stats, bits=4, group_size=16)
    assert factorize(stats, 0.01) is factor
    assert factorize(stats, 0.01, act_order=True) is not factor


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_factor_is_that_of_the_inverse_hessian(damping: float, layer: Any) -> None:
    factor = factorize(layer.stats, damping)
    upper = factor.coefficients.double() * factor.diagonal.unsqueeze(1)
    assert torch.equal(upper, upper.triu())
    inverse = torch.linalg.inv(damped(layer.stats, damping))
    assert torch.allclose(upper.T @ upper, inverse, rtol=1e-5, atol=1e-5 * float(inverse.abs().max()))
