"""Networks with frozen random weights: the three bounds against brute force and closed forms, and the choice of the band."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from tersor.errors import InvalidArgument
from tersor.limits import bandlimited as bl

POINTS = np.linspace(-1, 1, 60)
TARGET = np.sin(20 * POINTS) * np.exp(-(POINTS**2))


def features(seed: int, width: int, bandwidth: float, points: np.ndarray = POINTS) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.tanh(np.outer(points, random.uniform(-bandwidth, bandwidth, width)) - random.uniform(-bandwidth, bandwidth, width))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


@pytest.mark.parametrize("width", [5, 40, 200])
@pytest.mark.parametrize("bandwidth", [0.5, 5.0, 50.0])
def test_no_read_out_of_thousands_beats_the_norm_budget(width, bandwidth):
    phi, random = features(0, width, bandwidth), np.random.default_rng(1)
    gram = phi @ phi.T / width
    best = np.linalg.lstsq(phi, TARGET, rcond=1e-6)[0]
    for trial in range(200):
        noise = random.standard_normal(width)
        coefficients = (
            noise * 10 ** random.uniform(-4, 2) if trial % 2 else best * random.uniform(0, 1.2) + noise * 10 ** random.uniform(-6, 0)
        )
        norm = math.sqrt(width) * float(np.linalg.norm(coefficients))
        assert rms(phi @ coefficients - TARGET) >= bl.norm_budget(gram, TARGET, norm) * (1 - 1e-6) - 1e-9


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_ridge_regression_reaches_the_norm_budget(ridge):
    phi = features(2, 80, 8.0)
    coefficients = np.linalg.solve(phi.T @ phi + ridge * np.eye(80), phi.T @ TARGET)
    norm = math.sqrt(80) * float(np.linalg.norm(coefficients))
    error = rms(phi @ coefficients - TARGET)
    assert bl.norm_budget(phi @ phi.T / 80, TARGET, norm) == pytest.approx(error, rel=1e-5)
    assert bl.norm_needed(phi @ phi.T / 80, TARGET, error) == pytest.approx(norm, rel=1e-4)


def test_norm_budget_of_orthogonal_features_is_soft_clipping():
    # One feature: the error is what the clipped coefficient leaves.
    phi = np.eye(4)[:, :1]
    target = np.array([3.0, 0.0, 0.0, 0.0])
    assert bl.norm_budget(phi @ phi.T, target, 1.0) == pytest.approx(2.0 / 2)
    assert bl.norm_budget(phi @ phi.T, target, 3.0) == pytest.approx(0.0, abs=1e-12)
    assert bl.norm_budget(phi @ phi.T, target, 0.0) == pytest.approx(1.5)
    # What no feature reaches stays, for any budget that rounding can tell from an infinite one.
    other = np.array([3.0, 4.0, 0.0, 0.0])
    assert bl.norm_budget(phi @ phi.T, other, 1e4) == pytest.approx(2.0, rel=1e-3)
    assert bl.norm_needed(phi @ phi.T, other, 1.9) > 1e5
    assert bl.norm_needed(phi @ phi.T, other, 2.5) == 0.0
    assert bl.norm_needed(0 * phi @ phi.T, other, 1.0) == math.inf
    assert bl.norm_budget(0 * phi @ phi.T, other, 1.0) == pytest.approx(2.5)


@pytest.mark.parametrize("band", [0.1, 1.0, 50.0])
def test_rounding_does_not_lift_the_bound_above_what_a_net_reaches(band):
    x = np.linspace(-1, 1, 200)[:, None]
    y = np.sin(20 * x[:, 0])
    fitted = net(band, 200).fit(x, y)
    phi = fitted.features(x) - fitted.features(x).mean(0)
    bound = bl.norm_budget(phi @ phi.T / 200, y - y.mean(), fitted.norm_)
    assert rms(fitted.predict(x) - y) >= bound * (1 - 1e-9) - 1e-12


def test_norm_budget_falls_with_the_norm_and_its_inverse_is_one():
    gram = bl.mean_gram(POINTS[:, None], bandwidth=6.0, samples=2000)
    errors = [bl.norm_budget(gram, TARGET, radius) for radius in (0, 1, 3, 10, 30, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(rms(TARGET))
    for radius, error in zip((1, 3, 10), errors[1:4], strict=True):
        assert bl.norm_needed(gram, TARGET, error) == pytest.approx(radius, rel=1e-6)


def test_infinite_width_is_the_limit_of_wide_networks():
    gram = bl.mean_gram(POINTS[:, None], bandwidth=10.0, samples=40000)
    wide = features(3, 4000, 10.0)
    for radius in (3.0, 30.0):
        limit = bl.norm_budget(gram, TARGET, radius)
        assert bl.norm_budget(wide @ wide.T / 4000, TARGET, radius) == pytest.approx(limit, rel=0.05)


def test_the_mean_gram_of_cosines_is_a_sinc():
    random, points = np.random.default_rng(4), np.linspace(-2, 2, 9)
    weights, biases = random.uniform(-3, 3, 200000), random.uniform(0, 2 * math.pi, 200000)
    phi = np.cos(np.outer(points, weights) - biases)
    np.testing.assert_allclose(bl.mean_gram(points[:, None], bandwidth=3.0, activation="cos"), phi @ phi.T / 200000, atol=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_parseval_encloses_the_error_for_every_band(seed):
    random = np.random.default_rng(seed)
    frame = bl.parseval_frame(random.standard_normal((12, 40)) * random.uniform(0.1, 3, 40))
    np.testing.assert_allclose(frame.T @ frame, np.eye(12), atol=1e-12)
    for _ in range(300):
        target, kept = random.standard_normal(12), random.random(40) < random.random()
        low, high = bl.parseval(frame, target, kept)
        error = bl.truncation_error(frame, target, kept)
        assert low - 1e-10 <= error <= high + 1e-10


def test_both_ends_of_parseval_are_reached():
    # An orthonormal basis reaches the upper end; a basis taken twice with one copy dropped reaches the lower.
    basis = np.eye(3)
    assert bl.truncation_error(basis, [3.0, 4.0, 0.0], [True, False, True]) == pytest.approx(
        bl.parseval(basis, [3.0, 4.0, 0.0], [1, 0, 1])[1]
    )
    twice = np.concatenate((basis, basis)) / math.sqrt(2)
    kept = [True] * 3 + [False] * 3
    assert bl.parseval(twice, [1.0, 2.0, 3.0], kept)[0] == pytest.approx(0.5) == bl.truncation_error(twice, [1.0, 2.0, 3.0], kept)


@pytest.mark.parametrize("frequency", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("width", [0.5, 2.0])
def test_the_cosine_tail_of_a_gaussian_in_closed_form(frequency, width):
    x = np.arange(-4096, 4096) * 0.01
    values = np.cos(frequency * x) * np.exp(-(x**2) / (2 * width**2))
    for cutoff in (1.0, 5.3, 19.0, 21.0):
        exact = bl.gaussian_tail(frequency=frequency, width=width, cutoff=cutoff)
        # The discrete band ends at a multiple of the resolution.
        step = 2 * math.pi / (len(x) * 0.01)
        around = sorted(bl.gaussian_tail(frequency=frequency, width=width, cutoff=max(cutoff + sign * step, 0.0)) for sign in (-1, 1))
        assert around[0] - 1e-7 <= bl.cosine_tail(values, 0.01, cutoff) <= around[1] + 1e-7
        assert 0 <= exact <= 1 + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_no_function_of_the_band_beats_the_cosine_tail(seed):
    random, n = np.random.default_rng(seed), 128
    target = random.standard_normal(n)
    frequencies = 2 * math.pi * np.fft.fftfreq(n, 0.1)
    for cutoff in (0.0, 4.0, 12.0):
        bound, band = bl.cosine_tail(target, 0.1, cutoff), np.abs(frequencies) <= cutoff
        projected = np.fft.ifft(np.where(band, np.fft.fft(target), 0)).real
        assert np.linalg.norm(projected - target) / np.linalg.norm(target) == pytest.approx(bound, abs=1e-12)
        for _ in range(100):
            other = np.fft.ifft(np.where(band, np.fft.fft(projected + random.standard_normal(n)), 0)).real
            assert np.linalg.norm(other - target) / np.linalg.norm(target) >= bound - 1e-12


def net(bandwidth: float, width: int = 100, seed: int = 0, **options):
    return bl.RandomNet(width, bandwidth, random_state=seed, **options)


def error_of(bandwidth: float, width: int, frequency: float = 20.0, seed: int = 0) -> float:
    x = np.linspace(-1, 1, 300)
    y = np.sin(frequency * x) * np.exp(-(x**2))
    fitted = net(bandwidth, width, seed).fit(x[:, None], y)
    return rms(fitted.predict(x[:, None]) - y) / rms(y)


def test_a_narrow_band_is_not_helped_by_width():
    assert error_of(0.1, 400) == pytest.approx(error_of(0.1, 50), rel=0.02)
    assert error_of(0.1, 400) > 0.9
    assert error_of(8.0, 400) < 0.01
    x = np.linspace(-1, 1, 300)[:, None]
    assert net(0.1, 400).fit(x, x[:, 0]).rank_ == net(0.1, 50).fit(x, x[:, 0]).rank_ < 12


def test_too_wide_a_band_needs_width():
    assert error_of(4.0, 60) < 0.5 * error_of(200.0, 60)
    assert error_of(200.0, 280) < 0.2 * error_of(200.0, 60)


@pytest.mark.parametrize("activation", ["tanh", "relu", "cos", "gauss"])
def test_leaving_one_out_in_closed_form_is_leaving_one_out(activation):
    random = np.random.default_rng(5)
    x, y = random.standard_normal((25, 2)), random.standard_normal(25)
    fitted = net(1.5, 10, ridge=1e-3, activation=activation).fit(x, y)
    phi = np.column_stack((fitted.features(x), np.ones(25)))
    penalty = np.diag([25 * 1e-3] * 10 + [0.0])
    left = []
    for row in range(25):
        others = np.arange(25) != row
        solution = np.linalg.solve(phi[others].T @ phi[others] + penalty, phi[others].T @ y[others])
        left.append(phi[row] @ solution - y[row])
    assert fitted.loo_error_ == pytest.approx(rms(np.array(left)) / y.std(), rel=1e-6)


def test_the_read_out_is_the_ridge_optimum_and_its_norm_obeys_the_budget():
    x = np.linspace(-1, 1, 80)[:, None]
    y = np.sin(9 * x[:, 0])
    fitted = net(4.0, 30, ridge=1e-4).fit(x, y)
    phi = fitted.features(x) - fitted.features(x).mean(0)
    gradient = phi.T @ (fitted.predict(x) - y) + 80 * 1e-4 * fitted.coefficients_
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    bound = bl.norm_budget(phi @ phi.T / 30, y - y.mean(), fitted.norm_)
    assert rms(fitted.predict(x) - y) == pytest.approx(bound, rel=1e-6)


def test_relu_only_rescales_with_the_band():
    x = np.linspace(-1, 1, 50)[:, None]
    y = np.sin(5 * x[:, 0])
    small, large = (net(band, 30, activation="relu", ridge=0.0).fit(x, y) for band in (0.5, 50.0))
    np.testing.assert_allclose(small.predict(x), large.predict(x), atol=1e-6)
    assert small.norm_ == pytest.approx(100 * large.norm_, rel=1e-3)


@pytest.mark.parametrize("criterion", ["loo", "bound"])
def test_the_chosen_band_grows_with_the_frequency(criterion):
    x = np.linspace(-1, 1, 120)
    grid = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    chosen = []
    for frequency in (3.0, 25.0):
        selected = bl.select_bandwidth(x[:, None], np.sin(frequency * x), bandwidths=grid, criterion=criterion, radius=300.0, **(
            {"width": 50} if criterion == "loo" else {}
        ))  # fmt: skip
        assert set(selected.scores) == set(grid)
        chosen.append(selected.bandwidth)
    assert chosen[0] < chosen[1]


def test_matrix_targets_and_bytes():
    random = np.random.default_rng(6)
    x, y = random.standard_normal((40, 3)), random.standard_normal((40, 2))
    both = net(1.0, 20).fit(x, y)
    for column in range(2):
        np.testing.assert_allclose(both.predict(x)[:, column], net(1.0, 20).fit(x, y[:, column]).predict(x), atol=1e-8)
    assert both.nbytes == 12 + 4 * (3 + 3 + 40 + 2)


def test_kinks_fall_in_the_data():
    x = np.random.default_rng(7).uniform(5, 6, (50, 1))
    fitted = net(3.0, 200, biases="data").fit(x, x[:, 0])
    standard = (x[:, 0] - x.mean()) / x.std()
    kinks = fitted.biases_ / fitted.weights_[0]
    assert standard.min() - 1e-9 <= kinks.min() <= kinks.max() <= standard.max() + 1e-9


@parametrize_with_checks([bl.RandomNet(width=20)])
def test_random_net_is_an_estimator(estimator, check):
    check(estimator)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bl.norm_budget([[1.0, 2.0]], [1.0], 1.0), "symmetric"),
        (lambda: bl.norm_budget([[1.0, 2.0], [3.0, 1.0]], [1.0, 1.0], 1.0), "symmetric"),
        (lambda: bl.norm_budget(-EYE, [1.0] * 3, 1.0), "positive semidefinite"),
        (lambda: bl.norm_budget(EYE, [1.0], 1.0), "target must have shape"),
        (lambda: bl.norm_budget(EYE, [1.0, math.nan, 0.0], 1.0), "target holds NaN"),
        (lambda: bl.norm_budget(EYE, [1.0] * 3, -1.0), "radius must be a number"),
        (lambda: bl.norm_budget("gram", [1.0], 1.0), "array of numbers"),
        (lambda: bl.parseval(2 * EYE, [1.0] * 3, [True] * 3), "no Parseval frame"),
        (lambda: bl.parseval(EYE, [0.0] * 3, [True] * 3), "must not be zero"),
        (lambda: bl.parseval(EYE, [1.0] * 3, [True]), "kept must hold one truth value"),
        (lambda: bl.parseval_frame(np.ones((3, 5))), "span 1 of 3 dimensions"),
        (lambda: bl.cosine_tail([0.0, 0.0], 0.1, 1.0), "must not be zero"),
        (lambda: bl.cosine_tail([1.0], 0.0, 1.0), "spacing must be"),
        (lambda: bl.select_bandwidth(EYE, [1.0] * 3, bandwidths=[]), "at least one bandwidth"),
        (lambda: bl.select_bandwidth(EYE, [1.0] * 3, criterion="guess"), "criterion must be one of"),
        (lambda: bl.select_bandwidth(EYE, [1.0] * 3, criterion="bound"), "must not be constant"),
        (lambda: net(0.0).fit(EYE, [0.0, 1.0, 2.0]), "bandwidth must be a number"),
        (lambda: net(1.0, activation="sigmoid").fit(EYE, [0.0, 1.0, 2.0]), "activation must be one of"),
        (lambda: bl.mean_gram(EYE, bandwidth=1.0, samples=0), "samples must be an integer"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(InvalidArgument, match=said):
        call()
