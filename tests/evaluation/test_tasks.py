from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation import run_tasks
from tersor.evaluation.scoring import Request, likelihoods, requests_of
from tersor.layerwise import rtn
from tersor.models import Model

from .conftest import letters, llama, log_probabilities, tokens

CHOICES = [
    {"query": "a bad cab.", "choices": ["fed", "a gag", "h"], "gold": 0},
    {"query": "feed.", "choices": ["bad", "hab", "cd"], "gold": 2},
    {"query": "gag a", "choices": ["cab", "dab", "beg a bed"], "gold": 1},
    {"query": "bed?", "choices": ["ha", "be", "gag"], "gold": 1},
]
CONTEXTS = [
    {"context_options": ["a bad", "a cab"], "continuation": "fed.", "gold": 0},
    {"context_options": ["h", "g"], "continuation": "bad", "gold": 1},
]
WORDS = [
    {"context": "a bad cab fed", "continuation": "bed"},
    {"context": "beg a", "continuation": "h"},
    {"context": "gag", "continuation": "a"},
]


def reader(seed: int = 0, context: int = 64, name: str = "tiny") -> Model:
    tokenizer = letters()
    return llama(len(tokenizer), seed, context=context, tokenizer=tokenizer, name=name)


def task_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def by_hand(model: Model, prefix: str, text: str) -> float:
    """``log p(text)`` minus the part that ``prefix``, a whole number of tokens, has in it."""
    ids = model.encode(text)
    start = len(model.encode(prefix))
    assert model.encode(prefix).tolist() == ids[:start].tolist()
    steps = log_probabilities(model, ids).gather(1, ids[1:, None])[:, 0]
    return float(steps[start - 1 :].sum())


@pytest.mark.parametrize("seed", range(3))
def test_multiple_choice_by_hand(tmp_path: Path, seed: int):
    model = reader(seed)
    scores = [[by_hand(model, row["query"], f"{row['query']} {choice}") for choice in row["choices"]] for row in CHOICES]
    lengths = [[len(choice) for choice in row["choices"]] for row in CHOICES]
    right = [max(range(3), key=values.__getitem__) == row["gold"] for values, row in zip(scores, CHOICES, strict=True)]
    norm = [
        max(range(3), key=lambda index, v=values, n=sizes: v[index] / n[index]) == row["gold"]
        for values, sizes, row in zip(scores, lengths, CHOICES, strict=True)
    ]
    found = run_tasks(model, [task_file(tmp_path, CHOICES)])[0]
    assert found.right == tuple(right)
    assert (found.acc, found.acc_norm) == (sum(right) / 4, sum(norm) / 4)
    assert found.chance == pytest.approx(1 / 3)
    flat = [request for row in CHOICES for request in requests_of(model, [(row["query"], choice) for choice in row["choices"]], True)]
    measured = [item.log_probability for item in likelihoods(model, flat)]
    assert measured == pytest.approx([value for values in scores for value in values], abs=1e-4)


def test_choice_of_a_context_by_hand(tmp_path: Path):
    model = reader()
    scores = [[by_hand(model, context, f"{context} {row['continuation']}") for context in row["context_options"]] for row in CONTEXTS]
    right = tuple((values[1] > values[0]) == bool(row["gold"]) for values, row in zip(scores, CONTEXTS, strict=True))
    found = run_tasks(model, [task_file(tmp_path, CONTEXTS)])[0]
    assert found.right == right
    assert found.acc_norm is None


def test_last_words_by_hand(tmp_path: Path):
    model = reader()
    scores = [by_hand(model, row["context"], f"{row['context']} {row['continuation']}") for row in WORDS]
    found = run_tasks(model, [task_file(tmp_path, WORDS)])[0]
    assert found.perplexity == pytest.approx(math.exp(-sum(scores) / 3), rel=1e-4)
    greedy = []
    for row in WORDS:
        ids, start = model.encode(f"{row['context']} {row['continuation']}"), len(model.encode(row["context"]))
        greedy.append(bool((log_probabilities(model, ids).argmax(-1)[start - 1 :] == ids[start:]).all()))
    assert found.right == tuple(greedy)


def test_a_word_that_the_model_would_write_counts(tmp_path: Path):
    model = reader()
    ids = model.encode("a bad cab ").tolist()
    following = int(model.module(torch.tensor([ids])).logits[0, -1].argmax())
    assert likelihoods(model, [Request((*ids, following), len(ids))])[0].greedy
    assert not likelihoods(model, [Request((*ids, (following + 1) % model.vocabulary), len(ids))])[0].greedy


def test_a_merge_across_the_seam_is_scored_from_the_same_token_for_all_choices():
    model = reader()
    # " a" and " b" are one token each, " c" is two: they part right after the context.
    requests = requests_of(model, [("bad", "a"), ("bad", "b"), ("bad", "c")], shared=True)
    assert [request.start for request in requests] == [3, 3, 3]
    assert [len(request.tokens) for request in requests] == [4, 4, 5]
    # A context that ends in the blank which the tokenizer would merge: the blank is scored again with every choice.
    requests = requests_of(model, [("bad c", "d"), ("bad c", "a")], shared=True)
    assert len({request.tokens[: request.start] for request in requests}) == 1


def test_an_empty_context_begins_with_a_special_token():
    model = reader()
    requests = requests_of(model, [("", "fed"), ("", "bad")], shared=True)
    assert all(request.tokens[0] == model.tokenizer.bos_token_id for request in requests)
    assert {request.start for request in requests} == {1}


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_batches_and_padding_change_nothing(batch_tokens: int):
    model = reader()
    shapes = [(5, 1), (30, 29), (12, 3), (30, 4), (7, 6)]
    requests = [Request(tuple(tokens(n, model.vocabulary, seed=n).tolist()), start) for n, start in shapes]
    alone = [likelihoods(model, [request])[0].log_probability for request in requests]
    assert [item.log_probability for item in likelihoods(model, requests, batch_tokens=batch_tokens)] == pytest.approx(alone, abs=1e-4)


def test_answers_of_one_token_share_a_forward_pass(monkeypatch: pytest.MonkeyPatch):
    model, rows = reader(), []
    forward = model.module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.module, "forward", counted)
    likelihoods(model, requests_of(model, [("fed", "a"), ("fed", "b")], shared=True))
    assert rows == [1]


def test_what_exceeds_the_context_is_cut_on_the_left(tmp_path: Path):
    row = {"query": "gag " * 20 + "bad.", "choices": ["fed", "cab"], "gold": 0}
    short = reader(context=16)
    found = run_tasks(short, [task_file(tmp_path, [row])])[0]
    assert found.truncated == 1
    request = Request(tuple(range(10)), 8).within(5)
    assert request == Request((4, 5, 6, 7, 8, 9), 4)
    assert Request(tuple(range(10)), 2).within(5) == Request((4, 5, 6, 7, 8, 9), 1)


def test_flips_against_the_original(tmp_path: Path):
    file, model, original = task_file(tmp_path, CHOICES * 5), reader(0), reader(3, name="original")
    own, other = (run_tasks(part, [file])[0].right for part in (model, original))
    found = run_tasks(model, [file], reference=original)[0]
    assert found.lost == sum(b and not a for a, b in zip(own, other, strict=True)) / 20
    assert found.gained == sum(a and not b for a, b in zip(own, other, strict=True)) / 20
    assert found.difference == pytest.approx(found.acc - found.reference_acc)
    same = run_tasks(model, [file], reference=model)[0]
    assert (same.lost, same.gained, same.difference, same.difference_stderr) == (0, 0, 0, 0)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "against the original" in str(found)


def test_limit_and_several_tasks(tmp_path: Path):
    file = task_file(tmp_path, CHOICES)
    found = run_tasks(reader(), [file, str(file)], limit=2)
    assert [result.questions for result in found] == [2, 2]
    assert found[0].acc_stderr is not None


def test_real_questions_with_the_small_real_model(data_dir: Path, stories: Model):
    for result in run_tasks(stories, ["piqa", "winogrande", "lambada_openai", "mmlu"], limit=6):
        assert result.questions == 6
        assert 0 <= result.acc <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"limit": 0}, "limit must be at least 1"), ({"backend": "other"}, "backend must be"), ({"tasks": []}, "at least one task")],
    ids=["limit", "backend", "none"],
)
def test_bad_arguments(change: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        run_tasks(reader(), **{"tasks": ["boolq"], **change})


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(InvalidArgument, match="has no tokenizer"):
        run_tasks(llama(), ["boolq"])


def test_a_missing_harness_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InvalidArgument, match=r"needs the package lm-eval.*pip install 'tersor\[eval\]'"):
        run_tasks(reader(), ["arc_easy"], backend="lm-eval")


@pytest.mark.parametrize("compressed", [False, True], ids=["dense", "compressed"])
def test_the_harness_agrees(tmp_path: Path, stories: Model, compressed: bool):
    """The same questions in the harness's own format give the same accuracies, and nobody's generator is reseeded."""
    pytest.importorskip("lm_eval")
    if compressed:
        # The tied table too, which the harness asks transformers to tie.
        stories = stories.copy()
        for name in (*stories.linears(), *stories.embeddings()):
            stories.replace(name, rtn(stories.matrix(name), bits=8, group_size=-1))
    rows = [{"query": f"Question {n}: Lily had a {thing}.", "choices": ["She was happy.", "The cat ran away", "No"], "gold": n % 3}
            for n, thing in enumerate(["ball", "dog", "hat", "cake", "tree", "box"] * 4)]  # fmt: skip
    file = task_file(tmp_path, rows)
    (tmp_path / "mine.yaml").write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files: {file}\ntest_split: train\noutput_type: multiple_choice\n"
        "doc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n",
        encoding="utf-8",
    )
    state = torch.get_rng_state()
    theirs = run_tasks(stories, ["mine"], folder=tmp_path, backend="lm-eval", reference=stories)[0]
    ours = run_tasks(stories, [file])[0]
    assert theirs.right == ours.right
    assert (theirs.acc, theirs.acc_norm, theirs.lost) == (ours.acc, ours.acc_norm, 0)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InvalidArgument, match="does not know the task"):
        run_tasks(stories, ["no_such_task"], backend="lm-eval")
