"""Products with a weight that is dense only a tile of rows at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Smaller dense tiles make torch's GEMM slower, larger ones leave the cache.
_TILE_BYTES = 1 << 22
_kept = threading.local()

# The dense rows in a type, some at a time, each tile with the number of its first row.
Tiles: TypeAlias = Callable[[torch.dtype], Iterator[tuple[int, Tensor]]]


def tiles(rows: int, columns: int, dtype: torch.dtype, write: Callable[[int, int, Tensor], None]) -> Iterator[tuple[int, Tensor]]:
    """Tiles that ``write(first, last, buffer)`` fills; each is overwritten by the next."""
    height = min(rows, max(16, _TILE_BYTES // (columns * dtype.itemsize)))
    # New memory costs a page fault every 4 KiB, about as much as filling it, so each thread keeps the last buffer.
    memory = _kept.__dict__.pop("memory", None)
    if memory is None or memory.numel() < height * columns * dtype.itemsize:
        with torch.inference_mode(False):  # what is kept may be used outside of it
            memory = torch.empty(max(_TILE_BYTES, height * columns * dtype.itemsize), dtype=torch.uint8)
    buffer = memory[: height * columns * dtype.itemsize].view(dtype).view(height, columns)
    try:
        for first in range(0, rows, height):
            last = min(rows, first + height)
            write(first, last, buffer)
            yield first, buffer[: last - first]
    finally:
        if memory.numel() <= _TILE_BYTES:
            _kept.memory = memory


def multiply(x: Tensor, y: Tensor, dense: Tiles) -> None:
    """Write ``x @ W.T`` into ``y``; both contiguous and of one type."""
    flat, made = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    with torch.autocast("cpu", enabled=False):  # it would change the type of x behind `out`
        for first, tile in dense(x.dtype):
            torch.mm(flat, tile.t(), out=made[:, first : first + tile.shape[0]])


class DifferentiableProduct(torch.autograd.Function):
    """``product(x)`` with a gradient for x that makes the dense tiles again instead of keeping a dense weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Callable[[Tensor], Tensor], dense: Tiles) -> Tensor:
        ctx.dense, ctx.dtype, ctx.shape = dense, x.dtype, x.shape
        return product(x.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        dtype = torch.float32 if ctx.dtype == torch.float16 else ctx.dtype
        flat = grad.reshape(-1, grad.shape[-1]).to(dtype)
        made = torch.zeros(flat.shape[0], ctx.shape[-1])
        for first, tile in ctx.dense(dtype):
            made += flat[:, first : first + tile.shape[0]] @ tile
        return made.to(ctx.dtype).view(ctx.shape), None, None
