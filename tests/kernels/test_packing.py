"""Bit packing: exact at every width and odd shape, bit for bit what it says, and the bytes of compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import InvalidArgument
from tersor.kernels.packing import gather_bits, pack_bits, packed_size, unpack_bits

BITS = range(1, 9)


def random_codes(rows: int, n: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**bits, (rows, n), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(rows=st.integers(0, 5), n=st.integers(0, 200), bits=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_round_trip_is_exact_in_the_promised_bytes(rows: int, n: int, bits: int, seed: int):
    codes = random_codes(rows, n, bits, seed)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, packed_size(n, bits)) == (rows, -(-n * bits // 8))
    assert torch.equal(unpack_bits(packed, bits, n), codes)


@given(n=st.integers(1, 70), bits=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_row_is_one_little_endian_stream_with_zero_padding(n: int, bits: int, seed: int):
    codes = random_codes(2, n, bits, seed)
    for row, packed in zip(codes.tolist(), pack_bits(codes, bits).tolist(), strict=True):
        assert int.from_bytes(bytes(packed), "little") == sum(code << (i * bits) for i, code in enumerate(row))


def test_golden_bytes():
    """A changed bit would make every saved file unreadable."""
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0, 1]], dtype=torch.uint8)
    assert bytes(pack_bits(codes, 3)[0].tolist()).hex() == "d1581f01"
    assert bytes(pack_bits(codes, 4)[0].tolist()).hex() == "2143650701"
    assert bytes(pack_bits(codes, 5)[0].tolist()).hex() == "410c52cc0101"


@given(n=st.integers(1, 90), bits=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_gathering_from_a_stream_equals_unpacking_it(n: int, bits: int, seed: int):
    codes = random_codes(1, n, bits, seed)
    index = torch.randint(0, n, (n,), generator=torch.Generator().manual_seed(seed))
    index = torch.cat([index, torch.tensor([0, n - 1])])
    assert torch.equal(gather_bits(pack_bits(codes, bits)[0], bits, index), codes[0, index])


def test_gathering_nothing_from_an_empty_stream():
    assert gather_bits(torch.empty(0, dtype=torch.uint8), 3, torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", [32, 64, 160])
def test_bytes_are_those_of_compressed_tensors(bits: int, n: int):
    peer = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = random_codes(6, n, bits)
    words = peer.pack_to_int32((codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8), bits)
    assert torch.equal(pack_bits(codes, bits), words.view(torch.uint8))
    assert torch.equal(unpack_bits(words.view(torch.uint8), bits, n), codes)


@pytest.mark.parametrize("bits", BITS)
def test_inputs_are_neither_changed_nor_aliased(bits: int):
    codes = random_codes(3, 16, bits)
    before = codes.clone()
    packed = pack_bits(codes, bits)
    unpacked = unpack_bits(packed, bits, 16)
    packed.zero_()
    assert torch.equal(codes, before)
    assert torch.equal(unpacked, before)


@pytest.mark.parametrize("bits", BITS)
def test_non_contiguous_codes(bits: int):
    codes = random_codes(9, 5, bits)
    assert torch.equal(unpack_bits(pack_bits(codes.T, bits), bits, 9), codes.T)


def test_meta_tensors_give_shapes():
    assert pack_bits(torch.empty(2, 9, dtype=torch.uint8, device="meta"), 3).shape == (2, 4)
    assert unpack_bits(torch.empty(2, 4, dtype=torch.uint8, device="meta"), 3, 9).shape == (2, 9)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_width_out_of_range_is_refused(bits: int):
    with pytest.raises(InvalidArgument, match="bits must be from 1 to 8"):
        pack_bits(random_codes(1, 8, 1), bits)
    with pytest.raises(InvalidArgument, match="bits must be from 1 to 8"):
        unpack_bits(random_codes(1, 8, 1), bits, 8)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidArgument, match="reach 8, which does not fit into 3 bits"):
        pack_bits(torch.tensor([[7, 8]], dtype=torch.uint8), 3)


@pytest.mark.parametrize("codes", [torch.zeros(2, 2), torch.zeros(4, dtype=torch.uint8)], ids=["float", "vector"])
def test_only_a_uint8_matrix_is_packed(codes: torch.Tensor):
    with pytest.raises(InvalidArgument, match="uint8 matrix"):
        pack_bits(codes, 4)


def test_a_stream_of_another_length_is_refused():
    with pytest.raises(InvalidArgument, match="9 codes of 3 bits take 4 bytes a row, got 5"):
        unpack_bits(torch.zeros(1, 5, dtype=torch.uint8), 3, 9)
