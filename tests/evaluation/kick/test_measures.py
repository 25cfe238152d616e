from __future__ import annotations

import itertools

import pytest

from tersor.errors import InvalidArgument
from tersor.evaluation.kick import contains, exact, normalised, repetition, rouge_l, rouge_n, word_f1
from tersor.evaluation.kick.measures import contains_squeezed, words


def test_normalisation_strips_case_punctuation_and_articles():
    assert normalised("  The  U.S.A., an\tanswer! ") == "usa answer"
    assert normalised("Theatre and another") == "theatre and another"
    assert normalised("The a an") == ""


@pytest.mark.parametrize("measure", [contains, contains_squeezed, exact, word_f1])
def test_an_empty_prediction_is_no_answer(measure):
    for prediction in ("", " ", "\n"):
        assert not measure(prediction, ["Paris", "the city of Paris"])


@pytest.mark.parametrize("measure", [contains, contains_squeezed, exact, word_f1])
def test_an_empty_alias_matches_nothing(measure):
    assert not measure("anything at all", ["", " "])
    assert not measure("anything at all", [])


@pytest.mark.parametrize("measure", [contains, exact, word_f1])
def test_an_alias_of_articles_and_punctuation_matches_nothing(measure):
    assert not measure("what the answer is", ["The", "?!"])


def test_a_part_of_the_alias_is_not_the_alias():
    # The reference script takes a substring in either direction, which makes "" and "New" right.
    assert not contains("New", ["New York"])
    assert contains("It is New York, I think", ["New York"])


def test_whole_words_only_where_the_script_takes_any_letters():
    assert not contains("a party", ["art"])
    assert contains_squeezed("a party", ["art"])
    assert contains_squeezed("it is new  york", ["New York"])


def test_any_alias_will_do():
    assert contains("Holland.", ["The Netherlands", "Holland"])
    assert exact("the Netherlands!", ["Holland", "Netherlands"])
    assert not exact("in the Netherlands", ["Netherlands"])


def test_f1_by_hand():
    # Two of three words said are among the two of the answer.
    assert word_f1("big red house", ["the red house"]) == pytest.approx(2 * 2 / (3 + 2))
    assert word_f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert word_f1("blue", ["green", "dark blue"]) == pytest.approx(2 / 3)


def longest_common(first: list[str], second: list[str]) -> int:
    """By trying every subsequence."""

    def is_within(part: tuple[str, ...]) -> bool:
        rest = iter(second)
        return all(word in rest for word in part)

    return max(size for size in range(len(first) + 1) if size == 0 or any(map(is_within, itertools.combinations(first, size))))


@pytest.mark.parametrize(
    ("first", "second"),
    [("a b c d e", "a c e"), ("x a y b z", "a b q"), ("b a", "a b"), ("a a b", "a b a b"), ("one", "two"), ("p q r s t u", "u t s r q p")],
)
def test_rouge_l_against_all_subsequences(first: str, second: str):
    common = longest_common(words(first), words(second))
    assert rouge_l(first, second) == pytest.approx(2 * common / (len(words(first)) + len(words(second))))
    assert rouge_l(first, second) == rouge_l(second, first)


def test_rouge_known_values():
    # Lin's example: three of four unigrams, one of three bigrams.
    police, gunman = "police kill the gunman", "police killed the gunman"
    assert rouge_n(police, gunman, 1) == pytest.approx(3 / 4)
    assert rouge_n(police, gunman, 2) == pytest.approx(1 / 3)
    assert rouge_l(police, gunman) == pytest.approx(3 / 4)
    assert rouge_l(gunman, gunman) == rouge_n(gunman, gunman, 2) == 1
    assert rouge_n("the the the the", "the cat", 1) == pytest.approx(2 * 1 / 6)
    assert rouge_l("", gunman) == rouge_n("", "", 1) == 0
    with pytest.raises(InvalidArgument, match="n of at least 1"):
        rouge_n("a", "a", 0)


def test_repetition_counts_what_was_there_before():
    assert repetition("one two three four five") == 0
    assert repetition("a b a b a b a b", 2) == pytest.approx(1 - 2 / 7)
    assert repetition("go " * 50) == pytest.approx(1 - 1 / 48)
    assert repetition("short") == repetition("") == 0
    with pytest.raises(InvalidArgument, match="n of at least 1"):
        repetition("a", 0)
