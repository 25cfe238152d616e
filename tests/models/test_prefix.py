"""Starting at a later block gives the very logits of a full forward pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.models import Model, PrefixRunner
from tersor.weights.modules import matrix_of, set_matrix

TOKENS = torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_start_equals_the_full_pass(tiny: SimpleNamespace, model: Model, dtype: torch.dtype):
    model = model.copy(dtype)
    runner = PrefixRunner(model)
    runner.prepare(TOKENS)
    full = tiny.outputs(model, TOKENS)
    for start in range(runner.n_blocks + 1):
        assert torch.equal(runner.logits(TOKENS, start), full)


def test_changed_blocks_are_run_and_the_others_counted_as_skipped(tiny: SimpleNamespace, model: Model):
    runner = PrefixRunner(model.module)
    runner.prepare(TOKENS)
    changed = [name for name in model.linears() if ".2." in name]
    for name in changed:
        layer = model.linears()[name]
        matrix = matrix_of(layer)
        assert matrix is not None
        set_matrix(layer, 0.5 * matrix)
    expected = tiny.outputs(model, TOKENS)
    assert torch.equal(runner.logits(TOKENS, 2), expected)
    assert torch.equal(runner.logits(TOKENS, 0), expected)
    assert (runner.blocks_run, runner.blocks_skipped) == (3 + 1 + 3, 2)


def test_padding_is_respected(decoder: Model):
    mask = torch.ones_like(TOKENS, dtype=torch.bool)
    mask[1, 6:] = False
    runner = PrefixRunner(decoder)
    runner.prepare(TOKENS, mask)
    with torch.no_grad():
        full = decoder.module(input_ids=TOKENS, attention_mask=mask.long()).logits
    assert torch.equal(runner.logits(TOKENS, 2), full)
    assert torch.equal(runner.logits(TOKENS, 0), full)


def test_the_model_is_left_as_it_was(tiny: SimpleNamespace, decoder: Model):
    before = tiny.outputs(decoder, TOKENS)
    runner = PrefixRunner(decoder)
    runner.prepare(TOKENS)
    runner.logits(TOKENS, 3)
    assert all("forward" not in part.__dict__ and not part._forward_hooks for part in decoder.module.modules())
    assert torch.equal(tiny.outputs(decoder, TOKENS), before)


def test_other_tokens_and_other_blocks_are_refused(tiny: SimpleNamespace, llama: Model):
    runner = PrefixRunner(llama)
    with pytest.raises(InvalidArgument, match="prepare"):
        runner.logits(TOKENS, 1)
    runner.prepare(TOKENS)
    with pytest.raises(InvalidArgument, match="prepare"):
        runner.logits(TOKENS + 1, 1)
    with pytest.raises(InvalidArgument, match="from 0 to 3, got 4"):
        runner.logits(TOKENS, 4)
    assert torch.equal(runner.logits(TOKENS[:1], 0), tiny.outputs(llama, TOKENS[:1]))
