"""Putting programs together line by line, without saying anything twice."""

from __future__ import annotations

from tersor.coding.programs.dsl import FUNCTIONS, Argument, Line, Program


class Builder:
    """Collects lines; a line that is there already is used again."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._known: dict[Line, int] = {}

    def add(self, function: str, *arguments: Argument) -> int:
        """The number of the line ``function(arguments)``."""
        line = Line(function, arguments)
        if line not in self._known:
            self._known[line] = len(self.lines)
            self.lines.append(line)
        return self._known[line]

    def program(self, result: int) -> Program:
        """The program that puts out line ``result``, without lines that it does not need."""
        return Program(tuple(live_lines(self.lines, result)))


def live_lines(lines: list[Line], result: int) -> list[Line]:
    """The lines that ``result`` depends on, renumbered, ``result`` last."""
    needed = {result}
    for index in range(result, -1, -1):
        if index in needed:
            needed.update(lines[index].references())
    order = sorted(needed)
    number = {old: new for new, old in enumerate(order)}
    renumbered = []
    for old in order:
        kinds = FUNCTIONS[lines[old].function].kinds
        arguments = tuple(
            number[value] if kind == "ref" and isinstance(value, int) else value
            for kind, value in zip(kinds, lines[old].arguments, strict=True)
        )
        renumbered.append(Line(lines[old].function, arguments))
    return renumbered
