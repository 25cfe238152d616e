"""The HTML of a run report. Every string of the run goes through :func:`html.escape`; nothing is fetched when the page opens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tersor.evaluation.disagreement import disagreement
from tersor.evaluation.run_report import LayerRow, ReportRow, RunReport

# Vega compiles its expressions, hence unsafe-eval; with no source allowed at all, nothing can be loaded or sent.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
PURPOSES = {
    "calibration": "Layers fitted on", "held_out": "Layer errors held out on", "search": "Candidates judged on",
    "evaluation": "Size and quality measured on",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, the number to sort by where it is one, and the style of a text."""

    text: str
    value: float | None = None
    numeric: bool = False
    kind: str = "text"

    @classmethod
    def number(cls, value: float | None, form: str = ".4g", extra: str = "") -> Cell:
        """A number, or an empty cell."""
        return cls("" if value is None else f"{value:{form}}{extra}", value, True)

    def html(self) -> str:
        """The cell."""
        if not self.numeric:
            return f'<td class="{self.kind}">{escape(self.text)}</td>'
        value = "" if self.value is None else repr(self.value)
        return f'<td class="number" data-value="{value}">{escape(self.text)}</td>'


def page(report: RunReport, charts: Mapping[str, dict[str, Any]], style: str, libraries: str, script: str) -> str:
    """The whole page.

    Args:
        report: The run.
        charts: Vega-Lite specifications by the id of their place.
        style: The style sheet.
        libraries: JavaScript that defines ``vegaEmbed``.
        script: The page's own JavaScript.
    """
    body = "\n".join(filter(None, [
        _head(report), _tiles(report.rows), _warnings(report), _comparison(report, charts), _bits(report, charts), _search(report, charts),
        _layers(report.layers), _provenance(report, charts),
    ]))  # fmt: skip
    # A closing tag inside a string of a script would end it.
    data = json.dumps(dict(charts), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    safe = [re.sub("</(?=script)", r"<\\/", code, flags=re.IGNORECASE) for code in (libraries, script)]
    scripts = "".join(f"<script>{code}</script>\n" for code in safe)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.model)}: tersor report</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="charts">{data}</script>\n{scripts}</body>\n</html>\n'
    )


def _head(report: RunReport) -> str:
    budget = "" if report.budget is None else f", asked for at most {report.budget / 1e6:,.2f} MB"
    return f'<header><h1>{escape(report.model)}</h1>\n<p class="when">compressed by tersor, {escape(report.created)}{budget}</p></header>'


def _tiles(rows: Sequence[ReportRow]) -> str:
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    tiles = [(f"{last.nbytes / 1e6:,.2f} MB", f"{last.name}, {last.bits_per_weight:.2f} bits a weight")]
    if len(rows) > 1 and last.nbytes:
        tiles.append((f"{first.nbytes / last.nbytes:.2f} times", f"smaller than {first.name} ({first.nbytes / 1e6:,.2f} MB)"))
    if last.perplexity is not None:
        change = f", {first.name} {first.perplexity:.2f}" if len(rows) > 1 and first.perplexity is not None else ""
        tiles.append((f"{last.perplexity:.2f}", f"perplexity{change}"))
    if last.kl is not None and len(rows) > 1:
        tiles.append((f"{last.kl:.4f}", "KL to the original, nats a token"))
    if last.top1 is not None and len(rows) > 1:
        tiles.append((f"{100 * last.top1:.1f} %", "same likeliest next token"))
    shown = "".join(f'<div class="tile"><b>{escape(number)}</b><span>{escape(meaning)}</span></div>' for number, meaning in tiles)
    return f'<div class="tiles">{shown}</div>'


def _warnings(report: RunReport) -> str:
    found = list(dict.fromkeys([*report.warnings, *map(str, disagreement(report.rows))]))
    items = "".join(f"<li>{escape(warning)}</li>" for warning in found)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>' if found else ""


_PROVEN = (
    " Loss at most: nats a token that are not exceeded on average over such text, 95 % sure, if windows are independent and predictions "
    "are mixed with 1 % of a uniform guess; by its bytes: even if the model had been fitted to this text."
)


def _comparison(report: RunReport, charts: Mapping[str, Any]) -> str:
    columns = ["Model", "Bytes", "MB", "Bits a weight", "Perplexity", "KL to original", "Same top-1"]
    with_errors = any(row.layer_error is not None for row in report.rows)
    proven = any(row.certified is not None for row in report.rows)
    columns += (["Sum of layer errors"] if with_errors else []) + (["Loss at most", "by its bytes"] if proven else [])
    cells = [
        [
            Cell(row.name), Cell.number(row.nbytes, ","), Cell.number(row.nbytes / 1e6, ",.2f"), Cell.number(row.bits_per_weight, ".2f"),
            Cell.number(row.perplexity, ",.3f", _error(row.perplexity_stderr, ".3f")),
            Cell.number(row.kl, ".4f", _error(row.kl_stderr, ".4f")),
            Cell.number(None if row.top1 is None else 100 * row.top1, ".1f", " %"),
            *([Cell.number(row.layer_error)] if with_errors else []),
            *([Cell.number(row.certified, ".3f"), Cell.number(row.occam, ".3f")] if proven else []),
        ]
        for row in report.rows
    ]  # fmt: skip
    pair = "".join(f'<div class="chart" id="{place}"></div>' for place in ("chart-kl", "chart-perplexity") if place in charts)
    source = report.texts.get("evaluation")
    also = ", ".join(purpose.replace("_", "-") for purpose, text in report.texts.items() if purpose != "evaluation" and text == source)
    held_out = f"which also served for {also}" if also else "which nothing was fitted to or chosen by"
    note = f"Measured on {source}, {held_out}; ± is one standard error over windows, bars are two." if source else ""
    note += _PROVEN if proven else ""
    return (
        f'<section><h2>Size and quality</h2><p class="note">{escape(note)}</p>'
        f"{_table('models', columns, cells)}"
        f'{f"""<div class="pair">{pair}</div>""" if pair else ""}</section>'
    )


def _bits(report: RunReport, charts: Mapping[str, Any]) -> str:
    if "chart-bits" not in charts:
        return ""
    errors = ""
    if "chart-errors" in charts:
        errors = (
            '<section><h2>Error of each layer</h2><p class="note">Share of the output energy that is lost; '
            '1 is as bad as a layer of zeros.</p><div class="chart" id="chart-errors"></div></section>'
        )
    return (
        '<section><h2>Bits of each layer</h2>'
        '<p class="note">Everything that is stored is counted: codes, scales, zero points, indices and masks.</p>'
        f'<div class="wide"><div class="chart" id="chart-bits"></div></div></section>{errors}'
    )


def _search(report: RunReport, charts: Mapping[str, Any]) -> str:
    if "chart-search" not in charts:
        return ""
    note = "Each generation is judged on tokens of its own, so neighbouring values also differ by chance; the table above decides."
    counters = _list({name.replace("_", " "): f"{count:,}" for name, count in report.counters.items()})
    return f'<section><h2>Search</h2><p class="note">{note}</p><div class="chart" id="chart-search"></div>{counters}</section>'


def _layers(layers: Sequence[LayerRow]) -> str:
    columns = ["Layer", "Block", "Role", "Method", "Options", "Bits", "Bytes", "Error", "Held-out error", "Damping", "Tokens"]
    cells = [
        [
            Cell(row.name), Cell.number(row.block, "d"), Cell(row.role), Cell(row.method), Cell(_options(row.options), kind="options"),
            Cell.number(row.bits, ".3f"), Cell.number(row.nbytes, ","), Cell.number(row.error, ".3e"),
            Cell.number(row.held_out_error, ".3e"), Cell.number(row.damping),
            Cell.number(row.tokens, ","),
        ]
        for row in layers
    ]  # fmt: skip
    if not cells:
        return ""
    field = '<input type="search" data-table="layers" placeholder="Filter layers" aria-label="Filter layers">'
    return f"<section><h2>Layers</h2>{field}{_table('layers', columns, cells, tall=True)}</section>"


def _provenance(report: RunReport, charts: Mapping[str, Any]) -> str:
    texts = {PURPOSES.get(purpose, purpose): source for purpose, source in report.texts.items()}
    predicted = {f"Predicted {name.replace('_', ' ')}": _plain(value) for name, value in report.predicted.items() if value is not None}
    took = {"Took": f"{sum(report.seconds.values()):,.1f} seconds"} if report.seconds else {}
    chart = '<div class="chart" id="chart-seconds"></div>' if "chart-seconds" in charts else ""
    parts = [f"<section><h2>Texts</h2>{_list(texts)}</section>"] if texts else []
    if chart or predicted:
        parts.append(f"<section><h2>Time and resources</h2>{chart}{_list({**took, **predicted})}</section>")
    parts.append(f"<section><h2>How to repeat it</h2><p><code>{escape(report.command)}</code></p>{_list(report.versions)}</section>")
    return "\n".join(parts)


def _table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], tall: bool = False) -> str:
    numeric = [any(row[index].numeric for row in rows) for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}><button type="button">{escape(column)}</button></th>'
        for column, number in zip(columns, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(cell.html() for cell in row)}</tr>" for row in rows)
    frame = "wide tall" if tall else "wide"
    table = f'<table class="sortable" id="{name}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="{frame}">{table}</div>'


def _list(items: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items.items()) + "</dl>" if items else ""


def _error(stderr: float | None, form: str) -> str:
    return "" if not stderr else f" ± {stderr:{form}}"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_plain(value)}" for name, value in options.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
