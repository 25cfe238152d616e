"""A synthesiser that searches: segmentations by dynamic programming, interleaved halves, and lines worth using twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.coding.programs.building import Builder, live_lines
from tersor.coding.programs.dsl import FUNCTIONS, MOST_ITEMS, MOST_LINES, Program, ProgramError, execute
from tersor.coding.programs.serialise import HEADER_BITS, number_bits, program_bits
from tersor.errors import InvalidArgument

# Lines of a program as the search prices references to them: it cannot know where they will end up.
_TYPICAL_LINES = 8
_COPIES, _REPEATS, _SHARING, _INTERLEAVING = range(1, 5)
_BARE_STEP, _LARGEST_STEP = 5, 255
# A line that is there already costs the search a part of its price, as somebody has to pay for it.
_SHARED = 0.4


@dataclass(frozen=True)
class Search:
    """Finds short programs; calling it gives the shortest found for some bytes, which always puts out exactly these.

    Each level has the moves of those below it and one more, and looks at their results too: no move ever makes a program longer.

    Attributes:
        level: 0 for dynamic programming over literal, constant and arithmetic runs (the search that the others are compared with);
            1 adds segments copied from what is before them, also backwards or with a constant added; 2 segments that repeat a unit;
            3 a second pass that can use the lines of the first again; 4 sequences interleaved from two.
        depth: Interleavings within interleavings.
        width: Splits looked into at each depth.
    """

    level: int = 4
    depth: int = 2
    width: int = 3

    def __call__(self, data: bytes) -> Program:
        """The shortest program found.

        Args:
            data: 1 to 4,096 bytes.

        Raises:
            InvalidArgument: If there are none, or more.
        """
        if not 1 <= len(data) <= MOST_ITEMS:
            raise InvalidArgument(f"a program puts out 1 to {MOST_ITEMS} bytes, got {len(data)}; cut the data into blocks")
        candidates = [replace(self, level=level).find(data) for level in range(self.level + 1)]
        return min([*(program for program in candidates if puts_out(program, data)), _literal(data)], key=program_bits)

    def find(self, data: bytes) -> Program:
        """The shortest program by this search alone, not verified and without a fallback."""
        x = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
        cost, back = self._segmented(x, [], [])
        best = _assembled(x, back, [], self.level >= _SHARING)
        if self.level >= _SHARING:
            for _ in range(2):
                lines, contents, prices = _parts(best)
                _, again = self._segmented(x, contents, prices)
                best = min(best, _assembled(x, again, lines, True), key=program_bits)
        for program in self._interleaved(x, cost):
            best = min(best, program, key=program_bits)
        return best

    def _segmented(self, x: NDArray[np.int64], contents: Sequence[NDArray[np.int64]], prices: Sequence[float]) -> Any:
        from tersor.coding.programs import _segments

        copies, repeats = self.level >= _COPIES, self.level >= _REPEATS
        moves = np.array([True, True, True, True, copies, copies, copies, repeats, bool(contents)])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(content) for content in contents], dtype=np.int64)])
        known = np.concatenate(contents) if contents else np.zeros(0, np.int64)
        return _segments.segment(
            x, _prices(), moves, _LARGEST_STEP if copies else _BARE_STEP, known, starts, np.array(prices, dtype=np.float64)
        )

    def _interleaved(self, x: NDArray[np.int64], cost: NDArray[np.float64]) -> Iterator[Program]:
        """Programs that interleave two sequences, each found by the same search one level down."""
        if self.level < _INTERLEAVING or self.depth < 1 or len(x) < 6:
            return
        even, odd = (self._segmented(x[half::2].copy(), [], [])[0] for half in (0, 1))
        rest = self._segmented(x[::-1].copy(), [], [])[0]
        pairs = np.arange(2, len(x) // 2 + 1)
        glue = np.where(2 * pairs < len(x), _prices()[-1], 0.0)
        estimate = even[pairs] + odd[pairs] + rest[len(x) - 2 * pairs] + glue
        below = replace(self, depth=self.depth - 1)
        for index in np.argsort(estimate, kind="stable")[: self.width]:
            # Only splits that look cheaper than not to interleave: on noise there are none, and looking is expensive.
            if estimate[index] >= cost[-1]:
                return
            split = 2 * int(pairs[index])
            # Whatever follows the interleaved part is the end of the longer of the two.
            for longer in (0, 1):
                halves = [x[half:split:2] for half in (0, 1)]
                halves[longer] = np.concatenate([halves[longer], x[split:]])
                builder = Builder()
                parts = [_grafted(builder, below.find(half.astype(np.uint8).tobytes())) for half in halves]
                yield builder.program(builder.add("interleave", *parts))
                if split == len(x):
                    break


def _prices() -> NDArray[np.float64]:
    reference = math.log2(_TYPICAL_LINES)
    value, small, count = (number_bits(0, kind) for kind in ("value", "small", "count"))
    return np.array([HEADER_BITS, value, small, count, reference, HEADER_BITS + 2 * reference])


def _literal(data: bytes) -> Program:
    builder = Builder()
    return builder.program(builder.add("set_list", tuple(data)))


def puts_out(program: Program, data: bytes) -> bool:
    """Whether a program, run within bounds, gives exactly ``data``."""
    try:
        return program.run() == list(data)
    except ProgramError:
        return False


def _parts(program: Program) -> tuple[list[Program], list[NDArray[np.int64]], list[float]]:
    """Every line of a program as a program of its own, its contents, and what a search should charge for it."""
    results: list[list[int]] = []
    for index, line in enumerate(program.lines):
        results.append(execute(index, line, results))
    parts, contents, prices = [], [], []
    seen: set[tuple[int, ...]] = set()
    for index, values in enumerate(results[:-1]):
        part = Program(tuple(live_lines(list(program.lines), index)))
        for reverse in (False, True):
            content = tuple(values[::-1] if reverse else values)
            if len(content) < 3 or content in seen:
                continue
            seen.add(content)
            builder = Builder()
            number = _grafted(builder, part)
            made = builder.program(builder.add("reverse_list", number) if reverse else number)
            parts.append(made)
            contents.append(np.array(content, dtype=np.int64))
            own = FUNCTIONS[program.lines[index].function].kinds.count("ref")
            prices.append(
                (_SHARED if own == 0 else 1.0) * program_bits(made) / 2 if not reverse else 8.0 + _SHARED * program_bits(part) / 2
            )
    return parts, contents, prices


def _grafted(builder: Builder, program: Program) -> int:
    """Add the lines of a program to a builder; the number of its output there."""
    numbers: list[int] = []
    for line in program.lines:
        kinds = FUNCTIONS[line.function].kinds
        arguments = [
            numbers[value] if kind == "ref" and isinstance(value, int) else value for kind, value in zip(kinds, line.arguments, strict=True)
        ]
        numbers.append(builder.add(line.function, *arguments))
    return numbers[-1]


def _assembled(x: NDArray[np.int64], back: NDArray[np.int64], known: Sequence[Program], sharing: bool) -> Program:
    """The program of a segmentation: its segments, joined from the left."""
    steps, end = [], len(x)
    while end:
        begin, kind, first, second = back[end].tolist()
        steps.append((begin, end, kind, first, second))
        end = begin
    if 3 * len(steps) > MOST_LINES:
        return _literal(x.astype(np.uint8).tobytes())
    builder, result = Builder() if sharing else _Repetitive(), -1
    for begin, end, kind, first, second in reversed(steps):
        part = _segment_line(builder, x, begin, end, kind, first, second, known, result)
        result = part if begin == 0 else builder.add("concatenate", result, part)
    return builder.program(result)


class _Repetitive(Builder):
    """For the bare search: every line is written anew."""

    def add(self, function: str, *arguments: Any) -> int:
        self._known.clear()
        return super().add(function, *arguments)


def _segment_line(
    builder: Builder, x: NDArray[np.int64], begin: int, end: int, kind: int, first: int, second: int, known: Sequence[Program], before: int
) -> int:
    from tersor.coding.programs import _segments as s

    if kind == s.KNOWN:
        return _grafted(builder, known[first])
    if kind == s.REPEAT:
        unit = x[begin : begin + first]
        return builder.add("repeat_list", second, _run_line(builder, unit))
    if kind in (s.COPY, s.REVERSED, s.SHIFTED):
        length = end - begin
        source = first - length + 1 if kind == s.REVERSED else first
        line = before if (source, length) == (0, begin) else builder.add("get_subsequence_between_indices", before, source, source + length)
        if kind == s.REVERSED:
            return builder.add("reverse_list", line)
        offset = int(x[begin] - x[source]) if kind == s.SHIFTED else 0
        if offset == 0:
            return line
        return builder.add("add_item_list", line, offset) if offset > 0 else builder.add("subtract_item_list", line, -offset)
    return _run_line(builder, x[begin:end])


def _run_line(builder: Builder, values: NDArray[np.int64]) -> int:
    """A constant, a ramp, or a list as it is."""
    items = values.tolist()
    steps = {after - before for before, after in pairwise(items)}
    if len(steps) <= 1 and steps <= {0} and len(items) > 1:
        return builder.add("repeat_num", len(items), items[0])
    if len(steps) == 1 and len(items) > 2:
        step = steps.pop()
        low, high = min(items), max(items)
        one = abs(step) == 1
        line = builder.add("range_func_up", low, high) if one else builder.add("range_func_interval", low, high + 1, abs(step))
        return line if step > 0 else builder.add("reverse_list", line)
    return builder.add("set_list", tuple(items))
