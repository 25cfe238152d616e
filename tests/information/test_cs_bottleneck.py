"""Cauchy-Schwarz estimators against closed forms and their own axioms, and the regressor against scikit-learn's checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1
from sklearn.utils.estimator_checks import parametrize_with_checks

from tersor.errors import InvalidArgument
from tersor.information import (
    CSBottleneck,
    cs_bottleneck_loss,
    cs_conditional,
    cs_divergence,
    cs_mutual_information,
    effective_neighbours,
    kernel_width,
    normalised_cs_information,
)
from tersor.information.cauchy_schwarz import conditional_divergence

SMALL = {"hidden_size": 16, "code_size": 4, "epochs": 40, "learning_rate": 0.01}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_of_gaussians_is_the_closed_form():
    # Smoothing by the kernel widens both variances by its square; what is left is a quotient of normal densities.
    x, y = normal(0, 4000, 1), 1.5 + 0.5 * normal(1, 4000, 1)
    first, second, between = 2 * (1 + 0.25), 2 * (0.25 + 0.25), (1 + 0.25) + (0.25 + 0.25)
    expected = np.log(between) + 1.5**2 / between - 0.5 * np.log(first) - 0.5 * np.log(second)
    width = 0.25**0.5 * 2**0.5  # the kernel is a product of two densities, each smoothed by 0.5
    assert float(cs_divergence(x, y, width)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_zero_symmetric_and_grows_with_distance(seed):
    x, shift = normal(seed, 50, 3), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert abs(float(cs_divergence(x, x[torch.randperm(50, generator=torch.Generator().manual_seed(0))]))) < 1e-12
    assert float(cs_divergence(x, x + shift)) == pytest.approx(float(cs_divergence(x + shift, x)))
    found = [float(cs_divergence(x, x + scale * shift)) for scale in (0.1, 0.5, 1.0, 3.0)]
    assert found == sorted(found)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
def test_the_semidefinite_estimator_is_a_divergence(seed, width):
    x, y, y_hat = normal(seed, 30, 2), normal(seed + 100, 30, 1), normal(seed + 200, 30, 1)
    found = float(cs_conditional(x, y, y_hat, width_x=width))
    assert found >= 0
    assert found == pytest.approx(float(cs_conditional(x, y_hat, y, width_x=width)))
    assert abs(float(cs_conditional(x, y, y, width_x=width))) < 1e-9


@pytest.mark.parametrize("estimator", ["psd", "paper"])
def test_conditional_divergence_grows_with_noise(estimator):
    x, noise = normal(0, 128, 1), normal(1, 128, 1)
    y = torch.sin(x)
    found = [float(cs_conditional(x, y, y + scale * noise, estimator=estimator)) for scale in (0.0, 0.1, 0.3, 1.0, 3.0)]
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert found == sorted(found)


def test_both_estimators_agree_where_the_inputs_are_spread_evenly():
    angle = torch.arange(40, dtype=torch.float64) * 2 * torch.pi / 40
    circle, y = torch.stack([angle.cos(), angle.sin()], 1), normal(0, 40, 1)
    found = [float(cs_conditional(circle, y, y + 0.5, estimator=estimator)) for estimator in ("psd", "paper")]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def free_fit(estimator: str, width: float) -> tuple[float, float]:
    """The divergence and the mean squared error after predictions were fitted one by one, from the truth with noise."""
    x, y = normal(0, 48, 5), normal(1, 48, 1)
    y_hat = (y + 0.5 * normal(2, 48, 1)).requires_grad_(True)
    optimizer = torch.optim.Adam([y_hat], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss = cs_conditional(x, y, y_hat, width_x=width, estimator=estimator)
        loss.backward()
        optimizer.step()
    return float(loss.detach()), float((y_hat.detach() - y).square().mean())


def test_the_published_estimator_is_minimised_by_wrong_predictions_and_the_semidefinite_one_by_right_ones():
    published, semidefinite = free_fit("paper", 1.0), free_fit("psd", 1.0)
    assert published[0] < -1e-3
    assert published[1] > 10 * semidefinite[1]
    assert abs(semidefinite[0]) < 1e-4


def test_the_published_script_compares_whole_batches_where_targets_are_vectors():
    # Its kernel takes the squared norm of a vector of n targets for that of one sample: one number, whatever the rows.
    x, y, y_hat = normal(0, 40, 3), normal(1, 40), normal(2, 40)
    inputs = torch.exp(-torch.cdist(x, x).square() / 2)
    same = torch.ones(40, 40, dtype=torch.float64)
    between = torch.exp(-(y - y_hat).square().sum() / 2) * same
    for estimator in ("psd", "paper"):
        found = conditional_divergence(inputs, same, same, between, estimator)
        assert float(found) == pytest.approx(float((y - y_hat).square().sum()))
    with pytest.raises(InvalidArgument, match=r"y must be a floating-point tensor \[samples, features\]"):
        cs_conditional(x, y, y_hat)


def test_information_of_a_constant_is_nothing_and_of_itself_the_most():
    x = normal(0, 128, 4)
    constant, whole, part = torch.ones_like(x), x, x[:, :2]
    independent = normal(1, 128, 4)
    found = [float(cs_mutual_information(x, t)) for t in (constant, independent, part, whole)]
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found == sorted(found)
    assert float(normalised_cs_information(x, x)) == pytest.approx(1)


def test_information_of_a_permutation_is_the_bias_of_few_samples():
    x = normal(0, 256, 1)
    permuted = x[torch.randperm(256, generator=torch.Generator().manual_seed(1))]
    assert float(cs_mutual_information(x, permuted)) < 0.1 * float(cs_mutual_information(x, x))


@pytest.mark.parametrize("seed", range(3))
def test_information_is_that_of_the_sums_written_out(seed):
    x, t = normal(seed, 9, 2), normal(seed + 9, 9, 3)
    k, q = (torch.exp(-torch.cdist(z, z).square() / 2) for z in (x, t))
    joint, product, crossed = (k * q).sum() / 81, k.sum() * q.sum() / 9**4, (k @ q).sum() / 9**3
    assert float(cs_mutual_information(x, t)) == pytest.approx(float((joint * product / crossed**2).log()))


def test_information_does_not_depend_on_order_or_direction():
    x, t = normal(0, 60, 3), normal(1, 60, 3)
    t[:, 0] += x[:, 0]
    rotation, order = torch.linalg.qr(normal(2, 3, 3)).Q, torch.randperm(60, generator=torch.Generator().manual_seed(3))
    expected = float(cs_mutual_information(x, t))
    assert float(cs_mutual_information(x[order], t[order])) == pytest.approx(expected)
    assert float(cs_mutual_information(x @ rotation, t @ rotation.T)) == pytest.approx(expected)


def test_gradients_are_those_of_finite_differences():
    x, y = normal(0, 8, 2), normal(1, 8, 1)
    y_hat, t = (part.requires_grad_(True) for part in (normal(2, 8, 1), normal(3, 8, 2)))
    assert torch.autograd.gradcheck(lambda a, b: cs_bottleneck_loss(x, a, y, b, beta=0.3), (t, y_hat))


def test_widths_by_rule():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert kernel_width(x, "median") == 2
    assert kernel_width(x, "nearest") == pytest.approx(4 / 3)
    assert kernel_width(torch.zeros(4, 2), "median") == 1
    assert effective_neighbours(x, 1e-3) == pytest.approx(1)
    assert effective_neighbours(x, 1e3) == pytest.approx(3, abs=1e-4)


@parametrize_with_checks([CSBottleneck(**SMALL)])
def test_scikit_learn_accepts_the_regressor(estimator, check):
    check(estimator)


def test_the_regressor_learns_a_curve_and_reports_its_plane():
    x, y = make_friedman1(300, 6, noise=0.5, random_state=0)
    model = CSBottleneck(width_x=2.0, epochs=60).fit(x[:200], y[:200])
    assert model.score(x[200:], y[200:]) > 0.6
    kept, told = model.information_plane(x[200:], y[200:])
    assert 0 < kept < 1
    assert told > 0.5
    assert model.transform(x).shape == (300, 16)
    assert 1 < model.neighbours_ < 128


def test_more_weight_keeps_less_of_the_input():
    x, y = make_friedman1(200, 6, noise=0.5, random_state=1)
    models = [CSBottleneck(beta, width_x=2.0, epochs=40, learning_rate=0.01).fit(x, y) for beta in (0.0, 0.1, 3.0)]
    kept = [model.information_plane(x, y)[0] for model in models]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < 0.8 * kept[0]


def test_the_gradient_is_that_of_the_squared_error():
    x, y = make_friedman1(60, 5, random_state=0)
    model = CSBottleneck(**SMALL).fit(x, y)
    step = 1e-5 * x.std(0)
    scale = y.std() ** 2
    for column in range(5):
        moved = [np.square(model.predict(x + sign * step * np.eye(5)[column]) - y) / scale for sign in (1, -1)]
        np.testing.assert_allclose(model.gradient(x, y)[:, column], (moved[0] - moved[1]) / 2e-5, rtol=1e-3, atol=1e-5)


def test_an_attack_stays_in_its_box_and_does_what_it_is_for():
    x, y = make_friedman1(240, 5, noise=0.1, random_state=0)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    model = CSBottleneck(epochs=8, random_state=0).fit(x[:160], y[:160])
    error = {}
    for name, options in {"once": {}, "in steps": {"step": 0.05, "iterations": 5}, "in vain": {"step": 0.0, "iterations": 3}}.items():
        attacked = model.attack(x[160:], y[160:], 0.2, **options)
        assert np.abs(attacked - x[160:]).max() <= 0.2 + 1e-12
        error[name] = np.square(model.predict(attacked) - y[160:]).mean()
    np.testing.assert_allclose(model.attack(x, y, 0.1), x + 0.1 * np.sign(model.gradient(x, y)))
    assert error["in vain"] == pytest.approx(np.square(model.predict(x[160:]) - y[160:]).mean())
    assert error["in vain"] < min(error["once"], error["in steps"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": -1.0}, "epsilon must be"),
        ({"epsilon": 1.0, "step": -0.1}, "step must be"),
        ({"epsilon": 1.0, "iterations": 0}, "iterations"),
    ],
)
def test_an_impossible_attack_is_refused(options, said):
    with pytest.raises(InvalidArgument, match=said):
        CSBottleneck().attack(np.zeros((2, 2)), np.zeros(2), **options)


def test_fitting_leaves_the_global_generators_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    x, y = make_friedman1(40, 5, random_state=0)
    first, second = (CSBottleneck(**SMALL, random_state=seed).fit(x, y).predict(x) for seed in (0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be a number of at least 0"),
        ({"hidden_size": 0}, "hidden_size must be an integer"),
        ({"width_x": -1.0}, "kernel width"),
        ({"width_y": "wide"}, "a kernel width must be one of"),
        ({"estimator": "best"}, "estimator must be one of"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        CSBottleneck(**options).fit(np.eye(6), np.arange(6.0))


def test_bad_samples_are_refused():
    with pytest.raises(InvalidArgument, match="t holds NaN or Inf"):
        cs_mutual_information(torch.zeros(3, 1), torch.full((3, 1), torch.nan))
    with pytest.raises(InvalidArgument, match=r"y_hat must be \[3, 1\]"):
        cs_conditional(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(4, 1))
