"""How the experiments on pruning in rounds and on 1-way filters choose, count and judge."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tersor.papers import a_priori_conv, sap, vision


def _round(kept: float, validation: float, index: float = 0.1) -> sap.Round:
    return sap.Round(nn.Identity(), kept, index, validation)


def test_the_smallest_network_within_a_point_is_chosen_even_after_a_bad_round():
    rounds = [_round(1.0, 0.95), _round(0.8, 0.93), _round(0.5, 0.945), _round(0.3, 0.90)]
    assert sap._good(rounds) is rounds[2]
    assert sap._good(rounds[:1]) is rounds[0]


def test_the_margin_of_rounds_is_of_the_nearest_baseline():
    kept = {sap.OURS: (0.1, 0.1, 0.2), sap.LOTTERY: (0.2, 0.2, 0.2), sap.ONE_SHOT: (0.4, 0.4, 0.4)}
    rows = [{"data": "x", "method": method, "seed": seed, "kept": value} for method, own in kept.items() for seed, value in enumerate(own)]
    margin, notes = sap.judge(rows)
    assert margin == pytest.approx(4 ** (1 / 3) - 1)
    assert "ahead in 2 of 3" in notes[0]
    for row in rows:
        if row["method"] == sap.LOTTERY:
            row["kept"] = 0.05
    assert sap.judge(rows)[0] < 0


def test_a_round_of_the_experiment_is_seen_before_anything_goes():
    task = sap.Task(vision.digits(), (8, 8), 1, 250, 2)
    first, second, third = sap._train({"p": 1.0, "q": 2.0}, task, 0)
    assert first.kept == 1.0 > second.kept > third.kept
    for entry in (second, third):
        zeros = sum(int((layer.weight == 0).sum()) for layer in (entry.model.first, entry.model.second, entry.model.head))
        total = sum(layer.weight.numel() for layer in (entry.model.first, entry.model.second, entry.model.head))
        assert 1 - zeros / total == pytest.approx(entry.kept)


VOLUME = a_priori_conv.Effort(3, (a_priori_conv.DENSE, a_priori_conv.OURS, a_priori_conv.CP, a_priori_conv.NARROW), 12, 3, 1, (1, 1, 1))


@pytest.mark.parametrize("effort", [*a_priori_conv.EFFORT.values(), VOLUME], ids=["full", "quick", "3-way"])
def test_networks_are_compared_at_the_weights_of_the_1_way_filters(effort):
    from tersor.training import Compression

    counts = {}
    for method in effort.methods:
        model, methods = a_priori_conv._network(method, effort, 0)
        if methods:
            compression = Compression(model, methods, total_steps=10, seed=0)
            for _ in range(10):
                compression.after_step()
            compression.finalize()
        counts[method] = sum(a_priori_conv._weights(model.get_submodule(f"conv{index}")) for index in (1, 2, 3))
        assert model(torch.zeros(2, 3)).shape == (2, 16, 16, 16)
    dense, ours = counts[a_priori_conv.DENSE], counts[a_priori_conv.OURS]
    assert 0.3 * dense < ours <= 0.35 * dense + 1e-6
    assert ours <= counts[a_priori_conv.NARROW] < 1.4 * ours
    if effort.ways == 2:
        assert counts[a_priori_conv.PRUNED] == ours
        assert counts[a_priori_conv.PER_KERNEL] == pytest.approx(2 / effort.kernel * dense)
    assert 0.3 * dense < counts[a_priori_conv.CP] <= 0.35 * dense


def test_the_margin_of_1_way_filters_is_of_the_worst_seed_and_needs_few_weights():
    errors = dict.fromkeys(a_priori_conv.METHODS, (1.0, 1.0, 1.0)) | {a_priori_conv.OURS: (0.5, 1.5, 1.2)}
    rows = [
        {"method": method, "seed": seed, "relative_error": value, "conv_weights": 35 if method == a_priori_conv.OURS else 100}
        for method, own in errors.items() for seed, value in enumerate(own)
    ]  # fmt: skip
    margin, notes = a_priori_conv.judge(rows)
    assert margin == pytest.approx(0.5)
    assert any(f"{math.exp(math.log(0.9) / 3):.2f} times the error of narrower dense" in note and "1 of 3" in note for note in notes)
    for row in rows:
        row["conv_weights"] = 100
    assert a_priori_conv.judge(rows)[0] < 0
