"""Sparse codes over a dictionary, and their values in 14 bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import DictionaryWeight, SparseWeight, check_state, distinct_nbytes, weight_from_config
from tersor.weights.kept import ShortValues
from tersor.weights.positions import BitMap, positions_of


def codes_of(matrix: torch.Tensor) -> SparseWeight:
    mask = matrix != 0
    return SparseWeight(positions_of(mask), ShortValues.of(matrix, mask))


def half_dense(random: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Exactly every second value of a row, at random."""
    order = torch.rand(rows, columns, generator=random).argsort(1)
    return torch.randn(rows, columns, generator=random) * (order < columns // 2)


def test_bytes_at_two_atoms_a_nonzero_are_those_of_the_papers_accounting(random):
    out, n_atoms, width = 96, 64, 48
    weight = DictionaryWeight(codes_of(half_dense(random, out, n_atoms)), torch.randn(n_atoms, width, generator=random).half())
    assert isinstance(weight.codes.positions, BitMap)
    assert weight.nonzeros == n_atoms // 2
    assert weight.nbytes == 2 * (n_atoms * width + out * n_atoms // 2)


def test_forward_is_the_chain_of_the_two_products(random):
    matrix, atoms = half_dense(random, 12, 10), torch.randn(10, 6, generator=random).half()
    weight = DictionaryWeight(codes_of(matrix), atoms)
    x = torch.randn(3, 6, generator=random)
    torch.testing.assert_close(weight(x), x @ atoms.float().T @ weight.codes.dense().T)
    torch.testing.assert_close(weight.dense(), weight.codes.dense() @ atoms.float())


def test_shared_dictionary_counts_once(random):
    atoms = DictionaryWeight(codes_of(half_dense(random, 4, 8)), torch.randn(8, 6, generator=random).half()).dictionary
    weights = [DictionaryWeight(codes_of(half_dense(random, 4, 8)), atoms) for _ in range(3)]
    assert distinct_nbytes(weights) == atoms.nbytes + sum(weight.codes.nbytes for weight in weights)
    assert distinct_nbytes(weights[:1]) == weights[0].nbytes


@settings(deadline=None)
@given(st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=40))
def test_short_values_differ_by_half_a_step_at_most(values):
    matrix = torch.tensor([values])
    mask = torch.ones_like(matrix, dtype=torch.bool)
    short = ShortValues.of(matrix, mask)
    found = short.decode(BitMap.of(mask))
    smallest = 2.0**-23  # half a step of the subnormal numbers
    assert bool(((found - matrix[0]).abs() <= (matrix[0].abs() / 512).clamp(min=smallest)).all())
    assert sum(buffer.numel() for buffer in short.buffers()) == -(-14 * len(values) // 8)
    again = ShortValues.of(found.unsqueeze(0), mask)
    assert torch.equal(again.decode(BitMap.of(mask)), found)


def test_short_values_round_to_nearest():
    # One in 14 bits is followed by 1 + 1/256.
    matrix = torch.tensor([[1 + 1 / 1024, 1 + 3 / 1024, -1 - 3 / 1024]])
    mask = torch.ones_like(matrix, dtype=torch.bool)
    found = ShortValues.of(matrix, mask).decode(BitMap.of(mask))
    assert found.tolist() == [1.0, 1 + 1 / 256, -1 - 1 / 256]


@pytest.mark.parametrize("value", [65504.0, -65504.0, 1e6])
def test_short_values_refuse_what_overflows(value):
    with pytest.raises(InvalidArgument, match="14 bits"):
        ShortValues.of(torch.tensor([[value]]), torch.tensor([[True]]))


def test_a_flipped_exponent_is_found(random):
    weight = DictionaryWeight(codes_of(half_dense(random, 4, 8)), torch.randn(8, 6, generator=random).half())
    tensors = dict(weight.state_dict())
    tensors["codes.values.high"] = tensors["codes.values.high"] | 0x7C
    with pytest.raises(CorruptFile, match="layer"):
        check_state(weight_from_config(weight.config), tensors, "layer")


def test_codes_and_atoms_must_fit(random):
    with pytest.raises(InvalidArgument, match="8 atoms, the dictionary has 7"):
        DictionaryWeight(codes_of(half_dense(random, 4, 8)), torch.ones(7, 6))
    config = DictionaryWeight(codes_of(half_dense(random, 4, 8)), torch.ones(8, 6)).config
    with pytest.raises(CorruptFile, match="dictionary weight of shape"):
        weight_from_config({**config, "codes": config["dictionary"]})
