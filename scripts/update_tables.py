"""Fill the generated tables of README.md, CONTRIBUTING.md and docs/: measured ones from results files, reference ones from the code.

A table stands between ``<!-- results:NAME -->`` or ``<!-- reference:NAME -->`` and ``<!-- end -->``:

- ``results:papers`` lists all papers with what was last measured; ``results:papers/KEY`` shows the rows of one;
  ``results:NAME`` shows ``benchmarks/results/NAME.json``, which has at least ``command`` and ``rows``, as a run's ``report.json`` does.
  ``columns=a,b`` behind the name picks columns, ``where=a:b`` behind that the rows with ``b`` in column ``a``.
- ``reference:NAME`` is one of ``reference_tables.TABLES``.

Run it after a measurement or a change of a flag, an option or a recipe key; ``--check`` only says what is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reference_tables import TABLES, markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKER = re.compile(
    r"(<!-- (results|reference):([\w./-]+)(?: columns=([\w,./-]+))?(?: where=([\w./-]+:[\w./-]+))? -->\n).*?(<!-- end -->)", re.DOTALL
)
UNMEASURED = "*Not measured yet.*"


def pages() -> list[Path]:
    """Every file that may hold tables."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, results: Path = RESULTS) -> str:
    """``text`` with every table as it should be now.

    Raises:
        SystemExit: If a marker names a reference table that does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        start, kind, name, columns, where, end = match.groups()
        chosen = columns.split(",") if columns else None
        body = _reference(name) if kind == "reference" else measured(name, chosen, results, where)
        return f"{start}\n{body}\n\n{end}"

    return MARKER.sub(replace, text)


def measured(name: str, columns: Sequence[str] | None, results: Path = RESULTS, where: str | None = None) -> str:
    """The table of one results file, or of its rows ``where`` a column has a value; beneath, the command that wrote it."""
    if name == "papers":
        return _papers(results)
    path = results / f"{name}.json"
    if not path.is_file():
        return UNMEASURED
    recorded = json.loads(path.read_text(encoding="utf-8"))
    rows = recorded["rows"]
    if where:
        column, _, value = where.partition(":")
        rows = [row for row in rows if str(row.get(column)) == value]
    chosen = columns or list(dict.fromkeys(key for row in rows for key in row))
    table = markdown(chosen, [[cell(row.get(column)) for column in chosen] for row in rows])
    points = [*map(_claim, recorded.get("claims", ())), *recorded.get("notes", ())]
    return "\n\n".join([table, _source(recorded), *(["\n".join(f"- {point}" for point in points)] if points else [])])


def _claim(claim: Mapping[str, Any]) -> str:
    sign, verdict = "at least" if claim["at_least"] else "at most", "holds" if claim["holds"] else "does not hold"
    return f"{claim['says']}: {claim['value']:.3g} ({sign} {claim['bound']:.3g}): {verdict}"


def cell(value: Any) -> str:
    """A measured value as table text: four significant digits, thousands separated, nothing for what was not measured."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _source(recorded: Mapping[str, Any]) -> str:
    seconds, texts = recorded.get("seconds", 0), recorded.get("texts", {})
    parts = [f"Measured by `{recorded['command']}`"]
    if seconds:
        # A run's report lists the seconds of every stage.
        parts.append(f"in {sum(seconds.values()) if isinstance(seconds, dict) else seconds:,.0f} s")
    if data := recorded.get("data") or [source for purpose, source in texts.items() if purpose == "evaluation"]:
        parts.append("on " + ", ".join(data))
    if "baseline" in recorded:
        verdict = "holds" if recorded["holds"] else "does not hold"
        parts.append(f"against {recorded['baseline']}: the claim {verdict}, margin {recorded['margin']:.3g}")
    return f"{' '.join(parts)}."


def _papers(results: Path) -> str:
    from tersor.papers import catalogue

    rows = []
    for entry in catalogue():
        path = results / "papers" / f"{entry.key}.json"
        recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if recorded is not None:
            verdict = f"{'holds' if recorded['holds'] else 'does not hold'}, margin {recorded['margin']:.3g}"
        else:
            verdict = "not measured" if entry.implemented else "planned"
        rows.append([f"`{entry.key}`", f"{entry.title} ({entry.authors})", entry.claim, verdict])
    return markdown(["key", "paper", "claim tested", "last full run"], rows)


def _reference(name: str) -> str:
    if name not in TABLES:
        raise SystemExit(f"unknown table reference:{name}; there are {', '.join(TABLES)}")
    return TABLES[name]()


def main(arguments: Sequence[str]) -> int:
    """Update all pages, or with ``--check`` list those that are out of date and return 1."""
    parser = argparse.ArgumentParser(description="Rewrite the generated tables of README.md and docs/.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(new, encoding="utf-8")
    verb = "out of date" if check else "updated"
    print("\n".join(f"{verb}: {page}" for page in stale) or "all tables are up to date")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
