"""The charts of a run report, as Vega-Lite specifications without colours of their own for text and axes: the page gives those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tersor.evaluation.run_report import LayerRow, ReportRow, RunReport

Spec = dict[str, Any]
ACCENT = "#2f7ed8"
OUTSIDE = "other"  # block of a layer outside the blocks
LABELLED_BLOCKS = 40  # beyond that a number no longer fits its cell


def charts_of(report: RunReport) -> dict[str, Spec]:
    """Every chart that ``report`` has numbers for, by the id of its place in the page."""
    charts = {
        "chart-kl": quality(report.rows, "kl", "KL to the original (nats a token)"),
        "chart-perplexity": quality(report.rows, "perplexity", "Perplexity"),
        "chart-bits": bits(report.layers),
        "chart-errors": errors(report.layers),
        "chart-search": search(report.search),
        "chart-seconds": seconds(report.seconds),
    }
    return {place: spec for place, spec in charts.items() if spec is not None}


def quality(rows: Sequence[ReportRow], metric: str, title: str) -> Spec | None:
    """Size against ``metric``, a labelled point a model, with two standard errors either way."""
    import altair as alt

    values = []
    for row in rows:
        value, error = getattr(row, metric), getattr(row, f"{metric}_stderr") or 0.0
        if value is not None:
            low, high = max(value - 2 * error, 0.0), value + 2 * error
            values.append({"model": row.name, "megabytes": row.nbytes / 1e6, "value": value, "low": low, "high": high})
    if len(values) < 2:
        return None
    # Room for the labels, which stand above and across their points.
    widest, highest = 1.12 * max(item["megabytes"] for item in values), 1.1 * max(item["high"] for item in values)
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("megabytes:Q", title="Size (MB)", scale=alt.Scale(domainMin=0, domainMax=max(widest, 1e-9), nice=True)),
        tooltip=[
            alt.Tooltip("model:N", title="Model"), alt.Tooltip("megabytes:Q", format=",.2f", title="MB"),
            alt.Tooltip("value:Q", format=".4g", title=title), alt.Tooltip("low:Q", format=".4g", title="less 2 s.e."),
            alt.Tooltip("high:Q", format=".4g", title="plus 2 s.e."),
        ],
    )  # fmt: skip
    y = alt.Y("value:Q", title=title, scale=alt.Scale(domainMax=max(highest, 1e-9), zero=metric == "kl", nice=True))
    bars = base.mark_rule(strokeWidth=2, color=ACCENT).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    color = alt.Color("model:N", legend=None, scale=alt.Scale(scheme="tableau10", domain=[row.name for row in rows]))
    points = base.mark_circle(size=110, opacity=1).encode(y=y, color=color)
    labels = base.mark_text(dy=-13, fontSize=12, limit=200).encode(y=y, text="model:N")
    return _spec(alt.layer(bars, points, labels), 260)


def bits(layers: Sequence[LayerRow]) -> Spec | None:
    """Bits a weight as a strip of cells: a column a block, a row a role."""
    import altair as alt

    if not layers:
        return None
    values = [
        {"name": row.name, "block": _block(row), "role": row.role, "method": row.method, "bits": row.bits, "nbytes": row.nbytes}
        for row in layers
    ]
    blocks, roles = _blocks(layers), list(dict.fromkeys(row.role for row in layers))
    low, high = min(row.bits for row in layers), max(row.bits for row in layers)
    domain = [low, high] if high > low else [max(low - 1, 0), high + 1]
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("block:O", title="Block", sort=blocks, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("role:N", title=None, sort=roles),
        tooltip=[
            alt.Tooltip("name:N", title="Layer"), alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("bits:Q", format=".3f", title="Bits a weight"), alt.Tooltip("nbytes:Q", format=",", title="Bytes"),
        ],
    )  # fmt: skip
    legend = alt.Legend(orient="top", gradientLength=180)
    scale = alt.Scale(scheme="viridis", domain=domain)
    cells = base.mark_rect(cornerRadius=2).encode(color=alt.Color("bits:Q", title="Bits", scale=scale, legend=legend))
    if len(blocks) > LABELLED_BLOCKS:
        return _spec(cells, alt.Step(26))
    middle = (domain[0] + domain[1]) / 2
    numbers = base.mark_text(fontSize=9).encode(
        text=alt.Text("bits:Q", format=".1f"),
        color=alt.when(alt.datum.bits < middle).then(alt.value("#ffffff")).otherwise(alt.value("#101418")),
    )
    return _spec(alt.layer(cells, numbers), alt.Step(26))


def errors(layers: Sequence[LayerRow]) -> Spec | None:
    """Error of each layer over the depth of the model, held out where that was measured, on a logarithmic scale."""
    import altair as alt

    held_out = any(row.held_out_error is not None for row in layers)
    values = []
    for row in layers:
        error = row.held_out_error if held_out else row.error
        if error is not None and error > 0 and row.block is not None:
            values.append({"name": row.name, "block": row.block, "role": row.role, "error": error})
    if not values:
        return None
    title = f"Relative output error ({'held out' if held_out else 'calibration'})"
    chart = alt.Chart(alt.Data(values=values)).mark_line(point=alt.OverlayMarkDef(size=36, filled=True), strokeWidth=1.4)
    encoded = chart.encode(
        x=alt.X("block:Q", title="Block", axis=_whole(row.block or 0 for row in layers), scale=alt.Scale(nice=False, padding=12)),
        y=alt.Y("error:Q", title=title, scale=alt.Scale(type="log"), axis=alt.Axis(format=".1~e", labelOverlap=True)),
        color=alt.Color("role:N", title=None, sort=None, legend=alt.Legend(orient="top", columns=7), scale=alt.Scale(scheme="tableau10")),
        tooltip=[alt.Tooltip("name:N", title="Layer"), alt.Tooltip("error:Q", format=".4g", title="Error")],
    )
    return _spec(encoded, 280)


def search(rows: Sequence[Mapping[str, Any]]) -> Spec | None:
    """Fitness over generations; a filled point where a new parent was found."""
    import altair as alt

    values = [
        {
            "generation": row.get("generation", number), "fitness": row["fitness"], "evaluations": row.get("evaluations"),
            "found": "new parent" if row.get("changed", True) else "parent kept",
        }
        for number, row in enumerate(rows, 1)
        if isinstance(row.get("fitness"), (int, float))
    ]  # fmt: skip
    if not values:
        return None
    whole = _whole(value["generation"] for value in values)
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("generation:Q", title="Generation", axis=whole, scale=alt.Scale(nice=False, padding=12)),
        y=alt.Y("fitness:Q", title="Fitness (lower is better)", scale=alt.Scale(zero=False, nice=True)),
        tooltip=[
            alt.Tooltip("generation:Q", title="Generation"), alt.Tooltip("fitness:Q", format=".5g", title="Fitness"),
            alt.Tooltip("evaluations:Q", format=",", title="Evaluations so far"), alt.Tooltip("found:N", title="Result"),
        ],
    )  # fmt: skip
    line = base.mark_line(color=ACCENT, strokeWidth=1.5, opacity=0.6)
    scale = alt.Scale(domain=["new parent", "parent kept"], range=[ACCENT, "#9aa4b2"])
    color = alt.Color("found:N", title=None, legend=alt.Legend(orient="top"), scale=scale)
    points = base.mark_point(size=46, filled=True, opacity=1).encode(color=color)
    return _spec(alt.layer(line, points), 260)


def seconds(stages: Mapping[str, float]) -> Spec | None:
    """Wall time of each stage."""
    import altair as alt

    if not stages:
        return None
    values = [{"stage": stage, "seconds": spent} for stage, spent in stages.items()]
    chart = alt.Chart(alt.Data(values=values)).mark_bar(color=ACCENT, cornerRadiusEnd=3)
    encoded = chart.encode(
        x=alt.X("seconds:Q", title="Seconds"),
        y=alt.Y("stage:N", title=None, sort=list(stages), axis=alt.Axis(labelLimit=260)),
        tooltip=[alt.Tooltip("stage:N", title="Stage"), alt.Tooltip("seconds:Q", format=",.1f", title="Seconds")],
    )
    return _spec(encoded, alt.Step(26))


def curves(values: Sequence[Mapping[str, Any]], x: str, y: str, series: str, titles: tuple[str, str]) -> Spec:
    """A line with points for each value of ``series``, ``y`` on a logarithmic scale.

    Args:
        values: One mapping a point.
        x: Key of the horizontal number.
        y: Key of the vertical number, above 0.
        series: Key of what tells the lines apart.
        titles: Of both axes.
    """
    import altair as alt

    names = list(dict.fromkeys(value[series] for value in values))
    chart = alt.Chart(alt.Data(values=[dict(value) for value in values])).mark_line(point=alt.OverlayMarkDef(size=48, filled=True))
    encoded = chart.encode(
        x=alt.X(f"{x}:Q", title=titles[0], scale=alt.Scale(zero=False, nice=True)),
        y=alt.Y(f"{y}:Q", title=titles[1], scale=alt.Scale(type="log"), axis=alt.Axis(format=".1~e", labelOverlap=True)),
        color=alt.Color(f"{series}:N", title=None, sort=names, scale=alt.Scale(scheme="tableau20")),
        tooltip=[alt.Tooltip(f"{series}:N"), alt.Tooltip(f"{x}:Q", format=".4g"), alt.Tooltip(f"{y}:Q", format=".4g")],
    )
    return _spec(encoded, 400)


def _whole(numbers: Iterable[int]) -> Any:
    """An axis with ticks at whole numbers only, also where there are few."""
    import altair as alt

    known = list(numbers)
    return alt.Axis(tickCount=max(1, min(15, max(known) - min(known))), format="d")


def _block(row: LayerRow) -> str:
    return OUTSIDE if row.block is None else str(row.block)


def _blocks(layers: Sequence[LayerRow]) -> list[str]:
    numbers = sorted({row.block for row in layers if row.block is not None})
    return [*map(str, numbers), *([OUTSIDE] if any(row.block is None for row in layers) else [])]


def _spec(chart: Any, height: Any) -> Spec:
    spec: Spec = chart.properties(width="container", height=height, background="transparent").to_dict()
    spec.pop("$schema", None)  # an address that nothing may ask for
    spec.pop("config", None)
    return spec
