"""A chain of tensors in the place of a matrix, as many-body physics compresses states (CompactifAI)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number, check_stats, check_weight
from tersor.layerwise.grid import Grid
from tersor.layerwise.low_rank import FactorType
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.layerwise.tensor_refit import refit
from tersor.weights import CompressedWeight, DenseWeight, TensorTrainWeight, check_matrix

_DEFAULT_KEEP = 0.5
_MAX_SITES = 8


@register("tensor_network", needs="nothing", makes="tensor_train", paper="Tomut, Jahromi, Sarkar, Kurt, Singh et al.: CompactifAI, 2024")
def tensor_network(
    weight: Tensor, stats: LayerStats | None = None, *,
    keep: float | None = None, bond: int | None = None, sites: int = 2, out_factors: Sequence[int] | None = None,
    in_factors: Sequence[int] | None = None, refit_sweeps: int = 0, core_bits: int | None = None, core_group_size: int = -1,
    factor_dtype: FactorType = "float16",
) -> TensorTrainWeight:  # fmt: skip
    """The matrix product operator of a given bond dimension that a sweep of singular value decompositions finds.

    Exact for Kronecker products. On trained weights a low-rank matrix of the same size is closer: a network earns its place by what
    training afterwards recovers (healing), or as one choice more for a search. With two sites it is the closest one there is, a truncated
    decomposition of the rearranged matrix; with n sites it is within ``sqrt(n - 1)`` of the closest.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs, only looked at with ``refit_sweeps``.
        keep: Fraction of the parameters kept, 0.5 unless given; the largest bond dimension that stays within it is taken.
        bond: The bond dimension itself, instead of ``keep``.
        sites: Cores of the chain, 2 to 8, unless factors are given; each dimension is split into factors as equal as possible.
        out_factors: How ``out_features`` is split.
        in_factors: How ``in_features`` is split, into as many.
        refit_sweeps: Times that every core is fitted anew to the layer's output with the others held fixed. Beyond the paper: it brings
            in the calibration inputs, which the decomposition knows nothing of.
        core_bits: 1 to 8 to store the cores rounded to an asymmetric grid; floats unless given.
        core_group_size: Neighbouring entries of a core's row that share a scale; -1 for the row.
        factor_dtype: Type of cores that are not quantised.

    Returns:
        The weight; its ``report`` holds ``bonds``, ``kept_energy`` (fraction of the weight's squared norm that the decomposition kept) and
        ``parameters``, the fraction of the entries that remain.

    Raises:
        InvalidArgument: On an option out of range, a dimension that does not split, or a bond dimension that saves nothing.

    Reference:
        Tomut, Jahromi, Sarkar, Kurt, Singh, Ishtiaq, Munoz, Bajaj, Elborady, del Bimbo, Alizadeh, Montero, Martin-Ramiro, Ibrahim, Alaoui,
        Malcolm, Mugel, Orus: "CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks", 2024.
        Oseledets: "Tensor-Train Decomposition", 2011.
    """
    check_choice("factor_dtype", factor_dtype, FactorType)
    check_integer("refit_sweeps", refit_sweeps, 0)
    if core_bits is not None:
        check_integer("core_bits", core_bits, 1, 8)
    inputs = check_stats("tensor_network with refit_sweeps", stats) if refit_sweeps else stats
    values = check_weight(weight, inputs)
    shape = (values.shape[0], values.shape[1])
    factors = _factors(shape, sites, out_factors, in_factors)
    limit = _bond(shape, factors, keep, bond)
    cores, energy = tensor_train(values, factors, limit)
    if refit_sweeps and inputs is not None:
        cores = refit(cores, values, inputs.hessian, refit_sweeps)
    compressed = TensorTrainWeight([_stored(core, core_bits, core_group_size, factor_dtype) for core in balanced(cores)], *factors)
    fraction = compressed.n_parameters / values.numel()
    compressed.report = {"bonds": list(compressed.bonds), "kept_energy": energy, "parameters": fraction}
    return compressed


def balanced_factors(size: int, sites: int) -> tuple[int, ...]:
    """``size`` as a product of ``sites`` factors above 1, as equal as they come, ascending.

    Raises:
        InvalidArgument: If it has too few divisors.

    Example:
        >>> balanced_factors(576, 3), balanced_factors(1536, 2)
        ((8, 8, 9), (32, 48))
    """
    splits = list(_splits(size, sites, 2))
    if not splits:
        mend = "use fewer sites, pass the factors, or leave the layer as it is"
        raise InvalidArgument(f"a dimension of {size} does not split into {sites} factors, so a tensor network saves nothing: {mend}")
    return min(splits, key=sum)


def tensor_train(weight: Tensor, factors: tuple[Sequence[int], Sequence[int]], bond: int) -> tuple[list[Tensor], float]:
    """Decompose ``weight`` site by site, keeping the ``bond`` largest singular values at each cut.

    The squared error is the sum of all squared singular values that were left out.

    Args:
        weight: ``[out_features, in_features]``.
        factors: How rows and columns are split.
        bond: Upper limit of every bond dimension.

    Returns:
        Cores ``[left bond, J, I, right bond]`` in float64, all but the last with orthonormal columns, and the fraction of the squared norm
        that they keep.
    """
    rows, columns = factors
    n = len(rows)
    order = [axis for site in range(n) for axis in (site, n + site)]
    carry = weight.double().reshape(*rows, *columns).permute(order).reshape(1, -1)
    total = float(carry.square().sum())
    cores = []
    for j, i in zip(rows[:-1], columns[:-1], strict=True):
        left = carry.shape[0]
        u, s, v = torch.linalg.svd(carry.reshape(left * j * i, -1), full_matrices=False)
        right = min(bond, s.numel())
        cores.append(u[:, :right].reshape(left, j, i, right))
        carry = s[:right, None] * v[:right]
    cores.append(carry.reshape(carry.shape[0], rows[-1], columns[-1], 1))
    return cores, float(carry.square().sum()) / total if total > 0 else 1.0


def parameters(factors: tuple[Sequence[int], Sequence[int]], bond: int) -> int:
    """Entries of a chain whose bonds are ``bond`` where the dimensions on both sides of the cut allow it."""
    sizes = [j * i for j, i in zip(*factors, strict=True)]
    inner = [min(bond, prod(sizes[:cut]), prod(sizes[cut:])) for cut in range(1, len(sizes))]
    return sum(left * size * right for left, size, right in zip([1, *inner], sizes, [*inner, 1], strict=True))


def balanced(cores: list[Tensor]) -> list[Tensor]:
    """The same product with all cores of one root mean square, which keeps each clear of both ends of float16."""
    sizes = [float(core.square().mean().sqrt()) for core in cores]
    if min(sizes) == 0:
        return [torch.zeros_like(core) for core in cores]
    mean = torch.tensor(sizes, dtype=torch.float64).log().mean().exp()
    return [core * (mean / size) for core, size in zip(cores, sizes, strict=True)]


def _factors(
    shape: tuple[int, int], sites: int, out_factors: Sequence[int] | None, in_factors: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    given = [factors for factors in (out_factors, in_factors) if factors is not None]
    n = len(given[0]) if given else check_integer("sites", sites, 2, _MAX_SITES)
    if len(given) == 2 and len(given[1]) != n:
        raise InvalidArgument(f"out_factors and in_factors must be as many, got {list(given[0])} and {list(given[1])}")
    chosen = []
    for name, size, factors in zip(("out_factors", "in_factors"), shape, (out_factors, in_factors), strict=True):
        if factors is None:
            chosen.append(balanced_factors(size, n))
            continue
        split = tuple(check_integer(f"each of {name}", factor, 1) for factor in factors)
        if not 2 <= n <= _MAX_SITES or prod(split) != size:
            raise InvalidArgument(f"{name} must be 2 to {_MAX_SITES} sizes whose product is {size}, got {list(split)}")
        chosen.append(split)
    return chosen[0], chosen[1]


def _bond(shape: tuple[int, int], factors: tuple[Sequence[int], Sequence[int]], keep: float | None, bond: int | None) -> int:
    if keep is not None and bond is not None:
        raise InvalidArgument("give keep or bond, not both")
    entries = prod(shape)
    if bond is None:
        fraction = check_number("keep", _DEFAULT_KEEP if keep is None else keep, 0.0, 1.0)
        low, high = 1, entries
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if parameters(factors, middle) <= fraction * entries else (low, middle - 1)
        bond = low
    check_integer("bond", bond, 1)
    if parameters(factors, bond) >= entries:
        raise InvalidArgument(
            f"bond dimension {bond} saves nothing on a weight of shape {shape} split into {list(factors[0])} and {list(factors[1])}: "
            f"use a smaller bond or the method 'keep'"
        )
    return bond


def _stored(core: Tensor, bits: int | None, group_size: int, dtype: FactorType) -> CompressedWeight:
    left, rows, columns, right = core.shape
    matrix = core.permute(1, 3, 0, 2).reshape(rows * right, left * columns).contiguous()
    if bits is None:
        stored = matrix.to(getattr(torch, dtype))
        check_matrix(stored, f"a core rounded to {dtype}")
        return DenseWeight(stored)
    # Rows of the first core are short: groups that do not divide them fall back to one scale a row.
    grid = Grid.of(matrix.shape[1], bits, "asymmetric", group_size if group_size > 0 and matrix.shape[1] % group_size == 0 else -1)
    values = matrix.float()
    scale, zero = grid.fit(values, "mse")
    return grid.pack(grid.quantize(values, scale, zero), scale, zero)


def _splits(size: int, sites: int, low: int) -> Iterator[tuple[int, ...]]:
    """Every ascending way to write ``size`` as a product of ``sites`` factors of at least ``low``."""
    if sites == 1:
        if size >= low:
            yield (size,)
        return
    factor = low
    while factor**sites <= size:
        if size % factor == 0:
            for others in _splits(size // factor, sites - 1, factor):
                yield (factor, *others)
        factor += 1
