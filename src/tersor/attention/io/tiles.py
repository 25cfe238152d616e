"""Tile sizes that fit a fast memory, and the words that each schedule then moves, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer

Schedule = Literal["naive", "flash1", "flash2", "square", "square_tuned"]
SCHEDULES: tuple[Schedule, ...] = ("naive", "flash1", "flash2", "square", "square_tuned")
FLASH: tuple[Schedule, ...] = ("flash1", "flash2")

# Widest tile of keys that flash2 tries: above it, room is better spent on queries.
_WIDEST = 16


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of a schedule.

    Attributes:
        queries: Rows of Q, and of the scores, in a tile.
        keys: Rows of K and V, columns of the scores.
        depth: Features of Q and K that are read at a time; the width for schedules that read whole rows.
    """

    queries: int
    keys: int
    depth: int


@dataclass(frozen=True)
class Count:
    """Words that a schedule moves.

    Attributes:
        reads: From slow memory.
        writes: To it.
    """

    reads: int
    writes: int

    @property
    def words(self) -> int:
        """Both."""
        return self.reads + self.writes


def choose_tiles(schedule: Schedule, n: int, d: int, words: int, *, strict: bool = True) -> Tiles:
    """The tiles that move the fewest words and fit.

    Args:
        schedule: Which.
        n: Queries and keys.
        d: Width of a head.
        words: Of fast memory.
        strict: ``False`` gives ``flash1`` its published tiles, which forget the room of the scores and overflow.

    Raises:
        InvalidArgument: If the fast memory is too small for any tile; the sentence says what would do.
    """
    check_problem(schedule, n, d, words)
    if schedule == "naive":
        return _checked(schedule, Tiles(1, 1, d), n, d, words)
    if schedule == "flash1":
        if not strict:
            keys = math.ceil(words / (4 * d))
            return Tiles(min(min(keys, d), n), min(keys, n), d)
        # The published shape, as many keys as fit and no more queries than the width.
        keys = _largest(lambda size: _flash_room(min(size, d), size, d), words)
        return _checked(schedule, Tiles(min(keys, d, n), min(keys, n), d), n, d, words)
    if schedule == "flash2":
        options = [Tiles(min((words - 2 * keys * d) // (2 * d + keys + 3), n), min(keys, n), d) for keys in range(1, _WIDEST + 1)]
        feasible = [tiles for tiles in options if tiles.queries >= 1]
        # Among those that stream the keys equally often the widest, which makes the fewest transfers.
        return min(feasible, key=lambda tiles: (math.ceil(n / tiles.queries), -tiles.keys)) if feasible else _refuse(schedule, d, words)
    if schedule == "square":
        side = min(math.isqrt(words // 4), _largest(lambda size: square_room(size, size), words))
    else:
        side = _largest(lambda size: square_room(size, 1), words)
    side = min(side, max(n, d))
    return _checked(schedule, Tiles(side, side, min(side, d) if schedule == "square" else 1), n, d, words)


def count(
    schedule: Schedule, n: int, d: int, words: int, *,
    tiles: Tiles | None = None, strict: bool = True, stable: bool = True, causal: bool = False,
) -> Count:  # fmt: skip
    """What :func:`~tersor.attention.io.simulate` counts, without running it; ragged tiles included.

    Args:
        schedule: Which.
        n: Queries and keys.
        d: Width of a head.
        words: Of fast memory.
        tiles: Instead of those of :func:`choose_tiles`.
        strict: See there.
        stable: Whether the square schedules keep row maxima, which costs them words.
        causal: Whether tiles above the diagonal are skipped, for the flash schedules.

    Raises:
        InvalidArgument: If a size is out of range or the fast memory too small.
    """
    tiles = tiles or choose_tiles(schedule, n, d, words, strict=strict)
    if causal and schedule not in FLASH:
        raise InvalidArgument(f"a causal mask is for the flash schedules; {schedule} reads all keys")
    if schedule == "naive":
        return Count(n * (d + n * d) + n * (n + n * (1 + d)), n * n + n * d)
    rows, columns = math.ceil(n / tiles.queries), math.ceil(n / tiles.keys)
    if schedule == "flash1":
        # Rows of queries that meet each block of keys.
        met = sum(n - _first_row(column, tiles, n, causal) for column in range(columns)) if causal else columns * n
        return Count(2 * n * d + met * (2 * d + 2), n * d + 2 * n + met * (d + 2))
    if schedule == "flash2":
        seen = sum(_last_key(row, tiles, n) for row in range(rows)) if causal else rows * n
        return Count(n * d + 2 * d * seen, n * d)
    depth = math.ceil(d / tiles.queries)
    extra = (n + depth * n * columns, n * columns) if stable else (0, 0)
    return Count(3 * rows * n * d + depth * n * n + n + extra[0], n * n + n + n * d + extra[1])


def square_room(side: int, depth: int) -> int:
    """Words that a square schedule with tiles of ``side`` needs at its fullest moment."""
    scores = side * side + 2 * side * depth + 2 * side
    # Phase two holds the sums, the last maxima and the factors of the block at hand beside its three tiles.
    return max(scores, side * side + 3 * side, side * side + 2 * side * depth + 3 * side)


def _first_row(column: int, tiles: Tiles, n: int, causal: bool) -> int:
    """The first row of the first block of queries that sees a key of block ``column``."""
    return min(column * tiles.keys // tiles.queries * tiles.queries, n) if causal else 0


def _last_key(row: int, tiles: Tiles, n: int) -> int:
    """Keys in the blocks that the block of queries ``row`` reads."""
    seen = min((row + 1) * tiles.queries, n)
    return min(math.ceil(seen / tiles.keys) * tiles.keys, n)


def _flash_room(queries: int, keys: int, d: int) -> int:
    return 2 * keys * d + 2 * queries * d + queries * keys + 3 * queries


def _room(schedule: Schedule, tiles: Tiles, d: int) -> int:
    if schedule == "naive":
        return 2 * d + 3
    if schedule in FLASH:
        return _flash_room(tiles.queries, tiles.keys, d)
    return square_room(tiles.queries, tiles.depth)


def _largest(room: Callable[[int], int], words: int) -> int:
    """The largest size whose room fits, 0 if none does."""
    low, high = 0, words + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if room(middle) <= words else (low, middle)
    return low


def _checked(schedule: Schedule, tiles: Tiles, n: int, d: int, words: int) -> Tiles:
    fits = min(tiles.queries, tiles.keys, tiles.depth) >= 1 and _room(schedule, tiles, d) <= words
    return tiles if fits else _refuse(schedule, d, words)


def _refuse(schedule: Schedule, d: int, words: int) -> Tiles:
    least = _room(schedule, Tiles(1, 1, 1 if schedule.startswith("square") else d), d)
    raise InvalidArgument(f"{schedule} needs at least {least} words of fast memory for heads of width {d}, there are {words}")


def check_problem(schedule: object, n: int, d: int, words: int) -> None:
    """Refuse sizes that are no positive integers, and unknown schedules.

    Raises:
        InvalidArgument: Naming what is wrong.
    """
    check_choice("schedule", schedule, Schedule)
    for name, value in (("n", n), ("d", d), ("words", words)):
        check_integer(name, value, 1)
