"""Tensor trains: products of cores, and the order in which they are taken."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import TensorTrainWeight, weight_from_config
from tersor.weights.contraction import best_order, order_of

ROWS, COLUMNS = (2, 3, 4), (4, 2, 3)


def train(random: torch.Generator, bonds: tuple[int, ...] = (5, 4)) -> TensorTrainWeight:
    ends = zip(ROWS, COLUMNS, (1, *bonds), (*bonds, 1), strict=True)
    return TensorTrainWeight([torch.randn(j * right, left * i, generator=random) for j, i, left, right in ends], ROWS, COLUMNS)


def test_bonds_of_one_are_a_kronecker_product(random):
    factors = [torch.randn(j, i, generator=random) for j, i in zip(ROWS, COLUMNS, strict=True)]
    weight = TensorTrainWeight(factors, ROWS, COLUMNS)
    torch.testing.assert_close(weight.dense(), torch.kron(torch.kron(factors[0], factors[1]), factors[2]))
    assert weight.nbytes == 4 * sum(factor.numel() for factor in factors) == 4 * weight.n_parameters


RUNS = [((0, 1), (1, 2), (2, 3)), ((0, 2), (2, 3)), ((0, 1), (1, 3)), ((0, 3),)]


@pytest.mark.parametrize("from_left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("blocks", RUNS, ids=str)
def test_every_order_gives_the_same_product(blocks, from_left, random, monkeypatch):
    weight = train(random)
    monkeypatch.setattr(weight, "order", lambda tokens: order_of(weight.sites, blocks, from_left, tokens))
    x = torch.randn(6, 24, generator=random)
    torch.testing.assert_close(weight(x), x @ weight.dense().T, rtol=1e-4, atol=1e-4)


def test_chunks_of_tokens_join(random, monkeypatch):
    weight = train(random)
    monkeypatch.setattr("tersor.weights.tensor_train._CHUNK", 100)
    monkeypatch.setattr(weight, "order", lambda tokens: order_of(weight.sites, RUNS[0], True, tokens))
    x = torch.randn(9, 24, generator=random)
    torch.testing.assert_close(weight(x), x @ weight.dense().T, rtol=1e-4, atol=1e-4)


def test_the_order_is_the_cheapest_and_many_tokens_pay_for_the_dense_matrix():
    sites = ((1, 24, 24, 8), (8, 24, 24, 1))
    one, many = best_order(sites, 1), best_order(sites, 4096)
    assert one.blocks == ((0, 1), (1, 2))
    # Two products of 24 * 24 * 24 * 8 multiplications.
    assert one.cost == 2 * 24 * 24 * 24 * 8
    wide = ((1, 24, 24, 400), (400, 24, 24, 1))
    assert best_order(wide, 4096).blocks == ((0, 2),)
    assert many.cost <= order_of(sites, ((0, 2),), True, 4096).cost


def test_the_dense_matrix_costs_what_it_costs():
    sites = ((1, 2, 3, 5), (5, 7, 11, 1))
    order = order_of(sites, ((0, 2),), True, 10)
    assert order.cost == 2 * 3 * 5 * 7 * 11 + 10 * 14 * 33


def test_gradients_reach_the_cores(random):
    weight = train(random)
    cores = list(weight.buffers())
    for core in cores:
        core.requires_grad_(True)
    x = torch.randn(2, 24, generator=random)
    found = torch.autograd.grad(weight(x).square().sum(), cores)
    expected = torch.autograd.grad((x @ weight.dense().T).square().sum(), cores)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(10, 4), (12, 10), (4, 11)], r"core 3 has shape \(4, 11\)"), ([(9, 4), (12, 10), (4, 12)], "core 1"),
        ([(10, 4), (12, 10)], "2 cores need as many factors"), ([(10, 4), (12, 10), (8, 12)], "ends in a bond of 2"),
    ],
    ids=["columns", "rows", "number", "open"],
)  # fmt: skip
def test_cores_must_fit(shapes, message):
    with pytest.raises(InvalidArgument, match=message):
        TensorTrainWeight([torch.ones(shape) for shape in shapes], ROWS, COLUMNS)


def test_stored_factors_must_multiply_to_the_shape(random):
    config = train(random).config
    with pytest.raises(CorruptFile, match="multiply to 24"):
        weight_from_config({**config, "out_factors": [2, 3, 5]})
    with pytest.raises(CorruptFile, match="does not fit together"):
        weight_from_config({**config, "in_factors": [2, 4, 3]})
