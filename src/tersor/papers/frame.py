"""What every paper's file defines, and how its experiment is run and recorded."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

from tersor.errors import InvalidArgument

Row = dict[str, Any]


@dataclass(frozen=True)
class Paper:
    """A paper that tersor implements.

    Attributes:
        key: Its key in the catalogue; the file is called like it.
        claim: The claim that the experiment tests, in one sentence.
        where: Public names that implement it.
    """

    key: str
    claim: str
    where: str


@dataclass(frozen=True)
class Result:
    """What an experiment measured.

    Attributes:
        rows: One row a method and setting, with measured numbers.
        baseline: What had to be beaten.
        margin: By how much it was beaten, computed from the rows; negative if it was not.
        seeds: Seeds over which the margin is taken.
        holds: Whether the claim held, computed from the rows.
        data: Texts and models that the numbers come from.
        notes: What a reader must know: what did not hold, and why.
    """

    rows: Sequence[Row]
    baseline: str
    margin: float
    seeds: Sequence[int]
    holds: bool
    data: Sequence[str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Reproduction:
    """A :class:`Result` with what is needed to run it again."""

    key: str
    claim: str
    result: Result
    command: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the claim held."""
        return self.result.holds

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to ``benchmarks/results/papers``."""
        result = asdict(self.result)
        how = {"command": self.command, "seconds": round(self.seconds, 1), "versions": self.versions}
        return {"key": self.key, "claim": self.claim, **result, **how}

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        summary = f"baseline: {self.result.baseline}; margin {self.result.margin:.4g}; the claim {verdict} here"
        lines = [self.claim, "", table(self.result.rows), "", summary]
        return "\n".join([*lines, *self.result.notes])


def measured(rows: Iterable[Row]) -> Iterator[Row]:
    """Pass ``rows`` on, telling on stderr what each holds as soon as it is measured: experiments take minutes."""
    for row in rows:
        print("  ".join(f"{key}={_cell(value)}" for key, value in row.items() if value is not None), file=sys.stderr, flush=True)
        yield row


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text, columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _module(key: str) -> str:
    return f"tersor.papers.{key.replace('-', '_')}"


def find_paper(key: str) -> Paper | None:
    """The implemented paper called ``key``, or ``None``."""
    if importlib.util.find_spec(_module(key)) is None:
        return None
    paper: Paper = import_module(_module(key)).PAPER
    return paper


def reproduce(key: str, quick: bool = False) -> Reproduction:
    """Run the experiment of a paper; the full run is written to ``benchmarks/results/papers/<key>.json``.

    Raises:
        InvalidArgument: If the key is unknown, the paper is not implemented yet, or data that it needs is missing.
    """
    from tersor.files import write_json
    from tersor.papers.catalogue import keys, results_folder
    from tersor.pipeline.reporting import versions

    if key not in keys():
        raise InvalidArgument(f"unknown paper {key!r}; 'tersor papers' lists the keys")
    paper = find_paper(key)
    if paper is None:
        raise InvalidArgument(f"paper {key!r} is not implemented in this version")
    run: Callable[[bool], Result] = import_module(_module(key)).run
    began = time.perf_counter()
    result = run(quick)
    command = f"tersor reproduce {key}{' --quick' if quick else ''}"
    reproduction = Reproduction(key, paper.claim, result, command, time.perf_counter() - began, versions())
    if not quick:
        folder = results_folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{key}.json", reproduction.to_dict())
    return reproduction
