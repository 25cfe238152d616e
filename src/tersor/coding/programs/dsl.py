"""A small language of integer lists: parsed, never executed as Python, and interpreted within bounds."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tersor.errors import TersorError

MOST_LINES = 64
MOST_ITEMS = 4096
LARGEST = 2**31
_MOST_TEXT = 1 << 16
# Functions as the paper counts them, for its nominal lengths: each header names one of them or the output.
_NOMINAL_FUNCTIONS = 24

# value: a constant; small: a step, jump or repetition; count: how often a number is repeated; index: a place in a list;
# list: literal values; predicate: one of PREDICATES; ref: an earlier line.
Kind = Literal["value", "small", "count", "index", "list", "predicate", "ref"]
Argument = int | str | tuple[int, ...]
Values = list[int]


class ProgramError(TersorError):
    """A program that is not of the language, or does not stay within its bounds."""


def _modulo(values: Values, divisors: Values) -> Values:
    return [value % divisor for value, divisor in zip(values, divisors, strict=False) if divisor]


def _substitute(values: Values, pattern: int, replacement: int) -> Values:
    return [replacement if value == pattern else value for value in values]


def _running(values: Values) -> Values:
    total, out = 0, []
    for value in values:
        total += value
        out.append(total)
    return out


def _interleave(first: Values, second: Values) -> Values:
    shared = min(len(first), len(second))
    pairs = [value for pair in zip(first, second, strict=False) for value in pair]
    return pairs + first[shared:] + second[shared:]


PREDICATES: dict[str, Callable[[int], bool]] = {
    "is_even": lambda value: value % 2 == 0, "is_odd": lambda value: value % 2 == 1, "is_not_zero": lambda value: value != 0,
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """One function of the language: what its arguments are, how long its result can be, and what it does."""

    kinds: tuple[Kind, ...]
    length: Callable[..., int]
    apply: Callable[..., Values]


def _longest(*lists: Any) -> int:
    return max(len(values) for values in lists if isinstance(values, list))


def _sum(*lists: Any) -> int:
    return sum(len(values) for values in lists if isinstance(values, list))


FUNCTIONS: dict[str, Function] = {
    "range_func_up": Function(("value", "value"), lambda a, b: b - a + 1, lambda a, b: list(range(a, b + 1))),
    "range_func_interval": Function(
        ("value", "value", "small"), lambda a, b, step: (b - a) // step + 1 if step else 0, lambda a, b, step: list(range(a, b, step))
    ),
    "repeat_num": Function(("count", "value"), lambda n, v: n, lambda n, v: [v] * n),
    "set_list": Function(("list",), len, list),
    "repeat_list": Function(("small", "ref"), lambda k, values: k * len(values), lambda k, values: values * k),
    "reverse_list": Function(("ref",), _longest, lambda values: values[::-1]),
    "substitute": Function(("ref", "value", "value"), lambda values, p, r: len(values), _substitute),
    "get_subsequence_with_jumps": Function(("ref", "small"), lambda values, j: len(values), lambda values, j: values[::j]),
    "get_subsequence_between_indices": Function(
        ("ref", "index", "index"), lambda values, s, e: len(values), lambda values, s, e: values[s:e]
    ),
    "max_n": Function(("ref", "index"), lambda values, n: len(values), lambda values, n: sorted(values, reverse=True)[:n]),
    "min_n": Function(("ref", "index"), lambda values, n: len(values), lambda values, n: sorted(values)[:n]),
    "add_item_list": Function(("ref", "value"), lambda values, c: len(values), lambda values, c: [value + c for value in values]),
    "subtract_item_list": Function(("ref", "value"), lambda values, c: len(values), lambda values, c: [value - c for value in values]),
    "modulo_item_list": Function(("ref", "value"), lambda values, c: len(values), lambda values, c: [value % c for value in values]),
    "scan_add": Function(("ref",), _longest, _running),
    "filter": Function(("predicate", "ref"), lambda p, values: len(values), lambda p, values: [v for v in values if PREDICATES[p](v)]),
    "add_two_lists": Function(("ref", "ref"), _longest, lambda a, b: [x + y for x, y in zip(a, b, strict=False)]),
    "subtract_two_lists": Function(("ref", "ref"), _longest, lambda a, b: [x - y for x, y in zip(a, b, strict=False)]),
    "modulo_two_lists": Function(("ref", "ref"), _longest, _modulo),
    "concatenate": Function(("ref", "ref"), _sum, lambda a, b: a + b),
    "interleave": Function(("ref", "ref"), _sum, _interleave),
}
NAMES = tuple(FUNCTIONS)
# Zero would be no step, no jump, or a division by zero.
_POSITIVE = {("range_func_interval", 2), ("get_subsequence_with_jumps", 1), ("modulo_item_list", 1)}


@dataclass(frozen=True)
class Line:
    """``sequence_i = function(arguments)``; a ``ref`` is the number of an earlier line, from 0."""

    function: str
    arguments: tuple[Argument, ...]

    def references(self) -> tuple[int, ...]:
        """Lines that this one reads."""
        kinds = FUNCTIONS[self.function].kinds
        return tuple(int(value) for kind, value in zip(kinds, self.arguments, strict=True) if kind == "ref" and isinstance(value, int))


@dataclass(frozen=True)
class Program:
    """Straight-line code whose last line is the output.

    Attributes:
        lines: At least one.

    Example:
        >>> program = Program.parse("sequence_1 = range_func_up(3, 6)\\nsequence_2 = reverse_list(sequence_1)\\noutput = sequence_2")
        >>> program.run()
        [6, 5, 4, 3]
    """

    lines: tuple[Line, ...]

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read a program; nothing is executed. Lines after the one that is put out, which have no effect, are left off.

        Raises:
            ProgramError: If anything but assignments of known functions is in it, or it is too long.
        """
        if len(text) > _MOST_TEXT:
            raise ProgramError(f"a program of {len(text)} characters; {_MOST_TEXT} at most")
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ProgramError("this is no program: it does not parse") from None
        known: dict[str, int] = {}
        lines: list[Line] = []
        for statement in body:
            name, value = _assignment(statement)
            if name == "output":
                end = _reference(value, known)
                return cls(tuple(lines[: end + 1]))
            if len(lines) == MOST_LINES:
                raise ProgramError(f"a program has {MOST_LINES} lines at most")
            lines.append(_call(value, known))
            known[name] = len(lines) - 1
        raise ProgramError("a program ends with 'output = ' and the name of a line")

    def run(self) -> Values:
        """The output.

        Raises:
            ProgramError: If a list grows beyond 4,096 items, a number beyond 2^31, or an argument makes no sense.
        """
        if not 1 <= len(self.lines) <= MOST_LINES:
            raise ProgramError(f"a program has 1 to {MOST_LINES} lines, got {len(self.lines)}")
        results: list[Values] = []
        for index, line in enumerate(self.lines):
            results.append(execute(index, line, results))
        return results[-1]

    def __str__(self) -> str:
        shown = [f"sequence_{index + 1} = {line.function}({', '.join(_shown(line))})" for index, line in enumerate(self.lines)]
        return "\n".join([*shown, f"output = sequence_{len(self.lines)}"])

    def nominal_bits(self) -> float:
        """The paper's length under a uniform prior. It does not pay for list lengths and predicates, so it is no code."""
        header = math.log2(_NOMINAL_FUNCTIONS + 1)
        prices = {"value": 8.0, "small": 3.0, "count": math.log2(20), "index": 8.0, "predicate": 0.0}
        total = header
        for index, line in enumerate(self.lines):
            total += header
            for kind, value in zip(FUNCTIONS[line.function].kinds, line.arguments, strict=True):
                if isinstance(value, tuple):
                    total += 8 * len(value)
                else:
                    total += math.log2(index + 1) if kind == "ref" else prices[kind]
        return total


def execute(index: int, line: Line, results: list[Values]) -> Values:
    """The value of line ``index``, given those of the lines before it.

    Raises:
        ProgramError: If it does not stay within its bounds.
    """
    function = FUNCTIONS.get(line.function)
    if function is None or len(function.kinds) != len(line.arguments):
        raise ProgramError(f"line {index + 1}: there is no function {line.function!r} of {len(line.arguments)} arguments")
    arguments: list[Any] = []
    for place, (kind, value) in enumerate(zip(function.kinds, line.arguments, strict=True)):
        if kind == "ref":
            if not isinstance(value, int) or not 0 <= value < index:
                raise ProgramError(f"line {index + 1} reads a line that is not before it")
            arguments.append(results[value])
        elif kind == "list":
            arguments.append(list(value) if isinstance(value, tuple) else [])
        else:
            if isinstance(value, int) and value < (1 if (line.function, place) in _POSITIVE else 0 if kind != "value" else -LARGEST):
                raise ProgramError(f"line {index + 1}: {value} is too small an argument of {line.function}")
            arguments.append(value)
    if function.length(*arguments) > MOST_ITEMS:
        raise ProgramError(f"line {index + 1} makes more than {MOST_ITEMS} items")
    result = function.apply(*arguments)
    if any(abs(value) > LARGEST for value in result):
        raise ProgramError(f"line {index + 1} makes numbers beyond {LARGEST}")
    return result


def _shown(line: Line) -> list[str]:
    shown = []
    for kind, value in zip(FUNCTIONS[line.function].kinds, line.arguments, strict=True):
        if isinstance(value, tuple):
            shown.append(f"[{', '.join(map(str, value))}]")
        else:
            shown.append(f"sequence_{int(value) + 1}" if kind == "ref" else str(value))
    return shown


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr]:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name):
        raise ProgramError("a program has one assignment to one name a line, and nothing else")
    return statement.targets[0].id, statement.value


def _reference(value: ast.expr, known: dict[str, int]) -> int:
    if not isinstance(value, ast.Name) or value.id not in known:
        raise ProgramError("a program names only lines before the one that names them")
    return known[value.id]


def _call(value: ast.expr, known: dict[str, int]) -> Line:
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name) or value.keywords or value.func.id not in FUNCTIONS:
        raise ProgramError("a line calls one of the functions of the language")
    kinds = FUNCTIONS[value.func.id].kinds
    if len(kinds) != len(value.args):
        raise ProgramError(f"{value.func.id} takes {len(kinds)} arguments, got {len(value.args)}")
    return Line(value.func.id, tuple(_argument(kind, given, known) for kind, given in zip(kinds, value.args, strict=True)))


def _argument(kind: Kind, value: ast.expr, known: dict[str, int]) -> Argument:
    if kind == "ref":
        return _reference(value, known)
    if kind == "predicate":
        if not isinstance(value, ast.Name) or value.id not in PREDICATES:
            raise ProgramError(f"filter takes one of {', '.join(PREDICATES)}")
        return value.id
    if kind == "list":
        if not isinstance(value, ast.List) or len(value.elts) > MOST_ITEMS:
            raise ProgramError(f"set_list takes a list of at most {MOST_ITEMS} numbers")
        return tuple(_number(item) for item in value.elts)
    return _number(value)


def _number(value: ast.expr) -> int:
    sign = 1
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        sign, value = -1, value.operand
    if not isinstance(value, ast.Constant) or type(value.value) is not int or value.value > LARGEST:
        raise ProgramError(f"an argument is a whole number of at most {LARGEST}")
    return sign * value.value
