from __future__ import annotations

import math

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation import perplexity
from tersor.models import Model

from .conftest import llama, tokens


def test_it_is_the_loss_of_transformers(stories: Model):
    row = stories.encode("Once upon a time there was a little dog. " * 60)[:512]
    with torch.no_grad():
        losses = [float(stories.module(part[None], labels=part[None]).loss) for part in row.reshape(4, 128)]
    assert perplexity(stories, row, context=128).value == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)


def test_the_recorded_value_of_the_small_real_model(stories: Model, forty: list[str]):
    found = perplexity(stories, forty, context=512)
    assert found.value == pytest.approx(3.4732, abs=5e-5)
    assert found.stderr is not None
    assert 0.02 < found.stderr < 0.2


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = llama(vocabulary=32, tied=False)
    with torch.no_grad():
        model.module.lm_head.weight.zero_()
    assert perplexity(model, tokens(64), context=16).value == pytest.approx(32, rel=1e-6)


def test_an_encoder_is_refused():
    import transformers

    config = transformers.BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(InvalidArgument, match="BertForMaskedLM does not predict the next token"):
        perplexity(Model(transformers.BertForMaskedLM(config)), tokens(64), context=16)
