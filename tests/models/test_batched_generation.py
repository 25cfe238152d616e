"""Many prompts at once, padded on the left, must say what each would say alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.models import Model, load
from tersor.models.generation import continue_texts, next_logits

PROMPTS = ["Once upon a time", "Tom had a big red ball. He liked to", "Lily", "The sun was hot and the dog", "One day, a cat saw a"]


@pytest.fixture(scope="module")
def stories(stories_path: Path) -> Model:
    return load(stories_path)


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_a_batch_writes_what_each_prompt_writes_alone(stories: Model, batch_tokens: int):
    alone = [stories.generate(prompt, max_new_tokens=24) for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    written = continue_texts(stories, PROMPTS, max_new_tokens=24, batch_tokens=batch_tokens)
    assert [one.text for one in written] == alone
    for prompt, one in zip(PROMPTS, written, strict=True):
        with torch.inference_mode():
            expected = stories.module(stories.encode(prompt)[None]).logits[0, -1]
        torch.testing.assert_close(one.logits, expected, atol=1e-4, rtol=1e-4)


def test_padding_needs_its_mask(stories: Model):
    """That the mask and the positions matter: without them the short prompts of a padded batch say something else."""
    from tersor.models.generation import sample_tokens

    rows = [stories.encode(prompt) for prompt in PROMPTS]
    start = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        start[index, -len(row) :] = row
    seen: list[torch.Tensor] = []
    next(sample_tokens(stories, start, 1, temperature=0.0, generator=torch.Generator(), observe=seen.append))
    masked = torch.stack([one.logits for one in continue_texts(stories, PROMPTS, max_new_tokens=1)])
    assert (seen[0] - masked).abs().max() > 0.1


def test_a_stop_ends_a_text_and_is_not_part_of_it(stories: Model):
    whole = continue_texts(stories, PROMPTS, max_new_tokens=40)
    cut = continue_texts(stories, PROMPTS, max_new_tokens=40, stop=".")
    assert [one.text for one in cut] == [one.text.partition(".")[0] for one in whole]


def test_the_length_of_a_prompt_leaves_the_number_of_new_tokens_alone(stories: Model):
    # The script of the benchmark allows three times the prompt, so that long questions get long answers.
    short, long = continue_texts(stories, ["Once", "Once upon a time, there was a little girl named Lily."], max_new_tokens=3)
    assert len(stories.encode(short.text, special_tokens=False)) <= 4
    assert len(stories.encode(long.text, special_tokens=False)) <= 4


def test_a_prompt_without_room_loses_its_beginning(stories: Model):
    long = "The dog ran. " * 400
    one, other = continue_texts(stories, [long, "Once"], max_new_tokens=4)
    assert one.truncated
    assert not other.truncated
    with torch.inference_mode():
        kept = stories.encode(long)[-(stories.max_context - 4) :]
        torch.testing.assert_close(one.logits, stories.module(kept[None]).logits[0, -1], atol=1e-3, rtol=1e-3)
    with pytest.raises(InvalidArgument, match="max_new_tokens must be from 1"):
        continue_texts(stories, ["Once"], max_new_tokens=stories.max_context)


def test_shared_beginnings_change_no_prediction(stories: Model):
    head = "Tom had a ball. He liked the ball. "
    rows = [stories.encode(text) for text in (head + "One day", "Lily", head + "The dog", head, head, head + "One day he", "Once upon")]
    with torch.inference_mode():
        expected = torch.stack([stories.module(row[None]).logits[0, -1] for row in rows])
    torch.testing.assert_close(next_logits(stories, rows), expected, atol=1e-4, rtol=1e-4)


def test_shared_beginnings_are_run_once(stories: Model):
    lengths = []
    head = stories.encode("Tom had a ball. He liked the ball.")
    rows = [torch.cat([head, torch.tensor([token])]) for token in (40, 50, 60)]
    hook = stories.module.register_forward_pre_hook(lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    try:
        next_logits(stories, [*rows, torch.cat([rows[2], rows[0]])])
    finally:
        hook.remove()
    assert lengths == [len(head) + 1, 1, 1, len(head) + 1]
