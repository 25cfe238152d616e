"""The theory on a problem small enough to solve outright: eight weights that may take three values."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from tersor.finetuning.discrete import discrete, move
from tersor.weights import CodebookWeight

D, C = 8, 4


def problem(seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(10, D, generator=random), torch.randn(10, generator=random)


def phi(a: Tensor, b: Tensor, x: Tensor) -> float:
    return float((a @ x - b).double().square().sum())


def best_values(a: Tensor, b: Tensor, codes: Tensor) -> tuple[Tensor, float]:
    """The P step solved exactly: least squares for the values of a partition."""
    choice = torch.nn.functional.one_hot(codes, C).double()
    values = torch.linalg.lstsq(a.double() @ choice, b.double().unsqueeze(1), driver="gelsd").solution[:, 0]
    x = choice @ values
    return values.float(), float((a.double() @ x - b.double()).square().sum())


def tuned(a: Tensor, b: Tensor, fraction: float, length: float, rounds: int = 60) -> tuple[float, float, int, list[float]]:
    """Exact P steps and linearised V steps on a fraction of the coordinates: phi with the first codes, phi at the end, changes, history."""
    start = torch.linalg.lstsq(a, b.unsqueeze(1)).solution[:, 0]
    codes = start.argsort().argsort() * C // D
    values, first = best_values(a, b, codes)
    history, changes = [first], 0
    for _ in range(rounds):
        weight = discrete(CodebookWeight(codes.to(torch.uint8).view(1, D, 1), values.view(1, C, 1), torch.ones(1), bits=2))
        current = weight.dense()
        gradient = 2 * a.T @ (a @ current[0] - b)
        kept = torch.zeros(D)
        chosen = gradient.abs().topk(max(int(fraction * D), 1)).indices
        kept[chosen] = 1
        # The smoothness of the subspace alone allows the longer step.
        smooth = 2 * float(torch.linalg.matrix_norm(a[:, chosen], 2)) ** 2
        changed = move(weight, current - length * (kept * gradient / smooth).unsqueeze(0), current, 1.0, None, False)
        proposed = weight.choices.view(-1)
        found, value = best_values(a, b, proposed)
        if value < history[-1]:
            codes, values, changes = proposed, found, changes + changed
            history.append(value)
    return first, history[-1], changes, history


@pytest.mark.parametrize("seed", range(12))
def test_moving_few_codes_a_long_way_beats_values_alone_and_approaches_the_optimum(seed: int):
    a, b = problem(seed)
    values_alone, reached, _, history = tuned(a, b, 1 / D, 1.0)
    assert history == sorted(history, reverse=True)
    assert reached <= values_alone
    best = min(best_values(a, b, torch.tensor(codes))[1] for codes in product(range(C), repeat=D) if codes[0] == 0)
    assert best - 1e-6 <= reached


def test_over_seeds_the_subspace_wins_most_and_the_full_space_hardly_moves():
    few, all_at_once = [], []
    for seed in range(12):
        a, b = problem(seed)
        few.append(tuned(a, b, 1 / D, 1.0)[:3])
        all_at_once.append(tuned(a, b, 1.0, 1.0)[:3])
    assert sum(reached for _, reached, _ in few) < 0.8 * sum(first for first, _, _ in few)
    assert sum(reached for _, reached, _ in few) < sum(reached for _, reached, _ in all_at_once)
    assert sum(changes for *_, changes in all_at_once) < sum(changes for *_, changes in few)
