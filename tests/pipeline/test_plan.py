"""Which levels a layer gets, decided before any work."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from tersor.errors import InvalidArgument
from tersor.models import Model
from tersor.pipeline.calibrate import Plan
from tersor.pipeline.recipe import Recipe, parse_recipe


def recipe(target: str = "safetensors", **options: Any) -> Recipe:
    levels = [{"method": "lord", "keep": 0.5, **options}, {"method": "feature_mimicking"}, {"method": "gptq", "bits": 3}]
    return parse_recipe({"levels": levels, "budget": "1MB", "target": target, "evaluation": {"tokens": 0}})


@pytest.fixture(scope="module")
def gpt2() -> Model:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    return Model(transformers.GPT2LMHeadModel(config))


def test_a_target_without_biases_is_planned_for(stories: Model) -> None:
    for pairs in Plan.of(stories, recipe(center="auto"), None).choices.values():
        assert [options.get("center") for _, options in pairs] == [False, False, None]


def test_the_native_format_holds_any_bias(stories: Model) -> None:
    for pairs in Plan.of(stories, recipe("native", center=True), None).choices.values():
        assert [options.get("center") for _, options in pairs] == [True, None, None]


def test_layers_that_have_a_bias_may_get_another(gpt2: Model) -> None:
    for pairs in Plan.of(gpt2, recipe(center=True), None).choices.values():
        assert [options.get("center") for _, options in pairs] == [True, None, None]


def test_a_bias_that_has_no_place_in_the_target_is_refused_before_any_work(stories: Model) -> None:
    with pytest.raises(InvalidArgument, match=r"layer model\.layers\.0\.\S+ has no bias, .* leave out 'center' or 'target'"):
        Plan.of(stories, recipe(center=True), None)
