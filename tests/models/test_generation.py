"""Writing with a cache gives what re-reading everything would give, and touches no global state."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.models import Model, load
from tersor.models.generation import end_tokens, sample_tokens

START = torch.randint(3, 96, (3, 5), generator=torch.Generator().manual_seed(0))


def columns(model: Model, start: torch.Tensor, n_new: int, temperature: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(list(sample_tokens(model, start, n_new, temperature=temperature, generator=generator)), 1)


def test_the_likeliest_tokens_are_those_of_full_passes(tiny: SimpleNamespace, decoder: Model):
    seen = START
    for _ in range(12):
        seen = torch.cat([seen, tiny.outputs(decoder, seen)[:, -1:].argmax(-1)], 1)
    assert torch.equal(columns(decoder, START, 12, 0.0), seen[:, 5:])


def test_samples_follow_the_model_s_distribution(tiny: SimpleNamespace, llama: Model):
    many = START[:1].repeat(4000, 1)
    drawn = columns(llama, many, 1, 0.7, seed=1)[:, 0]
    expected = torch.softmax(tiny.outputs(llama, START[:1])[0, -1] / 0.7, -1)
    observed = torch.bincount(drawn, minlength=96) / len(drawn)
    chi_squared = float(len(drawn) * ((observed - expected) ** 2 / expected).sum())
    assert chi_squared < 95 + 5 * (2 * 95) ** 0.5


def test_a_seed_is_a_text_and_the_global_generator_is_not_touched(decoder: Model):
    before = torch.get_rng_state()
    first = columns(decoder, START, 8, 1.0, seed=3)
    assert torch.equal(first, columns(decoder, START, 8, 1.0, seed=3))
    assert not torch.equal(first, columns(decoder, START, 8, 1.0, seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("n_new", "temperature", "message"), [(0, 1.0, "at least 1"), (4, -1.0, "at least 0"), (60, 1.0, "exceed the context of 64")]
)
def test_bad_arguments_are_refused(llama: Model, n_new: int, temperature: float, message: str):
    with pytest.raises(InvalidArgument, match=message):
        columns(llama, START, n_new, temperature)


@pytest.mark.parametrize("family", ["bert", "bert-encoder"])
def test_encoders_do_not_write(tiny: SimpleNamespace, family: str):
    with pytest.raises(InvalidArgument, match="does not predict next tokens"):
        columns(tiny.model(family), START, 2, 1.0)


def test_the_real_model_tells_a_story(stories_path: Path):
    model = load(stories_path)
    story = model.generate("Once upon a time", max_new_tokens=20)
    assert story.startswith(", there was a little girl named")
    assert story == model.generate("Once upon a time", max_new_tokens=20)
    assert end_tokens(model) == {2}


def test_an_empty_prompt_without_a_first_token_is_refused(llama: Model):
    llama.tokenizer = lambda *_, **__: {"input_ids": []}
    with pytest.raises(InvalidArgument, match="the prompt is empty"):
        llama.generate("")
