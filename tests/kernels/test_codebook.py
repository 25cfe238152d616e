"""Products with codebook weights: the table kernel, the dense tiles and plain torch agree."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.kernels.codebook import codebook_linear, lookup
from tersor.kernels.packing import pack_bits


def problem(seed: int, outputs: int, groups: int, count: int, size: int, bits: int = 8):
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, groups, count), generator=random, dtype=torch.uint8)
    codebooks = torch.randn(count, 2**bits, size, generator=random).half()
    scale = torch.rand(outputs, generator=random).half() + 0.5
    dense = lookup(codes, codebooks.double(), scale.double())
    return pack_bits(codes.view(outputs, -1), bits), codebooks, scale, dense, random


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 40])
@pytest.mark.parametrize(("count", "size", "bits"), [(1, 4, 8), (2, 8, 8), (3, 1, 8), (1, 5, 8), (2, 4, 6), (1, 3, 1)])
def test_products_agree_with_float64(rows: int, count: int, size: int, bits: int):
    codes, codebooks, scale, dense, random = problem(rows + 10 * count, 37, 13, count, size, bits)
    x = torch.randn(2, rows, 13 * size, generator=random)[0]
    product = codebook_linear(x, codes, codebooks, scale, bits=bits)
    expected = x.double() @ dense.T
    assert product.dtype == torch.float32
    assert float((product - expected).abs().max()) < 2e-5 * float(dense.norm(dim=1).max() * x.norm(dim=1).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_give_the_rounded_product(dtype: torch.dtype):
    codes, codebooks, scale, dense, random = problem(1, 16, 10, 2, 4)
    x = torch.randn(1, 40, generator=random).to(dtype)
    product = codebook_linear(x, codes, codebooks, scale, bits=8)
    assert product.dtype == dtype
    torch.testing.assert_close(product.double(), x.double() @ dense.T, rtol=1e-2, atol=1e-2)


def test_the_same_whatever_the_threads_and_the_batch():
    codes, codebooks, scale, _, random = problem(2, 700, 96, 2, 8)
    x = torch.randn(4, 768, generator=random)
    together = codebook_linear(x, codes, codebooks, scale, bits=8)
    alone = torch.cat([codebook_linear(row.unsqueeze(0), codes, codebooks, scale, bits=8) for row in x])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        other = codebook_linear(x, codes, codebooks, scale, bits=8)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)
    assert torch.equal(together, other)


def test_gradients_reach_inputs_codebooks_and_scales():
    codes, codebooks, scale, _, random = problem(3, 5, 4, 2, 3, bits=4)
    x = torch.randn(6, 12, generator=random)
    parts = [tensor.float().detach().clone().requires_grad_() for tensor in (x, codebooks, scale)]
    codebook_linear(parts[0], codes, parts[1], parts[2], bits=4).square().sum().backward()
    twins = [tensor.double().detach().clone().requires_grad_() for tensor in (x, codebooks, scale)]
    unpacked = torch.stack([codes & 15, codes >> 4], -1).view(5, 4, 2)
    (twins[0] @ lookup(unpacked, twins[1], twins[2]).T).square().sum().backward()
    for part, twin in zip(parts, twins, strict=True):
        torch.testing.assert_close(part.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)
    # Inputs alone take the path of the tiles.
    only = x.clone().requires_grad_()
    codebook_linear(only, codes, codebooks, scale, bits=4).square().sum().backward()
    torch.testing.assert_close(only.grad.double(), twins[0].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", [12, 9])
def test_inputs_of_another_width_are_refused(features: int):
    codes, codebooks, scale, _, random = problem(4, 5, 4, 1, 4)
    with pytest.raises(InvalidArgument, match="do not belong"):
        codebook_linear(torch.randn(2, features, generator=random), codes, codebooks, scale, bits=8)
