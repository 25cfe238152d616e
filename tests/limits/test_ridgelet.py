"""Networks from the ridgelet transform: their mean is the filtered function, whose filter has closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import gammaincc

from tersor.errors import InvalidArgument
from tersor.limits import bandlimited as bl

X = np.linspace(-7, 7, 281)
SPACING = float(X[1] - X[0])
TARGET = np.cos(2 * X) * np.exp(-(X**2) / 2)


@pytest.mark.parametrize(("activation", "dimension", "shape", "scale"), [("gauss", 1, 1.0, 1), ("relu", 1, 1.0, 2), ("gauss", 2, 0.5, 1)])
def test_the_share_of_a_frequency_is_an_incomplete_gamma_function(activation, dimension, shape, scale):
    t = np.linspace(0, 5, 40).reshape(4, 10)
    shares = bl.band_share(3 * t, 3.0, activation, dimension)
    np.testing.assert_allclose(shares, gammaincc(shape, t**2 / scale), atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gauss", "cos"])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_shares_fall_from_one_to_nothing(activation, dimension):
    shares = bl.band_share(np.linspace(0, 30, 200), 2.0, activation, dimension)
    assert shares[0] == pytest.approx(1)
    assert (np.diff(shares) <= 1e-12).all()
    assert shares.min() >= 0
    assert shares[-1] < 1e-12


@pytest.mark.parametrize(("activation", "band"), [("gauss", 3.0), ("cos", 3.0), ("tanh", 3.0), ("relu", 1.0)])
def test_the_mean_network_is_what_the_band_leaves(activation, band):
    part = bl.band_part(TARGET, SPACING, band, activation)
    nets = np.stack([
        bl.ridgelet_network(X[:, None], TARGET, SPACING, bandwidth=band, width=800, activation=activation, seed=seed)(X[100:181:10, None])
        for seed in range(60)
    ])  # fmt: skip
    off = (nets.mean(0) - part[100:181:10]) / (nets.std(0, ddof=1) / math.sqrt(len(nets)))
    assert np.abs(off).max() < 4.5
    # Not vacuous: without the right constant the means would be several deviations off.
    assert (np.abs(part).max() > 4.5 * nets.std(0) / math.sqrt(len(nets))).all() or activation == "relu"


def test_so_it_is_in_the_plane():
    axis = np.linspace(-4.5, 4.5, 31)
    step = float(axis[1] - axis[0])
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    values = np.cos(points[:, 0]) * np.exp(-(points**2).sum(1) / 2)
    part = bl.band_part(values.reshape(31, 31), step, 2.0, "gauss").ravel()
    seen = [480, 482, 420, 484]
    nets = np.stack([
        bl.ridgelet_network(points, values, step**2, bandwidth=2.0, width=400, activation="gauss", seed=seed)(points[seen])
        for seed in range(40)
    ])  # fmt: skip
    error = nets.std(0, ddof=1) / math.sqrt(len(nets))
    assert (np.abs(nets.mean(0) - part[seen]) < 4.5 * error).all()
    assert error[0] < abs(part[480]) / 10


def test_four_times_the_width_halves_the_distance():
    x, y, step = X[::2, None], TARGET[::2], 2 * SPACING
    part = bl.band_part(y, step, 3.0, "gauss")[::10]

    def apart(width):
        nets = (bl.ridgelet_network(x, y, step, bandwidth=3.0, width=width, activation="gauss", seed=seed) for seed in range(100))
        return np.mean([np.square(net(x[::10]) - part).mean() for net in nets])

    # A few modes make up the distance, so that each of 100 networks counts little more than once.
    assert apart(30) / apart(480) == pytest.approx(16, rel=0.5)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gauss", "cos"])
@pytest.mark.parametrize("seed", range(20))
def test_the_error_lies_between_the_energy_beyond_and_its_root(activation, seed):
    random = np.random.default_rng(seed)
    values = random.standard_normal((12, 16) if seed % 2 else 64)
    band = float(10 ** random.uniform(-1, 2))
    error, energy = bl.band_error(values, 0.3, band, activation)
    assert energy - 1e-12 <= error <= math.sqrt(max(energy, 0)) + 1e-12
    left = bl.band_part(values, 0.3, band, activation) - values
    assert error == pytest.approx(float(np.linalg.norm(left) / np.linalg.norm(values)), abs=1e-12)


@pytest.mark.parametrize("cutoff", [0.5, 2.0, 3.5])
def test_for_cosines_it_is_the_cosine_tail(cutoff):
    assert bl.band_error(TARGET, SPACING, cutoff, "cos")[0] == pytest.approx(bl.cosine_tail(TARGET, SPACING, cutoff), abs=1e-12)


def test_one_seed_one_network_and_all_weights_in_the_band():
    nets = [bl.ridgelet_network(np.zeros((1, 3)), [1.0], 1e-3, bandwidth=5.0, width=500, seed=seed) for seed in (3, 3, 4)]
    assert (nets[0].coefficients == nets[1].coefficients).all()
    assert (nets[0].weights != nets[2].weights).any()
    norms = np.linalg.norm(nets[0].weights, axis=0)
    assert 4.5 < norms.max() <= 5
    # Uniform in the ball: an eighth of the weights within half of the radius.
    assert (norms < 2.5).mean() == pytest.approx(1 / 8, abs=0.06)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bl.ridgelet_network(X[:, None], TARGET, SPACING, bandwidth=20.0, width=5), "use a finer grid"),
        (lambda: bl.ridgelet_network(X[:, None], TARGET[:-1], SPACING, bandwidth=1.0, width=5), "values must have shape"),
        (lambda: bl.ridgelet_network(X[:, None], TARGET, 0.0, bandwidth=1.0, width=5), "volume must be"),
        (lambda: bl.ridgelet_network(X[:, None], TARGET, SPACING, bandwidth=1.0, width=0), "width must be an integer"),
        (lambda: bl.ridgelet_network(X[:, None], TARGET, SPACING, bandwidth=1.0, width=5, activation="sign"), "activation must be one of"),
        (lambda: bl.ridgelet_network(X[:, None], TARGET, SPACING, bandwidth=1.0, width=5)(X[:5]), "inputs must have"),
        (lambda: bl.band_share([math.nan], 1.0), "frequencies holds NaN"),
        (lambda: bl.band_share([1.0], 0.0), "bandwidth must be"),
        (lambda: bl.band_part(np.zeros((2, 2, 2)), 1.0, 1.0), "one or two axes"),
        (lambda: bl.band_error(np.zeros(4), 1.0, 1.0), "must not be zero"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(InvalidArgument, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
