from __future__ import annotations

import json
import math

import pytest
import torch

import tersor
from tersor.errors import InvalidArgument
from tersor.evaluation import difference, evaluate
from tersor.models import Model
from tersor.weights import DenseWeight

from .conftest import letters, llama, log_probabilities, tokens


def test_all_numbers_follow_from_log_probabilities():
    model, reference, row = llama(seed=0), llama(seed=1), tokens(16 * 10)
    found = evaluate(model, row, reference, context=16)
    q = torch.cat([log_probabilities(model, part) for part in row.reshape(-1, 16)])
    p = torch.cat([log_probabilities(reference, part) for part in row.reshape(-1, 16)])
    target = row.reshape(-1, 16)[:, 1:].reshape(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    right, reference_right = q.argmax(-1) == target, p.argmax(-1) == target
    assert found.tokens == 150
    assert found.perplexity == pytest.approx(float((-q.gather(1, target[:, None])).mean().exp()), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(float((-p.gather(1, target[:, None])).mean().exp()), rel=1e-5)
    assert found.log_ratio == pytest.approx(math.log(found.perplexity / found.reference_perplexity), abs=1e-6)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.kl_p99 == pytest.approx(float(kl.sort().values[148]), rel=1e-4)
    assert found.top1 == pytest.approx(float((q.argmax(-1) == p.argmax(-1)).double().mean()))
    assert found.lost == pytest.approx(float((reference_right & ~right).double().mean()))
    assert found.gained == pytest.approx(float((~reference_right & right).double().mean()))
    per_window = kl.reshape(10, 15).mean(1)
    assert found.kl_stderr == pytest.approx(float(per_window.std() / math.sqrt(10)), rel=1e-4)


def test_the_original_against_itself_lost_nothing():
    model = llama()
    found = evaluate(model, tokens(64), model, context=16)
    assert (found.kl, found.kl_p99, found.top1, found.lost, found.gained, found.log_ratio) == (0, 0, 1, 0, 0, 0)


def test_without_a_reference_nothing_is_compared():
    found = evaluate(llama(), tokens(64), context=16)
    assert (found.reference, found.kl, found.top1, found.lost, found.log_ratio) == (None,) * 5
    assert "KL" not in str(found)


def test_it_is_plain_json_and_a_table():
    found = evaluate(llama(), tokens(64), llama(seed=1), context=16)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["size"]["total"] == found.nbytes
    assert not [key for key in data if key.startswith("window_")]
    assert all(word in str(found) for word in ("perplexity", "KL to original", "top-1 agreement", "flips", "4 windows of 16"))


def test_an_infinite_divergence_is_still_json():
    model, reference = llama(tied=False), llama(seed=1)
    with torch.no_grad():
        model.module.lm_head.weight.mul_(1e30)
    found = evaluate(model, tokens(64), reference, context=16)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_better_model_is_told_by_paired_windows():
    """A little noise and a little less noise: single errors overlap, the paired one does not."""
    original, row = llama(), tokens(16 * 40)
    found = [evaluate(_noisy(original, scale), row, original, context=16) for scale in (0.060, 0.055)]
    paired = difference(found[0], found[1])
    assert paired.value == pytest.approx(found[0].kl - found[1].kl, abs=1e-9)
    assert paired.value > 2 * paired.stderr
    assert paired.stderr < math.hypot(found[0].kl_stderr, found[1].kl_stderr) / 2


def _noisy(model: Model, scale: float) -> Model:
    twin, generator = model.copy(), torch.Generator().manual_seed(0)
    for name in model.linears():
        matrix = model.matrix(name)
        twin.replace(name, DenseWeight(matrix + scale * torch.randn(matrix.shape, generator=generator)))
    return twin


def test_different_windows_are_not_compared():
    first, second = (evaluate(llama(), tokens(64, seed=seed), llama(seed=1), context=16) for seed in (0, 1))
    with pytest.raises(InvalidArgument, match="different windows"):
        difference(first, second)


def test_divergences_need_references():
    found = evaluate(llama(), tokens(64), context=16)
    assert difference(found, found, "nll").value == 0
    with pytest.raises(InvalidArgument, match="against a reference"):
        difference(found, found, "kl")


def test_calibration_text_is_refused_unless_told():
    model, text = llama(tokenizer=letters()), "a bad cab fed a gag. " * 100
    with pytest.raises(InvalidArgument, match="the calibration text and the evaluation text are the same"):
        evaluate(model, text, context=16, calibration=text)
    assert evaluate(model, text, context=16, calibration=text, allow_overlap=True).windows > 1


def test_tokens_are_another_name_for_text():
    row = tokens(64)
    assert evaluate(llama(), tokens=row, context=16).text_sha256 == evaluate(llama(), row, context=16).text_sha256
    with pytest.raises(InvalidArgument, match="text or tokens, not both"):
        evaluate(llama(), row, tokens=row)


def test_a_longer_context_than_the_reference_is_refused():
    with pytest.raises(InvalidArgument, match="exceed the context 16 of the reference tiny"):
        evaluate(llama(), tokens(64), llama(context=16), context=32)


def test_another_type_computes_on_a_copy():
    model, row = llama(), tokens(640)
    half = evaluate(model, row, model, context=16, dtype=torch.bfloat16)
    assert half.dtype == "bfloat16"
    assert half.perplexity == pytest.approx(evaluate(model, row, context=16).perplexity, rel=0.05)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}


def test_the_small_real_model_by_name(data_dir, stories: Model):
    found = tersor.evaluate("stories260k", "tinystories", stories, max_tokens=2048)
    assert (found.windows, found.tokens, found.kl) == (4, 4 * 511, 0)
    assert found.text == "tinystories"
