"""Memory that is handed out again, and never while somebody holds it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from tersor.kvcache.scratch import Scratch

LIKE = torch.empty(0)


def test_it_is_handed_out_again_once_nobody_holds_it():
    scratch = Scratch()
    first = scratch.empty((2, 100), LIKE)
    place = first.data_ptr()
    del first
    assert scratch.empty((2, 110), LIKE).data_ptr() == place


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1:, 3:], lambda x: x.view(-1), lambda x: x.detach(), lambda x: x.numpy()])
def test_what_is_held_keeps_its_values(view):
    scratch = Scratch()
    held = view(scratch.empty((2, 100), LIKE).fill_(1))
    for size in (50, 100, 1000):
        scratch.empty((2, size), LIKE).fill_(2)
    assert (held == 1).all()


def test_what_a_gradient_needs_is_held():
    scratch, factor = Scratch(), torch.ones(1, requires_grad=True)
    product = (scratch.empty((4,), LIKE).fill_(3) * factor).sum()
    scratch.empty((4,), LIKE).fill_(5)
    product.backward()
    assert factor.grad.item() == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_type_are_those_asked_for(dtype):
    scratch = Scratch()
    for shape in ((1, 2, 3, 4), (0, 3), (1, 2, 300, 4)):
        made = scratch.empty(shape, torch.empty(0, dtype=dtype))
        assert (made.shape, made.dtype) == (torch.Size(shape), dtype)
        assert made.is_contiguous()


def test_copies_share_nothing():
    scratch = Scratch()
    held = scratch.empty((8,), LIKE).fill_(1)
    for other in (copy.deepcopy(scratch), pickle.loads(pickle.dumps(scratch))):
        other.empty((8,), LIKE).fill_(2)
    assert (held == 1).all()
