"""A weight as a chain of small cores: a tensor train over factorised row and column indices (matrix product operator)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import CorruptFile, InvalidArgument
from tersor.weights.base import CompressedWeight, weight_from_config
from tersor.weights.checking import read_shape
from tersor.weights.contraction import Order, Sites, best_order, merge_cores
from tersor.weights.dense import DenseWeight

# Floats that the states of a chunk of tokens may take; beyond the caches a larger chunk is no faster.
_CHUNK = 1 << 22
_MAX_SITES = 16


class TensorTrainWeight(CompressedWeight):
    """``W[(j1 .. jn), (i1 .. in)] = core_1[j1, i1] core_2[j2, i2] ... core_n[jn, in]``, a product of matrices of the bond dimensions.

    One bond of one makes a Kronecker product, two sites a sum of as many Kronecker products as their bond dimension. Low rank is the other
    class, neither contains the other; on trained weights low rank is closer, see :func:`tersor.layerwise.tensor_network`.

    The order of contraction, the dense matrix among the candidates, is chosen by the multiplications that it takes for the tokens at hand.

    Args:
        cores: One a site, tensors or compressed weights; core k is the matrix ``[J_k * r_k, r_(k-1) * I_k]`` with ``r_0 = r_n = 1``, row
            index ``(j, right bond)``, column index ``(left bond, i)``.
        out_factors: ``J``, their product is ``out_features``.
        in_factors: ``I``, their product is ``in_features``.

    Raises:
        InvalidArgument: If the cores do not fit together.

    Example:
        >>> import torch
        >>> first, second = torch.tensor([[1.0, 2.0]]), torch.eye(2)
        >>> weight = TensorTrainWeight([first, second], (1, 2), (2, 2))
        >>> torch.equal(weight.dense(), torch.kron(first, second)), weight.bonds
        (True, (1,))
    """

    kind = "tensor_train"

    def __init__(self, cores: Sequence[CompressedWeight | Tensor], out_factors: Sequence[int], in_factors: Sequence[int]) -> None:
        weights = [DenseWeight(core) if isinstance(core, Tensor) else core for core in cores]
        sites = _sites([weight.shape for weight in weights], out_factors, in_factors)
        super().__init__((prod(out_factors), prod(in_factors)))
        self.sites = sites
        self.cores = nn.ModuleList(weights)

    @property
    def bonds(self) -> tuple[int, ...]:
        """Bond dimensions between neighbouring sites."""
        return tuple(right for _, _, _, right in self.sites[:-1])

    @property
    def n_parameters(self) -> int:
        """Entries of all cores."""
        return sum(prod(site) for site in self.sites)

    def _tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """The cores as ``[left bond, J, I, right bond]``."""
        tensors = []
        for core, (left, rows, columns, right) in zip(cast("list[CompressedWeight]", list(self.cores)), self.sites, strict=True):
            tensors.append(core.dense().to(dtype).reshape(rows, right, left, columns).permute(2, 0, 3, 1))
        return tensors

    def dense(self) -> Tensor:
        # In double, so that single rows, which are multiplied in another order, round to the same values.
        return merge_cores(self._tensors(torch.float64)).reshape(self.shape).float()

    def rows(self, index: Tensor) -> Tensor:
        flat = index.reshape(-1).long()
        state = torch.ones(flat.numel(), 1, 1, dtype=torch.float64, device=self.device)
        remaining = self.shape[0]
        for core, (left, rows, columns, right) in zip(self._tensors(torch.float64), self.sites, strict=True):
            remaining //= rows
            slices = core[:, flat // remaining % rows].movedim(1, 0).reshape(flat.numel(), left, columns * right)
            state = torch.bmm(state, slices).reshape(flat.numel(), state.shape[1] * columns, right)
        return state.reshape(*index.shape, self.shape[1]).float()

    def order(self, tokens: int) -> Order:
        """The cheapest order of contraction for ``tokens`` rows of x."""
        return best_order(self.sites, tokens)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.numel() // self.shape[1]
        order = self.order(tokens)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        tensors = self._tensors(dtype)
        blocks = [merge_cores(tensors[start:end]) for start, end in order.blocks]
        flat = x.reshape(-1, self.shape[1]).to(dtype)
        if len(blocks) == 1:
            y = F.linear(flat, blocks[0].reshape(self.shape))
        else:
            apply = _from_left if order.from_left else _from_right
            parts = torch.split(flat, max(_CHUNK // order.width, 1)) if tokens else (flat,)
            y = torch.cat([apply(part, blocks) for part in parts])
        return y.to(x.dtype).reshape(*x.shape[:-1], self.shape[0])

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape),
            "out_factors": [rows for _, rows, _, _ in self.sites], "in_factors": [columns for _, _, columns, _ in self.sites],
            "parts": [core.config for core in cast("list[CompressedWeight]", list(self.cores))],
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TensorTrainWeight:
        shape = read_shape(config)
        factors = [_read_factors(config, key, size) for key, size in (("out_factors", shape[0]), ("in_factors", shape[1]))]
        cores = [weight_from_config(part) for part in config["parts"]]
        try:
            return cls(cores, *factors)
        except InvalidArgument as error:
            raise CorruptFile(f"a stored tensor train of shape {list(shape)} does not fit together: {error}") from None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {len(self.sites)} sites, bonds {'-'.join(map(str, self.bonds))}"


def _sites(shapes: list[tuple[int, int]], out_factors: Sequence[int], in_factors: Sequence[int]) -> Sites:
    if not shapes or len({len(shapes), len(out_factors), len(in_factors)}) > 1:
        factors = f"{list(out_factors)} and {list(in_factors)}"
        raise InvalidArgument(f"{len(shapes)} cores need as many factors of rows and columns, got {factors}")
    sites, left = [], 1
    for number, (shape, rows, columns) in enumerate(zip(shapes, out_factors, in_factors, strict=True), 1):
        right, odd = divmod(shape[0], rows)
        if odd or shape[1] != left * columns:
            expected = f"[{rows} * right bond, {left} * {columns}]"
            raise InvalidArgument(f"core {number} has shape {shape}, the factors and the core before it ask for {expected}")
        sites.append((left, rows, columns, right))
        left = right
    if left != 1:
        raise InvalidArgument(f"the last core ends in a bond of {left}; it must be 1")
    return tuple(sites)


def _read_factors(config: dict[str, Any], key: str, size: int) -> list[int]:
    factors = config[key]
    listed = isinstance(factors, list) and 1 <= len(factors) <= _MAX_SITES
    if not listed or any(type(factor) is not int or factor < 1 for factor in factors) or prod(factors) != size:
        raise CorruptFile(f"a stored tensor train has {key}={factors!r}; they must be positive and multiply to {size}")
    return factors


def _from_left(x: Tensor, blocks: list[Tensor]) -> Tensor:
    """``x`` through the blocks from the first to the last: the state is ``[tokens, done J, remaining I, bond]``."""
    tokens = x.shape[0]
    state = x.reshape(tokens, 1, x.shape[1], 1)
    for block in blocks:
        left, rows, columns, right = block.shape
        done, remaining = state.shape[1], state.shape[2] // columns
        legs = state.reshape(tokens, done, columns, remaining, left).permute(0, 1, 3, 4, 2)
        out = legs.reshape(tokens * done * remaining, left * columns) @ block.permute(0, 2, 1, 3).reshape(left * columns, rows * right)
        state = out.reshape(tokens, done, remaining, rows, right).transpose(2, 3).reshape(tokens, done * rows, remaining, right)
    return state.flatten(1)


def _from_right(x: Tensor, blocks: list[Tensor]) -> Tensor:
    """``x`` through the blocks from the last to the first: the state is ``[tokens, remaining I, bond, done J]``."""
    tokens = x.shape[0]
    state = x.reshape(tokens, x.shape[1], 1, 1)
    for block in reversed(blocks):
        left, rows, columns, right = block.shape
        remaining, done = state.shape[1] // columns, state.shape[3]
        legs = state.reshape(tokens, remaining, columns * right, done).transpose(2, 3)
        out = legs.reshape(tokens * remaining * done, columns * right) @ block.permute(2, 3, 0, 1).reshape(columns * right, left * rows)
        state = out.reshape(tokens, remaining, done, left, rows).permute(0, 1, 3, 4, 2).reshape(tokens, remaining, left, rows * done)
    return state.flatten(1)
