"""Random programs and what they put out: the synthetic data of the KoLMogorov Test."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from tersor.coding.programs.building import live_lines
from tersor.coding.programs.dsl import Argument, Line, Program, ProgramError, Values, execute
from tersor.errors import InvalidArgument

_TOP = 255
_INITIATORS = ("range_func_up", "range_func_interval", "repeat_num", "set_list")


@dataclass(frozen=True)
class GeneratorConfig:
    """The paper's defaults, each as its official script has it.

    Attributes:
        most_bases: Base sequences, uniform from 1.
        lengths: Shortest and longest base sequence.
        update_pass: Chance of the pass of list operations; likewise for mathematics, filter and operations on two lists below.
        math_pass: Chance.
        filter_pass: Chance.
        pair_pass: Chance.
        operation: Chance of each operation within its pass.
        rare_operation: Of jumps and slices.
        concatenate: Chance that sequences are joined end to end rather than interleaved.
        reuse: Chance, once for each base sequence, that some sequence is appended again.
    """

    most_bases: int = 5
    lengths: tuple[int, int] = (5, 25)
    update_pass: float = 0.4
    math_pass: float = 0.4
    filter_pass: float = 0.4
    pair_pass: float = 0.4
    operation: float = 0.1
    rare_operation: float = 0.05
    concatenate: float = 0.8
    reuse: float = 0.2


@dataclass
class _Draft:
    """A program that is being written, with the value of every line and which lines are kept out of the output."""

    random: np.random.Generator
    config: GeneratorConfig
    lines: list[Line] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    excluded: set[int] = field(default_factory=set)

    def add(self, function: str, *arguments: Argument, keep: bool = True) -> int:
        """Append a line; ``keep=False`` takes it back unless its result suits :meth:`fits`."""
        line = Line(function, arguments)
        self.values.append(execute(len(self.lines), line, self.values))
        self.lines.append(line)
        if not keep and not self.fits(self.values[-1]):
            self.lines.pop()
            self.values.pop()
        return len(self.lines) - 1

    def chance(self, probability: float) -> bool:
        """A coin."""
        return bool(self.random.random() < probability)

    def uniform(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.random.integers(low, max(high, low) + 1))

    @staticmethod
    def fits(values: Values) -> bool:
        """Bytes, of more than two kinds."""
        return len(set(values)) > 2 and min(values) >= 0 and max(values) <= _TOP


def generate_pairs(
    n: int, seed: int, config: GeneratorConfig | None = None, exclude: Collection[bytes] = ()
) -> list[tuple[Program, bytes]]:
    """Programs and their outputs, all outputs different, the shortest program of each kept.

    Args:
        n: Pairs wanted.
        seed: The same seed gives the same pairs.
        config: Probabilities; the paper's without it.
        exclude: Outputs that must not occur, such as those of a test set.

    Raises:
        InvalidArgument: If ``n`` is negative.

    Reference:
        Yoran, Zheng, Gloeckle, Gehring, Synnaeve, Cohen: "The KoLMogorov Test: compression by code generation", 2025.
    """
    if n < 0:
        raise InvalidArgument(f"the number of pairs must not be negative, got {n}")
    random = np.random.default_rng(seed)
    found: dict[bytes, Program] = {}
    forbidden = set(exclude)
    while len(found) < n:
        program, output = _generate(_Draft(random, config or GeneratorConfig()))
        if output in forbidden:
            continue
        if output not in found or len(str(program)) < len(str(found[output])):
            found[output] = program
    return [(program, output) for output, program in found.items()]


def _generate(draft: _Draft) -> tuple[Program, bytes]:
    while True:
        draft.lines, draft.values, draft.excluded = [], [], set()
        try:
            bases = draft.uniform(1, draft.config.most_bases)
            for _ in range(bases):
                _base(draft)
            _passes(draft)
            program = Program(tuple(live_lines(draft.lines, _output(draft, bases))))
            values = program.run()
        except ProgramError:
            continue
        if values and min(values) >= 0 and max(values) <= _TOP:
            return program, bytes(values)


def _base(draft: _Draft) -> None:
    length = draft.uniform(*draft.config.lengths)
    start = draft.uniform(0, _TOP - length)
    kind = _INITIATORS[draft.uniform(0, 3)]
    if kind == "range_func_up":
        draft.add(kind, start, start + length)
    elif kind == "range_func_interval":
        step = draft.uniform(2, 5)
        draft.add(kind, start, min(start + length * step, _TOP), step)
    elif kind == "repeat_num":
        draft.add(kind, length, draft.uniform(0, _TOP))
    else:
        draft.add(kind, tuple(draft.random.integers(0, _TOP + 1, length).tolist()))


def _passes(draft: _Draft) -> None:
    config = draft.config
    if draft.chance(config.update_pass):
        # The list grows while it is walked, as in the official script: what a pass makes, the same pass visits.
        index = 0
        while index < len(draft.lines) and len(draft.lines) < 24:
            _update(draft, index)
            index += 1
    if draft.chance(config.math_pass):
        index = 0
        while index < len(draft.lines) and len(draft.lines) < 24:
            _mathematics(draft, index)
            index += 1
    if draft.chance(config.filter_pass):
        last = len(draft.lines) - 1
        before = draft.values[last]
        predicate = ("is_even", "is_odd", "is_not_zero")[draft.uniform(0, 2)]
        draft.add("filter", predicate, last)
        after = draft.values[-1]
        if after == before or len(after) <= 2 or not draft.chance(0.3):
            draft.lines.pop()
            draft.values.pop()
    if draft.chance(config.pair_pass):
        count = len(draft.lines)
        for first in range(count):
            for second in range(first + 1, count):
                if len(draft.values[first]) == len(draft.values[second]) and len(draft.lines) < 24:
                    _pair(draft, first, second)


def _update(draft: _Draft, index: int) -> None:
    config, values, function = draft.config, draft.values[index], draft.lines[index].function
    if function != "repeat_num" and draft.chance(config.operation):
        draft.add("reverse_list", index)
    if draft.chance(config.operation):
        draft.add("repeat_list", draft.uniform(2, 4), index)
    if draft.chance(config.rare_operation):
        draft.add("get_subsequence_with_jumps", index, draft.uniform(2, 5))
    if len(values) > 2 and draft.chance(config.rare_operation):
        begin = draft.uniform(0, len(values) - 2)
        draft.add("get_subsequence_between_indices", index, begin, draft.uniform(begin + 1, len(values)))
    if values and draft.chance(config.operation):
        draft.add("substitute", index, values[draft.uniform(0, len(values) - 1)], draft.uniform(0, _TOP))
        if draft.chance(0.25):
            draft.excluded.add(index)


def _mathematics(draft: _Draft, index: int) -> None:
    config, values, function = draft.config, draft.values[index], draft.lines[index].function
    if function == "set_list":
        if len(values) >= 5 and draft.chance(config.operation):
            draft.add("max_n" if draft.chance(0.5) else "min_n", index, draft.uniform(3, len(values) - 2))
    else:
        choice = draft.random.random()
        if choice < config.operation:
            room = _TOP - max(values)
            if draft.chance(0.5) and room >= 1:
                draft.add("add_item_list", index, draft.uniform(1, room))
            elif min(values) >= 1:
                draft.add("subtract_item_list", index, draft.uniform(1, min(values)))
        elif choice < 2 * config.operation and len(set(values)) > 2:
            third = sorted(set(values))[-3]
            if third >= 2:
                draft.add("modulo_item_list", index, draft.uniform(2, third))
    if len(set(values)) > 2 and draft.chance(config.operation):
        draft.add("scan_add", index, keep=False)


def _pair(draft: _Draft, first: int, second: int) -> None:
    if draft.chance(draft.config.operation):
        draft.add("add_two_lists" if draft.chance(0.5) else "subtract_two_lists", first, second, keep=False)
    if draft.chance(draft.config.operation):
        draft.add("modulo_two_lists", first, second, keep=False)


def _output(draft: _Draft, bases: int) -> int:
    """Join what is not excluded, then append some again; the number of the last line."""
    count = len(draft.lines)
    kept = [index for index in range(count) if index not in draft.excluded]
    result = kept[0]
    for index in kept[1:]:
        result = draft.add("concatenate" if draft.chance(draft.config.concatenate) else "interleave", result, index)
    used = dict.fromkeys(kept, 1)
    for _ in range(bases):
        if draft.chance(draft.config.reuse):
            index = draft.uniform(0, count - 1)
            if used.get(index, 0) < 2:
                used[index] = used.get(index, 0) + 1
                result = draft.add("concatenate", result, index)
    return result
