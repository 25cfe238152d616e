"""One layer as two: the same function at full rank, the closest of its rank below it, whatever stride, padding and dilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tersor.errors import InvalidArgument
from tersor.training import factor_layer, factor_model
from tersor.training.factored import as_weight, full_rank, matricised, saves

SCHEMES = ("channel", "spatial", "decouple")
EVERY = pytest.mark.parametrize("scheme", SCHEMES)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3}, "padded": {"kernel_size": 3, "padding": 1}, "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "oblong": {"kernel_size": (3, 5), "padding": (1, 2), "stride": (1, 2)}, "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "even": {"kernel_size": (2, 4), "stride": (2, 1), "bias": False}, "pointwise": {"kernel_size": 1},
    "same": {"kernel_size": 3, "padding": "same"}, "valid": {"kernel_size": (1, 3), "padding": "valid"},
}  # fmt: skip


def _convolution(case: str, seed: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(6, 10, **CONVOLUTIONS[case]).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


def _pixels(seed: int = 9) -> torch.Tensor:
    return torch.randn(2, 6, 11, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_full_rank_is_the_layer_itself(case: str, scheme: Any) -> None:
    layer = _convolution(case)
    pair = factor_layer(layer, full_rank(layer.weight, scheme), scheme)
    torch.testing.assert_close(pair(_pixels()), layer(_pixels()), rtol=0, atol=1e-10)


@EVERY
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("rank", [1, 2])
def test_below_full_rank_it_is_the_layer_with_the_truncated_weight(case: str, scheme: Any, rank: int) -> None:
    layer = _convolution(case)
    if rank > full_rank(layer.weight, scheme):
        return
    pair = factor_layer(layer, rank, scheme)
    u, s, vh = torch.linalg.svd(matricised(layer.weight.detach(), scheme), full_matrices=False)
    s[..., rank:] = 0
    layer.weight.data = as_weight(u @ torch.diag_embed(s) @ vh, layer.weight.shape, scheme)
    torch.testing.assert_close(pair(_pixels()), layer(_pixels()), rtol=0, atol=1e-10)


@EVERY
def test_matrices_and_weights_are_the_same_entries(scheme: Any) -> None:
    weight = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    matrix = matricised(weight, scheme)
    assert matrix.shape == {"channel": (2, 60), "spatial": (12, 10), "decouple": (2, 3, 20)}[scheme]
    assert torch.equal(as_weight(matrix, weight.shape, scheme), weight)
    # A separable kernel has rank one, which is what each scheme is for.
    for name, separable in {
        "channel": torch.rand(2, 1, 1, 1) * torch.rand(1, 3, 4, 5),
        "spatial": torch.rand(1, 3, 4, 1) * torch.rand(2, 1, 1, 5),
        "decouple": torch.rand(2, 3, 1, 1) * torch.rand(2, 1, 4, 5),
    }.items():
        ranks = torch.linalg.matrix_rank(matricised(separable.double(), scheme), rtol=1e-6)
        assert (int(ranks.max()) == 1) == (name == scheme)


@EVERY
def test_a_linear_layer_is_the_same_in_every_scheme(scheme: Any) -> None:
    layer = nn.Linear(7, 5)
    layer.weight.data = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    pair = factor_layer(layer, 3, scheme)
    assert [tuple(parameter.shape) for parameter in pair.parameters()] == [(3, 7), (5, 3), (5,)]
    best = torch.linalg.svdvals(layer.weight.detach())[3:].square().sum().sqrt()
    torch.testing.assert_close((pair[1].weight @ pair[0].weight - layer.weight).norm(), best)


@EVERY
def test_the_products_saved_are_those_that_a_counter_finds(scheme: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def products(module: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, 16, 24, 24, dtype=torch.float64))
        return int(counter.get_total_flops())

    for stride in (1, 2, (1, 2), (2, 1)):
        layer = nn.Conv2d(16, 12, 3, padding=1, stride=stride).double()
        for rank in range(1, full_rank(layer.weight, scheme) + 1):
            pair = factor_layer(layer, rank, scheme)
            fewer = sum(factor.weight.numel() for factor in pair) < layer.weight.numel() and products(pair) < products(layer)
            assert saves(layer, rank, scheme) == fewer, (stride, rank)


def test_layers_are_replaced_where_that_saves() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    first, bias = model[0], model[2].bias.detach().clone()
    assert factor_model(model, {"0": 10, "2": 9}) == {"2": 9}
    assert model[0] is first
    assert torch.equal(model[2][1].bias, bias)
    assert factor_model(model, {"0": 20}, only_smaller=False) == {"0": 20}


def test_a_layer_used_twice_stays_one() -> None:
    layer = nn.Linear(20, 20)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    factor_model(model, {"0": 2})
    assert model[0] is model[2]


@pytest.mark.parametrize(("rank", "scheme", "named"), [(0, "channel", "rank"), (11, "channel", "rank"), (3, "columns", "scheme")])
def test_bad_ranks_and_schemes_are_refused(rank: int, scheme: Any, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        factor_layer(_convolution("plain"), rank, scheme)


@pytest.mark.parametrize(("options", "named"), [({"groups": 2}, "2 groups"), ({"padding_mode": "circular"}, "'circular'")])
def test_convolutions_that_are_no_matrix_are_refused(options: dict[str, Any], named: str) -> None:
    layer = nn.Conv2d(4, 4, 3, **options)
    with pytest.raises(InvalidArgument, match=named):
        factor_layer(layer, 1)
    with pytest.raises(InvalidArgument, match=named):
        factor_model(nn.Sequential(layer), {"0": 1})


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'1' names"):
        factor_model(nn.Sequential(nn.Linear(4, 4)), {"1": 1})


@EVERY
def test_no_global_draw_is_made(scheme: Any) -> None:
    layer = _convolution("padded")
    state = torch.get_rng_state()
    factor_layer(layer, 2, scheme)
    assert torch.equal(state, torch.get_rng_state())
