"""Commands that tell what there is: methods, bounds, papers and their experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.common import JsonOption, app, show
from tersor.errors import InvalidArgument


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """Every layerwise method: what it needs, what it makes, where it comes from."""
    from tersor.layerwise import METHODS

    rows = [{"name": m.name, "needs": m.needs, "makes": m.makes, "options": list(m.options), "paper": m.paper} for m in METHODS.values()]
    lines = []
    for row in rows:
        lines.append(f"{row['name']:<14} needs {row['needs']:<9} makes {row['makes']:<12} {row['paper']}")
        lines.append(f"{'':<14} {', '.join(row['options'])}")
    show("\n".join(lines), as_json, rows)


@app.command(context_settings={"ignore_unknown_options": True})
def limits(
    name: Annotated[str | None, typer.Argument(help="A bound; without it all are listed.", show_default=False)] = None,
    given: Annotated[list[str] | None, typer.Argument(help="Arguments of its formula: eps=1e-4 or --eps 1e-4.", show_default=False)] = None,
    measure: Annotated[bool, typer.Option(help="Also measure, in seconds, where real systems stand.")] = True,
    plot: Annotated[Path | None, typer.Option(help="For attention-io: draw words against memory into this SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """A provable bound: what it says, assumes and gives for your numbers, and where measured systems stand."""
    from importlib import import_module
    from importlib.util import find_spec

    from tersor.limits import collect, find_bound, parse_arguments, state

    # Other rooms have bounds of their own; none imports another.
    rooms = [import_module(f"tersor.{room}") for room in ("limits", "information", "attention") if find_spec(f"tersor.{room}")]
    bounds = collect(*(getattr(room, "LIMITS", ()) for room in rooms))
    if name is None:
        rows = [{"name": bound.name, "statement": bound.statement} for bound in bounds.values()]
        show("\n".join(f"{row['name']:<32} {row['statement']}" for row in rows), as_json, rows)
        return
    said = state(find_bound(bounds, name), parse_arguments(given or []), measure=measure)
    if plot is not None:
        if name != "attention-io":
            raise InvalidArgument(f"--plot is for attention-io, not for {name}")
        from tersor.attention.io import write_chart

        write_chart(plot, **said.arguments)
    show(said, as_json, said.to_dict())


@app.command()
def papers(as_json: JsonOption = False) -> None:
    """The forty papers: status, claim, last measured."""
    from tersor.papers import catalogue

    rows = catalogue()
    show("\n".join(map(str, rows)), as_json, [row.to_dict() for row in rows])


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="Key of a paper, as 'tersor papers' lists it.")],
    quick: Annotated[bool, typer.Option("--quick", help="A smaller experiment within two minutes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a paper's experiment. Exits with 0 only if its claim held."""
    from tersor.papers import reproduce as run

    result = run(name, quick=quick)
    show(result, as_json, result.to_dict())
    if not result.holds:
        raise typer.Exit(1)
