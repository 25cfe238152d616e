from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersor.errors import CorruptFile, InvalidArgument
from tersor.evaluation import RunReport

from .runs import report


def test_it_survives_the_disk(tmp_path: Path):
    (tmp_path / "report.json").write_text(json.dumps(report().to_dict(), allow_nan=False), encoding="utf-8")
    assert RunReport.read(tmp_path) == report()
    assert RunReport.read(tmp_path / "report.json") == report()


def test_the_table_lines_up():
    lines = report().table().splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[3].startswith("searched")
    assert lines[4].startswith("warning: few tokens")


def changed(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (changed("unknown", value=1), "unknown"),
        (changed("rows", 0, "nbytes", value=-1), "rows.0.nbytes"),
        (changed("rows", 0, "nbytes", value="200000"), "rows.0.nbytes"),
        (changed("rows", 0, "nbytes", value=1.5), "rows.0.nbytes"),
        (changed("rows", 1, "top1", value=1.2), "rows.1.top1"),
        (changed("rows", 1, "kl", value=float("nan")), "NaN"),
        (changed("layers", 2, "error", value=float("inf")), "Infinity"),
        (changed("layers", 2, "block", value=True), "layers.2.block"),
        (changed("layers", 0, "surprise", value=0), "layers.0.surprise"),
        (changed("layers", value={}), "layers"),
        (changed("search", 0, "fitness", value=[1]), "search.0.fitness"),
        (changed("search", 0, "fitness", value=float("nan")), "NaN"),
        (changed("model", value=None), "model"),
        (changed("seconds", "fitting", value="long"), "seconds.fitting"),
        (lambda data: data.pop("rows"), "rows"),
    ],
)
def test_nonsense_is_refused_and_placed(change: Callable[[dict[str, Any]], None], place: str):
    data = report().to_dict()
    change(data)
    with pytest.raises(CorruptFile, match=place):
        RunReport.parse(json.dumps(data))


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "{", "null", '{"a":' * 5000, "\ud800"], ids=["empty", "list", "number", "cut", "null", "deep", "surrogate"]
)
def test_what_is_no_report_is_refused(content: str):
    with pytest.raises(CorruptFile):
        RunReport.parse(content)


def test_a_missing_report_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"not the folder of a finished run: it has no report\.json"):
        RunReport.read(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="cannot be read"):
        RunReport.read(tmp_path)
