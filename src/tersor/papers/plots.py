"""Pictures of what an experiment measured, beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tersor.papers.frame import Row


def line_chart(rows: Sequence[Row], x: str, y: str, path: Path, *, color: str = "method", title: str = "", log: str = "") -> Path:
    """Lines of ``y`` over ``x``, one for each value of ``color``, as an SVG file.

    Args:
        rows: Flat objects; those that lack one of the three are left out.
        x: Key of the horizontal axis, also its title.
        y: Key of the vertical axis, likewise.
        path: File to write; its folder is made.
        color: Key that tells the lines apart.
        title: Above the picture.
        log: Axes on a logarithmic scale: ``""``, ``"x"``, ``"y"`` or ``"xy"``; values that are not positive are then left out.

    Returns:
        ``path``.
    """
    import altair as alt
    import vl_convert

    from tersor.files import write_atomically

    values = [{"x": row[x], "y": row[y], "color": str(row[color])} for row in rows if None not in (row.get(x), row.get(y), row.get(color))]
    values = [value for value in values if ("x" not in log or value["x"] > 0) and ("y" not in log or value["y"] > 0)]
    axes = {
        "x": alt.X("x:Q", title=x, scale=alt.Scale(type="log" if "x" in log else "linear", zero=False)),
        "y": alt.Y("y:Q", title=y, scale=alt.Scale(type="log" if "y" in log else "linear", zero=False), axis=alt.Axis(labelOverlap=True)),
    }
    lines = alt.Chart(alt.Data(values=values)).mark_line(point=len(values) < 200, strokeWidth=1.6)
    encoded = lines.encode(**axes, color=alt.Color("color:N", title=color, sort=None, scale=alt.Scale(scheme="tableau10")))
    spec = encoded.properties(width=520, height=300, title=title).to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, vl_convert.vegalite_to_svg(spec).encode())
    return path
