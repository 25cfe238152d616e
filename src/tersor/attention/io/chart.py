"""The words that every schedule moves against the size of the fast memory, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tersor.attention.io.bounds import sweep
from tersor.attention.io.tiles import check_problem
from tersor.errors import InvalidArgument
from tersor.files import write_atomically

_SERIES = ("lower bound", "naive", "flash1", "flash2", "square", "square tuned")
_COLOURS = ("#000000", "#9aa0a6", "#f28e2b", "#e15759", "#76b7b2", "#4e79a7")


def write_chart(path: str | Path, *, n: int = 4096, d: int = 64, m: int = 4096, model: str = "standard") -> None:
    """Write an SVG of all schedules and the bound over sizes of memory from ``4 d`` to ``n d`` words.

    Args:
        path: Ends with ``.svg``.
        n: Queries and keys.
        d: Width of a head.
        m: Size of memory that a line marks.
        model: See :func:`lower_bound`; the curve is that of the standard one.

    Raises:
        InvalidArgument: If a size is out of range or the path has another ending.
    """
    import vl_convert

    check_problem("naive", n, d, m)
    if Path(path).suffix != ".svg":
        raise InvalidArgument(f"the plot is an SVG, so its file must end with .svg, got {path}")
    svg: str = vl_convert.vegalite_to_svg(vl_spec=chart(n, d, m))
    write_atomically(Path(path), svg.encode())


def chart(n: int, d: int, m: int) -> dict[str, Any]:
    """The Vega-Lite specification of the picture; the lines mark ``m`` and ``d^2``."""
    import altair as alt

    top = max(n * d, 2 * m, 8 * d)
    data = alt.Data(values=sweep(n, d, largest=top))
    lines = (
        alt.Chart(data)
        .mark_line()
        .encode(
            x=alt.X("words:Q", scale=alt.Scale(type="log", nice=False), title="Words of fast memory"),
            y=alt.Y("moved:Q", scale=alt.Scale(type="log"), title=f"Words moved (n {n:,}, d {d})"),
            color=alt.Color("series:N", title=None, sort=list(_SERIES), scale=alt.Scale(domain=list(_SERIES), range=list(_COLOURS))),
        )
    )
    marks = alt.Data(values=[{"words": m, "label": f"m = {m:,}"}, {"words": d * d, "label": f"d² = {d * d:,}"}])
    rules = alt.Chart(marks).mark_rule(strokeDash=[4, 4], color="#777777").encode(x="words:Q")
    labels = alt.Chart(marks).mark_text(align="left", dx=3, y=8, color="#555555").encode(x="words:Q", text="label:N")
    made: dict[str, Any] = alt.layer(lines, rules, labels).properties(width=560, height=340).to_dict()
    return made
