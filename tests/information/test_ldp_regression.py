"""Privacy checked exactly, guarantees that hold without chance, and rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.utils.estimator_checks import parametrize_with_checks

from tersor.errors import InvalidArgument, TersorError
from tersor.information.ldp_regression import (
    BallRandomiser,
    MomentMechanism,
    MomentSums,
    NLDPRegression,
    PrivateIHT,
    error_rate,
    gaussian_delta,
    gaussian_shift,
    soft_threshold,
)

D, K = 6, 2
TRUTH = np.array([0.8, 0.0, -0.6, 0.0, 0.0, 0.0])


def users(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, D))
    return x, x @ TRUTH + 0.1 * random.normal(size=n)


def noisy_sums(seed: int, n: int, mechanism: MomentMechanism) -> MomentSums:
    """Messages of ``n`` virtual users with white Gaussian inputs, drawn from the law of their sum."""
    random = np.random.default_rng(seed)
    gram = stats.wishart(df=n, scale=np.eye(D)).rvs(random_state=random)
    cross = gram @ TRUTH + 0.1 * np.linalg.cholesky(gram) @ random.normal(size=D)
    return mechanism.add_noise(MomentSums(None if mechanism.public else gram, cross, n), random)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("dimension", [1, 2, 5, 20])
@pytest.mark.parametrize("seed", range(5))
def test_the_randomiser_never_tells_two_vectors_apart_by_more_than_its_epsilon(epsilon, dimension, seed):
    random = np.random.default_rng(seed)
    mechanism = BallRandomiser(epsilon, 2.0, dimension)
    messages = random.normal(size=(200, dimension))
    first, second = random.normal(size=(2, dimension)) * random.choice([0.0, 0.3, 10.0], size=(2, 1))
    ratios = mechanism.density(messages, first) / mechanism.density(messages, second)
    assert ratios.max() <= math.exp(epsilon) * (1 + 1e-12)
    # Opposite vectors of full length are what the guarantee is for.
    worst = mechanism.density(messages, 1e6 * messages[0]) / mechanism.density(messages, -1e6 * messages[0])
    assert worst.max() == pytest.approx(math.exp(epsilon), rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 3, 20])
def test_messages_follow_the_density_that_the_guarantee_speaks_of(dimension):
    mechanism, vector = BallRandomiser(1.0, 2.0, dimension), np.full(dimension, 0.5)
    messages = mechanism.randomise(np.tile(vector, (20000, 1)), np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(messages, axis=1), mechanism.length)
    toward = messages @ vector > 0
    expected = float(mechanism.density(vector[None], vector)[0]) / 2
    assert toward.mean() == pytest.approx(expected, abs=4 * 0.5 / 20000**0.5)
    # Within a half sphere all directions are alike: other coordinates are symmetric.
    if dimension > 1:
        other = messages @ np.concatenate([[1.0, -1.0], np.zeros(dimension - 2)])
        assert abs(other.mean()) < 4 * other.std() / 20000**0.5


@pytest.mark.parametrize("length", [0.0, 0.7, 2.0])
def test_the_randomiser_has_no_bias(length):
    vector = length * np.array([0.6, 0.0, 0.8])
    messages = BallRandomiser(2.0, 2.0, 3).randomise(np.tile(vector, (100000, 1)), np.random.default_rng(1))
    np.testing.assert_allclose(messages.mean(0), vector, atol=4 * messages.std() / 100000**0.5)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("shift", [0.1, 0.5, 2.0])
def test_gaussian_privacy_is_the_integral_that_defines_it(epsilon, shift):
    def excess(z: float) -> float:
        return max(stats.norm.pdf(z, shift) - math.exp(epsilon) * stats.norm.pdf(z), 0.0)

    kink = epsilon / shift + shift / 2
    found, _ = integrate.quad(excess, kink, kink + 12 + shift, epsabs=1e-13)
    assert gaussian_delta(epsilon, shift) == pytest.approx(found, abs=1e-10)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 8.0, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
def test_the_exact_noise_spends_the_whole_budget_and_the_classic_less(epsilon, delta):
    exact = gaussian_shift(epsilon, delta)
    assert gaussian_delta(epsilon, exact) == pytest.approx(delta, rel=1e-6)
    if epsilon <= 1:
        classic = gaussian_shift(epsilon, delta, "classic")
        assert classic < exact
        assert gaussian_delta(epsilon, classic) < delta


@pytest.mark.parametrize("mechanism", ["analytic", "classic"])
@pytest.mark.parametrize("public", [True, False])
def test_a_whole_message_is_within_its_budget_for_any_two_users(mechanism, public):
    made = MomentMechanism(4, 1.0, 1e-5, 2.0, 1.0, 1.5, mechanism, public)
    random = np.random.default_rng(0)
    quiet = np.random.default_rng(1)
    x, y = 3 * random.normal(size=(300, 4)), 3 * random.normal(size=300)
    # Without noise, by averaging it out of what the mechanism would send: two draws with opposite noise do not exist, so clip by hand.
    short = x * np.minimum(1, 2.0 / np.linalg.norm(x, axis=1))[:, None]
    cross = np.clip(x, -1, 1) * np.clip(y, -1.5, 1.5)[:, None]
    upper = np.triu_indices(4)
    for i, j in quiet.integers(300, size=(300, 2)):
        gram_moved = np.linalg.norm((np.outer(short[i], short[i]) - np.outer(short[j], short[j]))[upper])
        cross_moved = np.linalg.norm(cross[i] - cross[j])
        assert gram_moved <= made.gram_sensitivity * (1 + 1e-12)
        assert cross_moved <= made.cross_sensitivity * (1 + 1e-12)
        shift = math.hypot(cross_moved / made.cross_noise, 0.0 if public else gram_moved / made.gram_noise)
        assert gaussian_delta(1.0, shift) <= 1e-5 * (1 + 1e-6)


def test_published_noise_is_what_classic_adds():
    made = MomentMechanism(5, 1.0, 1e-5, 2.0, 3.0, 4.0, "classic")
    assert made.gram_noise**2 == pytest.approx(32 * 2.0**4 * math.log(2.5e5))
    assert made.cross_noise**2 == pytest.approx(32 * 5 * 9 * 16 * math.log(2.5e5))


def test_messages_are_symmetric_and_average_to_the_moments():
    made = MomentMechanism(3, 8.0, 1e-2, 2.0, 1.0, 1.0)
    x, y = np.tile([0.5, -0.5, 0.0], (40000, 1)), np.full(40000, 0.7)
    gram, cross = made.privatise(x, y, np.random.default_rng(0))
    assert gram is not None
    np.testing.assert_array_equal(gram, gram.swapaxes(1, 2))
    np.testing.assert_allclose(gram.mean(0), np.outer(x[0], x[0]), atol=4 * made.gram_noise / 200)
    np.testing.assert_allclose(cross.mean(0), x[0] * 0.7, atol=4 * made.cross_noise / 200)
    assert gram.std(0) == pytest.approx(np.full((3, 3), made.gram_noise), rel=0.05)


def test_noise_of_many_users_drawn_at_once_has_the_law_of_their_sum():
    made = MomentMechanism(2, 1.0, 1e-5, 1.0, 1.0, 1.0)
    x, y = np.zeros((50, 2)), np.zeros(50)
    each = [made.collect(x, y, np.random.default_rng(seed), chunk=7) for seed in range(300)]
    once = [made.add_noise(MomentSums(np.zeros((2, 2)), np.zeros(2), 50), np.random.default_rng(1000 + seed)) for seed in range(300)]
    for pick in (lambda sums: sums.gram[0, 0], lambda sums: sums.gram[0, 1], lambda sums: sums.cross[1]):
        assert stats.ks_2samp([pick(sums) for sums in each], [pick(sums) for sums in once]).pvalue > 1e-3


def test_sums_of_disjoint_users_add():
    made = MomentMechanism(D, 1.0, 1e-5, 3.0, 3.0, 3.0)
    x, y = users(0, 40)
    parts = [made.collect(x[part], y[part], np.random.default_rng(3)) for part in (slice(0, 20), slice(20, 40))]
    whole = parts[0] + parts[1]
    assert whole.count == 40
    np.testing.assert_allclose(whole.cross, parts[0].cross + parts[1].cross)
    with pytest.raises(InvalidArgument, match="different kinds"):
        _ = whole + MomentSums(None, np.zeros(D), 1)


@pytest.mark.parametrize("seed", range(50))
def test_soft_thresholds_keep_their_promise_without_chance(seed):
    random = np.random.default_rng(seed)
    k = int(random.integers(1, 6))
    truth = np.zeros(20)
    truth[random.permutation(20)[:k]] = random.normal(size=k)
    noisy = truth + random.uniform(-1, 1, size=20) * random.uniform(0, 2)
    threshold = float(np.abs(noisy - truth).max())
    found = soft_threshold(noisy, threshold)
    assert not found[truth == 0].any()
    assert np.abs(found - truth).max() <= 2 * threshold + 1e-12
    assert np.linalg.norm(found - truth) <= 2 * math.sqrt(k) * threshold + 1e-12


def test_the_error_falls_with_the_root_of_the_users():
    model = NLDPRegression(epsilon=1.0)
    errors = {}
    for n in (10**8, 10**10):
        made = model.mechanism_for(D, n)
        errors[n] = np.mean([np.linalg.norm(model.fit_messages(noisy_sums(seed, n, made), made).coef_ - TRUTH) for seed in range(5)])
    slope = math.log(errors[10**10] / errors[10**8]) / math.log(100)
    assert -0.65 < slope < -0.35


@pytest.mark.parametrize("seed", range(5))
def test_the_theoretical_threshold_covers_the_noise(seed):
    model, n = NLDPRegression(epsilon=1.0), 10**9
    made = model.mechanism_for(D, n)
    sums = noisy_sums(seed, n, made)
    raw = np.linalg.solve(sums.gram, sums.cross)
    fitted = model.fit_messages(sums, made)
    assert np.abs(raw - TRUTH).max() <= fitted.threshold_
    assert set(np.flatnonzero(fitted.coef_)) <= {0, 2}


def test_public_inputs_help():
    model, n = NLDPRegression(epsilon=1.0), 10**8
    x, _ = users(9, 20000)
    private, public = (model.mechanism_for(D, n, flag) for flag in (False, True))
    errors = [
        np.mean([np.linalg.norm(NLDPRegression().fit_messages(noisy_sums(seed, n, made), made, inputs).coef_ - TRUTH) for seed in range(4)])
        for made, inputs in ((private, None), (public, x))
    ]  # fmt: skip
    assert errors[1] < 0.7 * errors[0]


def test_too_few_users_are_reported_and_not_hidden():
    x, y = users(0, 500)
    with pytest.raises(TersorError, match="too few users for this epsilon"):
        NLDPRegression(random_state=0).fit(x, y)
    with pytest.warns(RuntimeWarning, match="mostly noise"):
        fitted = NLDPRegression(random_state=0, indefinite="floor").fit(x, y)
    assert fitted.smallest_eigenvalue_ < 0


def test_without_noise_to_speak_of_the_truth_is_found():
    x, y = users(0, 20000)
    fitted = NLDPRegression(epsilon=50.0, delta=0.5, threshold=0.05, random_state=0).fit(x, y)
    np.testing.assert_allclose(fitted.coef_, TRUTH, atol=0.2)


def test_interactive_needs_far_fewer_users():
    x, y = users(0, 60000)
    fitted = PrivateIHT(epsilon=1.0, n_nonzero=3, random_state=0).fit(x, y)
    assert np.linalg.norm(fitted.coef_ - TRUTH) < 0.3
    assert (np.count_nonzero(fitted.path_, axis=1) <= 3).all()
    assert fitted.score(x, y) > 0.8
    assert fitted.path_.shape == (16, D)


def test_interactive_gradients_stay_in_the_ball():
    x, y = users(1, 300)
    fitted = PrivateIHT(random_state=0).fit(x, y)
    assert np.linalg.norm(fitted.gradients(100 * x, y, TRUTH), axis=1).max() <= fitted.randomiser_.radius * (1 + 1e-12)
    np.testing.assert_allclose(fitted.gradients(x[:1], y[:1], TRUTH)[0] / (x[0] @ TRUTH - y[0]), x[0])


@parametrize_with_checks([NLDPRegression(indefinite="floor", random_state=0), PrivateIHT(random_state=0)])
@pytest.mark.filterwarnings("ignore:the noisy second moment")
def test_scikit_learn_accepts_the_estimators(estimator, check):
    check(estimator)


def test_lower_bounds_are_below_upper_ones():
    for n, d, k in [(10**8, 20, 3), (10**10, 100, 5)]:
        kinds = ("nldp_upper", "nldp_public_upper", "interactive_lower", "interactive_upper")
        rates = {kind: error_rate(kind, n, d, k, 1.0) for kind in kinds}
        assert rates["interactive_lower"] <= rates["interactive_upper"]
        assert error_rate("non_private", n, d, k, 1.0) < rates["interactive_lower"] <= rates["nldp_public_upper"] < rates["nldp_upper"]
    assert error_rate("nldp_lower", 10**8, 20, 3, 1.0) == pytest.approx(math.sqrt(60 * math.log(20)) / 1e4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_shift(0.0, 1e-5), "epsilon must be positive"),
        (lambda: gaussian_shift(1.0, 0.0), "delta must be positive"),
        (lambda: gaussian_shift(2.0, 1e-5, "classic"), "proven up to epsilon = 1"),
        (lambda: MomentMechanism(3, 2.5, 1e-5, 1, 1, 1, "classic"), "got 1.25"),
        (lambda: MomentMechanism(3, 1.0, 1e-5, 0.0, 1.0, 1.0), "radius must be positive"),
        (lambda: BallRandomiser(1.0, 1.0, 3).randomise(np.zeros((2, 4)), np.random.default_rng(0)), "must have 3 columns"),
        (lambda: BallRandomiser(1.0, 1.0, 2).randomise([[np.nan, 0.0]], np.random.default_rng(0)), "NaN or Inf"),
        (lambda: NLDPRegression(threshold=-1.0, indefinite="floor").fit(*users(0, 50)), "threshold must be a number of at least 0"),
        (lambda: PrivateIHT(n_nonzero=0).fit(*users(0, 50)), "n_nonzero must be an integer"),
        (lambda: error_rate("nldp_upper", 10, 3, 4, 1.0), "k must be at most d = 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:the noisy second moment")
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
