"""Scores, plans and distortions against closed forms, other algorithms and the proven inequalities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from tersor.errors import InvalidArgument
from tersor.information.sensitivity_sampling import (
    RowSample,
    distortion,
    leverage_scores,
    lewis_weights,
    plan_rows,
    predict_rows,
    root_leverage_sample,
    root_leverage_scores,
    row_scores,
    sample_rows,
    sensitivities,
    sensitivity_bounds,
)
from tersor.layerwise import LayerStats, layer_error, whitened_svd

P = [1.0, 1.5, 2.0, 3.0, 4.0]


def heavy(seed: int, n: int = 150, d: int = 6, freedom: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(freedom, size=(n, d))


@pytest.mark.parametrize("seed", range(3))
def test_leverage_is_the_diagonal_of_the_projection(seed):
    matrix = heavy(seed)
    projection = matrix @ np.linalg.pinv(matrix)
    np.testing.assert_allclose(leverage_scores(matrix), np.diag(projection), atol=1e-10)


def test_leverage_of_dependent_columns_sums_to_the_rank():
    matrix = heavy(0)
    dependent = np.hstack([matrix, matrix @ np.ones((6, 2)), np.zeros((150, 1))])
    np.testing.assert_allclose(leverage_scores(dependent), leverage_scores(matrix), atol=1e-9)


def test_leverage_does_not_depend_on_units():
    matrix = heavy(0)
    np.testing.assert_allclose(leverage_scores(matrix * 10.0 ** np.arange(-150, 150, 50)), leverage_scores(matrix), atol=1e-9)


def test_leverage_of_ill_conditioned_columns_is_that_of_their_span():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 200))
    close = np.stack([first, first + 1e-10 * second], 1)
    np.testing.assert_allclose(leverage_scores(close), leverage_scores(np.stack([first, second], 1)), atol=1e-4)


def test_leverage_by_batches_against_the_moment_of_all():
    matrix = heavy(1)
    parts = [leverage_scores(part, matrix.T @ matrix) for part in np.array_split(matrix, 4)]
    np.testing.assert_allclose(np.concatenate(parts), leverage_scores(matrix), atol=1e-9)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_lewis_weights_are_a_fixed_point_that_sums_to_the_rank(p, seed):
    matrix = heavy(seed)
    matrix[7] = 0
    weights = lewis_weights(matrix, p)
    scale = np.where(weights > 0, np.maximum(weights, 1e-300) ** (0.5 - 1 / p), 0)
    np.testing.assert_allclose(leverage_scores(matrix * scale[:, None]), weights, rtol=1e-6, atol=1e-12)
    assert weights.sum() == pytest.approx(6, abs=1e-6)
    assert weights[7] == 0


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("seed", range(3))
def test_sensitivities_lie_between_the_proven_bounds(p, seed):
    matrix = heavy(seed, n=60)
    exact = sensitivities(matrix, p)
    low, high = sorted([6 ** (p / 2), 6.0])
    assert low * (1 - 1e-6) <= exact.sum() <= high * (1 + 1e-6)
    assert (exact > 0).all()
    assert (exact <= sensitivity_bounds(matrix, p) * (1 + 1e-6)).all()


@pytest.mark.parametrize("p", [1.0, 1.2, 3.0, 6.0])
def test_sensitivities_against_a_search_for_the_best_direction(p):
    matrix = heavy(3, n=60, d=3)
    exact = sensitivities(matrix, p, indices=np.array([0, 11]))
    random = np.random.default_rng(0)
    for value, row in zip(exact, matrix[[0, 11]], strict=True):

        def smaller(x: np.ndarray, row: np.ndarray = row) -> float:
            return -(np.abs(row @ x) ** p) / (np.abs(matrix @ x) ** p).sum()

        found = min(optimize.minimize(smaller, x, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}).fun
                    for x in random.normal(size=(10, 3)))  # fmt: skip
        assert -found == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("p", P)
def test_scores_do_not_depend_on_the_basis(p):
    matrix, change = heavy(0, n=40), np.random.default_rng(1).normal(size=(6, 6))
    for kind in ("sensitivity", "lewis", "leverage"):
        np.testing.assert_allclose(row_scores(matrix @ change, p, kind), row_scores(matrix, p, kind), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("p", P)
def test_a_row_twice_shares_its_sensitivity(p):
    matrix = heavy(0, n=40)
    split = np.vstack([matrix, matrix[:1]])
    split[[0, -1]] *= 2 ** (-1 / p)
    shared = sensitivities(split, p)
    assert shared[0] + shared[-1] == pytest.approx(sensitivities(matrix, p)[0], rel=1e-5)


def test_a_surrogate_gives_sensitivities_within_its_distortion():
    matrix = heavy(5, n=400, d=4)
    sample = sample_rows(matrix, 200, p=3, seed=1)
    loss = distortion(matrix, sample)
    exact, close = (sensitivities(matrix, 3, indices=np.arange(20), surrogate=part) for part in (matrix, sample.apply(matrix)))
    assert (exact / (1 + loss) <= close * (1 + 1e-5)).all()
    assert (close <= exact / (1 - loss) * (1 + 1e-5)).all()


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_root_leverage_is_a_power_of_leverage(p):
    scores = root_leverage_scores(heavy(0), p)
    np.testing.assert_allclose(scores, leverage_scores(heavy(0)) ** (p / 2))
    assert scores.sum() <= 150 ** (1 - p / 2) * 6 ** (p / 2) * (1 + 1e-9)


@pytest.mark.parametrize("rows", [1.5, 10, 77, 149.5])
@pytest.mark.parametrize("floor", [True, False])
def test_a_plan_keeps_as_many_rows_as_asked_for(rows, floor):
    plan = plan_rows(leverage_scores(heavy(0)), rows, floor=floor)
    assert plan.expected_rows == pytest.approx(rows, rel=1e-6)
    assert plan.probabilities.max() <= 1
    assert not floor or plan.probabilities.min() >= 1 / 150


def test_keeping_all_rows_is_exact():
    matrix = heavy(0)
    sample = sample_rows(matrix, 150)
    np.testing.assert_array_equal(sample.apply(matrix), matrix)
    assert distortion(matrix, sample) < 1e-12


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["uniform", "leverage", "lewis"])
def test_a_sample_estimates_the_norm_without_bias(p, kind):
    matrix = heavy(2)
    x = np.random.default_rng(9).normal(size=6)
    plan = plan_rows(row_scores(matrix, p, kind), 60, p)
    values = np.array([(np.abs(plan.draw(seed).apply(matrix) @ x) ** p).sum() for seed in range(400)])
    assert values.mean() == pytest.approx((np.abs(matrix @ x) ** p).sum(), abs=4 * values.std() / 20)


def test_distortion_of_squares_is_the_worst_direction():
    matrix = heavy(0)
    sample = sample_rows(matrix, 40, seed=3)
    kept = sample.apply(matrix)
    random = np.random.default_rng(0)
    ratios = np.array([np.square(kept @ x).sum() / np.square(matrix @ x).sum() for x in random.normal(size=(3000, 6))])
    exact = distortion(matrix, sample)
    assert np.abs(ratios - 1).max() <= exact + 1e-9
    found = optimize.minimize(lambda x: -abs(np.square(kept @ x).sum() / np.square(matrix @ x).sum() - 1), random.normal(size=6))
    assert -found.fun <= exact + 1e-9


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_distortion_of_other_norms_is_no_less_than_any_direction_tried(p):
    matrix = heavy(0)
    sample = sample_rows(matrix, 60, p=p, seed=3)
    tried = np.random.default_rng(0).normal(size=(3000, 6))
    ratios = (np.abs(tried @ sample.apply(matrix).T) ** p).sum(1) / (np.abs(tried @ matrix.T) ** p).sum(1)
    assert distortion(matrix, sample) >= np.abs(ratios - 1).max()


def test_leverage_beats_uniform_where_few_rows_matter():
    matrix = np.vstack([np.random.default_rng(0).normal(size=(20000, 10)), 300 * np.eye(10)])
    by = {
        kind: [distortion(matrix, sample_rows(matrix, 200, kind=kind, seed=seed)) for seed in range(3)] for kind in ("leverage", "uniform")
    }  # fmt: skip
    assert 10 * max(by["leverage"]) < min(by["uniform"])


def test_root_leverage_beats_leverage_for_absolute_values():
    matrix = heavy(0, n=3000, d=5, freedom=1.5)
    recursive = [distortion(matrix, root_leverage_sample(matrix, 480, 1.0, seed=seed), starts=6) for seed in range(4)]
    plain = [distortion(matrix, sample_rows(matrix, 480, p=1, kind="leverage", seed=seed), starts=6) for seed in range(4)]
    assert np.mean(recursive) < np.mean(plain)


def test_recursion_multiplies_weights_and_reaches_its_count():
    matrix = heavy(0, n=20000, d=4, freedom=1.5)
    samples = [root_leverage_sample(matrix, 300, 1.0, seed=seed) for seed in range(20)]
    assert np.mean([len(sample) for sample in samples]) == pytest.approx(300, rel=0.1)
    x = np.ones(4)
    values = np.array([np.abs(sample.apply(matrix) @ x).sum() for sample in samples])
    assert values.mean() == pytest.approx(np.abs(matrix @ x).sum(), rel=0.1)


def test_statistics_of_a_sample_are_those_of_the_weighted_rows():
    inputs = torch.tensor(heavy(0), dtype=torch.float32)
    whole = LayerStats.from_inputs(inputs)
    everything = sample_rows(inputs, 150).stats(inputs)
    torch.testing.assert_close(everything.hessian, whole.hessian, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(everything.mean, whole.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(everything.mean_abs, whole.mean_abs, rtol=1e-5, atol=1e-6)
    sample = sample_rows(inputs, 50, seed=2)
    applied = sample.apply(inputs)
    torch.testing.assert_close(sample.stats(inputs).hessian, (applied.T @ applied).double() / 150, rtol=1e-4, atol=1e-5)


def test_a_tenth_of_the_rows_by_leverage_serves_a_whitened_svd_better_than_a_uniform_tenth():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(8000, 24, generator=random)
    # One token in a thousand is a hundred times as large, in a few directions: what language models' inputs look like.
    inputs[::1000, :4] *= 300
    weight = torch.randn(32, 24, generator=random)
    stats = LayerStats.from_inputs(inputs)
    errors = {}
    for kind in ("leverage", "uniform"):
        fits = [whitened_svd(weight, sample_rows(inputs, 800, kind=kind, seed=seed).stats(inputs), rank=6) for seed in range(3)]
        errors[kind] = [layer_error(weight, fit, stats) for fit in fits]
    best = layer_error(weight, whitened_svd(weight, stats, rank=6), stats)
    assert max(errors["leverage"]) < 1.1 * best < np.mean(errors["uniform"])


def test_bounds_are_for_the_p_that_they_are_proven_for():
    assert predict_rows("sensitivity", 4, 10, 20.0, 0.5) == pytest.approx(20**1.5 / 0.25)
    # For p < 2 the total is at least d^(p/2), which makes Chen and Derezinski's bound the sharper one.
    assert predict_rows("chen_derezinski", 1, 16, 6.0, 0.5) <= 6.0**2 / 0.25
    with pytest.raises(InvalidArgument, match="'sensitivity' is for p above 2"):
        predict_rows("sensitivity", 1.5, 10, 20.0, 0.5)
    with pytest.raises(InvalidArgument, match="from 1 to 2"):
        predict_rows("root_leverage", 3, 10, 20.0, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: leverage_scores(np.array([[1.0, np.nan]])), "rows holds NaN or Inf"),
        (lambda: leverage_scores(np.zeros(3)), "rows must be a matrix"),
        (lambda: leverage_scores(heavy(0), np.eye(5)), r"gram must be \[6, 6\]"),
        (lambda: lewis_weights(heavy(0), 0.5), "p must be a number of at least 1"),
        (lambda: sensitivities(heavy(0), 3, indices=[150]), "integers from 0 to 149"),
        (lambda: sensitivities(heavy(0), 3, surrogate=heavy(0)[:3]), "does not span"),
        (lambda: row_scores(heavy(0), 2, "best"), "kind must be one of"),
        (lambda: root_leverage_scores(heavy(0), 3), "p from 1 to 2"),
        (lambda: plan_rows([0.0, -1.0], 1), "at least 0"),
        (lambda: plan_rows([1.0, 1.0], 0), "rows must be positive"),
        (lambda: distortion(heavy(0), RowSample(np.array([0]), np.ones(1), 2.0, 149)), "a matrix of 149 rows"),
        (lambda: sample_rows(heavy(0), 10, p=1).stats(torch.zeros(150, 6)), "for p=2"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
