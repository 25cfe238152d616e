"""A weight as a stack of one-bit residuals: drop blocks from its end and it is smaller and coarser, add them back and it is as before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.kernels.packing import pack_bits, packed_size
from tersor.kernels.signs import SignTerm, signed_linear, signed_values
from tersor.weights.base import CompressedWeight
from tersor.weights.checking import read_choice, read_int, read_shape

# A block costs more than a bit an entry, so that deeper stacks are larger than the float32 matrix.
MAX_BLOCKS = 32


class SignBlock(nn.Module):
    """One residual: the sign of every entry, one bit each, times a low-rank matrix of magnitudes.

    Args:
        signs: bool ``[out_features, in_features]``, true where the entry is positive (or zero).
        left: ``[out_features, rank]``, stored in float16.
        right: ``[rank, in_features]``, stored in float16.

    Raises:
        InvalidArgument: If shapes differ, or a factor is not finite in float16.

    Example:
        >>> import torch
        >>> block = SignBlock(torch.tensor([[True, False]]), torch.tensor([[2.0]]), torch.tensor([[1.0, 0.5]]))
        >>> block.values(slice(None)), block.nbytes
        (tensor([[ 2., -1.]]), 7)
    """

    def __init__(self, signs: Tensor, left: Tensor, right: Tensor) -> None:
        if signs.ndim != 2 or signs.dtype != torch.bool:
            raise InvalidArgument(f"signs must be a bool matrix, got {signs.dtype} of shape {tuple(signs.shape)}")
        rank = left.shape[-1] if left.ndim == 2 else 0
        if rank < 1 or tuple(left.shape) != (signs.shape[0], rank) or tuple(right.shape) != (rank, signs.shape[1]):
            shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
            rule = "left is [out, rank], right [rank, in]"
            raise InvalidArgument(f"factors of shapes {shapes} do not fit signs of shape {tuple(signs.shape)}: {rule}")
        if rank > min(signs.shape):
            raise InvalidArgument(f"rank {rank} is above the smaller dimension of a block of shape {tuple(signs.shape)}")
        halves = [factor.detach().to(torch.float16).clone(memory_format=torch.contiguous_format) for factor in (left, right)]
        if not all(torch.isfinite(half).all() for half in halves):
            raise InvalidArgument("a factor of a sign block is NaN, Inf or beyond float16")
        self._hold(pack_bits(signs.to(torch.uint8), 1), *halves)

    def _hold(self, signs: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.signs: Tensor
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("signs", signs)
        self.register_buffer("left", left)
        self.register_buffer("right", right)

    @classmethod
    def empty(cls, shape: tuple[int, int], rank: int) -> SignBlock:
        """A block whose buffers are allocated on the current default device, unfilled."""
        block = cls.__new__(cls)
        signs = torch.empty(shape[0], packed_size(shape[1], 1), dtype=torch.uint8)
        block._hold(signs, torch.empty(shape[0], rank, dtype=torch.float16), torch.empty(rank, shape[1], dtype=torch.float16))
        return block

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)``."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Rank of the magnitudes."""
        return self.left.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the signs and both factors."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def values(self, rows: slice | Tensor) -> Tensor:
        """Float32 entries of the chosen rows, ``[n_rows, in_features]``."""
        return signed_values(self.term, rows)

    @property
    def term(self) -> SignTerm:
        """The stored tensors, as the kernel takes them."""
        return SignTerm(self.signs, self.left, self.right)


class ResidualStack(CompressedWeight):
    """``W = (B_1 + B_2 + ...) diag(c)``: each block ``B_i = S_i * (U_i V_i)`` repairs what the blocks before it left.

    Use it where the memory is not known beforehand or changes: :meth:`prefix` of any length is the weight at a smaller size, so one
    stored model serves every budget. At one fixed budget a searched mixture of quantised weights is more accurate.

    Args:
        blocks: One or more, coarsest first; held, not copied.
        input_scale: ``c``, ``[in_features]``, multiplied onto the columns; stored in float16. ``None`` for ones.

    Raises:
        InvalidArgument: If there is no block or more than 32, shapes or ranks differ, or a scale overflows or vanishes in float16.

    Example:
        >>> import torch
        >>> coarse = SignBlock(torch.tensor([[True, False]]), torch.tensor([[2.0]]), torch.tensor([[1.0, 1.0]]))
        >>> fine = SignBlock(torch.tensor([[True, True]]), torch.tensor([[0.5]]), torch.tensor([[1.0, 1.0]]))
        >>> weight = ResidualStack([coarse, fine])
        >>> weight.dense(), weight.prefix(1).dense()
        (tensor([[ 2.5000, -1.5000]]), tensor([[ 2., -2.]]))
    """

    kind = "residual_stack"

    def __init__(self, blocks: Iterable[SignBlock], input_scale: Tensor | None = None) -> None:
        stack = list(blocks)
        if not 1 <= len(stack) <= MAX_BLOCKS:
            raise InvalidArgument(f"a residual stack holds 1 to {MAX_BLOCKS} blocks, got {len(stack)}")
        if len({(block.shape, block.rank) for block in stack}) > 1:
            raise InvalidArgument("the blocks of a residual stack must have one shape and one rank")
        scale = None if input_scale is None else _stored_scale(input_scale.detach(), stack[0].shape[1])
        self._hold(stack, scale)

    def _hold(self, blocks: list[SignBlock], input_scale: Tensor | None) -> None:
        super().__init__(blocks[0].shape)
        self.blocks = nn.ModuleList(blocks)
        self.input_scale: Tensor | None
        self.register_buffer("input_scale", input_scale)

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[SignBlock]:
        return iter(cast("list[SignBlock]", list(self.blocks)))

    @property
    def rank(self) -> int:
        """Rank of the magnitudes of every block."""
        return next(iter(self)).rank

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return next(iter(self)).nbytes

    def prefix(self, count: int) -> ResidualStack:
        """The weight made of the first ``count`` blocks; the stored tensors are shared.

        Raises:
            InvalidArgument: If there are not that many, or none is left.
        """
        if not 1 <= count <= len(self):
            raise InvalidArgument(f"the stack has {len(self)} blocks; a prefix takes 1 to {len(self)} of them, got {count}")
        part = type(self).__new__(type(self))
        part._hold(list(self)[:count], self.input_scale)
        return part

    def push(self, block: SignBlock) -> None:
        """Add a block on top, in place.

        Raises:
            InvalidArgument: If its shape or rank is another, or the stack is full.
        """
        if (block.shape, block.rank) != (self.shape, self.rank) or len(self) == MAX_BLOCKS:
            fits = f"shape {self.shape} and rank {self.rank}"
            raise InvalidArgument(f"the stack takes up to {MAX_BLOCKS} blocks of {fits}, got shape {block.shape} and rank {block.rank}")
        self.blocks.append(block)

    def pop(self) -> SignBlock:
        """Take the top block off, in place.

        Raises:
            InvalidArgument: If it is the last one.
        """
        if len(self) == 1:
            raise InvalidArgument("the first block of a residual stack cannot be dropped")
        return cast("SignBlock", self.blocks.pop(-1))

    def dense(self) -> Tensor:
        return self._values(slice(None))

    def rows(self, index: Tensor) -> Tensor:
        return self._values(index.reshape(-1).long()).reshape(*index.shape, self.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return signed_linear(x, [block.term for block in self], self.input_scale)

    def _values(self, rows: slice | Tensor) -> Tensor:
        first, *others = self
        values = first.values(rows)
        for block in others:
            values += block.values(rows)
        return values if self.input_scale is None else values.mul_(self.input_scale.float())

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape), "blocks": len(self), "rank": self.rank,
            "input_scale": self.input_scale is not None,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResidualStack:
        shape = read_shape(config)
        rank = read_int(config, "rank", 1, min(shape))
        blocks = [SignBlock.empty(shape, rank) for _ in range(read_int(config, "blocks", 1, MAX_BLOCKS))]
        scale = torch.empty(shape[1], dtype=torch.float16) if read_choice(config, "input_scale", (True, False)) else None
        weight = cls.__new__(cls)
        weight._hold(blocks, scale)
        return weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {len(self)} blocks of rank {self.rank}"


def _stored_scale(input_scale: Tensor, in_features: int) -> Tensor:
    if tuple(input_scale.shape) != (in_features,):
        raise InvalidArgument(f"input_scale must have shape ({in_features},), got {tuple(input_scale.shape)}")
    half = input_scale.to(torch.float16).clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(half).all() or bool((half == 0).any()):
        raise InvalidArgument("input_scale overflows or vanishes in float16; normalise it to a geometric mean of one")
    return half
