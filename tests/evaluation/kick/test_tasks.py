from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.kick import (
    Choice,
    FactoidQA,
    Instructions,
    Item,
    KickBench,
    MultipleChoice,
    RetrievalQA,
    Summarization,
    misleading,
    repetition_judge,
    rouge_judge,
)
from tersor.evaluation.kick.mmlu import CATEGORIES, fitted, prompt_of
from tersor.models import Model

from .rigged import scripted

FRANCE = Item("Please give answer to this question: Capital of France?\nThe answer is", ("Paris", ""))
PARIS = Item("Please give answer to this question: Is Paris in Italy or in France?\nThe answer is", ("Paris",))
SHOTS = tuple(f"Solved {number}?\nA. a\nB. b\nC. c\nD. d\nAnswer: {letter}\n\n" for number, letter in enumerate("ABCDA"))


def hits(items: Sequence[Item], said: Sequence[str], measure: str = "hit") -> list[float]:
    """Scores of a model that says exactly this."""
    model = scripted({item.prompt: text for item, text in zip(items, said, strict=True)})
    task = FactoidQA(tuple(items), new_tokens=12)
    answers = task.answers(model)
    assert list(answers.texts) == [text.partition("\n")[0][:12] for text in said]
    return task.scores(answers, answers)[measure][0].tolist()


@pytest.mark.parametrize("measure", ["hit", "squeezed"])
def test_only_the_completion_counts(measure: str):
    # The reference script decodes the prompt too, so a question that holds the answer is always right.
    assert hits([PARIS], [" Rome"], measure) == [0]
    assert hits([PARIS], [" in Paris"], measure) == [1]


@pytest.mark.parametrize("measure", ["hit", "squeezed"])
def test_silence_and_empty_aliases_score_nothing(measure: str):
    assert hits([FRANCE, PARIS], ["", " Paris"], measure) == [0, 1]
    assert hits([FRANCE], [" Lyon"], measure) == [0]


def test_every_item_counts_once():
    # The reference script asks one item more than it divides by.
    items = [Item(f"Q{number}?\nA:", ("yes",)) for number in range(4)]
    model = scripted({item.prompt: " yes" for item in items})
    task = FactoidQA(tuple(items))
    [row] = [row for row in KickBench([task]).run(model, {"same": model}).rows if row.measure == "hit"]
    assert (row.items, row.paired.score.value) == (4, 1)


def test_what_comes_after_the_first_line_is_no_answer():
    item = Item("Question: where?\nAnswer:", ("Rome",))
    task = RetrievalQA((item,), 40)
    answers = task.answers(scripted({item.prompt: " Here.\nQuestion: Rome?"}))
    scores = {name: own.item() for name, (own, _) in task.scores(answers, answers).items()}
    assert answers.texts == (" Here.",)
    assert scores == {"contains": 0, "exact": 0, "f1": 0}


def test_em_and_f1_of_a_line():
    item = Item("Question: where?\nAnswer:", ("the city of Rome", "Rome"))
    task = RetrievalQA((item,), 40)
    for said, expected in ((" Rome!", (1, 1, 1)), (" in Rome", (1, 0, 2 / 3)), (" city", (0, 0, 1 / 2)), ("", (0, 0, 0))):
        answers = task.answers(scripted({item.prompt: said}))
        found = [own.item() for own, _ in task.scores(answers, answers).values()]
        assert found == pytest.approx(list(expected)), said


def questions(subject: str = "anatomy", shots: tuple[str, ...] = SHOTS) -> tuple[Choice, ...]:
    return tuple(Choice(subject, f"Which is {letter}?\nA. a\nB. b\nC. c\nD. d\nAnswer:", letter, shots) for letter in "DBAC")


def test_the_right_letters_are_picked():
    choices = questions()
    task = MultipleChoice(choices)
    model = scripted({choice.text: f" {choice.letter}" for choice in choices})
    answers = task.answers(model)
    assert answers.texts == ("D", "B", "A", "C")
    assert {name: own.tolist() for name, (own, _) in task.scores(answers, answers).items()} == {"accuracy": [1] * 4, "first_token": [1] * 4}


def test_options_are_compared_with_each_other_and_not_with_all_tokens():
    """A model that would write something else may still hold one letter likelier than the others."""

    class Shy(type(scripted({}).module)):  # type: ignore[misc]
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits[:, -1, self.tokenizer("x")["input_ids"][0]] = 99.0
            return output

    choices = questions()
    model = scripted({choice.text: f" {choice.letter}" for choice in choices})
    shy = Model(Shy(model.module.script, model.tokenizer, 4096), model.tokenizer, "shy")
    task = MultipleChoice(choices)
    scores = task.scores(task.answers(shy), task.answers(model))
    assert scores["accuracy"][0].tolist() == [1] * 4
    assert scores["first_token"][0].tolist() == [0] * 4


def test_prompts_name_the_subject_and_show_five_examples_until_there_is_no_room():
    choice = questions("high_school_geography")[0]
    prompt = prompt_of(choice, 5)
    assert prompt.startswith("The following are multiple choice questions (with answers) about high school geography.\n\n")
    assert prompt.count("Solved") == 5
    assert prompt.endswith(choice.text)
    sizes = []
    for context in (4096, 300, 200, 40):
        model = scripted({}, context)
        tokens, options, shots = fitted(model, choice, 5)
        assert len(tokens) <= context
        assert len(set(options)) == 4
        assert model.tokenizer.decode(tokens).rstrip().endswith("Answer:")
        sizes.append(shots)
    assert sizes[0] == 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0


def test_the_table_of_subjects_is_that_of_mmlu(data_dir: Path):
    from tersor.evaluation.kick import choice_items

    choices = choice_items(data_dir / "tasks")
    assert {choice.subject for choice in choices} == set(CATEGORIES)
    assert len(CATEGORIES) == 57
    assert all(len(choice.shots) == 5 for choice in choices)


def test_groups_are_the_categories():
    choices = (*questions("anatomy"), *questions("astronomy"))
    texts = {choice.text: " D" for choice in choices}
    model = scripted(texts)
    row = KickBench([MultipleChoice(choices)]).run(model, {"same": model}).rows[0]
    assert row.groups == {"STEM": 0.25, "other": 0.25}
    assert row.paired.score.value == 0.25


def test_judged_answers_stand_beside_the_originals():
    item = Item("Story: a cat sat.\nSummary:", reference="a cat sat")
    dense, small = scripted({item.prompt: " a cat sat"}), scripted({item.prompt: " a a a a a a a a a"})
    task = Summarization((item,), 24, judges={"rouge_l": rouge_judge(), "no_repetition": repetition_judge()})
    rows = {row.measure: row for row in KickBench([task]).run(dense, {"small": small}).rows}
    assert rows["rouge_l"].paired.reference.value == 1
    assert rows["rouge_l"].paired.score.value == pytest.approx(2 * 1 / 12)
    assert rows["no_repetition"].lost == 1
    assert rows["rouge_l"].agreement == 0


def test_flips_agreement_and_intervals_against_the_original():
    items = tuple(Item(f"Q{number:02}?\nA:", ("yes",)) for number in range(10))
    dense = scripted({item.prompt: " yes" if number < 6 else " no" for number, item in enumerate(items)})
    small = scripted({item.prompt: " yes" if number >= 2 and number < 7 else " no" for number, item in enumerate(items)})
    same, row = (KickBench([FactoidQA(items)]).run(dense, {"m": model}).rows[0] for model in (dense, small))
    assert (same.lost, same.gained, same.agreement, same.kl, same.top1) == (0, 0, 1, 0, 1)
    assert same.paired.ratio is not None
    assert (same.paired.ratio.low, same.paired.ratio.high) == (1, 1)
    assert same.matches
    # Equal to within one answer, but three of ten have flipped.
    assert (row.paired.score.value, row.paired.reference.value) == (0.5, 0.6)
    assert (row.lost, row.gained, row.agreement) == pytest.approx((0.2, 0.1, 0.7))
    assert -0.1 in row.paired.difference
    assert not row.matches


def test_weights_stand_for_items_of_a_pool():
    items = (Item("Q1?\nA:", ("yes",)), Item("Q2?\nA:", ("yes",), weight=9.0))
    model = scripted({"Q1?\nA:": " yes", "Q2?\nA:": " no"})
    row = KickBench([FactoidQA(items)]).run(model, {"same": model}).rows[0]
    assert row.paired.score.value == pytest.approx(0.1)


def test_the_table_points_out_where_perplexity_misleads():
    items = tuple(Item(f"Q{number:02}?\nA:", ("yes",)) for number in range(30))
    dense, forgetful = (scripted({item.prompt: f" {word}" for item in items}, name=word) for word in ("yes", "no"))
    perplexities = {"forgetful": 10.0, "knowing": 20.0}
    models = {"forgetful": forgetful, "knowing": dense}
    names = {id(model): name for name, model in models.items()}
    bench = KickBench([FactoidQA(items)])
    report = bench.run(dense, models, perplexity=lambda model: perplexities[names[id(model)]])
    [pair] = [pair for pair in misleading(report.rows) if pair.task == "factoid (hit)"]
    assert (pair.flattered, pair.better) == ("forgetful", "knowing")
    assert "perplexity misleads on factoid (hit)" in str(report)
    assert misleading(bench.run(dense, models, perplexity=lambda model: 30 - perplexities[names[id(model)]]).rows) == []
    assert misleading(bench.run(dense, models).rows) == []


def test_bad_input_is_refused_in_one_sentence():
    model = scripted({})
    with pytest.raises(InvalidArgument, match="has no items"):
        FactoidQA(())
    with pytest.raises(InvalidArgument, match="new_tokens must be at least 1"):
        FactoidQA((FRANCE,), 0)
    with pytest.raises(InvalidArgument, match="needs a judge"):
        Instructions((FRANCE,))
    with pytest.raises(InvalidArgument, match="has no items"):
        MultipleChoice(())
    with pytest.raises(InvalidArgument, match="shots must be at least 0"):
        MultipleChoice(questions(), -1)
    with pytest.raises(InvalidArgument, match="different names"):
        KickBench([FactoidQA((FRANCE,)), FactoidQA((PARIS,))])
    with pytest.raises(InvalidArgument, match="has no tokenizer"):
        KickBench([FactoidQA((FRANCE,))]).ask(Model(model.module))


def test_divergence_grows_with_sparsity(stories_path: Path):
    """On a real model, in the order of the sparsities, as the distribution notices what single answers do not."""
    from tersor.layerwise import magnitude
    from tersor.models import load

    dense = load(stories_path)
    items = tuple(Item(text, ("girl",)) for text in ("Once upon a time, there was a little", "Tom liked to play with his", "The cat"))
    models = {}
    for sparsity in (0.1, 0.3, 0.5):
        small = dense.copy()
        for name in dense.linears():
            small.replace(name, magnitude(dense.matrix(name), sparsity=sparsity))
        models[str(sparsity)] = small
    found = [row.kl for row in KickBench([FactoidQA(items)]).run(dense, models).rows if row.measure == "hit"]
    assert 0 < found[0] < found[1] < found[2]
    assert torch.isfinite(torch.tensor(found)).all()


def test_all_families_of_a_real_model_against_itself(stories_path: Path, data_dir: Path):
    from tersor.evaluation.kick import run_kick
    from tersor.models import load

    model = load(stories_path)
    report = run_kick(model, model, limit=2, folder=data_dir / "tasks", text="tinystories", tokens=600)
    families = ["factoid", "multiple choice", "closed book", "open book", "summarisation", "instructions", "second turn"]
    assert [row.task for row in report.main()] == families * 2
    own, again = (report.rows[: len(report.rows) // 2], report.rows[len(report.rows) // 2 :])
    for first, second in zip(own, again, strict=True):
        assert (first.model, second.model) == ("original", model.name)
        assert first.to_dict() | {"model": ""} == second.to_dict() | {"model": ""}
        assert (second.agreement, second.top1, second.lost, second.gained) == (1, 1, 0, 0)
        assert second.kl == pytest.approx(0, abs=1e-9)
    assert report.to_dict()["misleading"] == []
