"""SparseWeight: the smaller of the representations is chosen, counted to the byte, and its damage is seen before it is used."""

from __future__ import annotations

from math import ceil, comb, log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import QuantizedWeight, SparseWeight, check_state, weight_from_config
from tersor.weights.positions import BitMap, ColumnIndices, GroupPatterns, patterns


def random_mask(out: int, width: int, density: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(out, width, generator=torch.Generator().manual_seed(seed)) < density


def pattern_mask(out: int, width: int, keep_n: int, of_m: int, seed: int = 0) -> torch.Tensor:
    order = torch.rand(out, width // of_m, of_m, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return (order < keep_n).reshape(out, width)


@given(out=st.integers(1, 9), width=st.integers(1, 300), density=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_unstructured_takes_the_smaller_representation(out: int, width: int, density: float, seed: int):
    mask = random_mask(out, width, density, seed)
    values = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)).half().float()
    weight = SparseWeight.from_dense(values, mask)
    kept = int(mask.sum())
    bitmap = out * ceil(width / 8)
    columns = kept * (1 if width <= 256 else 2) + 4 * (out + 1)
    assert weight.nbytes == 2 * kept + min(bitmap, columns)
    assert torch.equal(weight.mask(), mask)
    assert torch.equal(weight.dense(), values * mask)
    assert weight.sparsity == pytest.approx(1 - kept / mask.numel())


@pytest.mark.parametrize(("width", "dtype"), [(256, torch.uint8), (257, torch.int16), (32768, torch.int16), (32769, torch.int32)])
def test_columns_are_stored_in_the_narrowest_type_that_holds_the_last(width: int, dtype: torch.dtype):
    mask = torch.zeros(2, width, dtype=torch.bool)
    mask[0, -1] = mask[1, 0] = mask[1, -1] = True
    positions = ColumnIndices.of(mask)
    assert positions.columns.dtype == dtype
    assert torch.equal(positions.mask(), mask)


@pytest.mark.parametrize(("keep_n", "of_m"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (1, 16), (2, 16), (3, 6)])
def test_patterns_take_the_bits_that_their_number_needs(keep_n: int, of_m: int):
    width = of_m * 5
    mask = pattern_mask(3, width, keep_n, of_m)
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(1)).half().float()
    weight = SparseWeight.from_dense(values, mask, keep_n=keep_n, of_m=of_m)
    assert isinstance(weight.positions, GroupPatterns)
    assert weight.nbytes == 3 * (ceil(5 * ceil(log2(comb(of_m, keep_n))) / 8) + 2 * 5 * keep_n)
    assert torch.equal(weight.dense(), values * mask)


def test_two_of_four_costs_three_quarters_of_a_bit_for_positions():
    mask = pattern_mask(4, 64, 2, 4)
    assert SparseWeight.from_dense(torch.randn(4, 64), mask, keep_n=2, of_m=4).bits_per_weight == 8 + 0.75


def test_patterns_too_many_to_number_are_stored_as_a_bit_map():
    mask = pattern_mask(2, 32, 8, 16)
    assert isinstance(SparseWeight.from_dense(torch.randn(2, 32), mask, keep_n=8, of_m=16).positions, BitMap)


def test_pattern_table_is_ascending_and_complete():
    table = patterns(2, 4)
    assert table.tolist() == [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100]


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "float_min"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_joint_mode_stores_codes_of_the_kept_positions_only(scheme: str, bits: int):
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (6, 32), generator=random, dtype=torch.uint8)
    zero = None if scheme == "symmetric" else torch.randint(0, 2**bits, (6, 2), generator=random)
    full = QuantizedWeight(codes, torch.rand(6, 2, generator=random) + 0.1, zero, bits=bits, scheme=scheme, group_size=16)
    mask = pattern_mask(6, 32, 2, 4)
    weight = SparseWeight.from_quantized(full, mask, keep_n=2, of_m=4)
    assert torch.equal(weight.dense(), torch.where(mask, full.dense(), 0))
    grid = full.nbytes - full.codes.numel()
    assert weight.nbytes == ceil(6 * 16 * bits / 8) + 6 * 3 + grid


@pytest.mark.parametrize("group_size", [4, 8, 24])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_joint_mode_without_a_pattern_finds_the_scale_of_every_kept_code(scheme: str, group_size: int):
    random = torch.Generator().manual_seed(group_size)
    codes, groups = torch.randint(0, 8, (7, 48), generator=random, dtype=torch.uint8), 48 // group_size
    zero = None if scheme == "symmetric" else torch.randint(0, 8, (7, groups), generator=random)
    full = QuantizedWeight(codes, torch.rand(7, groups, generator=random) + 0.1, zero, bits=3, scheme=scheme, group_size=group_size)
    mask = random_mask(7, 48, 0.4)
    weight = SparseWeight.from_quantized(full, mask)
    assert isinstance(weight.positions, BitMap)
    assert torch.equal(weight.dense(), torch.where(mask, full.dense(), 0))
    rows = torch.tensor([6, 0, 6])
    assert torch.equal(weight.rows(rows), weight.dense()[rows])


@pytest.mark.parametrize("joint", [False, True], ids=["float", "codes"])
@pytest.mark.parametrize("where", ["bit map", "columns", "2:4"])
@pytest.mark.parametrize("m", [1, 128])
def test_products_are_those_of_the_twin_and_never_of_a_dense_matrix(m: int, where: str, joint: bool, monkeypatch: pytest.MonkeyPatch):
    codes = torch.randint(0, 16, (24, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scale = torch.rand(24, 4, generator=torch.Generator().manual_seed(1))
    full = QuantizedWeight(codes, scale, None, bits=4, scheme="symmetric", group_size=16)
    mask = pattern_mask(24, 64, 2, 4) if where == "2:4" else random_mask(24, 64, 0.5 if where == "bit map" else 0.05)
    pattern = {"keep_n": 2, "of_m": 4} if where == "2:4" else {}
    weight = SparseWeight.from_quantized(full, mask, **pattern) if joint else SparseWeight.from_dense(full.dense(), mask, **pattern)
    x = torch.randn(m, 64, generator=torch.Generator().manual_seed(2))
    expected = x.double() @ weight.dense().double().T

    def dense(*_: object) -> torch.Tensor:
        raise AssertionError("the weight was made dense")

    monkeypatch.setattr(SparseWeight, "dense", dense)
    monkeypatch.setattr(type(weight.positions), "place", dense)
    by_kernel = weight(x)
    monkeypatch.setattr("tersor.kernels.sparse.kernels_run", lambda: False)
    by_twin = weight(x)
    for made in (by_kernel, by_twin):
        torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


def test_codes_larger_than_a_tile_are_decoded_tile_by_tile(monkeypatch):
    monkeypatch.setattr("tersor.weights.sparse._TILE", 40)
    mask = random_mask(7, 24, 0.5)
    codes = torch.randint(0, 16, (7, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    full = QuantizedWeight(codes, torch.ones(7, 3), torch.ones(7, 3), bits=4, scheme="asymmetric", group_size=8)
    weight = SparseWeight.from_quantized(full, mask)
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.testing.assert_close(weight(x), x @ weight.dense().T)
    assert torch.autograd.grad(weight(x).sum(), x)[0].shape == x.shape


def test_values_are_kept_in_the_type_asked_for():
    values = torch.tensor([[1e5, 2.0]])
    mask = torch.tensor([[True, False]])
    with pytest.raises(InvalidArgument, match=r"overflows in float16; use value_dtype=torch\.bfloat16"):
        SparseWeight.from_dense(values, mask)
    assert torch.equal(SparseWeight.from_dense(values, mask, torch.float32).dense(), torch.tensor([[1e5, 0.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(4, 8)}, r"mask must be bool of shape \(4, 8\)"),
        ({"mask": torch.ones(4, 7, dtype=torch.bool)}, r"mask must be bool of shape \(4, 8\)"),
        ({"keep_n": 2}, "keep_n and of_m go together"),
        ({"keep_n": 2, "of_m": 3}, "of_m dividing the 8 input features"),
        ({"keep_n": 4, "of_m": 4}, "1 <= keep_n < of_m"),
        ({"keep_n": 2, "of_m": 4}, "exactly 2 of every 4"),
        ({"weight": torch.full((4, 8), torch.nan)}, "NaN or Inf"),
        ({"value_dtype": torch.int8}, "value_dtype must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_refusals_name_the_argument(options: dict, message: str):
    arguments = {"weight": torch.ones(4, 8), "mask": torch.ones(4, 8, dtype=torch.bool)} | options
    with pytest.raises(InvalidArgument, match=message):
        SparseWeight.from_dense(arguments.pop("weight"), arguments.pop("mask"), **arguments)


def test_a_grid_with_column_scales_is_refused():
    full = QuantizedWeight(
        torch.zeros(2, 4, dtype=torch.uint8), torch.ones(2, 1), None, bits=4, scheme="symmetric", group_size=-1, input_scale=torch.ones(4)
    )
    with pytest.raises(InvalidArgument, match="without input_scale"):
        SparseWeight.from_quantized(full, torch.ones(2, 4, dtype=torch.bool))


def damaged(positions: BitMap | ColumnIndices | GroupPatterns, name: str, change) -> None:
    """Check a stored weight on ``positions`` after ``change`` was done to its buffer ``name``."""
    mask = positions.mask()
    weight = SparseWeight(positions, SparseWeight.from_dense(torch.randn(mask.shape), mask).values)
    tensors = {key: tensor.clone() for key, tensor in weight.state_dict().items()}
    check_state(weight_from_config(weight.config), tensors, "head")
    change(tensors[f"positions.{name}"])
    with pytest.raises(CorruptFile, match="head"):
        check_state(weight_from_config(weight.config), tensors, "head")


@pytest.mark.parametrize(
    "change",
    [lambda t: t[0, 0].bitwise_xor_(1), lambda t: t[0, 1].bitwise_or_(0x80), lambda t: t.zero_()],
    ids=["one bit flipped", "bit beyond the last column", "nothing marked"],
)
def test_damaged_bit_map_is_found(change):
    damaged(BitMap.of(random_mask(3, 11, 0.5)), "bits", change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("columns", lambda t: t.fill_(200)),
        ("columns", lambda t: t.copy_(t.flip(0))),
        ("columns", lambda t: t[1].copy_(t[0])),
        ("starts", lambda t: t[0].fill_(1)),
        ("starts", lambda t: t[-1].add_(1)),
        ("starts", lambda t: t[1].fill_(1000)),
        ("starts", lambda t: t[1].fill_(-1)),
    ],
    ids=["column out of range", "not ascending", "twice the same", "first start", "last start", "start beyond", "negative start"],
)
def test_damaged_column_indices_are_found(name: str, change):
    damaged(ColumnIndices.of(random_mask(3, 21, 0.4)), name, change)


def test_damaged_pattern_numbers_are_found():
    damaged(GroupPatterns.of(pattern_mask(3, 16, 2, 4), 2, 4), "codes", lambda t: t.fill_(255))
