"""Pursuit of codes and K-SVD on signals whose answers are known."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from tersor.layerwise.dictionary_learning import encode, first_atoms, learn_dictionary, solve_support, update_atoms

CODERS = ["omp", "ols", "iht"]


def unit(matrix: torch.Tensor) -> torch.Tensor:
    return matrix / matrix.norm(dim=1, keepdim=True)


def problem(seed: int, n: int = 40, k: int = 12, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return unit(torch.randn(k, d, generator=random)), torch.randn(n, d, generator=random)


def naive_pursuit(atoms: torch.Tensor, signal: torch.Tensor, s: int) -> torch.Tensor:
    """Orthogonal matching pursuit as it is defined."""
    support: list[int] = []
    residual = signal
    for _ in range(s):
        scores = (atoms @ residual).abs()
        scores[support] = -1
        support.append(int(scores.argmax()))
        values = torch.linalg.lstsq(atoms[support].T, signal.unsqueeze(1)).solution.squeeze(1)
        residual = signal - values @ atoms[support]
    code = torch.zeros(atoms.shape[0])
    code[support] = values
    return code


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("s", [1, 2, 5])
def test_omp_follows_its_definition(seed, s):
    atoms, signals = problem(seed)
    expected = torch.stack([naive_pursuit(atoms, signal, s) for signal in signals])
    torch.testing.assert_close(encode(atoms, signals, s), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("seed", range(3))
def test_pursuits_are_near_the_best_support(coder, seed):
    atoms, signals = problem(seed, n=20, k=9, d=6)
    best = torch.full((20,), float("inf"))
    for support in combinations(range(9), 3):
        chosen = atoms[list(support)]
        values = torch.linalg.lstsq(chosen.T, signals.T).solution.T
        best = torch.minimum(best, (signals - values @ chosen).square().sum(1))
    errors = (signals - encode(atoms, signals, 3, coder) @ atoms).square().sum(1)
    assert bool((errors >= best - 1e-4).all())
    # Three of nine atoms in six dimensions is hard for the greedy, and harder for gradient steps from zero.
    assert float(errors.sum()) < (3.5 if coder == "iht" else 2.0) * float(best.sum())


@pytest.mark.parametrize("coder", CODERS)
def test_codes_have_exactly_the_nonzeros_asked_for(coder):
    atoms, signals = problem(0)
    assert (encode(atoms, signals, 4, coder) != 0).sum(1).tolist() == [4] * 40


@pytest.mark.parametrize("coder", ["omp", "ols"])
def test_dependent_atoms_are_passed_over(coder):
    _, signals = problem(0, d=8)
    atoms = torch.cat([torch.eye(8)[:4]] * 3)
    codes = encode(atoms, signals, 6, coder)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes @ atoms, signals * (torch.arange(8) < 4))
    assert (codes != 0).sum(1).max() <= 4


def test_a_signal_of_zero_gets_a_code_of_zero():
    atoms, signals = problem(0)
    signals[3] = 0
    assert not encode(atoms, signals, 4)[3].any()


@pytest.mark.parametrize("seed", range(3))
def test_update_never_raises_the_error_and_keeps_support_and_norms(seed):
    atoms, signals = problem(seed, n=80)
    codes = encode(atoms, signals, 3)
    for iterations in (1, 8):
        residual = signals - codes @ atoms
        before = float(residual.square().sum())
        new_atoms, new_codes = update_atoms(residual, atoms, codes, iterations)
        torch.testing.assert_close(residual, signals - new_codes @ new_atoms, rtol=1e-3, atol=1e-4)
        assert float(residual.square().sum()) < before
        assert torch.equal(new_codes != 0, codes != 0)
        torch.testing.assert_close(new_atoms.norm(dim=1), torch.ones(12))


def test_update_of_one_atom_is_the_leading_singular_pair():
    _, signals = problem(1, n=30)
    atoms, codes = first_atoms(signals, 1, 0), torch.ones(30, 1)
    new_atoms, new_codes = update_atoms(signals - codes @ atoms, atoms, codes, 200)
    u, s, v = torch.linalg.svd(signals, full_matrices=False)
    torch.testing.assert_close(new_codes @ new_atoms, s[0] * torch.outer(u[:, 0], v[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("coder", CODERS)
def test_learning_never_gets_worse(coder):
    random = torch.Generator().manual_seed(0)
    signals = torch.randn(60, 40, generator=random) @ torch.diag(torch.linspace(2, 0.05, 40))
    errors = learn_dictionary(signals, 24, 12, iterations=12, coder=coder, tolerance=0).errors
    assert list(errors) == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_atoms_that_made_the_signals_are_found_again(seed):
    random = torch.Generator().manual_seed(seed)
    truth = unit(torch.randn(64, 32, generator=random))
    chosen = torch.rand(4000, 64, generator=random).topk(3, 1).indices
    codes = torch.zeros(4000, 64).scatter_(1, chosen, torch.randn(4000, 3, generator=random))
    learned = learn_dictionary(codes @ truth, 64, 3, iterations=50, tolerance=0, seed=seed)
    found = (learned.atoms @ truth.T).abs().amax(0) > 0.99
    assert float(found.float().mean()) > 0.9


def test_more_atoms_than_signals_and_signals_of_zero():
    signals = torch.zeros(5, 6)
    learned = learn_dictionary(signals, 8, 2, iterations=3)
    assert not (learned.codes @ learned.atoms).any()
    signals[0] = 1.0
    learned = learn_dictionary(signals, 8, 2, iterations=3)
    torch.testing.assert_close(learned.codes @ learned.atoms, signals)


def test_support_is_solved_by_least_squares():
    atoms, signals = problem(2)
    codes = encode(atoms, signals, 3) * 0.5
    stretched = atoms * torch.linspace(0.1, 10, 12).unsqueeze(1)
    solved = solve_support(stretched, signals, codes)
    expected = encode(atoms, signals, 3) / torch.linspace(0.1, 10, 12)
    torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-4)
