"""What the experiments on caches and on attention compare is what they say."""

from __future__ import annotations

import pytest
import torch
import transformers

from tersor.papers import gear, tensor_attention


def test_caches_that_are_said_to_take_equal_bytes_do():
    config = transformers.LlamaConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4)
    setting = gear.Setting("", "", 256, 0, 32, 1)
    states = [tuple(torch.randn(1, 4, 256, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))]
    sizes = {}
    for name, cache in gear.caches(config, setting).items():
        cache.update(*states[0], 0)
        sizes[name] = gear._fraction(cache, states)
    assert sizes["evict, last tokens"] == sizes["evict, large keys"] == pytest.approx(sizes["gear 2"], rel=0.02)
    assert sizes["plain 2"] == sizes["kivi 2"] < sizes["gear-l 2"] < sizes["gear 2"]
    assert sizes["kivi 3"] == pytest.approx(sizes["gear-l 2"], rel=0.2)


def test_errors_are_those_of_what_is_read_back():
    config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    caches = gear.caches(config, gear.Setting("", "", 128, 0, 32, 1))
    states = [tuple(torch.randn(1, 2, 128, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))]
    for name in ("kivi 2", "gear 4"):
        caches[name].update(*states[0], 0)
        keys, _ = caches[name].update(*(part[:, :, :1] for part in states[0]), 0)
        expected = float((keys[:, :, :128] - states[0][0]).norm() / states[0][0].norm())
        assert gear._errors(caches[name], states)["keys_error"] == pytest.approx(expected, rel=1e-4)


def test_adversarial_inputs_reach_the_bound_of_the_logits():
    from tersor.attention import certify

    for draw, reached in ((tensor_attention._rank_one, 1.0), (tensor_attention._aligned, 0.9), (tensor_attention._uniform, 0.0)):
        q, keys, values = draw(torch.Generator().manual_seed(0), 0.5)
        logits = torch.einsum("id,jd,kd->ijk", q, *keys) / q.shape[1]
        bound = certify(q, keys, values, degree=6).logit_bound
        assert reached * bound <= float(logits.abs().max()) <= bound * (1 + 1e-12)
