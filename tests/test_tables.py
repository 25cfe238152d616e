"""The generated tables of README.md and docs/ are those that the code and the results files give now."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    """The script as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import update_tables

    yield update_tables
    sys.path.remove(str(ROOT / "scripts"))


def test_committed_tables_are_up_to_date(tables):
    texts = {page.name: page.read_text(encoding="utf-8") for page in tables.pages()}
    assert not [name for name, text in texts.items() if tables.filled(text) != text], "run 'make tables'"


def test_every_marker_is_well_formed(tables):
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        starts, ends = (re.findall(pattern, text, re.MULTILINE) for pattern in ("^<!-- (?:results|reference):", "^<!-- end -->"))
        assert len(starts) == len(tables.MARKER.findall(text)) == len(ends), page


def test_a_results_file_becomes_a_table_with_its_command(tables, tmp_path: Path):
    rows = [{"method": "a|b", "bytes": 60_000_000, "kl": 0.123456, "ok": True}, {"method": "c", "bytes": 1, "kl": None, "ok": False}]
    recorded = {"rows": rows, "command": "python benchmarks/x.py", "seconds": 61.2, "data": ["stories260k"], "notes": ["one thread"]}
    (tmp_path / "speed.json").write_text(json.dumps(recorded), encoding="utf-8")
    text = tables.filled("before\n<!-- results:speed columns=method,kl,ok -->\nold\n<!-- end -->\nafter", tmp_path)
    assert text.splitlines() == [
        "before", "<!-- results:speed columns=method,kl,ok -->", "",
        "| method | kl | ok |", "| --- | --- | --- |", "| a\\|b | 0.1235 | yes |", "| c |  | no |", "",
        "Measured by `python benchmarks/x.py` in 61 s on stories260k.", "", "- one thread", "", "<!-- end -->", "after",
    ]  # fmt: skip
    assert tables.filled(text, tmp_path) == text


def test_rows_are_picked_by_a_value(tables, tmp_path: Path):
    recorded = {"rows": [{"part": "a", "n": 1}, {"part": "b", "n": 2}], "command": "x"}
    (tmp_path / "some.json").write_text(json.dumps(recorded), encoding="utf-8")
    text = tables.filled("<!-- results:some columns=n where=part:b -->\n<!-- end -->", tmp_path)
    assert "| 2 |" in text
    assert "| 1 |" not in text


def test_nothing_is_shown_that_was_not_measured(tables, tmp_path: Path):
    assert tables.measured("speed", None, tmp_path) == tables.UNMEASURED
    papers = tables.measured("papers", None, tmp_path).splitlines()
    assert len(papers) == 42
    assert all(line.endswith(("| planned |", "| not measured |")) for line in papers[2:])


def test_an_unknown_reference_table_is_refused(tables):
    with pytest.raises(SystemExit, match="unknown table reference:nothing"):
        tables.filled("<!-- reference:nothing -->\n<!-- end -->")
