"""Matrix product operators: exactness, error identities, factors, and the fit to the inputs."""

from __future__ import annotations

from math import prod

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, layer_error, svd, tensor_network
from tersor.layerwise.tensor_network import balanced_factors, parameters, tensor_train

EXACT = {"factor_dtype": "float32"}


def random_weight(seed: int, out: int = 48, width: int = 64) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_a_kronecker_product_is_recovered_where_low_rank_is_not(seed):
    a, b = random_weight(seed, 6, 8), random_weight(seed + 9, 8, 8)
    weight = torch.kron(a, b)
    made = tensor_network(weight, None, bond=1, **EXACT)
    torch.testing.assert_close(made.dense(), weight, rtol=1e-5, atol=1e-5)
    assert made.n_parameters == a.numel() + b.numel()
    assert svd(weight, None, rank=1).report["kept_energy"] < 0.5


def test_a_product_of_three_is_recovered():
    parts = [random_weight(seed, *shape) for seed, shape in enumerate(((3, 4), (4, 4), (4, 4)))]
    weight = torch.kron(torch.kron(parts[0], parts[1]), parts[2])
    torch.testing.assert_close(tensor_network(weight, None, sites=3, bond=1, **EXACT).dense(), weight, rtol=1e-5, atol=1e-5)


def test_two_sites_are_the_singular_value_decomposition_of_the_rearranged_matrix():
    weight = random_weight(0)
    made = tensor_network(weight, None, bond=10, **EXACT)
    rearranged = weight.reshape(6, 8, 8, 8).permute(0, 2, 1, 3).reshape(48, 64)
    discarded = torch.linalg.svdvals(rearranged.double())[10:].square().sum()
    assert float((weight - made.dense()).double().square().sum()) == pytest.approx(float(discarded), rel=1e-5)


@pytest.mark.parametrize("sites", [2, 3, 4])
def test_error_is_what_the_cuts_left_out_and_falls_with_the_bond(sites):
    weight = random_weight(1)
    factors = (balanced_factors(48, sites), balanced_factors(64, sites))
    errors = []
    for bond in (1, 3, 6, 12, 64):
        cores, energy = tensor_train(weight, factors, bond)
        for core in cores[:-1]:
            columns = core.reshape(-1, core.shape[-1])
            torch.testing.assert_close(columns.T @ columns, torch.eye(core.shape[-1], dtype=torch.float64))
        product = cores[0]
        for core in cores[1:]:
            product = torch.einsum("ajib,bklc->ajkilc", product, core).reshape(1, product.shape[1] * core.shape[1], -1, core.shape[3])
        error = float((weight.double() - product.reshape(48, 64)).square().sum()) / float(weight.double().square().sum())
        assert error == pytest.approx(1 - energy, abs=1e-10)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


@pytest.mark.parametrize("sites", [2, 3, 4])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_the_largest_bond_within_the_budget_is_taken(sites, keep):
    made = tensor_network(random_weight(0), None, keep=keep, sites=sites)
    factors = (balanced_factors(48, sites), balanced_factors(64, sites))
    assert made.n_parameters == made.nbytes // 2 <= keep * 48 * 64
    assert parameters(factors, max(made.bonds)) == made.n_parameters
    assert parameters(factors, max(made.bonds) + 1) > keep * 48 * 64 or max(made.bonds) == 48


@pytest.mark.parametrize(
    ("size", "sites", "factors"),
    [(576, 2, (24, 24)), (576, 3, (8, 8, 9)), (576, 4, (4, 4, 6, 6)), (1536, 2, (32, 48)), (1536, 3, (8, 12, 16)), (192, 2, (12, 16))],
)  # fmt: skip
def test_factors_are_balanced(size, sites, factors):
    assert balanced_factors(size, sites) == factors
    assert prod(factors) == size


@pytest.mark.parametrize("sites", [2, 3])
@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])
def test_the_fit_to_the_inputs_lowers_the_error_on_a_real_layer(real_layers, name, sites):
    layer = real_layers[name]
    options = {"keep": 0.5, "sites": sites, **EXACT}
    made = [tensor_network(layer.weight, layer.stats, refit_sweeps=sweeps, **options) for sweeps in range(4)]
    errors = [layer_error(layer.weight, weight, layer.stats) for weight in made]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]
    fitted = tensor_network(layer.weight, layer.stats, keep=0.5, sites=sites, refit_sweeps=3)
    plain = tensor_network(layer.weight, None, keep=0.5, sites=sites)
    assert layer_error(layer.weight, fitted, layer.held_out) < layer_error(layer.weight, plain, layer.held_out)


def test_white_inputs_leave_nothing_to_refit_with_two_sites():
    weight = random_weight(3)
    plain = tensor_network(weight, None, bond=8, **EXACT)
    fitted = tensor_network(weight, LayerStats.identity(64), bond=8, refit_sweeps=2, **EXACT)
    torch.testing.assert_close(fitted.dense(), plain.dense(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sites", [2, 3])
def test_cores_in_8_bits_cost_little(sites):
    weight = random_weight(0, 96, 96)
    whole, small = (tensor_network(weight, None, sites=sites, core_bits=bits) for bits in (None, 8))
    identity = LayerStats.identity(96)
    assert small.nbytes < 0.7 * whole.nbytes
    assert layer_error(weight, small, identity) < 1.02 * layer_error(weight, whole, identity)
    assert small.report["bonds"] == whole.report["bonds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": 1}, "from 2 to 8"), ({"sites": 7}, r"48 does not split into 7 factors"),
        ({"keep": 0.5, "bond": 3}, "keep or bond, not both"),
        ({"bond": 48}, "bond dimension 48 saves nothing"), ({"bond": 0}, "at least 1"), ({"out_factors": (5, 10)}, "product is 48"),
        ({"out_factors": (6, 8), "in_factors": (4, 4, 4)}, "as many"), ({"core_bits": 0}, "from 1 to 8"),
        ({"refit_sweeps": -1}, "at least 0"), ({"refit_sweeps": 1}, "needs the statistics"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        tensor_network(random_weight(0), None, **options)


def test_a_prime_dimension_is_refused_unless_its_factors_are_given():
    with pytest.raises(InvalidArgument, match="31 does not split into 2 factors"):
        tensor_network(random_weight(0, 31, 64), None)
    assert tensor_network(random_weight(0, 31, 64), None, out_factors=(1, 31), in_factors=(8, 8), bond=2).shape == (31, 64)
