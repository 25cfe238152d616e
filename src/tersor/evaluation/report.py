"""One self-contained HTML page about a run: opens anywhere, asks no server for anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tersor.errors import InvalidArgument
from tersor.evaluation.run_report import RunReport
from tersor.files import write_atomically


def write_report(run: RunReport | Mapping[str, Any] | str | Path, output: str | Path) -> Path:
    """Write the page of a run: sizes and qualities, bits and errors of every layer, the search, texts, versions and warnings.

    Charts are drawn by Vega, which is part of the page (about 0.9 MB).

    Args:
        run: The folder of a finished run, its ``report.json``, or what that holds.
        output: The ``.html`` file to write; an existing one is replaced.

    Returns:
        ``output`` as a path.

    Raises:
        InvalidArgument: If there is no report, or ``output`` is a folder.
        CorruptFile: If the report is damaged.
        TersorError: If the page cannot be written.
    """
    path = Path(output)
    if path.is_dir():
        raise InvalidArgument(f"{path} is a folder; name the .html file to write, such as {path / 'report.html'}")
    write_atomically(path, render(_report(run)).encode("utf-8"))
    return path


def render(report: RunReport) -> str:
    """The page of ``report`` as one string of HTML."""
    from tersor.evaluation.charts import charts_of
    from tersor.evaluation.page import page

    return page(report, charts_of(report), _static("report.css"), _vega(), _static("report.js"))


def _report(run: RunReport | Mapping[str, Any] | str | Path) -> RunReport:
    if isinstance(run, RunReport):
        return run
    if isinstance(run, Mapping):
        try:
            content = json.dumps(dict(run))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"a report must hold plain JSON values: {error}") from None
        return RunReport.parse(content)
    return RunReport.read(run)


def _static(name: str) -> str:
    return files("tersor.evaluation").joinpath("static", name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs nothing else."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle
