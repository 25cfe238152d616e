from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tersor.evaluation.kick import Item, SingleJudge, compare, likelihood_judge, repetition_judge, rouge_judge
from tersor.models import Model

from ..conftest import letters, llama, log_probabilities

ITEM = Item("a bad cab ", reference="fed a cab")


def first_is_better(item: Item, first: str, second: str) -> tuple[float, float]:
    """A judge that favours the first place by far, and longer answers a little."""
    return 9 + len(first) / 10, 1 + len(second) / 10


def test_a_judge_that_favours_a_place_is_undone():
    assert first_is_better(ITEM, "same", "same") != (5.4, 5.4)
    assert compare(first_is_better, ITEM, "same", "same") == pytest.approx((5.4, 5.4))
    longer, shorter = compare(first_is_better, ITEM, "longer answer", "short")
    assert longer > shorter


@pytest.mark.parametrize("judge", [first_is_better, rouge_judge(), rouge_judge("1"), rouge_judge("2"), repetition_judge()],
                         ids=["biased", "rouge-l", "rouge-1", "rouge-2", "repetition"])  # fmt: skip
@pytest.mark.parametrize(("first", "second"), [("fed a cab", "bed"), ("a cab a cab a cab", ""), ("fed", "fed a")])
def test_swapping_the_answers_swaps_the_ratings(judge, first: str, second: str):
    ahead, behind = compare(judge, ITEM, first, second), compare(judge, ITEM, second, first)
    assert ahead == pytest.approx(behind[::-1])
    assert ahead[0] - ahead[1] == pytest.approx(-(behind[0] - behind[1]))


@pytest.mark.parametrize("judge", [rouge_judge(), repetition_judge()])
def test_judges_that_say_they_are_symmetric_are(judge):
    assert judge.symmetric
    assert judge(ITEM, "fed a cab", "bed bed bed bed") == judge(ITEM, "bed bed bed bed", "fed a cab")[::-1]


def test_offline_judges_know_better_from_worse():
    good, bad = rouge_judge()(ITEM, "fed a cab", "gag")
    assert (good, bad) == (1, 0)
    fluent, circles = repetition_judge()(ITEM, "one two three four five", "one two one two one two one two")
    assert fluent == 1
    assert circles < 0.5
    assert repetition_judge()(ITEM, "", " \n") == (0, 0)


def test_an_answer_is_rated_once():
    asked = []
    judge = SingleJudge(lambda item, text: float(len(asked.append(text) or text)))
    assert [compare(judge, ITEM, "ab", text)[1] for text in ("c", "cd", "c")] == [1, 2, 1]
    assert asked == ["ab", "c", "cd"]


def reader(seed: int = 0) -> Model:
    tokenizer = letters()
    return llama(len(tokenizer), seed, tokenizer=tokenizer)


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_by_hand(seed: int):
    model = reader(seed)
    ids = model.encode(ITEM.prompt + "fed")
    start = len(model.encode(ITEM.prompt))
    steps = log_probabilities(model, ids).gather(1, ids[1:, None])[start - 1 :, 0]
    rating, nothing = likelihood_judge(model)(ITEM, "fed", " ")
    assert rating == pytest.approx(math.exp(float(steps.mean())), rel=1e-4)
    assert nothing == 0


def test_the_original_prefers_its_own_greedy_word():
    model = reader()
    with torch.no_grad():
        best = int(model.module(model.encode(ITEM.prompt)[None]).logits[0, -1].argmax())
    word = model.tokenizer.decode([best])
    others = [model.tokenizer.decode([token]) for token in range(3, model.vocabulary) if token != best]
    judge = likelihood_judge(model)
    ratings = {
        text: judge(ITEM, text, text)[0]
        for text in (word, *others)
        if len(model.encode(ITEM.prompt + text)) == len(model.encode(ITEM.prompt)) + 1
    }
    assert len(ratings) > 5
    assert max(ratings, key=ratings.__getitem__) == word


def test_a_real_model_finds_its_stories_likelier_than_letters(stories_path: Path):
    from tersor.models import load

    judge = likelihood_judge(load(stories_path))
    story, noise = judge(Item("Once upon a time, there was a little"), " girl named Lily.", " gxq zzkr wq.")
    assert story > 3 * noise
