"""The grids of QuantizedWeight: stored sizes, stored types, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import InvalidArgument
from tersor.weights import QuantizedWeight, round_scale

CODES = torch.zeros(4, 12, dtype=torch.uint8)
SCALE = torch.ones(4, 3)


def build(**changes) -> QuantizedWeight:
    arguments = {"codes": CODES, "scale": SCALE, "zero": None, "bits": 4, "scheme": "symmetric", "group_size": 4} | changes
    return QuantizedWeight(arguments.pop("codes"), arguments.pop("scale"), arguments.pop("zero"), **arguments)


@given(
    bits=st.integers(1, 8), out=st.integers(1, 6), groups=st.integers(1, 9), group=st.integers(1, 9),
    scheme=st.sampled_from(["symmetric", "asymmetric", "float_min"]), scaled=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_size_is_the_formula(bits: int, out: int, groups: int, group: int, scheme: str, scaled: bool):
    width = groups * group
    zero = None if scheme == "symmetric" else torch.zeros(out, groups)
    weight = QuantizedWeight(
        torch.zeros(out, width, dtype=torch.uint8), torch.ones(out, groups), zero,
        bits=bits, scheme=scheme, group_size=group, input_scale=torch.ones(width) if scaled else None,
    )
    zeros = {"symmetric": 0, "asymmetric": -(-groups * bits // 8), "float_min": 2 * groups}[scheme]
    assert weight.nbytes == out * (-(-width * bits // 8) + 2 * groups + zeros) + (2 * width if scaled else 0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_and_zero_points_come_back(bits: int):
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (5, 12), generator=random, dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (5, 3), generator=random)
    weight = QuantizedWeight(codes, torch.ones(5, 3), zero, bits=bits, scheme="asymmetric", group_size=4)
    assert torch.equal(weight.unpacked_codes(), codes)
    assert torch.equal(weight.unpacked_zero(), zero.float())


@pytest.mark.parametrize(("bits", "centre"), [(1, 0.5), (2, 2.0), (4, 8.0), (8, 128.0)])
def test_symmetric_centre(bits: int, centre: float):
    assert (build(bits=bits).unpacked_zero() == centre).all()


def test_group_size_minus_one_is_the_row():
    weight = build(scale=torch.ones(4, 1), group_size=-1)
    assert weight.group_size == 12
    assert weight.groups == 1
    assert weight.config["group_size"] == 12


def test_scale_is_rounded_to_half_precision_and_so_is_the_matrix():
    scale = torch.full((4, 3), 0.1)
    weight = build(codes=CODES + 9, scale=scale)
    assert weight.scale.dtype == torch.float16
    assert torch.equal(weight.dense(), scale.half().float().repeat_interleave(4, 1))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.0, torch.float16), (1e-5, torch.float16), (1e-6, torch.float32),
        (-1e-6, torch.float32), (6e4, torch.float16), (7e4, torch.float32),
    ],
)
def test_scale_type_follows_its_range(value: float, dtype: torch.dtype):
    assert round_scale(torch.tensor([[0.5, value]])).dtype == dtype
    assert round_scale(round_scale(torch.tensor([[0.5, value]]))).dtype == dtype


def test_a_scale_out_of_the_range_of_half_is_exact():
    weight = build(codes=CODES + 9, scale=SCALE * 1e-20)
    assert torch.equal(weight.dense(), torch.full((4, 12), 1e-20))


def test_minimum_beyond_half_is_kept_in_float32():
    weight = build(scheme="float_min", zero=torch.full((4, 3), -1e6), scale=SCALE * 0.25)
    assert weight.scale.dtype == weight.zero.dtype == torch.float32
    assert (weight.dense() == -1e6).all()


def test_constructor_copies_its_arguments():
    scale, zero, columns = SCALE.half(), SCALE.half().clone(), torch.ones(12).half()
    weight = build(scale=scale, zero=zero, scheme="float_min", input_scale=columns)
    before = weight.dense()
    for tensor in (scale, zero, columns):
        tensor.zero_()
    assert torch.equal(weight.dense(), before)


def test_what_is_stored_is_contiguous_whatever_was_given():
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (12, 4), generator=random, dtype=torch.uint8).T
    scale, zero = torch.rand(3, 4, generator=random).half().T, torch.rand(3, 4, generator=random).half().T
    weight = build(codes=codes, scale=scale, zero=zero, scheme="float_min", input_scale=torch.rand(24, generator=random)[::2] + 0.5)
    assert all(buffer.is_contiguous() for buffer in weight.buffers())
    x = torch.randn(1, 12, generator=random)
    torch.testing.assert_close(weight(x), x @ weight.dense().T)


def test_gradients_of_the_arguments_are_dropped():
    weight = build(scale=SCALE.clone().requires_grad_(), input_scale=torch.ones(12, requires_grad=True))
    assert not weight.dense().requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "bits must be from 1 to 8, got 0"),
        ({"bits": 9}, "bits must be from 1 to 8, got 9"),
        ({"scheme": "affine"}, "scheme must be one of symmetric, asymmetric, float_min, got 'affine'"),
        ({"group_size": 5}, "group_size must divide the 12 input features or be -1 for one group a row, got 5"),
        ({"group_size": 0}, "group_size must divide"),
        ({"group_size": 24}, "group_size must divide"),
        ({"scale": torch.ones(4, 2)}, r"scale must have shape \(4, 3\) for groups of 4, got \(4, 2\)"),
        ({"scale": SCALE * torch.nan}, "scale of shape .* holds NaN or Inf"),
        ({"zero": SCALE}, "a symmetric grid has no zero point"),
        ({"scheme": "asymmetric"}, r"zero must have the shape \(4, 3\) of scale"),
        ({"scheme": "asymmetric", "zero": SCALE * 16}, "integers from 0 to 15 at 4 bits"),
        ({"scheme": "asymmetric", "zero": SCALE * 0.5}, "integers from 0 to 15 at 4 bits"),
        ({"scheme": "asymmetric", "zero": -SCALE}, "integers from 0 to 15 at 4 bits"),
        ({"scheme": "float_min", "zero": SCALE * torch.inf}, "zero holds NaN or Inf"),
        ({"codes": CODES + 16}, "codes reach 16, which does not fit into 4 bits"),
        ({"codes": CODES.float()}, "codes must be a uint8 matrix"),
        ({"codes": CODES[0]}, "codes must be a uint8 matrix"),
        ({"codes": CODES[:0], "scale": SCALE[:0]}, "at least one row and one column"),
        ({"input_scale": torch.ones(4)}, r"input_scale must have shape \(12,\), got \(4,\)"),
        ({"input_scale": torch.full((12,), 1e-9)}, "input_scale overflows or vanishes in float16"),
        ({"input_scale": torch.full((12,), 1e9)}, "input_scale overflows or vanishes in float16"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "+".join(value),
)
def test_refusals_name_the_argument(changes: dict, message: str):
    with pytest.raises(InvalidArgument, match=message):
        build(**changes)
