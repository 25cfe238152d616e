from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from tersor.errors import InvalidArgument
from tersor.models.export.gguf_choice import check_type, fallback, store_compressed, store_dense
from tersor.models.export.grids import quantized_view, symmetric_view
from tersor.weights import CompressedWeight, LowRankWeight, SparseWeight
from tersor.weights.quantized import QuantizedWeight

Round = Callable[..., QuantizedWeight]


def gauss(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def check_stored(weight: CompressedWeight, expected: str, most: float) -> None:
    stored = store_compressed(weight)
    assert stored.type == expected
    decoded = torch.from_numpy(dequantize(stored.data, GGMLQuantizationType[stored.type])).float()
    error = float((decoded - weight.dense()).square().sum() / weight.dense().square().sum()) ** 0.5
    assert error == pytest.approx(stored.error, abs=1e-9)
    assert error <= most


EXACT_BY_GROUP_OF_32 = [
    (1, "symmetric", "Q4_0"), (2, "symmetric", "Q4_0"), (3, "symmetric", "Q4_0"), (4, "symmetric", "Q4_0"), (5, "symmetric", "Q5_0"),
    (6, "symmetric", "Q8_0"), (8, "symmetric", "Q8_0"), (2, "asymmetric", "Q4_0"), (3, "asymmetric", "Q4_0"), (6, "asymmetric", "Q8_0"),
    (2, "float_min", "Q4_1"), (4, "float_min", "Q4_1"), (5, "float_min", "Q5_1"),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "scheme", "expected"), EXACT_BY_GROUP_OF_32)
@pytest.mark.parametrize("group_size", [32, 64])
def test_small_groups_are_held_exactly(rtn: Round, bits: int, scheme: str, expected: str, group_size: int) -> None:
    check_stored(rtn(gauss(16, 192), bits, scheme, group_size), expected, 0.0)


@pytest.mark.parametrize(("bits", "expected"), [(4, "Q4_1"), (5, "Q5_1")])
def test_integer_zero_points_lose_only_the_rounding_of_the_minimum(rtn: Round, bits: int, expected: str) -> None:
    check_stored(rtn(gauss(16, 192), bits, "asymmetric", 64), expected, 1e-3)


EXACT_IN_SUPER_BLOCKS = [
    (1, "symmetric", "Q2_K"), (2, "symmetric", "Q2_K"), (3, "symmetric", "Q3_K"), (4, "symmetric", "Q4_K"), (5, "symmetric", "Q5_K"),
    (6, "symmetric", "Q6_K"), (2, "asymmetric", "Q2_K"), (4, "asymmetric", "Q4_K"), (5, "asymmetric", "Q5_K"),
    (2, "float_min", "Q2_K"), (4, "float_min", "Q4_K"), (5, "float_min", "Q5_K"),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "scheme", "expected"), EXACT_IN_SUPER_BLOCKS)
@pytest.mark.parametrize("group_size", [256, -1])
def test_groups_of_whole_super_blocks_are_held_exactly(rtn: Round, bits: int, scheme: str, expected: str, group_size: int) -> None:
    check_stored(rtn(gauss(8, 512), bits, scheme, group_size), expected, 0.0)


def test_groups_smaller_than_a_block_take_the_least_loss(rtn: Round) -> None:
    check_stored(rtn(gauss(8, 64), 3, "asymmetric", 16), "Q8_0", 0.01)
    check_stored(rtn(gauss(8, 172), 4, "symmetric", 43), "F16", 1e-3)


def test_what_no_type_holds_is_rounded_to_the_type_asked_for(rtn: Round) -> None:
    assert store_compressed(rtn(gauss(8, 256), 3, "asymmetric", 16), "Q4_K").type == "Q4_K"
    assert store_compressed(rtn(gauss(8, 256), 3, "asymmetric", 32), "Q8_0").type == "Q4_0"


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_pruned_grids_stay_grids(rtn: Round, scheme: str) -> None:
    weight = rtn(gauss(16, 128), 3, scheme, 32)
    sparse = SparseWeight.from_quantized(weight, gauss(16, 128, 1) > 0)
    view = quantized_view(sparse)
    assert view is not None
    assert torch.equal(view.dense(), sparse.dense())
    check_stored(sparse, "Q4_0", 0.0)


def test_other_kinds_are_stored_as_their_dense_matrix() -> None:
    left, right = gauss(32, 4), gauss(4, 64, 1)
    check_stored(LowRankWeight(left, right), "F16", 1e-3)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_symmetric_view_has_the_same_values(rtn: Round, bits: int, scheme: str) -> None:
    weight = rtn(gauss(8, 64), bits, scheme, 32)
    view = symmetric_view(weight)
    assert view is not None
    assert view.scheme == "symmetric"
    assert torch.equal(view.dense(), weight.dense())


def test_dense_matrices_go_into_the_smallest_exact_type(rtn: Round) -> None:
    x = gauss(8, 64)
    cases = {
        "F32": x, "F16": x.half().float(), "BF16": (1e-6 * x).bfloat16().float(), "Q4_1": rtn(x, 4, "float_min", 32).dense(),
        "Q8_0": (x / x.abs().reshape(8, 2, 32).amax(-1).repeat_interleave(32, 1) * 127).round() * 2**-10,
    }  # fmt: skip
    for expected, matrix in cases.items():
        stored = store_dense(matrix)
        assert (stored.type, stored.error) == (expected, 0.0)


@pytest.mark.parametrize(
    ("wanted", "columns", "given"),
    [("Q4_K", 512, "Q4_K"), ("Q4_K", 576, "Q5_0"), ("Q2_K", 576, "Q4_0"), ("Q6_K", 64, "Q8_0"), ("Q4_K", 172, "F16"), ("F32", 7, "F32")],
)
def test_rows_that_do_not_fit_fall_back(wanted: str, columns: int, given: str) -> None:
    assert fallback(wanted, columns) == given


def test_unknown_type_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidArgument, match=r"gguf_type must be one of Q2_K, .*F32, got 'IQ4_XS'"):
        check_type("IQ4_XS")
