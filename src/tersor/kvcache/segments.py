"""Segments of compressed keys or values: written once, appended to, read back, never compressed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from tersor.kernels.packing import pack_bits
from tersor.kernels.quantized import dequantise
from tersor.kvcache.config import GearConfig
from tersor.kvcache.correction import OutlierLines, factorise, outlier_lines, pick_outliers
from tersor.layerwise import Grid

Side = Literal["keys", "values"]


@dataclass(frozen=True)
class Segments:
    """``count`` segments of ``tokens`` tokens each, of the keys or the values of one layer.

    The entries of a segment lie in rows: a row is a channel over the tokens (``by_channel``) or a token over the channels of all heads.
    Every tensor has the batch first and the segments second, so that beams reorder and new segments append without touching a value.

    Attributes:
        tokens: Of each segment.
        heads: Key-value heads.
        width: Channels of a head.
        by_channel: How rows lie.
        bits: Of a code; ``None`` if ``codes`` are the entries themselves.
        codes: Packed, uint8 ``[batch, count, rows, bytes]``, or the entries ``[batch, count, rows, row length]``.
        scale: ``[batch, count, rows, groups]``.
        minimum: The same.
        left: Factor ``[batch, count, heads, tokens, rank]`` of the error.
        right: Factor ``[batch, count, heads, width, rank]``.
        outliers: Values ``[batch, count, lines, kept]``.
        positions: Where they stand in their line, a run of whole rows; int16, or int32 for lines beyond its reach.
    """

    tokens: int
    heads: int
    width: int
    by_channel: bool
    bits: int | None
    codes: Tensor
    scale: Tensor | None = None
    minimum: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    outliers: Tensor | None = None
    positions: Tensor | None = None

    @classmethod
    def compress(cls, states: Tensor, side: Side, config: GearConfig, rank: int) -> Segments:
        """One segment out of ``states``.

        Args:
            states: ``[batch, heads, tokens, width]``, finite.
            side: Which of both they are.
            config: How.
            rank: Of the factors of the error, at most what the matrix has.
        """
        _, heads, tokens, width = states.shape
        by_channel = side == "keys" and config.backbone != "plain"
        rows = _to_rows(states[:, None], by_channel)
        if config.bits is None:
            return cls(tokens, heads, width, by_channel, None, rows.contiguous())
        rows = rows.float()
        lines = outlier_lines(rows, heads if by_channel else 1, config.sparsity)
        filled, outliers, positions = pick_outliers(rows, lines, config.store_dtype)
        made = cls(tokens, heads, width, by_channel, config.bits, *_quantise(filled, config), outliers=outliers, positions=positions)
        rank = min(rank, tokens, width)
        if rank == 0:
            return made
        residual = _without(rows - made._backbone(), positions, lines)
        left, right = factorise(_from_rows(residual, made)[:, 0], rank, config)
        return replace(made, left=left[:, None], right=right[:, None])

    @property
    def count(self) -> int:
        """Number of segments."""
        return self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        return sum(tensor.nbytes for _, tensor in self._tensors())

    def fits(self, other: Segments) -> bool:
        """Whether ``other`` can be appended: segments of one size, layout and rank."""
        mine, theirs = ({name: tensor.shape[2:] for name, tensor in segments._tensors()} for segments in (self, other))
        return mine == theirs and (self.tokens, self.by_channel, self.bits) == (other.tokens, other.by_channel, other.bits)

    def joined(self, other: Segments) -> Segments:
        """These segments with those of ``other`` after them, every stored value as it was."""
        theirs = dict(other._tensors())
        return replace(self, **{name: torch.cat([tensor, theirs[name]], 1) for name, tensor in self._tensors()})  # type: ignore[arg-type]

    def map(self, change: Callable[[Tensor], Tensor]) -> Segments:
        """Every stored tensor through ``change``, which must treat all entries of a batch element alike."""
        return replace(self, **{name: change(tensor) for name, tensor in self._tensors()})  # type: ignore[arg-type]

    def write(self, out: Tensor) -> None:
        """Read back into ``out`` ``[batch, heads, count * tokens, width]``."""
        dense = self._backbone()
        if self.left is not None and self.right is not None:
            _add_products(dense, self.left.float(), self.right.float(), self.by_channel)
        if self.outliers is not None and self.positions is not None:
            lines = dense.view(*self.positions.shape[:3], -1)
            lines.scatter_(3, self.positions.long(), self.outliers.to(lines.dtype))
        out.unflatten(2, (self.count, self.tokens)).copy_(_from_rows(dense, self).transpose(1, 2))

    def _backbone(self) -> Tensor:
        """The rows without corrections ``[batch, count, rows, row length]``."""
        if self.bits is None:
            return self.codes
        assert self.scale is not None
        assert self.minimum is not None
        length = self.tokens if self.by_channel else self.heads * self.width
        codes, scale, minimum = (tensor.flatten(0, 2) for tensor in (self.codes, self.scale, self.minimum))
        groups = {"group_size": length // scale.shape[1], "in_features": length}
        return dequantise(codes, scale, minimum, bits=self.bits, scheme="float_min", **groups).view(*self.codes.shape[:3], length)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value


def _quantise(rows: Tensor, config: GearConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, scales and minima of ``rows`` ``[batch, 1, rows, row length]``."""
    assert config.bits is not None
    grid = Grid.of(rows.shape[3], config.bits, "float_min", -1 if config.backbone == "kcvt" else config.group)
    flat = rows.flatten(0, 2)
    scale, minimum = grid.fit(flat)
    codes = pack_bits(grid.quantize(flat, scale, minimum), config.bits)
    # The grid has rounded both to float16 already, unless a value would overflow or fade away in it.
    halves = scale.half(), minimum.half()
    if all(torch.equal(half.float(), full) for half, full in zip(halves, (scale, minimum), strict=True)):
        scale, minimum = halves
    codes, scale, minimum = (tensor.unflatten(0, rows.shape[:3]) for tensor in (codes, scale, minimum))
    return codes, scale, minimum


def _add_products(rows: Tensor, left: Tensor, right: Tensor, by_channel: bool) -> None:
    """Add ``left @ right.mT`` of every head to ``rows``, without a product in memory of its own."""
    heads, width = right.shape[2:4]
    if by_channel:
        rows.view(-1, width, rows.shape[3]).baddbmm_(right.flatten(0, 2), left.flatten(0, 2).mT)
        return
    for head in range(heads):
        channels = rows.flatten(0, 1)[..., head * width : (head + 1) * width]
        channels.baddbmm_(left[:, :, head].flatten(0, 1), right[:, :, head].flatten(0, 1).mT)


def _without(rows: Tensor, positions: Tensor | None, lines: OutlierLines) -> Tensor:
    """``rows`` with zeros where outliers stand."""
    if positions is None:
        return rows
    return rows.reshape(*rows.shape[:2], lines.number, -1).scatter(3, positions.long(), 0.0).view(rows.shape)


def _to_rows(states: Tensor, by_channel: bool) -> Tensor:
    """``[batch, count, heads, tokens, width]`` as rows ``[batch, count, rows, row length]``."""
    return states.transpose(3, 4).flatten(2, 3) if by_channel else states.transpose(2, 3).flatten(3, 4)


def _from_rows(rows: Tensor, segments: Segments) -> Tensor:
    """The inverse of :func:`_to_rows`, a view."""
    heads = (segments.heads, segments.width)
    return rows.unflatten(2, heads).transpose(3, 4) if segments.by_channel else rows.unflatten(3, heads).transpose(2, 3)
