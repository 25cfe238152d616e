"""One small example of every kind of weight, beside the matrix that its definition says it is.

A new kind joins the contract suite by one function here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from tersor.weights import (
    BiasedWeight,
    CodebookWeight,
    CompressedWeight,
    DenseWeight,
    DictionaryWeight,
    HashedWeight,
    LowRankWeight,
    QuantizedWeight,
    ResidualStack,
    RotatedWeight,
    SignBlock,
    SparseWeight,
    SumWeight,
    TensorTrainWeight,
    ZeroWeight,
)
from tersor.weights.kept import ShortValues
from tersor.weights.positions import ColumnIndices, positions_of

Example = tuple[CompressedWeight, Tensor]
Builder = Callable[[torch.Generator], Example]

OUT, IN = 7, 24


def grid(random: torch.Generator, bits: int, scheme: str, group: int, scaled: bool = False, shape: tuple[int, int] = (OUT, IN)) -> Example:
    groups = shape[1] if group == -1 else group
    codes = torch.randint(0, 2**bits, shape, generator=random, dtype=torch.uint8)
    scale = (torch.rand(shape[0], shape[1] // groups, generator=random) + 0.1).half()
    zero = {
        "symmetric": None,
        "asymmetric": torch.randint(0, 2**bits, scale.shape, generator=random),
        "float_min": torch.randn(scale.shape, generator=random).half(),
    }[scheme]
    columns = torch.rand(shape[1], generator=random).half() + 0.5 if scaled else None
    weight = QuantizedWeight(codes, scale, zero, bits=bits, scheme=scheme, group_size=group, input_scale=columns)
    step = scale.float().repeat_interleave(groups, 1)
    q = codes.float()
    if scheme == "symmetric":
        dense = step * (2 * q - 1) if bits == 1 else step * (q - 2 ** (bits - 1))
    else:
        offset = zero.float().repeat_interleave(groups, 1)
        dense = step * (q - offset) if scheme == "asymmetric" else step * q + offset
    return weight, dense if columns is None else dense * columns.float()


def mask_of(random: torch.Generator, keep_n: int, of_m: int, shape: tuple[int, int] = (OUT, IN)) -> Tensor:
    order = torch.rand(shape[0], shape[1] // of_m, of_m, generator=random).argsort(-1)
    return (order < keep_n).reshape(shape)


def sparse_float(random: torch.Generator, density: float, dtype: torch.dtype) -> Example:
    values = torch.randn(OUT, IN, generator=random).to(dtype).float()
    mask = torch.rand(OUT, IN, generator=random) < density
    return SparseWeight.from_dense(values, mask, dtype), values * mask


def sparse_pattern(random: torch.Generator, keep_n: int, of_m: int) -> Example:
    values = torch.randn(OUT, IN, generator=random).half().float()
    mask = mask_of(random, keep_n, of_m)
    return SparseWeight.from_dense(values, mask, keep_n=keep_n, of_m=of_m), values * mask


def sparse_grid(random: torch.Generator, bits: int, scheme: str, pattern: tuple[int, int] | None, density: float = 0.5) -> Example:
    weight, dense = grid(random, bits, scheme, 8)
    assert isinstance(weight, QuantizedWeight)
    if pattern is None:
        mask = torch.rand(OUT, IN, generator=random) < density
        return SparseWeight.from_quantized(weight, mask), dense * mask
    mask = mask_of(random, *pattern)
    return SparseWeight.from_quantized(weight, mask, keep_n=pattern[0], of_m=pattern[1]), dense * mask


def sparse_columns(example: Example) -> Example:
    """The same weight with column indices, which only sparser and larger masks choose by themselves."""
    weight, dense = example
    assert isinstance(weight, SparseWeight)
    return SparseWeight(ColumnIndices.of(weight.mask()), weight.values), dense


def low_rank(random: torch.Generator, dtype: torch.dtype) -> Example:
    left, right = torch.randn(OUT, 3, generator=random).to(dtype), torch.randn(3, IN, generator=random).to(dtype)
    return LowRankWeight(left, right), left.float() @ right.float()


def quantised_factors(random: torch.Generator) -> Example:
    left, left_dense = grid(random, 8, "symmetric", -1, shape=(OUT, 4))
    right, right_dense = grid(random, 4, "asymmetric", 6, shape=(4, IN))
    return LowRankWeight(left, right), left_dense @ right_dense


def sum_of_everything(random: torch.Generator) -> Example:
    parts = [grid(random, 3, "asymmetric", 8), quantised_factors(random), sparse_float(random, 0.05, torch.float16), nested_sum(random)]
    return SumWeight([weight for weight, _ in parts]), sum(dense for _, dense in parts[1:]) + parts[0][1]


def nested_sum(random: torch.Generator) -> Example:
    (body, first), (more, second) = grid(random, 2, "symmetric", 12), sparse_grid(random, 4, "symmetric", (2, 4))
    return SumWeight([body, more]), first + second


def plain(random: torch.Generator, dtype: torch.dtype, values: Tensor | None = None) -> Example:
    values = (torch.randn(OUT, IN, generator=random) if values is None else values).to(dtype)
    return DenseWeight(values), values.float()


def residual_stack(random: torch.Generator, rank: int, n_blocks: int, scaled: bool, shape: tuple[int, int] = (OUT, IN)) -> Example:
    # Small multiples of a power of two, so that products and sums are exact in whatever order they are formed.
    blocks, total = [], torch.zeros(shape)
    for _ in range(n_blocks):
        signs = torch.rand(shape, generator=random) < 0.5
        left, right = (torch.randint(-8, 9, size, generator=random) / 8 for size in ((shape[0], rank), (rank, shape[1])))
        blocks.append(SignBlock(signs, left, right))
        total += torch.where(signs, 1.0, -1.0) * (left @ right)
    columns = 2.0 ** torch.randint(-2, 3, (shape[1],), generator=random) if scaled else None
    return ResidualStack(blocks, columns), total if columns is None else total * columns


def whole(random: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers, whose products and sums are exact in any order."""
    return torch.randint(-3, 4, shape, generator=random).float()


def dictionary(random: torch.Generator, values: str, quantised: bool = False) -> Example:
    codes, mask = whole(random, OUT, 10), torch.rand(OUT, 10, generator=random) < 0.5
    kept = ShortValues.of(codes, mask) if values == "float14" else SparseWeight.from_dense(codes, mask).values
    atoms, dense = grid(random, 4, "symmetric", -1, shape=(10, IN)) if quantised else plain(random, torch.float16, whole(random, 10, IN))
    if values == "4bit":
        body, codes = grid(random, 4, "asymmetric", 5, shape=(OUT, 10))
        assert isinstance(body, QuantizedWeight)
        return DictionaryWeight(SparseWeight.from_quantized(body, mask), atoms), (codes * mask) @ dense
    return DictionaryWeight(SparseWeight(positions_of(mask), kept), atoms), (codes * mask) @ dense


def codebook(random: torch.Generator, count: int, bits: int, group: int) -> Example:
    codes = torch.randint(0, 2**bits, (OUT, IN // group, count), generator=random, dtype=torch.uint8)
    codebooks, scale = whole(random, count, 2**bits, group), 2.0 ** torch.randint(-2, 3, (OUT,), generator=random)
    groups = [[sum(codebooks[m, code] for m, code in enumerate(group_codes)) for group_codes in row] for row in codes.tolist()]
    dense = torch.stack([torch.cat(row) for row in groups]) * scale.unsqueeze(1)
    return CodebookWeight(codes, codebooks, scale, bits=bits), dense


def rotated(random: torch.Generator, block: int) -> Example:
    # Whole numbers and a block whose scale is a power of two, so that every order of summing gives the same.
    body, dense = plain(random, torch.float16, whole(random, OUT, IN))
    hadamard = torch.tensor([[(-1.0) ** (row & column).bit_count() for column in range(block)] for row in range(block)]) / block**0.5
    return RotatedWeight(body, block), dense @ torch.block_diag(*[hadamard] * (IN // block))


Sizes = tuple[int, ...]


def tensor_train(random: torch.Generator, rows: Sizes, columns: Sizes, bonds: Sizes, bits: int = 0) -> Example:
    ends = zip(rows, columns, (1, *bonds), (*bonds, 1), strict=True)
    shapes = [(j * right, left * i) for j, i, left, right in ends]
    if bits:
        cores = [grid(random, bits, "symmetric", -1, shape=shape) for shape in shapes]
    else:
        cores = [plain(random, torch.float16, whole(random, *shape)) for shape in shapes]
    dense = torch.ones(1, 1, 1, dtype=torch.float64)
    for (_, core), j, i, left, right in zip(cores, rows, columns, (1, *bonds), (*bonds, 1), strict=True):
        tensor = core.double().reshape(j, right, left, i)
        dense = torch.einsum("abl,jrli->ajbir", dense, tensor).reshape(dense.shape[0] * j, dense.shape[1] * i, right)
    return TensorTrainWeight([core for core, _ in cores], rows, columns), dense.squeeze(-1).float()


def biased(body: Example, dtype: torch.dtype) -> Example:
    """A bias of zero, so that the product is that of the matrix; test_biased_weight.py has the others."""
    return BiasedWeight(body[0], torch.zeros(OUT, dtype=dtype)), body[1]


def mixed(value: int) -> int:
    """The finaliser of splitmix64 in Python's whole numbers."""
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) % 2**64
    return value ^ value >> 31


def hashed(random: torch.Generator, mapping: str, size: int, dtype: torch.dtype = torch.float32, tile: Sizes | None = None) -> Example:
    memory, seed, offset = torch.randn(size, generator=random).to(dtype), 5, 1000
    dense = torch.empty(OUT, IN)

    def drawn(index: int, stream: int, bound: int) -> int:
        return mixed((mixed(2 * seed + stream) + (index + 1) * 0x9E3779B97F4A7C15) % 2**64) % 2**63 % bound

    for row, column in product(range(OUT), range(IN)):
        index = offset + row * IN + column
        if mapping == "hash":
            place = drawn(index, 0, size)
        elif mapping == "fold":
            place = (index % size + drawn(index // size, 0, size)) % size
        else:
            high, wide = tile
            number = offset + row // high * -(-IN // wide) + column // wide
            place = drawn(number, 0, size - high * wide + 1) + row % high * wide + column % wide
        negative = mixed((mixed(2 * seed + 1) + (index + 1) * 0x9E3779B97F4A7C15) % 2**64) >= 2**63
        dense[row, column] = memory[place].float() * (-1 if negative else 1) * 0.3
    return HashedWeight(memory, (OUT, IN), scale=0.3, seed=seed, offset=offset, mapping=mapping, tile=tile), dense


EXAMPLES: dict[str, Builder] = {
    **{
        f"{bits}bit-{scheme}-{group}": lambda random, b=bits, s=scheme, g=group: grid(random, b, s, g)
        for bits, (scheme, group) in product(range(1, 9), (("symmetric", 8), ("asymmetric", -1), ("float_min", 3)))
    },
    "4bit-asymmetric-8-input_scale": lambda random: grid(random, 4, "asymmetric", 8, scaled=True),
    **{
        f"sparse-{name}-{density}": lambda random, d=density, t=dtype: sparse_float(random, d, t)
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32))
        for density in (0.5, 0.02, 0.0, 1.1)
    },
    **{
        f"sparse-{n}:{m}": lambda random, n=n, m=m: sparse_pattern(random, n, m)
        for n, m in ((2, 4), (1, 2), (1, 4), (4, 8), (3, 6), (6, 12))
    },
    **{
        f"sparse-{bits}bit-{scheme}-{'unstructured' if pattern is None else f'{pattern[0]}:{pattern[1]}'}":
            lambda random, b=bits, s=scheme, p=pattern: sparse_grid(random, b, s, p)
        for bits, scheme, pattern in product((1, 3, 4, 8), ("symmetric", "asymmetric", "float_min"), (None, (2, 4)))
    },
    "sparse-float16-columns": lambda random: sparse_columns(sparse_float(random, 0.3, torch.float16)),
    "sparse-4bit-columns": lambda random: sparse_columns(sparse_grid(random, 4, "asymmetric", None)),
    "sparse-float16-columns-empty": lambda random: sparse_columns(sparse_float(random, 0.0, torch.float16)),
    "lowrank-float32": lambda random: low_rank(random, torch.float32),
    "lowrank-bfloat16": lambda random: low_rank(random, torch.bfloat16),
    "lowrank-quantised": quantised_factors,
    "sum": sum_of_everything,
    "sum-nested": nested_sum,
    "residual_stack-1": lambda random: residual_stack(random, 1, 1, scaled=False),
    "residual_stack-3-input_scale": lambda random: residual_stack(random, 2, 3, scaled=True),
    "residual_stack-odd-width": lambda random: residual_stack(random, 3, 2, scaled=True, shape=(7, 21)),
    **{
        f"codebook-{count}x{bits}-{group}": lambda random, c=count, b=bits, g=group: codebook(random, c, b, g)
        for count, bits, group in ((1, 8, 4), (2, 8, 8), (3, 5, 6), (8, 1, 1), (1, 3, 24))
    },
    "rotated-4": lambda random: rotated(random, 4),
    "dictionary-float16": lambda random: dictionary(random, "float16"),
    "dictionary-float14": lambda random: dictionary(random, "float14"),
    "dictionary-4bit": lambda random: dictionary(random, "4bit", quantised=True),
    "tensor_train-2": lambda random: tensor_train(random, (1, 7), (4, 6), (3,)),
    "tensor_train-3": lambda random: tensor_train(random, (1, 7, 1), (2, 3, 4), (2, 5)),
    "tensor_train-4-dense": lambda random: tensor_train(random, (1, 7, 1, 1), (2, 2, 2, 3), (2, 9, 3)),
    "tensor_train-1": lambda random: tensor_train(random, (7,), (24,), ()),
    "tensor_train-4bit": lambda random: tensor_train(random, (7, 1), (4, 6), (2,), bits=4),
    "biased-dense": lambda random: biased(plain(random, torch.float32), torch.float16),
    "biased-4bit": lambda random: biased(grid(random, 4, "symmetric", 8), torch.float32),
    "dense-float32": lambda random: plain(random, torch.float32),
    "dense-bfloat16": lambda random: plain(random, torch.bfloat16),
    "hashed-fold": lambda random: hashed(random, "fold", 20),
    "hashed-fold-1": lambda random: hashed(random, "fold", OUT * IN, torch.float16),
    "hashed-hash": lambda random: hashed(random, "hash", 1, torch.bfloat16),
    "hashed-tile": lambda random: hashed(random, "tile", 50, tile=(3, 5)),
    "zero": lambda random: (ZeroWeight((OUT, IN)), torch.zeros(OUT, IN)),
}


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=list(EXAMPLES))
def example(request: pytest.FixtureRequest, random: torch.Generator) -> Example:
    """A weight and the float32 matrix that it stands for by definition."""
    return EXAMPLES[request.param](random)


@pytest.fixture(scope="session")
def example_kinds() -> set[str]:
    """The kinds among the examples, nested ones included."""
    weights = [build(torch.Generator().manual_seed(0))[0] for build in EXAMPLES.values()]
    return {part.kind for weight in weights for part in weight.modules() if isinstance(part, CompressedWeight)}
