from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import pytest

from tersor.errors import CorruptFile, InvalidArgument
from tersor.evaluation.task_files import TASKS, load_task


@pytest.mark.parametrize(
    ("name", "count", "answers", "kind"),
    [
        ("arc_easy", 2376, {4}, "choices"), ("arc_challenge", 1172, {4}, "choices"), ("piqa", 1838, {2}, "choices"),
        ("boolq", 3270, {2}, "choices"), ("openbook_qa", 500, {4}, "choices"), ("winogrande", 1267, {2}, "contexts"),
        ("hellaswag", 10042, {4}, "choices"),
        ("lambada_openai", 5153, {1}, "last word"), ("mmlu", 14042, {4}, "choices"), ("mmlu:anatomy", 135, {4}, "choices"),
    ],
)  # fmt: skip
def test_the_real_files(data_dir: Path, name: str, count: int, answers: set[int], kind: str):
    task = load_task(name)
    assert (len(task.questions), {len(question.pairs) for question in task.questions}, task.kind) == (count, answers, kind)


def test_mmlu_takes_turns_over_its_subjects(data_dir: Path):
    heads = [question.pairs[0][0].splitlines()[0] for question in load_task("mmlu").questions[:57]]
    assert len(set(heads)) == 57


def test_any_file_of_a_known_form(tmp_path: Path):
    file = tmp_path / "mine.jsonl.bz2"
    rows = b'{"query": "q", "choices": ["a", "b"], "gold": 1}\n\n{"query": "r", "choices": ["a", "b", "c"], "gold": 0}\n'
    file.write_bytes(bz2.compress(rows))
    task = load_task(file)
    assert [question.gold for question in task.questions] == [1, 0]
    assert task.questions[0].pairs == (("q", "a"), ("q", "b"))


GOOD: dict[str, Any] = {"query": "q", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {**GOOD, "gold": 2}], r"line 2: gold must be from 0 to 1, got 2"),
        ([{**GOOD, "gold": "A"}], r"got 'A'"),
        ([{**GOOD, "gold": True}], r"got True"),
        ([{**GOOD, "choices": ["a"]}], r"at least 2 answers"),
        ([{**GOOD, "choices": ["a", " "]}], r"not empty"),
        ([{**GOOD, "choices": "ab"}], r"at least 2 answers"),
        ([{**GOOD, "query": 3}], r"all of them text"),
        ([{"query": "q"}], r"a row needs query, choices and gold.*it has \['query'\]"),
        ([[1, 2]], r"a row needs"),
        ([GOOD, {"context": "c", "continuation": "d"}], r"mixes rows of different kinds"),
        ([], r"holds no questions"),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:24],
)
def test_damaged_rows_are_named(tmp_path: Path, rows: list[Any], message: str):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(CorruptFile, match=message):
        load_task(file)


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe", b'{"query": '], ids=["words", "no utf-8", "cut off"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(content)
    with pytest.raises(CorruptFile, match="cannot be read"):
        load_task(file)


def test_a_truncated_archive_is_refused(tmp_path: Path, data_dir: Path):
    file = tmp_path / TASKS["mmlu"]
    file.parent.mkdir()
    file.write_bytes((data_dir / "tasks" / TASKS["mmlu"]).read_bytes()[:200_000])
    with pytest.raises(CorruptFile, match="cannot be read"):
        load_task("mmlu", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("arc", "no task 'arc'.*arc_easy"), ("boolq:law", "no subjects"), ("boolq", "does not exist")],
    ids=["unknown", "subject", "no file"],
)
def test_unknown_tasks_are_refused(tmp_path: Path, name: str, message: str):
    with pytest.raises(InvalidArgument, match=message):
        load_task(name, tmp_path)


def test_an_unknown_subject_is_refused(data_dir: Path):
    with pytest.raises(InvalidArgument, match="no subject 'alchemy'"):
        load_task("mmlu:alchemy")


def test_named_tasks_need_a_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TERSOR_DATA", raising=False)
    with pytest.raises(InvalidArgument, match="TERSOR_DATA is not set"):
        load_task("boolq")
