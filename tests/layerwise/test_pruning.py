"""Magnitude, Wanda and SparseGPT: exact counts, the identities of each, and the order among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import METHODS, LayerStats, gptq, layer_error, magnitude, sparsegpt, wanda

PRUNERS = ["magnitude", "wanda", "sparsegpt"]
NM = [(2, 4), (1, 4), (4, 8), (3, 8), (1, 2)]


def prune(name: str, layer: Any, **options: Any) -> Any:
    return METHODS[name].function(layer.weight, layer.stats, **options)


def damped(stats: LayerStats) -> Tensor:
    return stats.hessian + 0.01 * stats.mean_square.mean() * torch.eye(stats.in_features)


def quadratic(error: Tensor, hessian: Tensor) -> float:
    return float(((error.double() @ hessian) * error.double()).sum())


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("shape", [(48, 64), (7, 30)], ids=str)
def test_exactly_as_many_are_removed_as_asked(name: str, sparsity: float, shape: tuple[int, int], make_layer: Callable[..., Any]) -> None:
    problem = make_layer(0, *shape)
    removed = int((~prune(name, problem, sparsity=sparsity).mask()).sum())
    rows, columns = shape
    assert removed == (rows * round(sparsity * columns) if name == "wanda" else round(sparsity * rows * columns))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_ties_do_not_change_the_count(name: str, sparsity: float) -> None:
    weight = torch.ones(8, 32)
    compressed = METHODS[name].function(weight, LayerStats.identity(32), sparsity=sparsity)
    assert int(compressed.mask().sum()) == round((1 - sparsity) * weight.numel())


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize(("keep_n", "of_m"), NM, ids=[f"{n}-of-{m}" for n, m in NM])
def test_every_group_keeps_exactly_n_of_m(name: str, keep_n: int, of_m: int, layer: Any) -> None:
    mask = prune(name, layer, keep_n=keep_n, of_m=of_m).mask()
    assert (mask.reshape(48, -1, of_m).sum(-1) == keep_n).all()


@pytest.mark.parametrize("name", PRUNERS)
def test_no_sparsity_returns_the_weight(name: str, layer: Any) -> None:
    compressed = prune(name, layer, sparsity=0.0, value_dtype="float32")
    assert torch.equal(compressed.dense(), layer.weight)


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_kept_weights_are_untouched(name: str, layer: Any) -> None:
    compressed = prune(name, layer, value_dtype="float32")
    assert torch.equal(compressed.dense(), layer.weight * compressed.mask())


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_n": 2}, "go together"), ({"keep_n": 2, "of_m": 4, "sparsity": 0.5}, "not both"), ({"keep_n": 4, "of_m": 4}, "from 1 to 3"),
        ({"keep_n": 2, "of_m": 5}, "2:5 sparsity needs of_m to divide the 64 input features"), ({"keep_n": 1, "of_m": 1}, "at least 2"),
    ],
    ids=["half", "both", "all", "indivisible", "trivial"],
)  # fmt: skip
def test_wrong_patterns_are_refused(name: str, options: dict[str, Any], message: str, layer: Any) -> None:
    with pytest.raises(InvalidArgument, match=message):
        prune(name, layer, **options)


def test_magnitude_keeps_the_largest_of_the_matrix(layer: Any) -> None:
    compressed = magnitude(layer.weight, sparsity=0.7)
    kept = layer.weight.abs()[compressed.mask()]
    assert kept.min() >= layer.weight.abs()[~compressed.mask()].max()


def test_wanda_keeps_the_highest_scores_of_each_row(layer: Any) -> None:
    mask = wanda(layer.weight, layer.stats, sparsity=0.5).mask()
    score = layer.weight.abs().double() * layer.stats.mean_square.sqrt()
    assert (mask.sum(1) == 32).all()
    assert (score.masked_fill(~mask, torch.inf).amin(1) >= score.masked_fill(mask, 0).amax(1)).all()


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"keep_n": 2, "of_m": 4}], ids=["unstructured", "2-of-4"])
def test_wanda_does_not_see_a_scale_that_moves_between_input_and_weight(options: dict[str, Any], layer: Any) -> None:
    factor = 2.0 ** torch.randint(-4, 5, (64,), generator=torch.Generator().manual_seed(0))
    hessian = layer.stats.hessian * torch.outer(factor, factor).double()
    stats = LayerStats(hessian, layer.stats.mean_abs * factor, layer.stats.mean * factor, layer.stats.n_tokens)
    assert torch.equal(wanda(layer.weight / factor, stats, **options).mask(), wanda(layer.weight, layer.stats, **options).mask())


OPTIONS = [{"sparsity": 0.5}, {"sparsity": 0.8}, {"keep_n": 2, "of_m": 4}]


def least_squares(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """Row by row, the values on the mask that lose least in the metric of ``hessian``."""
    values = torch.zeros(weight.shape, dtype=torch.float64)
    for row, kept in enumerate(mask):
        values[row, kept] = torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ weight[row].double())
    return values


@pytest.mark.parametrize("options", OPTIONS, ids=["half", "four-fifths", "2-of-4"])
@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_lies_between_least_squares_and_no_update(options: dict[str, Any], seed: int, make_layer: Callable[..., Any]) -> None:
    problem = make_layer(seed)
    weight, hessian = problem.weight, damped(problem.stats)
    compressed = sparsegpt(weight, problem.stats, value_dtype="float32", **options)
    mask = compressed.mask()
    refitted = least_squares(weight, mask, hessian)
    errors = [quadratic(weight.double() - values, hessian) for values in (refitted, compressed.dense(), weight * mask)]
    assert errors[0] <= errors[1] <= errors[2]
    assert compressed.report["damped_error"] == pytest.approx(errors[1], rel=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=["half", "four-fifths", "2-of-4"])
def test_sparsegpt_on_uncorrelated_inputs_updates_nothing_and_scores_like_wanda(options: dict[str, Any], layer: Any) -> None:
    sizes = torch.linspace(0.5, 2, 64, dtype=torch.float64)
    stats = LayerStats(torch.diag(sizes.square()), sizes, torch.zeros_like(sizes), 1000)
    compressed = sparsegpt(layer.weight, stats, damping=0.0, value_dtype="float32", **options)
    assert torch.equal(compressed.dense(), layer.weight * compressed.mask())
    if "keep_n" in options:
        assert torch.equal(compressed.mask(), wanda(layer.weight, stats, **options).mask())
    else:
        # Compared over a block instead of a row, so the mask is that of the scores of the whole matrix.
        score = layer.weight.abs() * sizes
        assert score[compressed.mask()].min() >= score[~compressed.mask()].max()


@pytest.mark.parametrize("options", OPTIONS, ids=["half", "four-fifths", "2-of-4"])
@pytest.mark.parametrize("seed", range(3))
def test_refitting_keeps_the_mask_and_falls_to_least_squares(options: dict[str, Any], seed: int, make_layer: Callable[..., Any]) -> None:
    problem = make_layer(seed)
    weight, hessian = problem.weight, damped(problem.stats)
    found = [sparsegpt(weight, problem.stats, value_dtype="float32", refit=steps, **options) for steps in (0, 1, 4, 16, 64)]
    errors = [quadratic(weight - compressed.dense(), hessian) for compressed in found]
    best = quadratic(weight.double() - least_squares(weight, found[0].mask(), hessian), hessian)
    assert all(torch.equal(compressed.mask(), found[0].mask()) for compressed in found)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(best, rel=1e-4)
    assert found[2].report["damped_error"] == pytest.approx(errors[2], rel=1e-4)
    assert layer_error(weight, found[-1], problem.held_out) < layer_error(weight, found[0], problem.held_out)


def test_refitting_leaves_the_statistics_and_dead_inputs_alone() -> None:
    inputs = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, ::4] = 0
    stats = LayerStats.from_inputs(inputs)
    before = stats.hessian.clone()
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    compressed = sparsegpt(weight, stats, sparsity=0.5, damping=0.0, refit=4)
    assert torch.equal(stats.hessian, before)
    assert torch.isfinite(compressed.dense()).all()


@pytest.mark.parametrize(("options", "says"), [({"refit": -1}, "refit"), ({"refit": 2, "bits": 4, "group_size": 16}, "grid")])
def test_refitting_that_cannot_be_is_refused(options: dict[str, Any], says: str, layer: Any) -> None:
    with pytest.raises(InvalidArgument, match=says):
        sparsegpt(layer.weight, layer.stats, **options)


@pytest.mark.parametrize("block_size", [8, 24, 1000])
def test_sparsegpt_patterns_do_not_depend_on_the_block_size(block_size: int, layer: Any) -> None:
    options: dict[str, Any] = {"keep_n": 2, "of_m": 4, "value_dtype": "float32"}
    one, other = (sparsegpt(layer.weight, layer.stats, block_size=size, **options) for size in (64, block_size))
    assert torch.equal(one.mask(), other.mask())
    assert torch.allclose(one.dense(), other.dense(), atol=1e-5)


def test_sparsegpt_spreads_sparsity_evenly_over_blocks(layer: Any) -> None:
    mask = sparsegpt(layer.weight, layer.stats, sparsity=0.6, block_size=16).mask()
    removed = (~mask).reshape(48, 4, 16).sum((0, 2))
    assert int(removed.sum()) == round(0.6 * 48 * 64)
    assert int(removed.max() - removed.min()) <= 1


def test_dead_inputs_are_pruned_first(layer: Any) -> None:
    inputs = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, ::4] = 0
    for name in ("wanda", "sparsegpt"):
        compressed = METHODS[name].function(layer.weight, LayerStats.from_inputs(inputs), sparsity=0.5)
        assert not compressed.mask()[:, ::4].any()


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "float_min"])
@pytest.mark.parametrize("options", OPTIONS, ids=["half", "four-fifths", "2-of-4"])
def test_joint_pruning_and_quantisation(options: dict[str, Any], scheme: Any, layer: Any) -> None:
    joint = sparsegpt(layer.weight, layer.stats, bits=4, group_size=16, scheme=scheme, **options)
    alone = sparsegpt(layer.weight, layer.stats, **options)
    assert joint.sparsity == alone.sparsity
    assert joint.nbytes < alone.nbytes
    assert not joint.dense()[~joint.mask()].any()
    expected = quadratic(layer.weight - joint.dense(), damped(layer.stats))
    assert joint.report["damped_error"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_joint_sweep_beats_rounding_what_was_pruned(seed: int, make_layer: Callable[..., Any]) -> None:
    problem = make_layer(seed)
    options: dict[str, Any] = {"bits": 3, "group_size": 16}
    joint = sparsegpt(problem.weight, problem.stats, keep_n=2, of_m=4, **options)
    pruned = sparsegpt(problem.weight, problem.stats, keep_n=2, of_m=4)
    rounded = METHODS["rtn"].function(pruned.dense(), **options).dense() * pruned.mask()
    assert layer_error(problem.weight, joint, problem.held_out) < layer_error(problem.weight, rounded, problem.held_out)


def test_joint_without_sparsity_is_gptq(layer: Any) -> None:
    joint = sparsegpt(layer.weight, layer.stats, sparsity=0.0, bits=3, group_size=16)
    assert torch.equal(joint.dense(), gptq(layer.weight, layer.stats, bits=3, group_size=16).dense())


def test_joint_pattern_across_quantisation_groups_is_refused(make_layer: Callable[..., Any]) -> None:
    problem = make_layer(0, 8, 60)
    with pytest.raises(InvalidArgument, match="2:4 on a grid needs of_m to divide group_size, which is 6"):
        sparsegpt(problem.weight, problem.stats, keep_n=2, of_m=4, bits=4, group_size=6)
