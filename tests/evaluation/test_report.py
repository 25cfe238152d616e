from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tersor.errors import CorruptFile, InvalidArgument, TersorError
from tersor.evaluation import RunReport, write_report
from tersor.evaluation.charts import charts_of
from tersor.evaluation.report import render

from .runs import EVIL, report


class Page(HTMLParser):
    """Tags, attributes and texts of a page, scripts and styles apart."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def content() -> str:
    return render(report())


@pytest.fixture(scope="module")
def page(content: str) -> Page:
    return Page(content)


def test_it_is_well_formed(page: Page):
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_every_layer_and_number_is_there(page: Page):
    text = "\n".join(page.texts)
    for row in report().layers:
        assert row.name in text
        assert f"{row.nbytes:,}" in text
    for wanted in ("0.3000 ± 0.0100", "26.000 ± 0.500", "75.0 %", "wikitext2.valid", "2.13.0", "50,000"):
        assert wanted in text


def test_warnings_and_disagreements_are_shown(page: Page):
    text = "\n".join(page.texts)
    assert "few tokens" in text
    assert "layer errors and the whole model disagree" in text


def test_nothing_is_loaded_from_anywhere(content: str, page: Page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
    policy = next(attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = content[content.index("<style>") : content.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    own = [script for script in page.scripts if len(script) < 100_000]
    assert not any("http" in script for script in own)


def test_strings_of_the_run_stay_strings(content: str, page: Page):
    assert EVIL not in content
    assert "<script>alert" not in content
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert any(EVIL in text for text in ["".join(page.texts)])
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_charts_have_a_place_each_and_plain_data(page: Page):
    places = {attributes.get("id") for _, attributes in page.tags}
    embedded = json.loads(page.scripts[0])
    assert embedded == json.loads(json.dumps(charts_of(report())))
    assert set(embedded) == {"chart-kl", "chart-perplexity", "chart-bits", "chart-errors", "chart-search", "chart-seconds"}
    assert set(embedded) <= places
    assert "$schema" not in json.dumps(embedded)


def test_the_heat_strip_has_a_cell_for_every_layer():
    cells = charts_of(report(blocks=5))["chart-bits"]["data"]["values"]
    assert {cell["name"] for cell in cells} == {row.name for row in report(blocks=5).layers}


def test_the_charts_compile():
    import vl_convert

    for place, spec in charts_of(report()).items():
        compiled = vl_convert.vegalite_to_vega({**spec, "width": 400})
        assert compiled["marks"], place


def test_a_bare_run_is_a_page_without_charts():
    bare = RunReport("m", "now", "tersor", {}, None, {}, [], [])
    page = Page(render(bare))
    assert json.loads(page.scripts[0]) == {}
    assert "m" in page.texts


@pytest.mark.parametrize(
    ("text", "said"), [("a", "nothing was fitted to"), ("b", "which also served for calibration")], ids=["held out", "reused"]
)
def test_it_claims_to_be_held_out_only_where_it_is(text: str, said: str):
    assert said in render(replace(report(), texts={"calibration": "b", "evaluation": text}))


def test_many_blocks_and_one_level(tmp_path: Path):
    long = report(blocks=60)
    assert "layer" not in charts_of(long)["chart-bits"]
    same = replace(long, layers=[replace(row, bits=3.25) for row in long.layers])
    assert charts_of(same)["chart-bits"]["encoding"]["color"]["scale"]["domain"] == [2.25, 4.25]


def test_from_a_folder_a_file_and_a_dictionary(tmp_path: Path, content: str):
    (tmp_path / "report.json").write_text(json.dumps(report().to_dict()), encoding="utf-8")
    for number, source in enumerate((tmp_path, tmp_path / "report.json", str(tmp_path), report().to_dict(), report())):
        output = write_report(source, tmp_path / f"{number}.html")
        assert output.read_text(encoding="utf-8") == content


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"is a folder; name the \.html file"):
        write_report(report(), tmp_path)
    with pytest.raises(TersorError, match="cannot write"):
        write_report(report(), tmp_path / "no" / "such" / "folder.html")
    with pytest.raises(CorruptFile):
        write_report({"model": "m"}, tmp_path / "out.html")
    with pytest.raises(InvalidArgument, match="plain JSON"):
        write_report({"model": object()}, tmp_path / "out.html")
    assert list(tmp_path.iterdir()) == []
