from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels import reference, sparse
from tersor.kernels.packing import pack_bits
from tersor.kernels.sparse import column_linear, masked_linear, pattern_linear

SHAPES = [(1, 8), (5, 64), (33, 172), (7, 130), (16, 576)]


class Pruned(NamedTuple):
    product: Callable[[Tensor], Tensor]
    dense: Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(m: int, in_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(m, in_features, generator=generator(1)).to(dtype)


def starts_of(mask: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])


def unstructured(rows: int, in_features: int, density: float, values: torch.dtype) -> tuple[Tensor, Tensor]:
    mask = torch.rand(rows, in_features, generator=generator()) < density
    return mask, torch.randn(int(mask.sum()), generator=generator(2)).to(values)


def bitmap(rows: int, in_features: int, density: float = 0.5, values: torch.dtype = torch.float16) -> Pruned:
    mask, kept = unstructured(rows, in_features, density, values)
    bits, starts = pack_bits(mask.to(torch.uint8), 1), starts_of(mask)
    return Pruned(lambda x: masked_linear(x, bits, kept, starts, in_features=in_features), reference.fill(mask, kept))


def columns(
    rows: int, in_features: int, density: float = 0.05, values: torch.dtype = torch.float16, kind: torch.dtype = torch.int16
) -> Pruned:
    mask, kept = unstructured(rows, in_features, density, values)
    where, starts = mask.nonzero()[:, 1].to(kind), starts_of(mask)
    return Pruned(lambda x: column_linear(x, where, kept, starts, in_features=in_features), reference.fill(mask, kept))


def patterns(rows: int, in_features: int, keep_n: int, of_m: int) -> Pruned:
    table = torch.tensor(sorted(sum(1 << column for column in chosen) for chosen in combinations(range(of_m), keep_n)))
    numbers = torch.randint(0, len(table), (rows, in_features // of_m), generator=generator())
    codes = pack_bits(numbers.to(torch.uint8), (len(table) - 1).bit_length())
    mask = reference.mask_of_patterns(codes, table, of_m, in_features)
    assert bool((mask.unflatten(1, (-1, of_m)).sum(-1) == keep_n).all())
    kept, starts = torch.randn(int(mask.sum()), generator=generator(2)).half(), starts_of(mask)

    def product(x: Tensor) -> Tensor:
        return pattern_linear(x, codes, kept, starts, table, of_m=of_m, in_features=in_features)

    return Pruned(product, reference.fill(mask, kept))


def check(weight: Pruned, x: Tensor, bound: float) -> None:
    y, dense = weight.product(x), weight.dense.double()
    assert y.dtype == x.dtype
    exact = x.double() @ dense.T
    assert bool(((y.double() - exact).abs() <= bound * (x.double().abs() @ dense.abs().T)).all())


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("values", [torch.float16, torch.bfloat16, torch.float32], ids=["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("make", [bitmap, columns])
def test_unstructured_products_agree_with_the_dense_weight(
    make: Callable[..., Pruned], values: torch.dtype, shape: tuple[int, int]
) -> None:
    for density in (0.5, 0.05, 1.0, 0.0):
        weight = make(*shape, density, values)
        for m in (1, 3, 5, 40):
            check(weight, activations(m, shape[1]), 1e-6)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32], ids=["uint8", "int16", "int32"])
def test_every_type_of_column_index(kind: torch.dtype) -> None:
    for m in (1, 40):
        check(columns(9, 200, kind=kind), activations(m, 200), 1e-6)


@pytest.mark.parametrize(
    ("keep_n", "of_m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (2, 8), (1, 43), (5, 6), (1, 13)], ids=lambda n: str(n)
)
def test_patterns_agree_with_the_dense_weight(keep_n: int, of_m: int) -> None:
    for groups in (1, 3, 16, 37):
        for m in (1, 3, 40):
            check(patterns(5, groups * of_m, keep_n, of_m), activations(m, groups * of_m), 1e-6)


@pytest.mark.parametrize("make", [bitmap, columns, lambda rows, k: patterns(rows, k, 2, 4)], ids=["bitmap", "columns", "2:4"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)], ids=["bfloat16", "float16"])
def test_half_activations(make: Callable[..., Pruned], dtype: torch.dtype, bound: float) -> None:
    for m in (1, 4, 40):
        check(make(16, 172), activations(m, 172, dtype), bound)


@pytest.mark.parametrize("m", [1, 5], ids=lambda m: f"{m}rows")
@pytest.mark.parametrize("make", [bitmap, columns, lambda rows, k: patterns(rows, k, 2, 4)], ids=["bitmap", "columns", "2:4"])
def test_same_bits_on_every_number_of_threads(make: Callable[..., Pruned], m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_GRAIN", 0)
    weight, x, made = make(33, 576), activations(m, 576), []
    for n in (1, 2, 3):
        with threads(n):
            made += [weight.product(x) for _ in range(5)]
    assert all(torch.equal(made[0], y) for y in made)


@pytest.mark.parametrize("make", [bitmap, columns, lambda rows, k: patterns(rows, k, 2, 4)], ids=["bitmap", "columns", "2:4"])
def test_gradient_of_x(make: Callable[..., Pruned]) -> None:
    weight, x = make(9, 172), activations(3, 172).requires_grad_()
    direction = torch.randn(3, 9, generator=generator(4))
    (gradient,) = torch.autograd.grad(weight.product(x), x, direction)
    assert torch.allclose(gradient, direction @ weight.dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [bitmap, columns, lambda rows, k: patterns(rows, k, 2, 4)], ids=["bitmap", "columns", "2:4"])
def test_without_numba_the_twin_answers(make: Callable[..., Pruned], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "kernels_run", lambda: False)
    weight, x = make(9, 172), activations(3, 172)
    assert torch.equal(weight.product(x), x @ weight.dense.T)


def test_shapes_of_x() -> None:
    weight = bitmap(5, 64)
    assert weight.product(activations(1, 64)[0]).shape == (5,)
    assert weight.product(torch.zeros(0, 64)).shape == (0, 5)
    assert weight.product(torch.zeros(2, 3, 64)).shape == (2, 3, 5)


def test_what_does_not_belong_together_is_refused() -> None:
    mask, kept = unstructured(5, 64, 0.5, torch.float16)
    bits, starts = pack_bits(mask.to(torch.uint8), 1), starts_of(mask)
    x = activations(1, 64)
    with pytest.raises(InvalidArgument, match="64 features"):
        masked_linear(activations(1, 63), bits, kept, starts, in_features=64)
    with pytest.raises(InvalidArgument, match="number of contiguous values"):
        masked_linear(x, bits, kept[1:], starts, in_features=64)
    with pytest.raises(InvalidArgument, match="8 bytes a row"):
        masked_linear(x, bits[:, 1:], kept, starts, in_features=64)
    with pytest.raises(InvalidArgument, match="columns"):
        column_linear(x, mask.nonzero()[:, 1], kept, starts, in_features=64)
    with pytest.raises(InvalidArgument, match="of_m"):
        pattern_linear(x, bits, kept, starts, torch.tensor([1, 2]), of_m=5, in_features=64)
    with pytest.raises(InvalidArgument, match="do not fit codes"):
        pattern_linear(x, bits, kept, starts, torch.tensor([1, 2, 4]), of_m=4, in_features=64)
