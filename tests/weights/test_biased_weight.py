"""A weight with a bias of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import BiasedWeight, DenseWeight, LowRankWeight, compressed_layer, weight_from_config


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
