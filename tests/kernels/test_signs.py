"""Signs times low-rank magnitudes: the compiled rows are those of the definition, at any width, rank, depth and type."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels import _tiled, signs
from tersor.kernels.packing import pack_bits
from tersor.kernels.signs import SignTerm, signed_linear, signed_values

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 3e-2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stack(rows: int, columns: int, rank: int, blocks: int, seed: int = 0) -> tuple[list[SignTerm], Tensor, Tensor]:
    """Blocks, an input scale and the matrix that they stand for, formed entry by entry in float64."""
    random, terms, total = generator(seed), [], torch.zeros(rows, columns, dtype=torch.float64)
    for _ in range(blocks):
        positive = torch.rand(rows, columns, generator=random) < 0.5
        left, right = torch.randn(rows, rank, generator=random).half(), torch.randn(rank, columns, generator=random).half()
        terms.append(SignTerm(pack_bits(positive.to(torch.uint8), 1), left, right))
        total += torch.where(positive, 1.0, -1.0) * torch.einsum("or,ri->oi", left.double(), right.double())
    scale = (torch.rand(columns, generator=random) + 0.5).half()
    return terms, scale, total * scale.double()


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm() + 1e-12


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (5, 21), (33, 172), (7, 130), (16, 576)], ids=str)
@pytest.mark.parametrize(("rank", "blocks"), [(1, 1), (2, 3), (5, 8)])
def test_product_is_that_of_the_definition(shape: tuple[int, int], rank: int, blocks: int):
    terms, scale, dense = stack(*shape, rank, blocks)
    x = torch.randn(3, shape[1], generator=generator(1))
    assert_near(signed_linear(x, terms, scale), x.double() @ dense.T, torch.float32)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (40,)], ids=str)
def test_every_type_and_batch(dtype: torch.dtype, leading: tuple[int, ...]):
    terms, scale, dense = stack(19, 70, 2, 3)
    x = torch.randn(*leading, 70, generator=generator(1)).to(dtype)
    found = signed_linear(x, terms, scale)
    assert found.shape == (*leading, 19)
    assert_near(found, x.double() @ dense.T, dtype)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_compiled_rows_are_the_plain_ones(rows: int, columns: int, rank: int, blocks: int, seed: int):
    terms, scale, _ = stack(rows, columns, rank, blocks, seed)
    weight = signs._Stack.of(torch.zeros(columns), terms, scale)
    if not signs.kernels_run():
        pytest.skip("no compiled kernels here")
    found = torch.cat([tile.clone() for _, tile in signs._tiles(weight, torch.float32)])
    torch.testing.assert_close(found, weight.plain(0, rows), rtol=1e-5, atol=1e-5)


def test_large_weights_are_formed_tile_by_tile(monkeypatch: pytest.MonkeyPatch):
    terms, scale, dense = stack(50, 32, 2, 2)
    x = torch.randn(4, 32, generator=generator(1))
    monkeypatch.setattr(_tiled, "_TILE_BYTES", 32 * 4 * 16)
    weight = signs._Stack.of(x, terms, scale)
    if signs.kernels_run():
        assert [(first, len(tile)) for first, tile in signs._tiles(weight, torch.float32)] == [(0, 16), (16, 16), (32, 16), (48, 2)]
    assert_near(signed_linear(x, terms, scale), x.double() @ dense.T, torch.float32)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
def test_gradient_flows_to_x(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    if not compiled:
        monkeypatch.setattr(signs, "kernels_run", lambda: False)
    terms, scale, dense = stack(9, 33, 2, 3)
    x = torch.randn(4, 33, generator=generator(1), requires_grad=True)
    probe = torch.randn(4, 9, generator=generator(2))
    (found,) = torch.autograd.grad((signed_linear(x, terms, scale) * probe).sum(), x)
    assert_near(found, probe.double() @ dense, torch.float32)


def test_values_of_a_block_are_signed_magnitudes():
    terms, _, _ = stack(6, 20, 3, 1)
    values = signed_values(terms[0], torch.tensor([4, 1]))
    torch.testing.assert_close(values.abs(), (terms[0].left[[4, 1]].float() @ terms[0].right.float()).abs())
    torch.testing.assert_close(values, signed_values(terms[0], slice(None))[[4, 1]], rtol=1e-6, atol=1e-6)


def test_buffers_that_do_not_fit_are_refused_before_memory_is_read():
    terms, scale, _ = stack(6, 20, 2, 2)
    x = torch.zeros(1, 20)
    with pytest.raises(InvalidArgument, match="20 features in its last dimension"):
        signed_linear(torch.zeros(1, 21), terms, scale)
    with pytest.raises(InvalidArgument, match="contiguous uint8 of 3 bytes a row"):
        signed_linear(x, [terms[0]._replace(signs=terms[0].signs[:, :2])], scale)
    with pytest.raises(InvalidArgument, match="one shape and one rank"):
        signed_linear(x, [terms[0], stack(6, 20, 3, 1)[0][0]], scale)
