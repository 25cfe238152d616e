"""How likely each index is, given those around it: learned in floats, used in integers that are the same on every machine."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.blocks import initialise
from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.errors import CorruptStream
from tersor.coding.interlaced import ALL, KINDS, Pass, check_count, passes
from tersor.errors import InvalidArgument

UNIFORM, LEARNED = 0, 1
TABLE_BITS = 16
# Every distribution gives this much to the uniform one, so that an index has a least cost and a byte codes a bounded number of them.
_FLATTEN = 512
LEAST_BITS = 1 / _FLATTEN
# Fractional bits of weights, activations and logits, and of the table of exponentials.
_FRACTION, _LOGIT, _EXPONENT = 8, 8, 20
_REACH = 16 << _LOGIT
# What weights and activations are cut to: a sum of a few thousand products stays below 2^53, where floats are exact whatever their order.
_WEIGHT, _ACTIVATION = (1 << 15) - 1, (1 << 20) - 1
_ROWS = 4096
_CHECKSUM = 4
# Bytes of every stream that are not indices: how they are coded, and their checksum.
OVERHEAD = 1 + _CHECKSUM

Grid = NDArray[np.int64]


class IndexPrior(nn.Module):
    """Distribution of an index from the twelve nearest that are known in interlaced order.

    Trained in floats by :meth:`loss`; :meth:`freeze` rounds it to integers, with which alone :meth:`encode` and :meth:`decode` compute.
    Their matrix products are sums of whole numbers below 2^53, exact in any order, so no machine and no number of threads can disagree.

    Args:
        codes: Indices are below it.
        embedding: Dimensions of the codewords.
        hidden: Width.
        seed: Of the weights.
    """

    def __init__(self, codes: int, embedding: int, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.codes = codes
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            # A codeword weighs in by its place among the neighbours; the last row is what lies beyond the grid.
            self.places = nn.Parameter(torch.empty(ALL, hidden, embedding))
            self.beyond = nn.Parameter(torch.empty(ALL, hidden))
            self.passes = nn.Parameter(torch.empty(KINDS, hidden))
            self.middle, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, codes)
            self.first = nn.Parameter(torch.empty(codes))
        self.to_empty(device="cpu")
        initialise(self, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.places.mul_((hidden / ALL) ** 0.5)
            self.first.zero_()
        shapes = {"table": (ALL, codes + 1, hidden), "kinds": (KINDS, hidden), "mix": (hidden, hidden), "mix_bias": (hidden,)}
        shapes |= {"out": (codes, hidden), "out_bias": (codes,), "start": (codes,), "exponentials": (_REACH,)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))

    def loss(self, indices: Tensor, codebook: Tensor) -> Tensor:
        """Mean cost in nats of indices ``[batch, rows, columns]`` of codewords ``[codes, embedding]``, in one pass of the order drawn."""
        grids = indices.numpy()
        total, count = indices.new_zeros((), dtype=torch.float32), 0
        for one in passes(*grids.shape[1:]):
            wanted = torch.from_numpy(grids[:, one.rows, one.columns])
            logits = self._logits(torch.from_numpy(one.neighbours(grids, self.codes)), one.kind, codebook) if one.kind else self.first
            total = total + functional.cross_entropy(logits.expand(*wanted.shape, -1).flatten(0, 1), wanted.flatten(), reduction="sum")
            count += wanted.numel()
        return total / count

    def _logits(self, around: Tensor, kind: int, codebook: Tensor) -> Tensor:
        rows = torch.cat([self.places @ codebook.T, self.beyond[..., None]], -1).mT
        x = self.passes[kind] + sum(rows[place][around[..., place]] for place in range(ALL))
        logits: Tensor = self.last(functional.relu(self.middle(functional.relu(x))))
        return logits

    @torch.no_grad()
    def freeze(self, codebook: Tensor) -> None:
        """Round to the integers that the coder uses; needed once after training, as they are saved."""
        rows = torch.cat([self.places @ codebook.T, self.beyond[..., None]], -1).mT
        one = 1 << _FRACTION
        self.table, self.kinds = _whole(rows * one), _whole(self.passes * one)
        self.mix, self.out = _whole(self.middle.weight * one), _whole(self.last.weight * one)
        # Biases are added to products, which have twice the fractional bits.
        self.mix_bias, self.out_bias = (torch.round(bias * one * one).to(torch.int32) for bias in (self.middle.bias, self.last.bias))
        self.start = _whole(self.first * (1 << _LOGIT))
        falling = torch.exp(-torch.arange(_REACH, dtype=torch.float64) / (1 << _LOGIT))
        self.exponentials = torch.round(falling * (1 << _EXPONENT)).to(torch.int32)

    def weights(self, grid: Grid, one: Pass, places: slice) -> NDArray[np.int64]:
        """Integer weights ``[n, codes]`` of total ``2 ** 16`` for some places of a pass, from what is known of ``grid``.

        Raises:
            InvalidArgument: Before :meth:`freeze`.
        """
        if not bool(self.exponentials.any()):
            raise InvalidArgument("this codec has no prior yet; finish its training")
        if one.kind == 0:
            logits = np.broadcast_to(self.start.numpy().astype(np.int64), (one.rows[places].size, self.codes))
        else:
            part = Pass(one.kind, one.rows[places], one.columns[places], one.reach)
            around = part.neighbours(grid, self.codes)
            table = self.table.numpy()
            hidden = self.kinds.numpy()[one.kind] + sum(table[place][around[:, place]].astype(np.int64) for place in range(ALL))
            hidden = _product(hidden.clip(0, _ACTIVATION), self.mix, self.mix_bias) >> _FRACTION
            logits = _product(hidden.clip(0, _ACTIVATION), self.out, self.out_bias) >> (2 * _FRACTION - _LOGIT)
        distance = (logits.max(-1, keepdims=True) - logits).clip(0, _REACH - 1)
        mass = self.exponentials.numpy().astype(np.int64)[distance]
        flat = mass * (_FLATTEN - 1) + mass.sum(-1, keepdims=True) // self.codes
        weights: NDArray[np.int64] = 1 + flat * ((1 << TABLE_BITS) - self.codes) // flat.sum(-1, keepdims=True)
        left = (1 << TABLE_BITS) - weights.sum(-1)
        weights[np.arange(len(weights)), weights.argmax(-1)] += left
        return weights

    def encode(self, indices: Tensor, mode: int = LEARNED) -> bytes:
        """Bytes of indices ``[rows, columns]``; their shape is not part of them.

        Args:
            indices: Below ``codes``.
            mode: :data:`LEARNED`, or :data:`UNIFORM` for ``log2(codes)`` bits each whatever they are.

        Raises:
            InvalidArgument: If an index is out of range.
        """
        grid = self._checked(indices)
        coder = RangeEncoder()
        if mode == UNIFORM:
            for value in grid.reshape(-1).tolist():
                coder.encode_uniform(value, self.codes)
        else:
            for one, places in _parts(grid):
                weights = self.weights(grid, one, places)
                wanted = grid[one.rows[places], one.columns[places]]
                row = np.arange(len(wanted))
                low = (np.cumsum(weights, -1) - weights)[row, wanted]
                for begin, weight in zip(low.tolist(), weights[row, wanted].tolist(), strict=True):
                    coder.encode(begin, weight, 1 << TABLE_BITS)
        return bytes([mode]) + _checksum(grid) + coder.finish()

    def decode(self, data: bytes, rows: int, columns: int) -> Tensor:
        """The indices that :meth:`encode` coded, int64 ``[rows, columns]``.

        Raises:
            CorruptStream: If the bytes are damaged, cut short, too long, or too few for the shape.
        """
        check_count(rows * columns, len(data), LEAST_BITS)
        mode, coder = data[:1], RangeDecoder(data[OVERHEAD:])
        if mode not in (bytes([UNIFORM]), bytes([LEARNED])):
            raise CorruptStream("the indices of the picture are coded in a way that this tersor does not know, or damaged")
        grid = np.zeros((rows, columns), dtype=np.int64)
        if mode == bytes([UNIFORM]):
            grid.reshape(-1)[:] = [coder.decode_uniform(self.codes) for _ in range(grid.size)]
        else:
            for one, places in _parts(grid):
                bounds = np.cumsum(self.weights(grid, one, places), -1)
                grid[one.rows[places], one.columns[places]] = [_next(coder, row) for row in bounds]
        coder.finish()
        if _checksum(grid) != data[1:OVERHEAD]:
            raise CorruptStream("the decoded indices do not match their checksum: the file is damaged")
        return torch.from_numpy(grid)

    def ideal_bits(self, indices: Tensor) -> float:
        """What the prior gives to indices ``[rows, columns]``: no coder goes below it on average."""
        grid, total = self._checked(indices), 0.0
        for one, places in _parts(grid):
            chosen = self.weights(grid, one, places)[np.arange(one.rows[places].size), grid[one.rows[places], one.columns[places]]]
            total += float((TABLE_BITS - np.log2(chosen)).sum())
        return total

    def _checked(self, indices: Tensor) -> Grid:
        grid: Grid = indices.cpu().numpy().astype(np.int64)
        if grid.ndim != 2 or not grid.size or grid.min() < 0 or grid.max() >= self.codes:
            raise InvalidArgument(f"indices of this codebook are [rows, columns] of 0 to {self.codes - 1}, got shape {grid.shape}")
        return grid


def _parts(grid: Grid) -> list[tuple[Pass, slice]]:
    """The passes, cut where their tables would take much memory."""
    return [(one, slice(begin, begin + _ROWS)) for one in passes(*grid.shape) for begin in range(0, one.rows.size, _ROWS)]


def _next(coder: RangeDecoder, bounds: NDArray[np.int64]) -> int:
    symbol = int(np.searchsorted(bounds, coder.peek(1 << TABLE_BITS), side="right"))
    low = int(bounds[symbol - 1]) if symbol else 0
    coder.advance(low, int(bounds[symbol]) - low, 1 << TABLE_BITS)
    return symbol


def _product(values: NDArray[np.int64], weight: Tensor, bias: Tensor) -> NDArray[np.int64]:
    exact = values.astype(np.float64) @ weight.numpy().astype(np.float64).T
    whole: NDArray[np.int64] = exact.astype(np.int64) + bias.numpy()
    return whole


def _whole(values: Tensor) -> Tensor:
    return torch.round(values).clamp(-_WEIGHT, _WEIGHT).to(torch.int32)


def _checksum(grid: Grid) -> bytes:
    return zlib.crc32(grid.astype("<u2").tobytes()).to_bytes(_CHECKSUM, "little")
