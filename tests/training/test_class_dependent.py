"""Class-dependent compression: the loss, the rounds, and the control of misses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.training import ClassAwareLottery, ClassDependentLoss, Compression, decision_threshold

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def _draw(seed: int, classes: int = 4, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def _net(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return model


def _train(compression: Compression, epochs: int, loss: Any = F.cross_entropy, metrics: Any = lambda epoch: {}) -> None:
    inputs, labels = _draw(5, 16)[0], _draw(5)[1]
    optimizer = torch.optim.SGD(compression.model.parameters(), lr=0.1, momentum=0.9)
    compression.attach(optimizer)
    for epoch in range(1, epochs + 1):
        for _ in range(2):
            optimizer.zero_grad()
            loss(compression.model(inputs), labels).backward()
            optimizer.step()
        compression.epoch_end(metrics(epoch))


@SEEDS
def test_with_weight_one_and_no_ranking_it_is_plain_cross_entropy(seed: int) -> None:
    logits, labels = _draw(seed)
    torch.testing.assert_close(ClassDependentLoss(2, 1.0, 0.0)(logits, labels), F.cross_entropy(logits, labels))
    binary = (labels == 1).long()
    single = ClassDependentLoss(1, 3.0, 0.0)(logits[:, :1], binary)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], binary.float(), pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(single, expected)
    # Two logits are their difference.
    pair = torch.stack([torch.zeros(len(logits)), logits[:, 0]], 1)
    torch.testing.assert_close(ClassDependentLoss(1, 3.0, 2.0)(pair, binary), ClassDependentLoss(1, 3.0, 2.0)(logits[:, 0], binary))


@SEEDS
def test_the_score_is_the_odds_of_the_classes(seed: int) -> None:
    logits, labels = _draw(seed)
    loss = ClassDependentLoss([0, 3])
    odds = logits.softmax(1)[:, [0, 3]].sum(1)
    torch.testing.assert_close(loss.scores(logits).sigmoid(), odds)
    assert torch.equal(loss.positive(labels), (labels == 0) | (labels == 3))


def test_the_ranking_term_is_zero_exactly_if_all_positives_are_ahead() -> None:
    loss = ClassDependentLoss(1)
    values = torch.tensor([-1.0, -0.5, 0.25, 2.0])
    for positive in itertools.product([False, True], repeat=4):
        mask = torch.tensor(positive)
        term = float(loss.shortfall(values, mask))
        ahead = not mask.any() or mask.all() or bool(values[mask].min() > values[~mask].max())
        assert (term == 0) == ahead, positive


def test_the_ranking_term_pushes_positives_up_and_the_hardest_other_down() -> None:
    scores = torch.tensor([0.2, -1.0, 0.5, 0.9, -0.3], requires_grad=True)
    positive = torch.tensor([True, True, False, False, True])
    term = ClassDependentLoss(1).shortfall(scores, positive)
    p = scores.detach().sigmoid()
    assert term.item() == pytest.approx(float(((p[3] - p[[0, 1, 4]]) ** 2).sum() / 4), rel=1e-6)
    term.backward()
    assert (scores.grad[positive] < 0).all()
    assert scores.grad[3] > 0
    assert scores.grad[2] == 0


def test_batches_of_one_kind_have_no_ranking_term() -> None:
    logits = torch.randn(6, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for labels in (torch.zeros(6).long(), torch.ones(6).long()):
        assert torch.equal(ClassDependentLoss(1, 2.0, 5.0)(logits, labels), ClassDependentLoss(1, 2.0, 0.0)(logits, labels))


@SEEDS
def test_the_threshold_misses_as_many_as_it_may(seed: int) -> None:
    scores, labels = _draw(seed)
    scores, positive = scores[:, 0], labels == 1
    for misses in range(int(positive.sum())):
        threshold = decision_threshold(scores, positive, misses)
        assert int((scores[positive] < threshold).sum()) == misses


def test_rounds_halve_every_layer_and_rewind_to_the_first_bit() -> None:
    model = _net()
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seen: list[dict[str, Tensor]] = []
    method = ClassAwareLottery(rounds=5, epochs=2)
    compression = Compression(model, [method])

    def metrics(epoch: int) -> dict[str, float]:
        if epoch % 2 and epoch > 1:
            seen.append(dict(method.masks))
        return {}

    _train(compression, 10, metrics=metrics)
    # The last removal has just happened, so the network stands at its beginning.
    for name, mask in method.masks.items():
        assert torch.equal(model.get_parameter(name), initial[name] * mask)
    assert torch.equal(model[0].bias, initial["0.bias"])
    for before, after in itertools.pairwise(seen):
        assert all(bool((after[name] <= before[name]).all()) for name in after)
    for name, weight in (("0.weight", 512), ("2.weight", 128)):
        counts = [weight]
        for _ in range(5):
            counts.append(counts[-1] - counts[-1] // 2)
        rows = weight // (16 if name == "0.weight" else 32)
        assert int(method.masks[name].sum()) == max(counts[-1], rows)
        # Every output keeps at least one.
        assert bool(method.masks[name].any(1).all())


def test_what_grew_most_is_kept() -> None:
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0, 0.1, 3.0]])
    method = ClassAwareLottery(rounds=1, fraction=0.5)
    compression = Compression(model, [method])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.5, -0.5, -0.9, 2.0]]))  # grew by 0.5, -0.5, 0.8, -1
    compression.epoch_end()
    assert torch.equal(model.weight, torch.tensor([[1.0, 0.0, 0.1, 0.0]]))


def test_the_best_epoch_of_a_round_is_taken() -> None:
    states: list[dict[str, Tensor]] = []

    def remember(model: nn.Module) -> Mapping[str, float]:
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"round": len(states)}

    method = ClassAwareLottery(rounds=1, epochs=3, on_round=remember)
    compression = Compression(_net(), [method])
    path: list[dict[str, Tensor]] = []

    def metrics(epoch: int) -> dict[str, float]:
        path.append({key: value.clone() for key, value in compression.model.state_dict().items()})
        return {"auc": [0.5, 0.9, 0.7, 0.8, 0.6, 0.7][epoch - 1]}

    _train(compression, 6, metrics=metrics)
    compression.finalize()
    assert all(torch.equal(states[0][key], path[1][key]) for key in path[1])
    assert all(torch.equal(states[1][key], path[3][key]) for key in path[3])
    assert all(torch.equal(value, path[3][key]) for key, value in compression.model.state_dict().items())
    assert [entry["round"] for entry in method.report()["by_round"]] == [1, 2]


def test_classes_weigh_more_while_too_many_are_missed(tmp_path: Path) -> None:
    counts = [10, 11, 12, 20, 11]

    def make() -> tuple[ClassDependentLoss, ClassAwareLottery, Compression]:
        loss = ClassDependentLoss(1, weight=2.0, ranking=0.0)
        method = ClassAwareLottery(rounds=4, loss=loss, tolerance=0.1, highest=2.0)
        return loss, method, Compression(_net(), [method])

    loss, method, compression = make()
    _train(compression, 5, loss, lambda epoch: {"false_negatives": counts[epoch - 1]})
    # 11 is within a tenth of 10, 12 and 20 are not; the factor stops at 2.
    assert [entry["weight"] for entry in method.report()["by_round"]] == [2.0, 2.0, 2.0, 3.0]
    assert loss.factor == 2.0
    compression.save(tmp_path / "state.safetensors")
    again, _, other = make()
    other.attach(torch.optim.SGD(other.model.parameters(), lr=0.1, momentum=0.9))
    assert other.load(tmp_path / "state.safetensors")
    assert again.factor == 2.0
    compression.finalize()
    assert method.report()["within_tolerance"]
    assert [entry["misses"] for entry in method.report()["by_round"]] == counts


def test_bad_input_is_refused() -> None:
    logits, labels = _draw(0)
    for classes, words in [(4, "class 4 is out of range"), ([0, 1, 2, 3], "all 4")]:
        with pytest.raises(InvalidArgument, match=words):
            ClassDependentLoss(classes)(logits, labels)
    with pytest.raises(InvalidArgument, match="single logit"):
        ClassDependentLoss(0)(logits[:, 0], labels)
    for options, words in [
        ({"classes": -1}, "classes"), ({"classes": []}, "at least one"), ({"classes": [1, 1]}, "each once"), ({"weight": 0.0}, "weight"),
        ({"ranking": float("nan")}, "ranking"), ({"hardest": 0}, "hardest"),
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument, match=words):
            ClassDependentLoss(**({"classes": 1} | options))
    for options, words in [
        ({"fraction": 1.0}, "fraction"), ({"criterion": "age"}, "criterion"), ({"tolerance": 0.1}, "pass the ClassDependentLoss"),
        ({"rewind": False}, "rewind"), ({"rounds": 0}, "rounds"),
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument, match=words):
            ClassAwareLottery(**options)
    with pytest.raises(InvalidArgument, match="misses"):
        decision_threshold(logits[:, 0], labels == 1, 40)
    compression = Compression(cases.SmallNet(), [ClassAwareLottery(loss=ClassDependentLoss(1), tolerance=0.1)])
    with pytest.raises(InvalidArgument, match="false_negatives"):
        compression.epoch_end({})
