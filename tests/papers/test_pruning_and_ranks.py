"""How the experiments on gradual pruning and on trained ranks compare at equal size, and what they count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tersor.papers import characters, gradual_pruning, trained_rank_pruning, vision
from tersor.papers.characters import CharacterLSTM, bits_per_character
from tersor.training import Compression, GradualPruning

PRUNED = (gradual_pruning.GRADUAL, gradual_pruning.LATE, gradual_pruning.ONCE, gradual_pruning.BEFORE)


def _task() -> gradual_pruning.Task:
    """A task of the experiment in which nothing is learned: removals happen all the same."""

    def train(model: nn.Module, methods: Sequence[GradualPruning], seed: int) -> None:
        if methods:
            compression = Compression(model, methods, total_steps=40)
            for _ in range(40):
                compression.after_step()
            compression.finalize()

    def factory(width: int, seed: int) -> nn.Module:
        return vision.SmallConvNet(1, 10, width, seed)

    return gradual_pruning.Task("pictures", factory, train, lambda model: 0.5, 8, 40, ("conv1",))


def test_all_rivals_have_as_many_non_zeros_as_the_small_network():
    rows = list(gradual_pruning._rows(_task(), 0, (0.8, 0.9)))
    for width in {row["rival_width"] for row in rows} - {None}:
        counts = {row["method"]: row["nonzero"] for row in rows if row["rival_width"] == width}
        assert set(counts) == {
            gradual_pruning.GRADUAL,
            gradual_pruning.LATE,
            gradual_pruning.ONCE,
            gradual_pruning.BEFORE,
            gradual_pruning.SMALL,
        }
        # Biases and shifts start at zero, which takes as many from the pruned ones as from the small one, of their own width.
        small, full = vision.SmallConvNet(1, 10, width, 0), vision.SmallConvNet(1, 10, 8, 0)
        zeros = {model: sum(int((values == 0).sum()) for values in model.parameters()) for model in (small, full)}
        small_total = counts[gradual_pruning.SMALL] + zeros[small]
        for method in PRUNED:
            # Each of three layers rounds its own count.
            assert abs(counts[method] + zeros[full] - small_total) <= 2


def test_bytes_take_the_smaller_of_each_tensor():
    sparse, full, norm = torch.zeros(16, 64), torch.ones(4, 4), torch.ones(7)
    sparse[0, :5] = 1.0
    counted = gradual_pruning._bytes([sparse, full, norm])
    dense = 4 * (16 + 7)
    assert counted == {"dense": 4 * 1024 + dense, "bitmask": 5 * 4 + 128 + dense, "csr": 5 * 6 + 4 * 17 + dense}


def test_the_margin_is_the_share_of_the_loss_that_is_taken_off():
    rows = [
        {"task": "text", "rival_width": 3, "method": method, "loss": loss, "seed": seed}
        for seed in (0, 1)
        for method, loss in ((gradual_pruning.GRADUAL, 2.0 + seed), (gradual_pruning.SMALL, 4.0 + seed))
    ]
    assert gradual_pruning._margin(rows, "text", 3, gradual_pruning.SMALL) == pytest.approx(1 - 2.5 / 4.5)


def test_ranks_are_compared_setting_by_setting():
    rows = [
        {"method": method, "scheme": scheme, "energy": 0.9, "tuned": tuned, "accuracy": accuracy}
        for scheme, tuned, method, accuracy in (
            ("channel", False, trained_rank_pruning.TRAINED, 0.7), ("channel", False, trained_rank_pruning.AFTER, 0.2),
            ("channel", True, trained_rank_pruning.TRAINED, 0.75), ("channel", True, trained_rank_pruning.AFTER, 0.7),
            ("spatial", False, trained_rank_pruning.TRAINED, 0.1), ("spatial", False, trained_rank_pruning.AFTER, 0.3),
        )
    ]  # fmt: skip
    assert trained_rank_pruning._margin(rows, ("channel", 0.9), False) == pytest.approx(0.5)
    assert trained_rank_pruning._margin(rows, ("channel", 0.9), True) == pytest.approx(0.05)
    assert trained_rank_pruning._margin(rows, ("spatial", 0.9), False) == pytest.approx(-0.2)


def test_bits_of_a_model_that_knows_nothing_are_those_of_the_alphabet():
    model = CharacterLSTM(16, 8)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert bits_per_character(model, torch.arange(1000) % 16) == pytest.approx(4.0)


def test_texts_are_cut_once_and_unseen_characters_are_one(tmp_path):
    (tmp_path / "text.txt").write_text("ab" * 45 + "abczzzzzzz", encoding="utf-8")
    text = characters.load(str(tmp_path / "text.txt"), 1000)
    assert (len(text.train), len(text.test)) == (90, 10)
    assert text.alphabet == "ab\ufffd"
    assert text.test.tolist() == [0, 1, *[2] * 8]


def test_training_learns_and_leaves_the_global_generator_alone(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 60, encoding="utf-8")
    text = characters.load(str(tmp_path / "text.txt"), 10_000)
    models = [CharacterLSTM(len(text.alphabet), 16) for _ in range(2)]
    state = torch.get_rng_state()
    for model in models:
        characters.fit(model, text, characters.Plan(steps=200, batch=8, length=24), seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one, other) for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert bits_per_character(models[0], text.test, length=24) < 0.5 * math.log2(len(text.alphabet))


def test_a_plan_of_two_cycles_is_twice_as_long_and_starts_its_rate_again():
    images = vision.digits()
    plan = vision.Plan(epochs=2, cycles=3, flip=False)
    assert plan.steps(images) == 3 * vision.Plan(epochs=2).steps(images)
    trained = vision.fit(vision.SmallConvNet(1, 10, 4), images, plan, seed=0)
    assert len(trained.validation) == 6
    # One cycle of two is the plan without cycles, to the bit.
    once = vision.fit(vision.SmallConvNet(1, 10, 4), images, vision.Plan(epochs=2, flip=False), seed=0)
    assert trained.validation[:2] == once.validation
