"""Low-rank truncation: optimality and exactness of the whitened form, and the baselines that it must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, asvd, layer_error, svd, whitened_svd
from tersor.layerwise.low_rank import leading_directions

SHAPES = [(48, 64), (64, 48), (20, 90), (90, 20)]
MakeLayer = Callable[..., Any]
EXACT: dict[str, Any] = {"factor_dtype": "float32"}


def root(stats: LayerStats, damping: float = 1e-6) -> Tensor:
    return torch.linalg.cholesky(stats.hessian + damping * stats.mean_square.mean() * torch.eye(stats.in_features))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 5, 13])
def test_plain_truncation_is_that_of_singular_values(shape: tuple[int, int], rank: int, make_layer: MakeLayer) -> None:
    weight = make_layer(0, *shape).weight
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    expected = left[:, :rank] * values[:rank] @ right[:rank]
    compressed = svd(weight, rank=rank, **EXACT)
    assert torch.allclose(compressed.dense().double(), expected, atol=1e-6)
    assert compressed.report["kept_energy"] == pytest.approx(float(values[:rank].square().sum() / values.square().sum()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 5, 13])
def test_discarded_singular_values_are_the_output_error(shape: tuple[int, int], rank: int, make_layer: MakeLayer) -> None:
    problem = make_layer(0, *shape)
    weight, whitening = problem.weight.double(), root(problem.stats)
    values = torch.linalg.svdvals(weight @ whitening)
    basis, energy = leading_directions(weight @ whitening, rank)
    error = (weight - basis @ basis.T @ weight) @ whitening
    assert float(error.square().sum()) == pytest.approx(float(values[rank:].square().sum()), rel=1e-6)
    assert energy == pytest.approx(1 - float(values[rank:].square().sum() / values.square().sum()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 8, 17])
def test_output_error_on_the_tokens_themselves(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, mixing = torch.randn(24, 60, generator=generator), torch.randn(60, 60, generator=generator)
    inputs = torch.randn(400, 60, generator=generator) @ mixing
    compressed = whitened_svd(weight, LayerStats.from_inputs(inputs), rank=rank, damping=0.0, **EXACT)
    lost = (inputs.double() @ (weight - compressed.dense()).double().T).square().sum()
    values = torch.linalg.svdvals(inputs.double() @ weight.double().T)
    assert float(lost) == pytest.approx(float(values[rank:].square().sum()), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_projection_on_output_directions_equals_the_cholesky_form(shape: tuple[int, int], make_layer: MakeLayer) -> None:
    problem = make_layer(1, *shape)
    whitening = root(problem.stats)
    left, values, right = torch.linalg.svd(problem.weight.double() @ whitening, full_matrices=False)
    cholesky_form = left[:, :9] * values[:9] @ torch.linalg.solve_triangular(whitening.T, right[:9].T, upper=True).T
    directions = torch.linalg.eigh(problem.weight.double() @ (whitening @ whitening.T) @ problem.weight.double().T).eigenvectors[:, -9:]
    eigen_form = directions @ directions.T @ problem.weight.double()
    compressed = whitened_svd(problem.weight, problem.stats, rank=9, **EXACT).dense().double()
    assert torch.allclose(compressed, cholesky_form, atol=1e-5)
    assert torch.allclose(compressed, eigen_form, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_nothing_of_its_rank_loses_less_in_sample(keep: float, shape: tuple[int, int], seed: int, make_layer: MakeLayer) -> None:
    problem = make_layer(seed, *shape)
    others = [asvd(problem.weight, problem.stats, keep=keep, alpha=alpha, **EXACT) for alpha in (0.25, 0.5, 1.0)]
    others.append(svd(problem.weight, keep=keep, **EXACT))
    best = layer_error(problem.weight, whitened_svd(problem.weight, problem.stats, keep=keep, **EXACT), problem.stats)
    assert all(best <= layer_error(problem.weight, other, problem.stats) * (1 + 1e-6) for other in others)


def test_error_falls_with_the_rank_and_ends_at_the_weight(make_layer: MakeLayer) -> None:
    problem = make_layer(0, 10, 400)
    made = [whitened_svd(problem.weight, problem.stats, rank=rank, **EXACT) for rank in range(1, 10)]
    errors = [layer_error(problem.weight, compressed, problem.stats) for compressed in made]
    assert errors == sorted(errors, reverse=True)
    basis, energy = leading_directions(problem.weight.double(), 10)
    assert torch.allclose(basis @ basis.T @ problem.weight.double(), problem.weight.double())
    assert energy == pytest.approx(1)


@pytest.mark.parametrize("rank", [3, 6])
def test_a_matrix_of_that_rank_is_returned(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, rank, generator=generator) @ torch.randn(rank, 50, generator=generator)
    stats = LayerStats.from_inputs(torch.randn(300, 50, generator=generator))
    for compressed in (svd(weight, rank=6, **EXACT), asvd(weight, stats, rank=6, **EXACT), whitened_svd(weight, stats, rank=6, **EXACT)):
        assert torch.allclose(compressed.dense(), weight, atol=1e-4)


def test_inputs_in_a_subspace_make_a_weight_of_full_rank_exact_there() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 50, generator=generator)
    inputs = torch.randn(300, 6, generator=generator) @ torch.randn(6, 50, generator=generator)
    stats = LayerStats.from_inputs(inputs)
    compressed = whitened_svd(weight, stats, rank=6, **EXACT)
    assert layer_error(weight, compressed, stats) < 1e-6
    assert layer_error(weight, svd(weight, rank=6, **EXACT), stats) > 0.1


def test_asvd_without_exponent_is_plain(layer: Any) -> None:
    assert torch.allclose(asvd(layer.weight, layer.stats, alpha=0.0, **EXACT).dense(), svd(layer.weight, **EXACT).dense(), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_kept_fraction_is_honoured_in_bytes(keep: float, shape: tuple[int, int], dtype: Any, make_layer: MakeLayer) -> None:
    weight = make_layer(0, *shape).weight
    compressed = svd(weight, keep=keep, factor_dtype=dtype)
    assert compressed.rank * sum(shape) <= max(keep * weight.numel(), sum(shape))
    assert (compressed.rank + 1) * sum(shape) > keep * weight.numel()
    assert compressed.nbytes == compressed.rank * sum(shape) * getattr(torch, dtype).itemsize


@pytest.mark.parametrize("method", [svd, asvd, whitened_svd], ids=lambda method: method.__name__)
@pytest.mark.parametrize("rank", [28, 48, 10_000])
def test_rank_that_saves_nothing_is_refused(method: Any, rank: int, layer: Any) -> None:
    message = rf"rank {rank} saves nothing on a weight of shape \(48, 64\): use a rank of at most 27, or the method 'keep'"
    with pytest.raises(InvalidArgument, match=message):
        method(layer.weight, layer.stats, rank=rank)
    assert method(layer.weight, layer.stats, rank=27).rank == 27


def test_keep_and_rank_together_are_refused(layer: Any) -> None:
    with pytest.raises(InvalidArgument, match="keep or rank, not both"):
        svd(layer.weight, keep=0.5, rank=3)


def test_fewer_tokens_than_inputs_are_healed_by_damping_that_is_reported(layer: Any) -> None:
    few = LayerStats.from_inputs(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    assert whitened_svd(layer.weight, few, rank=5).report["damping"] == 1e-6
    assert whitened_svd(layer.weight, few, rank=5, damping=0.0).report["damping"] > 0


def test_overflow_of_the_factors_is_refused_by_name(layer: Any) -> None:
    with pytest.raises(InvalidArgument, match="a factor rounded to float16"):
        svd(layer.weight * 1e12)
    assert torch.isfinite(svd(layer.weight * 1e12, factor_dtype="bfloat16").dense()).all()
