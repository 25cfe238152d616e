"""Grids of integers in interlaced order: a coarse lattice first, then what lies between, so that most places know all their sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.coding.errors import CorruptStream

Places = NDArray[np.int64]
# Places of the first lattice are this far apart.
COARSEST = 8
KINDS = 1 + 2 * (COARSEST.bit_length() - 1)
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_STRAIGHT = ((-1, 0), (0, -1), (0, 1), (1, 0))
# What else is known around a place, a little further away.
_BEYOND_DIAGONAL = ((-1, -3), (-1, 3), (1, -3), (1, 3), (-3, -1), (-3, 1), (3, -1), (3, 1))
_BEYOND_STRAIGHT = ((-1, -2), (-1, 2), (1, -2), (1, 2), (-2, -1), (-2, 1), (2, -1), (2, 1))
NEAR, ALL = 4, 12
# Bits that a coder may leave out at the end of a stream.
_SLACK = 64


@dataclass(frozen=True)
class Pass:
    """Places of a grid that are coded together, knowing all earlier passes.

    Attributes:
        kind: 0 for the first lattice, then 1, 2, 3 and so on: two for each halving of the distance.
        rows: ``[n]``.
        columns: ``[n]``.
        reach: Distance of the nearest neighbours, in places; 0 for the first lattice.
    """

    kind: int
    rows: Places
    columns: Places
    reach: int

    def neighbours(self, grid: NDArray[np.int64], outside: int, count: int = ALL) -> NDArray[np.int64]:
        """Values of ``grid`` ``[..., height, width]`` around every place: ``[..., n, count]``, the four nearest first.

        Args:
            grid: Of which only places of earlier passes are read.
            outside: Stands for what lies beyond the grid.
            count: :data:`NEAR` or :data:`ALL`.
        """
        near, beyond = (_DIAGONAL, _BEYOND_DIAGONAL) if self.kind % 2 else (_STRAIGHT, _BEYOND_STRAIGHT)
        offsets = np.array((near + beyond)[:count], dtype=np.int64) * self.reach
        rows, columns = self.rows[:, None] + offsets[:, 0], self.columns[:, None] + offsets[:, 1]
        height, width = grid.shape[-2:]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        values = grid[..., rows.clip(0, height - 1), columns.clip(0, width - 1)]
        return np.where(inside, values, outside)


def passes(height: int, width: int) -> Iterator[Pass]:
    """The passes over a grid: every place is in exactly one, and none is empty."""
    step = COARSEST
    yield _places(0, height, width, (0, step), (0, step), 0)
    kind = 1
    while step > 1:
        half = step // 2
        centres = _places(kind, height, width, (half, step), (half, step), half)
        beside, below = (_places(kind + 1, height, width, rows, columns, half) for rows, columns in _edges(half, step))
        found = [centres, _merged(beside, below)]
        yield from (one for one in found if one.rows.size)
        kind, step = kind + 2, half


def _places(kind: int, height: int, width: int, rows: tuple[int, int], columns: tuple[int, int], reach: int) -> Pass:
    down, across = np.meshgrid(np.arange(rows[0], height, rows[1]), np.arange(columns[0], width, columns[1]), indexing="ij")
    return Pass(kind, down.reshape(-1).astype(np.int64), across.reshape(-1).astype(np.int64), reach)


def _edges(half: int, step: int) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    return ((0, step), (half, step)), ((half, step), (0, step))


def _merged(first: Pass, second: Pass) -> Pass:
    return Pass(first.kind, np.concatenate([first.rows, second.rows]), np.concatenate([first.columns, second.columns]), first.reach)


def check_count(count: int, nbytes: int, least_bits: float) -> None:
    """Refuse a header that names more values than its stream can hold, before anything is allocated for them.

    Args:
        count: Values.
        nbytes: Bytes of the stream.
        least_bits: Cost of the cheapest value.

    Raises:
        CorruptStream: If so.
    """
    if count * least_bits > 8 * nbytes + _SLACK:
        raise CorruptStream(f"the header of the compressed file names {count:,} values, more than its {nbytes:,} bytes can hold")
