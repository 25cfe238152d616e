"""The report as a browser shows it: charts drawn, tables sorted on a click, nothing run that was smuggled in, nothing fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tersor.evaluation.charts import charts_of
from tersor.evaluation.report import render

from .runs import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the path")

# Sorts the layers by their bytes once the charts are up, and says what went wrong where the dumped page shows it.
PROBE = """<script>
window.faults = [];
window.alert = text => faults.push("alert " + text);
window.addEventListener("error", event => faults.push(event.message));
window.addEventListener("load", () => setTimeout(() => {
  const table = document.getElementById("layers");
  const heads = [...table.querySelectorAll("th")];
  heads.find(head => head.textContent.trim() === "Bytes").querySelector("button").click();
  const mark = document.createElement("output");
  mark.textContent = JSON.stringify(faults) + " " + [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim()).join(",");
  document.body.append(mark);
}, 2000));
</script>"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's document after its scripts ran, in a browser without a network."""
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(render(report()).replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    return dumped(path, folder)


def dumped(path: Path, folder: Path) -> str:
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def test_every_chart_is_drawn(shown: str) -> None:
    places = re.split(r'<div class="chart[^"]*" id="', shown)[1:]
    drawn = {place.partition('"')[0] for place in places if "<svg" in place or "<canvas" in place}
    assert drawn == set(charts_of(report()))


def test_nothing_fails_and_nothing_smuggled_in_runs(shown: str) -> None:
    marked = re.search(r"<output>(\[.*?\]) ", shown)
    assert marked is not None
    assert marked.group(1) == "[]"


def test_a_click_on_a_heading_sorts_the_layers(shown: str) -> None:
    order = re.search(r"<output>\[\] (.*?)</output>", shown)
    assert order is not None
    sizes = {row.name: row.nbytes for row in report().layers}
    found = [sizes[name] for name in order.group(1).split(",")]
    assert len(found) == len(sizes)
    assert found in (sorted(found), sorted(found, reverse=True))
