"""Walking a model in another type, converted a block at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tersor.models import BlockWalk, Model
from tersor.models.casting import converted, lean_copy
from tersor.models.structure import find_blocks
from tersor.weights.modules import dense_shape, set_matrix

TOKENS = torch.randint(3, 96, (5, 13), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(5, 13, dtype=torch.bool)
MASK[1, 9:] = MASK[4, 5:] = False


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_a_walk_in_bfloat16_sees_what_a_model_in_bfloat16_sees(model: Model, mask: torch.Tensor | None):
    whole = BlockWalk(model.copy(torch.bfloat16), TOKENS, TOKENS[:2], batch_size=2, mask=mask)
    lean = BlockWalk(model, TOKENS, TOKENS[:2], batch_size=2, mask=mask, dtype=torch.bfloat16)
    for expected, found in zip(whole, lean, strict=True):
        assert list(expected.stats) == list(found.stats)
        for name, stats in expected.stats.items():
            assert torch.equal(stats.hessian, found.stats[name].hessian)
            assert torch.equal(expected.held_out[name].hessian, found.held_out[name].hessian)
    assert list(whole.outside) == list(lean.outside)
    for name, stats in whole.outside.items():
        assert torch.equal(stats.hessian, lean.outside[name].hessian)


def test_a_walk_in_a_type_leaves_the_model_alone(model: Model):
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.module.state_dict().items()}
    for step in BlockWalk(model, TOKENS, dtype=torch.bfloat16):
        for layer in step.layers.values():
            set_matrix(layer, torch.zeros(dense_shape(layer)))
            layer.bias = nn.Parameter(torch.ones(dense_shape(layer)[0], dtype=layer.weight.dtype))
    after = model.module.state_dict()
    assert list(before) == list(after)
    assert all(after[name].data_ptr() == address and torch.equal(after[name], value) for name, (address, value) in before.items())


def test_what_the_caller_puts_into_a_block_reaches_the_next(llama: Model):
    changed = llama.copy(torch.bfloat16)
    changed.module.model.layers[0].mlp.down_proj.weight.data.zero_()
    expected = [step.stats for step in BlockWalk(changed, TOKENS)]
    for step in BlockWalk(llama, TOKENS, dtype=torch.bfloat16):
        if step.index == 0:
            set_matrix(step.layers["model.layers.0.mlp.down_proj"], torch.zeros(32, 48))
            continue
        for name, stats in step.stats.items():
            assert torch.equal(stats.hessian, expected[step.index][name].hessian)


def test_outside_its_turn_a_block_takes_no_memory_of_its_own(model: Model):
    stored = {value.data_ptr() for value in model.module.parameters()}
    twin = lean_copy(model, torch.bfloat16)
    blocks = find_blocks(twin.module)
    for block in blocks:
        with converted(block, torch.bfloat16):
            assert all(value.dtype == torch.bfloat16 and value.data_ptr() not in stored for value in block.parameters())
        assert all(value.data_ptr() in stored for value in block.parameters())
    tables = [part for part in twin.module.modules() if type(part) is nn.Embedding]
    assert tables
    assert all(part.weight.data_ptr() in stored for part in tables)


def test_a_tied_head_stays_tied(tiny: SimpleNamespace):
    for family in ("llama", "gpt2", "opt", "bert"):
        model = tiny.model(family)
        assert model.tied
        assert lean_copy(model, torch.bfloat16).tied


def test_a_walk_that_is_given_up_gives_the_block_back(llama: Model):
    walk = BlockWalk(llama, TOKENS, dtype=torch.bfloat16)
    steps = iter(walk)
    layers = next(steps).layers
    assert all(layer.weight.dtype == torch.bfloat16 for layer in layers.values())
    steps.close()
    assert all(layer.weight.dtype == torch.float32 for layer in layers.values())

