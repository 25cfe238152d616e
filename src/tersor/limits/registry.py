"""The one list of provable bounds: what each says, under which assumptions, where it is proven, and where a measured system stands."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tersor.errors import InvalidArgument

Measurement = dict[str, Any]


@dataclass(frozen=True)
class Bound:
    """A bound that ``tersor limits`` explains, computes and confronts with a measurement.

    A room that may not import this one offers its bounds as ``LIMITS``, a sequence of mappings with these fields as keys; see
    :func:`collect`.

    Attributes:
        name: What the user types.
        statement: What holds, in one or two sentences.
        assumptions: What it needs, and what it does not say.
        proven: Which statement is proven where: in a paper, here, or only recalled or measured.
        formula: The right formula, as text.
        calculator: The formula as a function of keyword-only numbers or words, each with a default; returns a number or a flat mapping.
        measure: A measurement of seconds, with fixed seeds, that puts real systems beside the bound: one row each, with ``system``,
            ``measured``, ``side`` (``"at least"`` or ``"at most"``) and ``bound``.
        correction: Where a paper's abstract or a copy of it prints another formula or cannot be meant as it stands: what is wrong with it.
        paper: Key of the paper whose experiment confronts the bound, as ``tersor reproduce`` takes it.
    """

    name: str
    statement: str
    assumptions: Sequence[str]
    proven: Sequence[str]
    formula: str
    calculator: Callable[..., float | Mapping[str, float]]
    measure: Callable[[], list[Measurement]]
    correction: str = ""
    paper: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """Argument of the calculator to its default."""
        return {parameter.name: parameter.default for parameter in inspect.signature(self.calculator).parameters.values()}

    def compute(self, given: Mapping[str, str | float] | None = None) -> dict[str, float]:
        """The bound for ``given`` arguments, the others at their defaults.

        Args:
            given: Numbers, or their text as a command line has it.

        Returns:
            Names to numbers; a single number is called ``bound``.

        Raises:
            InvalidArgument: On an unknown argument, a text that is no number, or what the calculator refuses.
        """
        arguments = {name: self._parsed(name, value) for name, value in (given or {}).items()}
        result = self.calculator(**arguments)
        return {key: float(value) for key, value in result.items()} if isinstance(result, Mapping) else {"bound": float(result)}

    def _parsed(self, name: str, value: str | float) -> Any:
        known = self.arguments
        if name not in known:
            raise InvalidArgument(f"limit {self.name!r} takes no argument {name!r}; it takes {', '.join(known)}")
        kind = type(known[name])
        if not isinstance(value, str) or kind is str:
            return value
        try:
            number = float(value)
        except ValueError:
            raise InvalidArgument(f"{name} must be a number, got {value!r}") from None
        if not math.isfinite(number) or (kind is int and number != int(number)):
            raise InvalidArgument(f"{name} must be {'an integer' if kind is int else 'finite'}, got {value!r}")
        return int(number) if kind is int else number


@dataclass(frozen=True)
class Statement:
    """A bound with numbers: what ``tersor limits NAME`` prints.

    Attributes:
        bound: What was asked.
        arguments: The arguments of the calculator, defaults included.
        value: What the calculator gave.
        measured: Real systems beside the bound.
    """

    bound: Bound
    arguments: dict[str, Any]
    value: dict[str, float]
    measured: list[Measurement] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a bound that is infinite becomes a string so that strict parsers read it."""
        bound = self.bound
        said = {key: getattr(bound, key) for key in ("name", "statement", "formula", "correction", "paper")}
        lists = {"assumptions": list(bound.assumptions), "proven": list(bound.proven)}
        value = {key: number if math.isfinite(number) else str(number) for key, number in self.value.items()}
        return {**said, **lists, "arguments": self.arguments, "value": value, "measured": self.measured}

    def __str__(self) -> str:
        bound = self.bound
        lines = [f"{bound.name}: {bound.statement}", "", f"formula   {bound.formula}"]
        lines += [f"caution   {bound.correction}"] if bound.correction else []
        lines += [f"assumes   {text}" for text in bound.assumptions]
        lines += [f"proven    {text}" for text in bound.proven]
        lines += ["", "with      " + ", ".join(f"{key}={value}" for key, value in self.arguments.items())]
        wide = max(9, *map(len, self.value))
        lines += [f"{key:<{wide}} {number:.6g}" for key, number in self.value.items()]
        if self.measured:
            lines += ["", "measured here and now:", *(_line(row) for row in self.measured)]
        return "\n".join([*lines, *([f"full experiment: tersor reproduce {bound.paper}"] if bound.paper else [])])


def _line(row: Measurement) -> str:
    row = dict(row)
    system, measured, side, bound = (row.pop(key) for key in ("system", "measured", "side", "bound"))
    more = "".join(f", {key} {_text(value)}" for key, value in row.items())
    return f"  {system}: {_text(measured)}, {side} {_text(bound)}{more}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def state(bound: Bound, given: Mapping[str, str | float] | None = None, *, measure: bool = True) -> Statement:
    """Everything about ``bound`` for ``given`` arguments.

    Args:
        bound: What :func:`find_bound` gave.
        given: Arguments of its calculator; the others keep their defaults.
        measure: Also run its measurement, which takes seconds.

    Raises:
        InvalidArgument: If the arguments are refused.
    """
    value = bound.compute(given)
    arguments = {**bound.arguments, **{name: bound._parsed(name, text) for name, text in (given or {}).items()}}
    return Statement(bound, arguments, value, bound.measure() if measure else [])


def collect(*groups: Iterable[Bound | Mapping[str, Any]]) -> dict[str, Bound]:
    """The bounds of several rooms by name.

    Args:
        groups: The ``LIMITS`` of each room.

    Raises:
        InvalidArgument: If two have one name, or an argument of a calculator has no default.
    """
    bounds: dict[str, Bound] = {}
    for group in groups:
        for entry in group:
            bound = entry if isinstance(entry, Bound) else Bound(**entry)
            if bound.name in bounds:
                raise InvalidArgument(f"there are two limits called {bound.name!r}; rename one")
            missing = [name for name, default in bound.arguments.items() if default is inspect.Parameter.empty]
            if missing:
                raise InvalidArgument(f"the calculator of {bound.name!r} needs a default for {', '.join(missing)}")
            bounds[bound.name] = bound
    return bounds


def parse_arguments(words: Iterable[str]) -> dict[str, str]:
    """``["eps=1e-4"]``, ``["--eps=1e-4"]`` or ``["--eps", "1e-4"]`` as a mapping, for :func:`state`.

    Raises:
        InvalidArgument: On a word that is none of these, or a name given twice.
    """
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and not equals:
            value = next(rest, "")
        if not value or not name or name in given:
            raise InvalidArgument(f"write each argument once as name=value or --name value, such as eps=1e-4, not {word!r}")
        given[name.replace("-", "_")] = value
    return given


def find_bound(bounds: Mapping[str, Bound], name: str) -> Bound:
    """The one of ``bounds`` called ``name``.

    Raises:
        InvalidArgument: If there is none; the sentence lists those that there are.
    """
    if name not in bounds:
        raise InvalidArgument(f"unknown limit {name!r}; known limits are {', '.join(sorted(bounds))}")
    return bounds[name]
