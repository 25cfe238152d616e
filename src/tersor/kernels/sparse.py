"""Products with pruned weights on a CPU, from the kept values and their positions.

Up to a few rows of x the stored bytes are multiplied as they are read; above that a tile of rows at a time is written densely into cache
and multiplied by torch's own GEMM. The weight is never dense in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels import reference
from tersor.kernels._available import kernels_run
from tersor.kernels._openmp import team_for
from tersor.kernels._tiled import DifferentiableProduct, multiply, tiles
from tersor.kernels.packing import packed_size

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_VALUE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_COLUMN_TYPES = (torch.uint8, torch.int16, torch.int32)

# Rows of x up to which the stored form beats dense tiles (benchmarks/kernels.py): bfloat16 GEMM is the faster one to beat.
_MAX_ROWS = {torch.float32: 16, torch.bfloat16: 6}
# Kept values below which a second thread costs more than it saves.
_GRAIN = 1 << 15


def masked_linear(x: Tensor, bits: Tensor, values: Tensor, starts: Tensor, *, in_features: int) -> Tensor:
    """``x @ W.T`` for a weight of kept values beside a bit map; for unstructured sparsity up to about 90 %.

    Args:
        x: ``[..., in_features]``; gradients flow through it.
        bits: uint8 ``[out_features, ceil(in_features / 8)]``, lowest bit first, set where a value is kept.
        values: float16, bfloat16 or float32 ``[kept]``, row by row.
        starts: int64 ``[out_features + 1]``, kept values before each row.
        in_features: columns.

    Returns:
        ``[..., out_features]`` in the type of ``x``.

    Raises:
        InvalidArgument: If the shapes do not belong together.
    """
    rows = starts.numel() - 1
    _check(x, values, starts, in_features)
    if bits.shape != (rows, packed_size(in_features, 1)) or bits.dtype != torch.uint8:
        raise InvalidArgument(f"the bit map of {rows}x{in_features} has {packed_size(in_features, 1)} bytes a row, got {tuple(bits.shape)}")
    return _linear(x, _Pruned(bits.contiguous(), starts, values, in_features))


def pattern_linear(
    x: Tensor, codes: Tensor, values: Tensor, starts: Tensor, patterns: Tensor, *, of_m: int, in_features: int
) -> Tensor:
    """``x @ W.T`` for a weight that keeps the same number of every ``of_m`` neighbours.

    Args:
        x: ``[..., in_features]``; gradients flow through it.
        codes: uint8 ``[out_features, ...]``, one number of a pattern for each group, packed along the row in as many bits as the largest
            number takes.
        values: float16, bfloat16 or float32 ``[kept]``, row by row.
        starts: int64 ``[out_features + 1]``, kept values before each row.
        patterns: int64 ``[patterns]``, the bits of the kept columns of each pattern, lowest first.
        of_m: columns of a group, below 64; divides ``in_features``.
        in_features: columns.

    Returns:
        ``[..., out_features]`` in the type of ``x``.

    Raises:
        InvalidArgument: If the shapes do not belong together.
    """
    rows, number_bits = starts.numel() - 1, reference.pattern_bits(patterns)
    _check(x, values, starts, in_features)
    if not 2 <= of_m < 64 or in_features % of_m or not 1 <= number_bits <= 8:
        raise InvalidArgument(f"of_m must be 2 to 63 and divide {in_features}, with 2 to 256 patterns; got {of_m} and {patterns.numel()}")
    if codes.shape != (rows, packed_size(in_features // of_m, number_bits)) or codes.dtype != torch.uint8:
        raise InvalidArgument(f"{in_features // of_m} patterns of {number_bits} bits do not fit codes of shape {tuple(codes.shape)}")
    return _linear(x, _Pruned(codes.contiguous(), starts, values, in_features, patterns.contiguous(), of_m))


def column_linear(x: Tensor, columns: Tensor, values: Tensor, starts: Tensor, *, in_features: int) -> Tensor:
    """``x @ W.T`` for a weight of kept values beside their columns; for the few values that are left above about 90 % sparsity.

    Args:
        x: ``[..., in_features]``; gradients flow through it.
        columns: uint8, int16 or int32 ``[kept]``, row by row.
        values: float16, bfloat16 or float32 ``[kept]``.
        starts: int64 ``[out_features + 1]``, kept values before each row.
        in_features: columns.

    Returns:
        ``[..., out_features]`` in the type of ``x``.

    Raises:
        InvalidArgument: If the shapes do not belong together.
    """
    _check(x, values, starts, in_features)
    if columns.shape != values.shape or columns.dtype not in _COLUMN_TYPES:
        raise InvalidArgument(f"{values.numel()} values need as many uint8, int16 or int32 columns, got {columns.numel()} {columns.dtype}")
    return _linear(x, _Pruned(columns.contiguous(), starts, values, in_features))


def _check(x: Tensor, values: Tensor, starts: Tensor, in_features: int) -> None:
    """Refuse what does not belong together, because the kernels read memory by these numbers."""
    if x.shape[-1] != in_features:
        raise InvalidArgument(f"x must have {in_features} features in its last dimension, got shape {tuple(x.shape)}")
    if starts.dtype != torch.int64 or not (values.ndim == 1 and values.is_contiguous()) or int(starts[-1]) != values.numel():
        raise InvalidArgument(f"starts must be int64 and end with the number of contiguous values, {values.numel()}; got {starts.dtype}")


class _Pruned(NamedTuple):
    """The buffers of one weight: bits ``[rows, bytes]``, numbers of patterns ``[rows, bytes]`` with their table, or columns ``[kept]``."""

    where: Tensor
    starts: Tensor
    values: Tensor
    in_features: int
    patterns: Tensor | None = None
    of_m: int = 0

    @property
    def rows(self) -> int:
        return self.starts.numel() - 1

    @property
    def layout(self) -> int:
        """As the compiled bodies number them: bits, patterns of four columns, other patterns."""
        return 0 if self.patterns is None else 1 if self.of_m == 4 else 2

    def dense(self, first: int, last: int) -> Tensor:
        """Rows by the plain torch twins, float32."""
        part = slice(int(self.starts[first]), int(self.starts[last]))
        if self.where.ndim == 1:
            mask = reference.mask_of_columns(self.where[part], self.starts[first : last + 1], self.in_features)
        elif self.patterns is None:
            mask = reference.mask_of_bits(self.where[first:last], self.in_features)
        else:
            mask = reference.mask_of_patterns(self.where[first:last], self.patterns, self.of_m, self.in_features)
        return reference.fill(mask, self.values[part])


def _linear(x: Tensor, weight: _Pruned) -> Tensor:
    wants_grad = torch.is_grad_enabled()
    if (wants_grad and weight.values.requires_grad) or not _runs_compiled(x, weight):
        return reference.tiled_linear(x, weight.dense, weight.rows)
    if wants_grad and x.requires_grad:
        made: Tensor = DifferentiableProduct.apply(x, partial(_product, weight=weight), partial(_tiles, weight))
        return made
    return _product(x, weight)


def _runs_compiled(x: Tensor, weight: _Pruned) -> bool:
    if not x.is_cpu or not weight.values.is_cpu or torch.compiler.is_compiling() or not kernels_run():
        return False
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16) and weight.values.dtype in _VALUE_KINDS


def _product(x: Tensor, weight: _Pruned) -> Tensor:
    if x.dtype == torch.float16:
        return _product(x.float(), weight).half()
    m = x.numel() // weight.in_features
    x = x if x.is_contiguous() else x.contiguous()
    y = torch.empty(*x.shape[:-1], weight.rows, dtype=x.dtype)
    if m <= _MAX_ROWS[x.dtype]:
        batch = 1 if m <= 2 or weight.where.ndim == 1 else 4
        _run(weight, y, (0, weight.rows), _body(weight, batch), x=x, m=m, batch=batch)
    else:
        multiply(x, y, partial(_tiles, weight))
    return y


@cache
def _compiled() -> ModuleType:
    from tersor.kernels import _sparse_numba

    return _sparse_numba


def _body(weight: _Pruned, batch: int) -> Any:
    """The compiled body for a product with ``batch`` rows of x at a time, or, for batch 0, for dense rows."""
    compiled, kind = _compiled(), _VALUE_KINDS[weight.values.dtype]
    if weight.where.ndim == 1:
        size = weight.where.element_size()
        return compiled.column_product_body(size, kind) if batch else compiled.column_fill_body(size, kind)
    return compiled.bit_product_body(weight.layout, kind, batch) if batch else compiled.bit_fill_body(weight.layout, kind)


def _run(weight: _Pruned, y: Tensor, part: tuple[int, int], body: Any, *, x: Tensor | None = None, m: int = 0, batch: int = 1) -> None:
    """Multiply all of ``weight`` with ``x``, or write its rows ``part`` densely into ``y``."""
    patterns, count = (0, 0) if weight.patterns is None else (weight.patterns.data_ptr(), weight.patterns.numel())
    work = weight.values.numel() * (part[1] - part[0]) // max(weight.rows, 1)
    _compiled().entry()(
        weight.where.data_ptr(), weight.starts.data_ptr(), weight.values.data_ptr(), y.data_ptr(), _KINDS[y.dtype], weight.rows,
        weight.in_features, patterns, count, weight.of_m, 0 if x is None else x.data_ptr(), m, batch, *part, body.address,
        *team_for(work, _GRAIN),
    )  # fmt: skip


def _tiles(weight: _Pruned, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    body = _body(weight, 0)
    return tiles(weight.rows, weight.in_features, dtype, lambda first, last, buffer: _run(weight, buffer, (first, last), body))
