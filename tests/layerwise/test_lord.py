"""LoRD: principal components of the outputs, with and without their mean."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, layer_error, lord, svd, whitened_svd
from tersor.layerwise.lord import token_error
from tersor.weights import BiasedWeight, LowRankWeight, QuantizedWeight

EXACT = {"factor_dtype": "float32", "damping": 1e-9}


def shifted(seed: int, mean: float, tokens: int = 2000, n: int = 24) -> tuple[torch.Tensor, torch.Tensor, LayerStats]:
    """A weight, inputs with a common mean of the given size, and their statistics."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, n, generator=random)
    x = torch.randn(tokens, n, generator=random) @ torch.randn(n, n, generator=random) / n**0.5
    x = x - x.mean(0) + mean * torch.randn(n, generator=random)
    return weight, x, LayerStats.from_inputs(x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mean", [0.3, 3.0])
def test_centred_is_below_whitened_where_there_is_a_mean(seed, mean):
    weight, _, stats = shifted(seed, mean)
    centred = lord(weight, stats, rank=6, center=True, **EXACT)
    plain = whitened_svd(weight, stats, rank=6, **EXACT)
    assert layer_error(weight, centred, stats) < layer_error(weight, plain, stats)


@pytest.mark.parametrize("seed", range(3))
def test_centred_equals_whitened_without_a_mean(seed):
    weight, _, stats = shifted(seed, 0.0)
    centred = lord(weight, stats, rank=6, center=True, **EXACT)
    torch.testing.assert_close(centred.dense(), whitened_svd(weight, stats, rank=6, **EXACT).dense(), rtol=1e-3, atol=1e-4)
    assert float(centred.bias.abs().max()) < 1e-4


def test_not_centred_is_whitened_svd(layer):
    plain, rival = lord(layer.weight, layer.stats, rank=9, center=False), whitened_svd(layer.weight, layer.stats, rank=9)
    assert isinstance(plain, LowRankWeight)
    assert torch.equal(plain.dense(), rival.dense())


def test_forgetting_the_bias_is_worse_than_not_centring():
    weight, _, stats = shifted(0, 3.0)
    centred, plain = (lord(weight, stats, rank=6, center=center, **EXACT) for center in (True, False))
    assert layer_error(weight, centred.dense(), stats) > layer_error(weight, plain, stats) > layer_error(weight, centred, stats)


def test_error_is_that_of_the_outputs_and_the_sum_of_what_the_covariance_loses():
    weight, x, stats = shifted(1, 1.0)
    made = lord(weight, stats, rank=6, center=True, **EXACT)
    outputs = x @ weight.T
    lost = float((made(x) - outputs).square().sum() / outputs.square().sum())
    assert made.report["error"] == pytest.approx(lost, rel=1e-3)
    centred = outputs - outputs.mean(0)
    discarded = torch.linalg.eigvalsh(centred.T.double() @ centred.double())[:-6].sum()
    assert lost == pytest.approx(float(discarded / outputs.double().square().sum()), rel=1e-3)
    each = (made(x[:5]) - outputs[:5]).square().sum(1) / outputs[:5].square().sum(1)
    torch.testing.assert_close(token_error(weight, made, x[:5]), each)


def test_features_of_low_rank_are_exact_though_the_weight_is_not():
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(32, 24, generator=random)
    stats = LayerStats.from_inputs(torch.randn(500, 5, generator=random) @ torch.randn(5, 24, generator=random) + 2.0)
    made = lord(weight, stats, rank=5, center=True, **EXACT)
    assert layer_error(weight, made, stats) < 1e-6 < svd(weight, None, rank=5).report["kept_energy"] < 0.9


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_auto_takes_the_bias_where_it_is_worthwhile(mean):
    weight, _, stats = shifted(0, mean)
    made = lord(weight, stats, rank=6)
    assert isinstance(made, BiasedWeight) == made.report["centred"] == (mean > 0)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])
def test_on_a_real_layer(real_layers, name):
    layer = real_layers[name]
    plain, centred = (lord(layer.weight, layer.stats, keep=0.5, center=center) for center in (False, True))
    rival = svd(layer.weight, None, keep=0.5)
    assert layer_error(layer.weight, centred, layer.stats) <= layer_error(layer.weight, plain, layer.stats)
    assert layer_error(layer.weight, plain, layer.held_out) < layer_error(layer.weight, rival, layer.held_out)


@pytest.mark.parametrize("center", [True, False], ids=["centred", "plain"])
def test_factors_in_8_bits_cost_half_and_hardly_any_error(center, layer):
    whole = lord(layer.weight, layer.stats, rank=12, center=center)
    small = lord(layer.weight, layer.stats, rank=12, center=center, factor_bits=8, factor_group_size=16)
    body = small.body if isinstance(small, BiasedWeight) else small
    assert isinstance(body.left, QuantizedWeight)
    assert small.nbytes < 0.72 * whole.nbytes
    assert layer_error(layer.weight, small, layer.held_out) < 1.02 * layer_error(layer.weight, whole, layer.held_out)


def test_ranks_come_in_multiples(layer):
    assert lord(layer.weight, layer.stats, keep=0.7, rank_multiple=8).report["rank"] == 16
    assert lord(layer.weight, layer.stats, keep=0.1, rank_multiple=8).report["rank"] == 2
    assert lord(layer.weight, layer.stats, rank=11, rank_multiple=8).report["rank"] == 11


@pytest.mark.parametrize("center", ["yes", None, 1])
def test_unknown_centring_is_refused(center, layer):
    with pytest.raises(InvalidArgument, match="center must be true, false or 'auto'"):
        lord(layer.weight, layer.stats, center=center)
