"""Latents of a few integers to bytes: a table for each channel and each kind of neighbourhood, counted after training."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tersor.coding.entropy.coders import decode_indexed, encode_indexed
from tersor.coding.entropy.container import read_varint, write_varint
from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.entropy.tables import IntTable, quantise_pmf
from tersor.coding.errors import CorruptStream
from tersor.coding.interlaced import NEAR, Pass, check_count, passes
from tersor.errors import InvalidArgument

TABLE_BITS = 16
# Every table gives this much to the uniform distribution: nothing is dearer than a few bits, and a byte codes a bounded number of values.
_UNIFORM = 1 / 512
LEAST_BITS = 1 / 512
# A context counts as much as so many symbols of the channel's own distribution.
_PRIOR = 32.0
_MEANS, _SPREADS, _REACHES = 9, 3, 3
_CONTEXTS = 1 + _MEANS * _SPREADS * _REACHES
# Up to so many values one stream in plain integers is shorter than one in words a pass.
_SMALL = 1 << 14
_CHECKSUM = 4
_NOWHERE = -(1 << 20)

Grid = NDArray[np.int64]


class LatentTables(nn.Module):
    """Integer tables of latents in ``-largest .. largest``; the neighbours' mean and spread choose among those of a channel.

    Args:
        channels: Of the latent.
        largest: Largest integer.
    """

    def __init__(self, channels: int, largest: int) -> None:
        super().__init__()
        self.channels, self.largest = channels, largest
        self.register_buffer("weights", torch.zeros(channels, _CONTEXTS, 2 * largest + 1, dtype=torch.int32))

    def fit(self, latents: Iterable[Tensor]) -> None:
        """Count integers ``[channels, height, width]`` of training data, or several of a size at once ``[n, channels, height, width]``."""
        size = 2 * self.largest + 1
        rows = np.zeros((self.channels * _CONTEXTS, size))
        for latent in latents:
            grid = self._checked(latent)
            for one in passes(*grid.shape[-2:]):
                symbols = grid[..., one.rows, one.columns] + self.largest
                np.add.at(rows, (self._indexes(grid, one), symbols), 1)
        counts = rows.reshape(self.channels, _CONTEXTS, size)
        own = counts.sum(1, keepdims=True) + 1 / size
        blended = counts + _PRIOR * own / own.sum(-1, keepdims=True)
        pmf = (1 - _UNIFORM) * blended / blended.sum(-1, keepdims=True) + _UNIFORM / size
        self.weights = torch.from_numpy(quantise_pmf(pmf, TABLE_BITS).astype(np.int32))
        self.__dict__.pop("tables", None)

    @cached_property
    def tables(self) -> list[IntTable]:
        """One a channel and context.

        Raises:
            InvalidArgument: Before :meth:`fit`, or if saved tables are no tables.
        """
        if not bool(self.weights.any()):
            raise InvalidArgument("this codec has no tables yet; finish its training")
        return [IntTable(row) for row in self.weights.flatten(0, 1).cpu().numpy()]

    def encode(self, latent: Tensor) -> bytes:
        """Bytes of integers ``[channels, height, width]``; their shape is not part of them.

        Raises:
            InvalidArgument: If the shape or a value is none of this codec.
        """
        grid = self._checked(latent)
        if grid.ndim != 3:
            raise InvalidArgument(f"latents are coded one by one, [{self.channels}, height, width], got {tuple(latent.shape)}")
        small = grid.size <= _SMALL
        slow, out = RangeEncoder(), b""
        for one in passes(*grid.shape[1:]):
            symbols, indexes = grid[:, one.rows, one.columns] + self.largest, self._indexes(grid, one)
            if small:
                for symbol, index in zip(symbols.reshape(-1).tolist(), indexes.reshape(-1).tolist(), strict=True):
                    slow.encode_symbol(symbol, self.tables[index])
            else:
                part = encode_indexed(symbols, self.tables, indexes)
                out += write_varint(len(part)) + part
        return _checksum(grid) + (slow.finish() if small else out)

    def decode(self, data: bytes, height: int, width: int) -> Tensor:
        """The integers that :meth:`encode` coded, int64 ``[channels, height, width]``.

        Raises:
            CorruptStream: If the bytes are damaged, cut short, too long, or too few for the shape.
        """
        check_count(self.channels * height * width, len(data), LEAST_BITS)
        grid = np.zeros((self.channels, height, width), dtype=np.int64)
        small, position = grid.size <= _SMALL, _CHECKSUM
        slow = RangeDecoder(data[_CHECKSUM:]) if small else None
        for one in passes(height, width):
            indexes = self._indexes(grid, one)
            if slow is not None:
                found: Any = [slow.decode_symbol(self.tables[index]) for index in indexes.reshape(-1).tolist()]
            else:
                size, position = read_varint(data, position)
                if size > len(data) - position:
                    raise CorruptStream("a coded latent is cut short")
                found = decode_indexed(data[position : position + size], self.tables, indexes)
                position += size
            grid[:, one.rows, one.columns] = np.asarray(found, dtype=np.int64).reshape(indexes.shape) - self.largest
        if slow is not None:
            slow.finish()
        elif position != len(data):
            raise CorruptStream("a coded latent goes on after its last value")
        if _checksum(grid) != data[:_CHECKSUM]:
            raise CorruptStream("the decoded latent does not match its checksum: the file is damaged")
        return torch.from_numpy(grid)

    def ideal_bits(self, latent: Tensor) -> float:
        """What the tables give to integers ``[channels, height, width]`` or several of them: no coder goes below it on average."""
        grid, total = self._checked(latent), 0.0
        weights = self.weights.flatten(0, 1).cpu().numpy()
        for one in passes(*grid.shape[-2:]):
            chosen = weights[self._indexes(grid, one), grid[..., one.rows, one.columns] + self.largest]
            total += float((TABLE_BITS - np.log2(chosen)).sum())
        return total

    def _indexes(self, grid: Grid, one: Pass) -> NDArray[np.int64]:
        """Which table every value of a pass is coded with: ``[..., channels, n]``."""
        first = np.arange(self.channels)[:, None] * _CONTEXTS
        if one.kind == 0:
            return np.broadcast_to(first, (*grid.shape[:-2], one.rows.size))
        around = one.neighbours(grid, _NOWHERE, NEAR)
        inside = around != _NOWHERE
        # Sides of four values, as if those outside were like those inside.
        mean = 4 * np.where(inside, around, 0).sum(-1) // np.maximum(inside.sum(-1), 1)
        spread = np.where(inside, around, -self.largest).max(-1) - np.where(inside, around, self.largest).min(-1)
        bucket = (mean + 4 * self.largest) * _MEANS // (8 * self.largest + 1)
        width = (spread > self.largest // 8).astype(np.int64) + (spread > self.largest // 3)
        reach = min(one.reach.bit_length(), _REACHES) - 1
        return first + 1 + (reach * _SPREADS + width) * _MEANS + bucket

    def _checked(self, latent: Tensor) -> Grid:
        if latent.ndim not in (3, 4) or latent.shape[-3] != self.channels or not latent.numel():
            raise InvalidArgument(f"latents of this codec are [{self.channels}, height, width], got {tuple(latent.shape)}")
        grid: Grid = latent.cpu().numpy().astype(np.int64)
        if int(np.abs(grid).max()) > self.largest:
            raise InvalidArgument(f"latents of this codec are integers up to {self.largest}, got {int(np.abs(grid).max())}")
        return grid


def _checksum(grid: Grid) -> bytes:
    return zlib.crc32(grid.astype("<i2").tobytes()).to_bytes(_CHECKSUM, "little")
