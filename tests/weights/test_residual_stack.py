"""Residual stacks beyond the contract: signs are exact, prefixes share memory, blocks come and go without a trace."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights import ResidualStack, SignBlock, weight_from_config


def block(random: torch.Generator, shape: tuple[int, int], rank: int) -> SignBlock:
    signs = torch.rand(shape, generator=random) < 0.5
    left, right = (torch.randn(size, generator=random) for size in ((shape[0], rank), (rank, shape[1])))
    return SignBlock(signs, left, right)


def stack(random: torch.Generator, n_blocks: int, shape: tuple[int, int] = (12, 20), rank: int = 2, scaled: bool = True) -> ResidualStack:
    scale = torch.rand(shape[1], generator=random) + 0.5 if scaled else None
    return ResidualStack([block(random, shape, rank) for _ in range(n_blocks)], scale)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_signs_survive_packing(rows: int, columns: int, seed: int):
    signs = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = SignBlock(signs, torch.ones(rows, 1), torch.ones(1, columns))
    assert torch.equal(packed.values(slice(None)), torch.where(signs, 1.0, -1.0))
    assert packed.nbytes == rows * ((columns + 7) // 8) + 2 * (rows + columns)


def test_bytes_are_a_bit_a_sign_and_two_bytes_a_factor(random: torch.Generator):
    weight = stack(random, 3, (64, 96), rank=4)
    assert weight.block_bytes == 64 * 96 // 8 + 2 * 4 * (64 + 96)
    assert weight.nbytes == 3 * weight.block_bytes + 2 * 96
    assert [weight.prefix(count).nbytes for count in (1, 2)] == [count * weight.block_bytes + 2 * 96 for count in (1, 2)]


def test_a_prefix_shares_the_stored_tensors(random: torch.Generator):
    weight = stack(random, 3)
    first, second = list(weight)[:2]
    part = weight.prefix(2)
    assert len(part) == 2
    assert len(weight) == 3
    assert [own.signs.data_ptr() for own in part] == [first.signs.data_ptr(), second.signs.data_ptr()]
    assert part.input_scale is weight.input_scale
    part.pop()
    assert len(weight) == 3


def test_blocks_add_up_to_the_difference_of_prefixes(random: torch.Generator):
    weight = stack(random, 3, scaled=False)
    torch.testing.assert_close(weight.dense() - weight.prefix(2).dense(), list(weight)[2].values(slice(None)), rtol=1e-5, atol=1e-5)


def test_dropping_and_adding_a_block_is_exact(random: torch.Generator):
    weight = stack(random, 4)
    before, x = weight.dense(), torch.randn(3, 20, generator=random)
    output = weight(x)
    taken = [weight.pop(), weight.pop()]
    assert torch.equal(weight.dense(), stack(torch.Generator().manual_seed(0), 4).prefix(2).dense())
    for own in reversed(taken):
        weight.push(own)
    assert torch.equal(weight.dense(), before)
    assert torch.equal(weight(x), output)


def test_a_huge_stack_is_refused_before_it_is_allocated():
    config = {"kind": "residual_stack", "shape": [64, 64], "blocks": 10**9, "rank": 2, "input_scale": False}
    with pytest.raises(CorruptFile, match="blocks=1000000000"):
        weight_from_config(config)


@pytest.mark.parametrize("count", [0, 4])
def test_a_prefix_must_exist(random: torch.Generator, count: int):
    with pytest.raises(InvalidArgument, match=f"has 3 blocks; a prefix takes 1 to 3 of them, got {count}"):
        stack(random, 3).prefix(count)


def test_the_last_block_stays(random: torch.Generator):
    with pytest.raises(InvalidArgument, match="first block of a residual stack cannot be dropped"):
        stack(random, 1).pop()


@pytest.mark.parametrize(("shape", "rank"), [((12, 21), 2), ((12, 20), 3)], ids=["shape", "rank"])
def test_a_foreign_block_is_refused(random: torch.Generator, shape: tuple[int, int], rank: int):
    with pytest.raises(InvalidArgument, match=r"blocks of shape \(12, 20\) and rank 2, got shape"):
        stack(random, 2).push(block(random, shape, rank))
    with pytest.raises(InvalidArgument, match="one shape and one rank"):
        ResidualStack([block(random, (12, 20), 2), block(random, shape, rank)])


def test_bad_parts_are_one_sentence(random: torch.Generator):
    signs = torch.ones(4, 6, dtype=torch.bool)
    with pytest.raises(InvalidArgument, match="signs must be a bool matrix"):
        SignBlock(signs.float(), torch.ones(4, 1), torch.ones(1, 6))
    with pytest.raises(InvalidArgument, match="do not fit signs of shape"):
        SignBlock(signs, torch.ones(4, 2), torch.ones(1, 6))
    with pytest.raises(InvalidArgument, match="rank 5 is above the smaller dimension"):
        SignBlock(signs, torch.ones(4, 5), torch.ones(5, 6))
    with pytest.raises(InvalidArgument, match="beyond float16"):
        SignBlock(signs, torch.full((4, 1), 1e6), torch.ones(1, 6))
    with pytest.raises(InvalidArgument, match="1 to 32 blocks, got 0"):
        ResidualStack([])
    with pytest.raises(InvalidArgument, match=r"input_scale must have shape \(20,\)"):
        ResidualStack([block(random, (12, 20), 1)], torch.ones(12))
    with pytest.raises(InvalidArgument, match="overflows or vanishes"):
        ResidualStack([block(random, (12, 20), 1)], torch.zeros(20))
