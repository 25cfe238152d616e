"""The experiments on ordered factors and shared memories compare what they say they compare."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from tersor.papers import maestro, parameter_sharing, vision
from tersor.training import Compression, Maestro, ordered_layers

SHORT = vision.Plan(epochs=1, flip=False)


def test_every_rival_gets_as_many_values_or_more():
    task = replace(parameter_sharing._digits((10,)), plan=SHORT)
    rows = {row["method"]: row for row in parameter_sharing._rows(task, 0)}
    ours = rows.pop(parameter_sharing.FOLD)
    assert ours["values"] == round(64 * (64 + 10) / 10)
    # Pruning rounds in each of two layers.
    assert all(row["values"] >= ours["values"] - 1 for row in rows.values())
    pruned = [rows[method]["values"] for method in (parameter_sharing.BEFORE, parameter_sharing.AFTER)]
    assert max(pruned) <= ours["values"] + 1
    assert ours["bytes"] < rows[parameter_sharing.BEFORE]["bytes"]
    assert 0 <= min(row["accuracy"] for row in rows.values()) <= 1


def test_two_passes_teach_the_drawn_rank_and_not_the_full_one():
    method = Maestro("every_layer", group_lasso=0.0, ignore=["network.head"])
    model = maestro.TwoPasses(vision.SmallConvNet(1, 10, 4, seed=0), method)
    Compression(model, [method])
    pixels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = ordered_layers(model)
    for layer in layers.values():
        layer.sampled = 1
    # Norms as in evaluation, so that a pass does not change the next one.
    model.eval()
    for module in [model, *layers.values()]:
        module.training = True
    full, drawn = model(pixels)
    for layer in layers.values():
        layer.sampled = layer.rank
    assert torch.equal(model.network(pixels), full)
    assert not torch.equal(drawn, full)
    F.cross_entropy(drawn, full.detach().softmax(1)).backward()
    assert all(not bool(layer.inner.weight.grad[1:].any()) for layer in layers.values())
    assert model.eval()(pixels).shape == (4, 10)


def test_a_sweep_falls_where_no_rank_rises_and_one_goes():
    assert maestro._falls([5, 5, 3])
    assert not maestro._falls([5, 5, 5])
    assert not maestro._falls([5, 6, 3])
