"""A weight with a bias of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import BiasedWeight, DenseWeight, LowRankWeight, SumWeight, compressed_layer, weight_from_config
from tersor.weights.modules import bias_of, set_offset


def test_product_adds_the_bias_and_the_matrix_leaves_it_out(random):
    body, bias = torch.randn(5, 3, generator=random), torch.randn(5, generator=random).half()
    weight = BiasedWeight(DenseWeight(body), bias)
    x = torch.randn(2, 4, 3, generator=random)
    torch.testing.assert_close(weight(x), x @ body.T + bias.float())
    assert torch.equal(weight.dense(), body)
    assert torch.equal(weight.rows(torch.tensor([2])), body[2:3])
    assert weight.nbytes == 4 * 15 + 2 * 5


def test_bias_of_the_layer_is_added_as_well(random):
    layer = nn.Linear(3, 5)
    offset = torch.randn(5, generator=random)
    made = compressed_layer(layer, BiasedWeight(DenseWeight(layer.weight.detach()), offset))
    x = torch.randn(7, 3, generator=random)
    torch.testing.assert_close(made(x), layer(x) + offset)


def test_bias_survives_the_round_trip_and_casts(random):
    factors = LowRankWeight(torch.randn(5, 2, generator=random).half(), torch.randn(2, 3, generator=random).half())
    weight = BiasedWeight(factors, torch.randn(5, generator=random).half())
    copy = weight_from_config(weight.config)
    copy.load_state_dict(weight.state_dict())
    x = torch.randn(4, 3, generator=random)
    assert torch.equal(copy(x), weight(x))
    assert weight.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert weight.bias.dtype == torch.float16


def test_offset_is_what_is_added_wherever_the_bias_is(random):
    body, bias = torch.randn(5, 3, generator=random), torch.randn(5, generator=random)
    biased = BiasedWeight(DenseWeight(body), bias)
    factor = torch.randn(7, 5, generator=random)
    nested = {
        "itself": biased, "twice": BiasedWeight(biased, bias.half()), "sum": SumWeight([biased, DenseWeight(body), biased]),
        "product": LowRankWeight(factor, biased),
    }  # fmt: skip
    x = torch.randn(4, 3, generator=random)
    for name, weight in nested.items():
        torch.testing.assert_close(weight(x), x @ weight.dense().T + weight.offset, msg=name)
    torch.testing.assert_close(nested["product"].offset, factor @ bias)
    assert DenseWeight(body).offset is SumWeight([DenseWeight(body)]).offset is None


@pytest.mark.parametrize("own", [True, False], ids=["bias", "no bias"])
def test_a_dense_layer_takes_an_offset_and_gives_it_back(own, random):
    layer = nn.Linear(3, 5, bias=own).requires_grad_(False)
    x, bias, offset = torch.randn(4, 3, generator=random), bias_of(layer), torch.randn(5, generator=random)
    before = layer(x)
    for _ in range(2):
        set_offset(layer, offset, bias)
        torch.testing.assert_close(layer(x), before + offset)
    set_offset(layer, None, bias)
    assert torch.equal(layer(x), before)


def test_a_table_takes_no_offset():
    with pytest.raises(InvalidArgument, match=r"Embedding of shape .* cannot add an offset"):
        set_offset(nn.Embedding(5, 3), torch.zeros(5), None)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(3), r"shape \(5,\), got float32 of shape \(3,\)"), (torch.zeros(5, dtype=torch.int32), "got int32"),
        (torch.tensor([1e6, 0, 0, 0, 0]).half(), "wider type"),
    ],
    ids=["length", "type", "overflow"],
)  # fmt: skip
def test_bad_bias_is_refused(bias, message):
    with pytest.raises(InvalidArgument, match=message):
        BiasedWeight(DenseWeight(torch.ones(5, 3)), bias)


def test_stored_body_of_another_shape_is_refused():
    config = BiasedWeight(DenseWeight(torch.ones(5, 3)), torch.zeros(5)).config
    with pytest.raises(CorruptFile, match="body of shape"):
        weight_from_config({**config, "shape": [5, 4]})
