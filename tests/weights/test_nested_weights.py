"""LowRankWeight, SumWeight and the shared parts of the base class."""

from __future__ import annotations

import copy

import pytest
import torch

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import (
    DenseWeight,
    LowRankWeight,
    QuantizedWeight,
    SparseWeight,
    SumWeight,
    ZeroWeight,
    check_matrix,
    weight_from_config,
)


def quantized(out: int, width: int) -> QuantizedWeight:
    return QuantizedWeight(torch.ones(out, width, dtype=torch.uint8), torch.ones(out, 1), None, bits=4, scheme="symmetric", group_size=-1)


def test_low_rank_counts_both_factors():
    weight = LowRankWeight(torch.randn(30, 2).half(), torch.randn(2, 50).half())
    assert (weight.rank, weight.shape, weight.nbytes) == (2, (30, 50), 2 * 2 * (30 + 50))


def test_low_rank_multiplies_through_the_factors_and_never_forms_the_product(monkeypatch):
    weight = LowRankWeight(torch.randn(30, 2), torch.randn(2, 50))
    expected = weight.dense()
    monkeypatch.setattr(LowRankWeight, "dense", None)
    torch.testing.assert_close(weight(torch.eye(50)).T, expected)


def test_dense_stores_rows_whatever_was_given():
    assert DenseWeight(torch.ones(3, 5).T).values.is_contiguous()


def test_names_of_nested_buffers_are_paths():
    weight = SumWeight([quantized(4, 6), LowRankWeight(quantized(4, 2), torch.ones(2, 6))])
    names = {"parts.0.codes", "parts.0.scale", "parts.1.left.codes", "parts.1.left.scale", "parts.1.right.values"}
    assert set(weight.state_dict()) == names


def test_sum_of_sums_is_the_flat_sum():
    a, b, c = (DenseWeight(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))) for seed in range(3))
    nested, flat = SumWeight([SumWeight([a, b]), c]), SumWeight([a, b, c])
    assert torch.equal(nested.dense(), flat.dense())
    assert nested.nbytes == flat.nbytes == 3 * 60
    assert list(flat) == [a, b, c]


def test_summing_does_not_change_the_parts():
    part = DenseWeight(torch.ones(2, 3))
    weight = SumWeight([part, part])
    assert torch.equal(weight.dense(), torch.full((2, 3), 2.0))
    assert torch.equal(part.values, torch.ones(2, 3))


def test_a_sum_of_nothing_stored_has_no_bytes():
    weight = SumWeight([ZeroWeight((2, 3))])
    assert (weight.nbytes, weight.device) == (0, torch.device("cpu"))
    assert torch.equal(weight.half()(torch.ones(1, 3)), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SumWeight([]), "at least one part"),
        (lambda: SumWeight([quantized(2, 3), quantized(3, 2)]), r"one shape, got \(2, 3\), \(3, 2\)"),
        (lambda: LowRankWeight(torch.ones(3, 2), torch.ones(3, 2)), "do not multiply"),
        (lambda: DenseWeight(torch.ones(3, 2).double()), "float32, float16, bfloat16, got float64"),
        (lambda: DenseWeight(torch.ones(3)), "floating-point matrix"),
        (lambda: check_matrix(torch.ones(0, 3), "model.head"), "model.head is empty"),
        (lambda: check_matrix(torch.tensor([[1.0, torch.nan]]), "model.head"), r"model.head of shape \(1, 2\) holds 1 NaN or Inf"),
    ],
    ids=["no part", "shapes", "inner size", "float64", "vector", "empty", "nan"],
)
def test_refusals(build, message: str):
    with pytest.raises(InvalidArgument, match=message):
        build()


@pytest.mark.parametrize("config", [None, [], "quantized", {}, {"kind": "nonsense"}, {"kind": ["quantized"]}, {"kind": "sum"}], ids=repr)
def test_what_is_no_description_is_refused(config):
    with pytest.raises(CorruptFile):
        weight_from_config(config)


def test_endless_nesting_is_refused():
    config: dict = {"kind": "zero", "shape": [1, 1]}
    for _ in range(5000):
        config = {"kind": "sum", "shape": [1, 1], "parts": [config]}
    with pytest.raises(CorruptFile):
        weight_from_config(config)


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "lowrank", "shape": [3, 4], "left": {"kind": "zero", "shape": [3, 2]}, "right": {"kind": "zero", "shape": [1, 4]}},
        {"kind": "lowrank", "shape": [4, 3], "left": {"kind": "zero", "shape": [3, 2]}, "right": {"kind": "zero", "shape": [2, 4]}},
        {"kind": "sum", "shape": [3, 4], "parts": []},
        {"kind": "sum", "shape": [3, 4], "parts": [{"kind": "zero", "shape": [3, 4]}, {"kind": "zero", "shape": [4, 3]}]},
    ],
    ids=["inner size", "outer size", "no part", "other shape"],
)
def test_nested_shapes_that_disagree_are_refused(config: dict):
    with pytest.raises(CorruptFile, match=r"\[[34], [34]\]"):
        weight_from_config(config)


def test_sparse_factors_nest():
    mask = torch.eye(4, dtype=torch.bool)
    weight = LowRankWeight(SparseWeight.from_dense(torch.ones(4, 4), mask), torch.ones(4, 6))
    assert torch.equal(weight.dense(), torch.ones(4, 6))


def test_deep_copies_are_independent():
    weight = SumWeight([quantized(4, 6), LowRankWeight(torch.ones(4, 1), torch.ones(1, 6))])
    weight.report = {"damping": 0.01}
    twin = copy.deepcopy(weight)
    before = weight.dense()
    for buffer in twin.buffers():
        buffer.zero_()
    assert torch.equal(weight.dense(), before)
    assert twin.report == {"damping": 0.01}
