"""Caches in ``generate``: exact when nothing is compressed, bounded, and holding no dequantised copy."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from tersor.errors import InvalidArgument, TersorError
from tersor.kvcache import EvictionCache, EvictionLayer, GearCache, GearConfig, GearLayer, KiviCache, PlainCache, make_cache

from .material import states, tiny

NOTHING = GearConfig(bits=None, group=16)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def held(thing: Any) -> list[torch.Tensor]:
    """Every tensor that is reachable from ``thing``."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        return [tensor for value in thing.values() for tensor in held(value)]
    if isinstance(thing, (list, tuple)):
        return [tensor for value in thing for tensor in held(value)]
    return held(vars(thing)) if hasattr(thing, "__dict__") and not callable(thing) else []


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": False, "prefill_chunk_size": 16}],
    ids=["greedy", "beams", "chunked"],
)
def test_nothing_compressed_is_dynamic_cache_to_the_token(options, model):
    prompt = tokens(2, 70)
    mask = torch.ones_like(prompt)
    mask[0, :23] = 0
    common = {"attention_mask": mask, "max_new_tokens": 40, **options}
    exact = model.generate(prompt, cache=DynamicCache(config=model.config), **common)
    for keyword in ("past_key_values", "cache"):
        cache = GearCache(model.config, NOTHING)
        assert torch.equal(model.generate(prompt, **{keyword: cache}, **common), exact)
    assert sum(segments.count for segments in cache.layers[0].segments["keys"]) >= 3


def test_chunks_of_any_size_give_the_logits_of_one_pass(model):
    prompt = tokens(1, 100)
    cache = GearCache(model.config, NOTHING)
    with torch.no_grad():
        pieces = [model(prompt[:, start:end], cache=cache).logits for start, end in ((0, 37), (37, 38), (38, 90), (90, 100))]
        torch.testing.assert_close(torch.cat(pieces, 1), model(prompt).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gear", "gear-l", "gear-kcvt", "kivi", "kcvt", "plain"])
def test_eight_bits_hardly_change_the_logits(kind, model):
    prompt = tokens(2, 150)
    cache = make_cache(kind, model.config, 8)
    with torch.no_grad():
        model(prompt[:, :130], cache=cache)
        logits = model(prompt[:, 130:], cache=cache).logits
        exact = model(prompt).logits[:, 130:]
    assert float((logits - exact).norm() / exact.norm()) < 0.02


def test_what_update_returns_is_what_is_stored_and_the_new_tokens():
    layer, config = GearLayer(GearConfig(group=16, bits=4)), GearConfig(group=16, bits=4)
    x = states(0, 90, heads=2, width=16)
    first = layer.update(x[:, :, :40], -x[:, :, :40])
    assert torch.equal(first[0], x[:, :, :40])
    keys, values = layer.update(x[:, :, 40:41], -x[:, :, 40:41])
    assert keys.shape == values.shape == (1, 2, 41, 16)
    assert torch.equal(keys[:, :, 32:], x[:, :, 32:41])
    assert torch.equal(values[:, :, 32:], -x[:, :, 32:41])
    assert not torch.equal(keys[:, :, :32], x[:, :, :32])
    again, _ = layer.update(x[:, :, 41:90], -x[:, :, 41:90])
    assert torch.equal(again[:, :, :32], keys[:, :, :32])
    assert [segments.tokens for segments in layer.segments["keys"]] == [32, 48]
    assert config == layer.config


@pytest.mark.parametrize("kind", ["gear", "kivi", "plain"])
def test_how_many_segments_lie_together_changes_no_value(kind, model, monkeypatch):
    x = states(0, 210, heads=2, width=16)
    read = []
    for together in (1, 64, 1 << 20):
        monkeypatch.setattr("tersor.kvcache.layer._TOGETHER", together)
        layer = make_cache(kind, model.config, 2, group=16).layers[0]
        for end in range(1, 210):
            full = layer.update(x[:, :, end - 1 : end], -x[:, :, end - 1 : end])
        read.append(full)
        held = [segments.count * segments.tokens for segments in layer.segments["keys"]]
        assert sum(held) == 208
        assert max(held) == {1: 16, 64: 64, 1 << 20: 208}[together]
    for full in read[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(full, read[0], strict=True))


def test_no_dequantised_copy_is_kept_and_bytes_are_those_of_all_tensors(model):
    cache = GearCache(model.config, GearConfig(group=16))
    with torch.no_grad():
        for piece in (tokens(2, 130), tokens(2, 1), tokens(2, 40), tokens(2, 1)):
            model(piece, cache=cache)
    for layer in cache.layers:
        everything = held(layer)
        assert layer.nbytes() == sum(tensor.nbytes for tensor in everything)
        assert layer.nbytes() == sum(tensor.untyped_storage().nbytes() for tensor in everything)
    assert cache.nbytes() == sum(layer.nbytes() for layer in cache.layers)
    assert cache.compression_ratio() == pytest.approx(2 * 172 * 2 * 2 * 2 * 2 * 16 / cache.nbytes())


def test_memory_of_a_long_generation_follows_the_formula(model):
    # Rank, groups and outliers of a decode segment; the buffer comes on top.
    config = GearConfig(group=32, bits=2)
    cache = GearCache(model.config, config)
    sizes = []
    for _ in range(40):
        for layer in range(2):
            x = states(layer, 32, heads=2, width=16)
            cache.update(x, x, layer)
        sizes.append(cache.nbytes())
    steps = {after - before for before, after in pairwise(sizes[1:])}
    assert len(steps) == 1
    expected = config.bits_per_element(32, 2, 16, prompt=False) / 8 * 2 * 2 * 32 * 32
    assert steps.pop() == pytest.approx(expected, rel=0.05)


def test_beams_take_their_segments_along(model):
    prompt = tokens(3, 80)
    order = torch.tensor([2, 0, 0])
    options = GearConfig(group=16, bits=3)
    with torch.no_grad():
        cache, direct = GearCache(model.config, options), GearCache(model.config, options)
        model(prompt, cache=cache)
        cache.reorder_cache(order)
        model(prompt[order], cache=direct)
        following = tokens(3, 5, seed=1)
        torch.testing.assert_close(model(following, cache=cache).logits, model(following, cache=direct).logits, rtol=1e-2, atol=1e-2)


def test_batches_repeat_and_select(model):
    options = GearConfig(group=16, bits=3)
    cache = GearCache(model.config, options)
    with torch.no_grad():
        model(tokens(2, 50), cache=cache)
    whole = copy.deepcopy(cache)
    cache.batch_repeat_interleave(2)
    assert cache.nbytes() == 2 * whole.nbytes()
    cache.batch_select_indices(torch.tensor([0, 3]))
    for ours, theirs in zip(held(cache.layers), held(whole.layers), strict=True):
        assert torch.equal(ours, theirs)


def test_crop_and_reset(model):
    cache = GearCache(model.config, GearConfig(group=16))
    with torch.no_grad():
        model(tokens(1, 40), cache=cache)
        cache.crop(-5)
        assert cache.get_seq_length() == 35
        with pytest.raises(InvalidArgument, match="only the last 3 tokens are uncompressed"):
            cache.crop(-4)
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.nbytes() == 0
        model(tokens(1, 20), cache=cache)
    assert cache.get_seq_length() == 20
    with pytest.raises(NotImplementedError):
        cache.layers[0].offload()


def test_half_precision_models_get_their_type_back():
    layer = GearLayer(GearConfig(group=16))
    x = states(0, 40, width=16).bfloat16()
    layer.update(x, x)
    keys, values = layer.update(x[:, :, :1], x[:, :, :1])
    assert keys.dtype == values.dtype == torch.bfloat16


@pytest.mark.parametrize("other", [tiny(layers=3), tiny(kv_heads=4)], ids=["layers", "heads"])
def test_a_cache_used_by_another_model_is_refused(other, model):
    cache = GearCache(model.config, GearConfig(group=16))
    with torch.no_grad(), pytest.raises(InvalidArgument, match="make a cache of its own for every model"):
        other(tokens(1, 40), cache=cache)


def test_states_that_do_not_continue_are_refused(model):
    cache = GearCache(model.config, GearConfig(group=16))
    with torch.no_grad():
        model(tokens(1, 40), cache=cache)
        with pytest.raises(InvalidArgument, match="holds batch, heads and width"):
            model(tokens(2, 1), cache=cache)


def test_broken_states_are_named():
    layer = GearLayer(GearConfig(group=16))
    x = states(0, 16, width=16)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(TersorError, match="the keys to be compressed hold NaN or Inf"):
        layer.update(x, x)


def test_groups_that_do_not_divide_are_refused(model):
    with torch.no_grad(), pytest.raises(InvalidArgument, match=r"group 64 does not divide the 32 channels .* such as 32"):
        model(tokens(1, 10), cache=KiviCache(model.config))
    assert make_cache("kivi", model.config).gear.group == 32


def test_models_with_windows_and_unknown_kinds_are_refused(model):
    config = transformers.MistralConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, sliding_window=8)
    with pytest.raises(InvalidArgument, match="GearCache is for models whose layers all have full attention"):
        GearCache(config)
    with pytest.raises(InvalidArgument, match="unknown kind of cache 'zip'"):
        make_cache("zip", model.config)


def test_siblings_are_smaller_than_gear_and_have_no_corrections(model):
    with torch.no_grad():
        sizes = {}
        for cache in (GearCache(model.config, GearConfig(group=32)), KiviCache(model.config, 2, 32), PlainCache(model.config, 2, 32)):
            model(tokens(1, 128), cache=cache)
            sizes[type(cache).__name__] = cache.nbytes()
            segments = cache.layers[0].segments["keys"][0]
            assert (segments.left is None) == (segments.outliers is None) == (type(cache) is not GearCache)
    assert sizes["KiviCache"] == sizes["PlainCache"] < sizes["GearCache"]


def test_eviction_attends_to_the_first_and_last_tokens_alone():
    single = tiny(layers=1)
    ids = tokens(1, 30)
    cache = EvictionCache(single.config, budget=8, protected=2)
    with torch.no_grad():
        steps = torch.cat([single(ids[:, i : i + 1], cache=cache).logits for i in range(30)], 1)
        query, key = torch.arange(30)[:, None], torch.arange(30)[None]
        # A token looks at itself and at the eight that were kept before it.
        seen = (key <= query) & ((key < 2) | (key >= query - 6))
        mask = torch.zeros(30, 30).masked_fill(~seen, float("-inf"))[None, None]
        torch.testing.assert_close(steps, single(ids, attention_mask=mask).logits, rtol=1e-4, atol=1e-4)


def test_small_keys_are_what_stays():
    layer = EvictionLayer(budget=6, policy="small_keys", protected=2)
    x = torch.arange(20.0, 0.0, -1.0).view(1, 1, 20, 1).clone()
    x[0, 0, 3] = 0.5
    layer.update(x, x)
    assert layer.keys.flatten().tolist() == [0.5, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert layer.get_seq_length() == 20


@pytest.mark.parametrize("policy", ["recent", "small_keys"])
def test_eviction_is_exact_below_its_budget_and_constant_above(policy, model):
    prompt = tokens(2, 30)
    roomy, tight = EvictionCache(model.config, 100, policy), EvictionCache(model.config, 16, policy)
    exact = model.generate(prompt, max_new_tokens=10, do_sample=False, cache=DynamicCache(config=model.config))
    assert torch.equal(model.generate(prompt, max_new_tokens=10, do_sample=False, cache=roomy), exact)
    model.generate(prompt, max_new_tokens=40, do_sample=False, cache=tight, num_beams=2)
    assert tight.layers[0].keys.shape == (4, 2, 16, 16)
    assert tight.get_seq_length() == 69
    assert tight.nbytes() == sum(tensor.untyped_storage().nbytes() for tensor in held(tight.layers))


@pytest.mark.parametrize(("options", "words"), [({"budget": 0}, "budget must be"), ({"budget": 4, "protected": 5}, "protected must be"),
                                                ({"budget": 4, "policy": "old"}, "policy must be one of")])  # fmt: skip
def test_eviction_options_are_checked(options, words):
    with pytest.raises(InvalidArgument, match=words):
        EvictionLayer(**options)
