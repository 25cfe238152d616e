"""Condition numbers and their kin: invariances, closed forms and bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tersor.errors import InvalidArgument
from tersor.finetuning import condition_number, output_entropy, random_condition, singular_values, spectral_report


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed: int, n: int) -> torch.Tensor:
    return torch.linalg.qr(gaussian(seed, n, n)).Q


class Bag(nn.Module):
    """Parameters under given names."""

    def __init__(self, **parameters: torch.Tensor) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))


def row(**parameter: torch.Tensor):
    return spectral_report(Bag(**parameter))[0]


@pytest.mark.parametrize("shape", [(12, 12), (5, 20), (20, 5)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_condition_ignores_scale_and_rotations(seed, shape):
    weight = gaussian(seed, *shape)
    condition = condition_number(weight)
    assert condition == pytest.approx(float(torch.linalg.cond(weight)), rel=1e-6)
    assert condition == pytest.approx(condition_number(-3e-4 * weight), rel=1e-6)
    rotated = orthogonal(seed + 10, shape[0]) @ weight @ orthogonal(seed + 20, shape[1])
    assert condition == pytest.approx(condition_number(rotated), rel=1e-4)
    assert condition >= 1


@pytest.mark.parametrize("smallest", [1e-2, 1e-5, 1e-8, 1e-11])
def test_small_singular_values_are_resolved(smallest):
    values = torch.tensor([1.0, 0.5, 0.25, smallest], dtype=torch.float64)
    weight = orthogonal(0, 4) @ torch.diag(values) @ orthogonal(1, 4)
    torch.testing.assert_close(singular_values(weight), values, rtol=1e-3, atol=1e-15)
    assert condition_number(weight) == pytest.approx(1 / smallest, rel=1e-3)


def test_orthogonal_matrices_are_the_best_in_every_measure():
    best = row(weight=orthogonal(2, 9) * 7)
    assert best.condition == pytest.approx(1)
    assert best.trimmed == pytest.approx(1)
    assert best.stable_rank == pytest.approx(9)
    assert best.effective_rank == pytest.approx(9)
    assert best.log_volume == pytest.approx(-9 / 2 * math.log(9))
    for seed in range(5):
        other = row(weight=gaussian(seed, 9, 9))
        assert other.log_volume < best.log_volume
        assert 1 <= other.stable_rank < other.effective_rank < 9
        assert other.condition >= other.trimmed > 1


def test_singular_matrices_have_infinite_condition_and_the_volume_of_their_rank():
    weight = gaussian(3, 8, 2) @ gaussian(4, 2, 8)
    singular = row(weight=weight)
    assert singular.condition == math.inf
    assert singular.rank == 2
    values = torch.linalg.svdvals(weight)[:2]
    assert singular.log_volume == pytest.approx(float((values / values.norm()).log().sum()), rel=1e-6)
    zero = row(weight=torch.zeros(3, 4))
    assert (zero.condition, zero.rank, zero.stable_rank, zero.effective_rank) == (math.inf, 0, 0.0, 0.0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_entropy_is_that_of_a_gaussian(n):
    weight = gaussian(n, n, n + 2)
    covariance = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), weight @ weight.T)
    assert output_entropy(weight) == pytest.approx(float(covariance.entropy()), rel=1e-9)
    # And, by sampling alone: minus the mean log density of what the layer puts out.
    outputs = gaussian(n + 10, 40_000, n + 2) @ weight.T
    assert output_entropy(weight) == pytest.approx(float(-covariance.log_prob(outputs).mean()), abs=0.03)


def test_entropy_of_outputs_that_fill_a_subspace_is_that_within_it():
    inner = gaussian(5, 3, 3)
    isometry = orthogonal(6, 5)[:, :3]
    assert output_entropy(isometry @ inner) == pytest.approx(output_entropy(inner))
    with pytest.raises(InvalidArgument, match="matrix of zeros"):
        output_entropy(torch.zeros(3, 3))


@pytest.mark.parametrize("shape", [(40, 160), (160, 40), (64, 192)], ids=str)
def test_random_matrices_have_about_the_expected_condition(shape):
    measured = [condition_number(gaussian(seed, *shape)) for seed in range(5)]
    assert random_condition(*shape) == pytest.approx(sum(measured) / 5, rel=0.2)
    assert row(weight=gaussian(0, *shape)).measure("aspect") == pytest.approx(1, rel=0.3)


def test_square_random_matrices_have_the_expected_geometric_mean():
    logs = [math.log(condition_number(gaussian(seed, 32, 32))) for seed in range(60)]
    # The logarithm has a standard deviation of about 1, hence 0.13 of their mean.
    assert sum(logs) / 60 == pytest.approx(math.log(random_condition(32, 32)), abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_convolutions_are_read(dtype):
    kernel = gaussian(7, 6, 3, 2, 2).to(dtype)
    spectrum = row(kernel=kernel)
    assert spectrum.shape == (6, 12)
    assert spectrum.condition == pytest.approx(float(torch.linalg.cond(kernel.flatten(1).double())), rel=1e-6)


def test_report_passes_over_vectors_vocabularies_and_tied_copies():
    model = nn.Sequential(nn.Embedding(500, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 500, bias=False))
    model[3].weight = model[0].weight
    assert [spectrum.name for spectrum in spectral_report(model)] == ["0.weight", "1.weight"]
    assert [spectrum.name for spectrum in spectral_report(model, max_dim=499)] == ["1.weight"]
    with pytest.raises(InvalidArgument, match="no matrix among its parameters with at most 4 rows"):
        spectral_report(model, max_dim=4)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(InvalidArgument, match=r"1\.weight: a matrix of shape \(8, 8\) holds NaN"):
        spectral_report(model)
    with pytest.raises(InvalidArgument, match="need a matrix"):
        singular_values(torch.ones(3))
