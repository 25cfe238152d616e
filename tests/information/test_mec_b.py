"""Couplings and bottlenecks against brute force on small alphabets, and the invariant of the coding game."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from tersor.errors import InvalidArgument
from tersor.information import Coupling, GridWorld, MarkovCodingGame, ebim, entropy, mec, mec_b, soft_policy, uniform_quantiser
from tersor.information.grid_world import MarkovProcess

THREE = [0.7, 0.2, 0.1]
# Rate and the most information of any code, random ones included, found by a constrained global optimiser.
KNOWN = [(0.1, 0.0443), (0.3, 0.2003), (0.5, 0.476), (0.6, 0.511), (0.8, 0.753), (0.9, 0.885), (1.0, 0.921), (1.1, 1.030), (1.15, 1.134)]


def laws(seed: int, n: int, count: int = 1, concentration: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(n, concentration), size=count)


def binary_entropy(p: float) -> float:
    return entropy([p, 1 - p])


def least_entropy(p: np.ndarray, q: np.ndarray) -> float:
    """Over all vertices of the polytope of couplings: entropy is concave, so one of them has the least."""
    n, m = len(p), len(q)
    equations = np.zeros((n + m, n, m))
    for i, j in product(range(n), range(m)):
        equations[i, i, j] = equations[n + j, i, j] = 1
    flat, wanted, best = equations.reshape(n + m, -1), np.concatenate([p, q]), np.inf
    for cells in combinations(range(n * m), n + m - 1):
        solution, *_ = np.linalg.lstsq(flat[:, cells], wanted, rcond=None)
        if solution.min() > -1e-9 and np.abs(flat[:, cells] @ solution - wanted).max() < 1e-9:
            best = min(best, entropy(np.maximum(solution, 0)))
    return best


@pytest.mark.parametrize("method", ["max", "zero", "best"])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_couplings_are_within_their_bound_of_the_least_entropy(method, seed):
    p, q = laws(seed, 3, 2)
    found, least = mec(p, q, method).entropy, least_entropy(p, q)
    assert least - 1e-9 <= found <= least + np.log2(np.e) / np.e


@pytest.mark.parametrize("method", ["max", "zero", "best", "sla", "independent"])
@pytest.mark.parametrize(("n", "m"), [(1, 5), (7, 7), (512, 4), (40, 300)])
def test_marginals_are_exact(method, n, m):
    p, q = laws(n, n)[0], laws(m, m)[0]
    found = mec(p, q, method)
    assert found.joint.min() >= 0
    np.testing.assert_allclose(found.rows, p, atol=1e-12)
    np.testing.assert_allclose(found.columns, q, atol=1e-12)
    assert method == "independent" or (found.joint > 0).sum() <= n + m - 1
    assert max(entropy(p), entropy(q)) - 1e-9 <= found.entropy <= entropy(p) + entropy(q) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_successive_linear_programs_end_at_a_vertex_between_the_least_entropy_and_that_of_independence(seed):
    p, q = laws(seed, 3, 2)
    found = mec(p, q, "sla")
    assert (found.joint > 0).sum() <= 5
    assert least_entropy(p, q) - 1e-9 <= found.entropy < entropy(p) + entropy(q)
    assert (mec(p, q, "sla").joint == found.joint).all()


def test_greedy_couplings_beat_successive_linear_programs_on_average():
    pairs = [laws(seed, 8, 2) for seed in range(12)]
    assert np.mean([mec(p, q, "sla").entropy - mec(p, q).entropy for p, q in pairs]) > 0.1


def test_no_mass_is_lost_where_little_is_left():
    p = np.full(1000, 1e-3)
    q = np.array([1 - 5e-9, 5e-9])
    for method in ("max", "zero"):
        np.testing.assert_allclose(mec(p, q, method).columns, q, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_law_with_itself_is_coupled_perfectly(seed):
    p = laws(seed, 9)[0]
    np.testing.assert_allclose(mec(p, p[::-1]).entropy, entropy(p), atol=1e-9)


def test_looking_for_equals_first_finds_what_the_largest_first_misses():
    p, q = [0.5, 0.3, 0.2], [0.3, 0.25, 0.25, 0.2]
    assert mec(p, q, "zero").entropy == pytest.approx(entropy(q))
    assert mec(p, q, "best").entropy <= mec(p, q, "max").entropy


def test_greedy_couplings_are_a_bit_below_independent_ones():
    pairs = [laws(seed, 16, 2) for seed in range(100)]
    gains = [entropy(p) + entropy(q) - mec(p, q).entropy for p, q in pairs]
    assert np.mean(gains) > 1


@pytest.mark.parametrize("seed", range(60))
def test_the_greedy_code_keeps_its_guarantee(seed):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(int(random.integers(2, 40)), random.choice([0.1, 1.0, 10.0])))
    rate = float(random.uniform(0, entropy(p)))
    code = ebim(p, rate, close_gap=False)
    assert code.entropy == pytest.approx(entropy(p))  # T is a function of X
    assert code.information == pytest.approx(entropy(code.columns))
    assert entropy(code.columns) <= rate + 1e-9
    assert rate - code.information <= binary_entropy(np.sort(p)[-2]) + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_exact_code_is_the_best_partition(seed, share):
    p = laws(seed, 5)[0]
    rate = share * entropy(p)
    codes = (entropy(np.bincount(labels, weights=p)) for labels in product(range(5), repeat=5))
    best = max(bits for bits in codes if bits <= rate + 1e-12)
    exact = ebim(p, rate, close_gap=False, exact=True)
    assert exact.information == pytest.approx(best)
    assert ebim(p, rate, close_gap=False).information <= best + 1e-9


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("rate", "information"), KNOWN)
def test_closing_the_gap_reaches_the_known_optimum(rate, information, exact):
    assert ebim(THREE, rate, exact=exact).information == pytest.approx(information, abs=2e-3)


def test_the_greedy_code_alone_is_that_of_the_partitions():
    found = [ebim(THREE, rate, close_gap=False).information for rate, _ in KNOWN]
    assert found == pytest.approx([0, 0, *[binary_entropy(0.1)] * 3, *[binary_entropy(0.3)] * 4], abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_information_grows_with_the_rate_and_never_exceeds_it(seed):
    p = laws(seed, 7)[0]
    rates = np.linspace(0, entropy(p), 25)
    exact = [ebim(p, rate, exact=True) for rate in rates[::4]]
    assert (np.diff([code.information for code in exact]) > -1e-6).all()
    for rate in rates:
        code, plain = ebim(p, rate), ebim(p, rate, close_gap=False)
        np.testing.assert_allclose(code.rows, p, atol=1e-12)
        assert plain.information - 1e-9 <= code.information <= entropy(code.columns) + 1e-9 <= rate + 2e-9


def test_no_code_of_many_tried_is_better_than_the_closed_gap():
    # An independent search: random codes p(t|x), mixed with the trivial one until the rate is met.
    p, rate = np.array(THREE), 0.5
    random, best = np.random.default_rng(0), 0.0
    for conditional in random.dirichlet([0.3] * 3, size=(20000, 3)):
        code = Coupling(p[:, None] * conditional)
        if entropy(code.columns) <= rate:
            best = max(best, code.information)
    assert 0.4 < best <= ebim(p, rate, exact=True).information + 1e-9


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("compressor", ["ebim", "uniform"])
def test_the_composition_keeps_both_laws_and_the_data_processing_inequality(seed, compressor):
    p, q = laws(seed, 12)[0], laws(seed + 50, 5)[0]
    found = mec_b(p, q, 0.6 * entropy(p), compressor=compressor)
    np.testing.assert_allclose(found.whole.rows, p, atol=1e-12)
    np.testing.assert_allclose(found.whole.columns, q, atol=1e-12)
    assert entropy(found.encoder.columns) <= 0.6 * entropy(p) + 1e-9
    assert found.information <= min(found.encoder.information, found.decoder.information) + 1e-9


def test_a_rate_above_the_entropy_is_plain_coupling():
    p, q = laws(0, 12)[0], laws(1, 5)[0]
    np.testing.assert_allclose(mec_b(p, q, 10.0).joint, mec(p, q).joint, atol=1e-12)


def test_a_code_whose_law_fits_the_output_lets_everything_through():
    p, q = [0.4, 0.3, 0.2, 0.1], [0.5, 0.5]
    assert mec_b(p, q, 1.0, exact=True).information == pytest.approx(1.0, abs=1e-6)
    assert mec_b(p, q, 1.0).information < 1


def test_symbols_without_probability_stay_without():
    found = mec_b([0.5, 0.0, 0.3, 0.2], [0.4, 0.6], 0.8)
    assert found.joint[1].max() == 0


def test_the_uniform_quantiser_has_equal_bins_within_the_rate():
    code = uniform_quantiser(np.full(512, 1 / 512), 3.3)
    assert code.joint.shape[1] == 9
    assert entropy(code.columns) <= 3.3
    assert sorted(set((code.joint > 0).sum(0).tolist())) == [56, 57]


def test_soft_policy_is_a_fixed_point_and_turns_greedy():
    process = GridWorld().process()
    cold, hot = (soft_policy(process, temperature) for temperature in (1e-3, 10.0))
    np.testing.assert_allclose(process.transitions.sum(2), 1)
    # Beside the goal, above the trap, the greedy move is right; the hot policy hardly cares.
    assert cold[6].argmax() == 1
    assert np.mean([entropy(row) for row in cold]) < 1 < 1.8 < np.mean([entropy(row) for row in hot])
    assert soft_policy(process, 0.05, iterations=400) == pytest.approx(soft_policy(process, 0.05, iterations=800), abs=1e-6)


def test_soft_policy_of_one_choice_is_the_softmax_of_what_follows():
    transitions = np.zeros((3, 2, 3))
    transitions[0, 0, 1] = transitions[0, 1, 2] = transitions[1, :, 1] = transitions[2, :, 2] = 1
    process = MarkovProcess(transitions, np.array([0.0, 1.0, -1.0]), np.array([False, True, True]), 0)
    policy = soft_policy(process, 0.5, discount=0.9)
    assert policy[0, 0] == pytest.approx(1 / (1 + np.exp(-0.9 * 2 / 0.5)))


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("compressor", ["ebim", "uniform"])
def test_over_messages_the_agent_acts_as_it_would_without_one(rate, compressor):
    process = GridWorld().process()
    game = MarkovCodingGame(process, np.full(32, 1 / 32), rate, temperature=0.05, compressor=compressor)
    for seed in range(10):
        belief = laws(seed, 32, concentration=0.2)[0]
        coupling = game.coupling(belief, seed)
        np.testing.assert_allclose(coupling.columns, game.policy[seed], atol=1e-12)
        np.testing.assert_allclose(coupling.rows, belief, atol=1e-12)


def test_the_return_does_not_depend_on_whether_a_message_is_sent():
    process = GridWorld().process()
    coded = MarkovCodingGame(process, np.full(16, 1 / 16), temperature=0.05)
    silent = MarkovCodingGame(process, [1.0], temperature=0.05)
    means, errors = [], []
    for game in (coded, silent):
        rewards = np.array([game.play(seed % len(game.prior), seed=seed).reward for seed in range(100)])
        means.append(rewards.mean())
        errors.append(rewards.std() / len(rewards) ** 0.5)
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors)


def test_more_randomness_and_more_rate_tell_more():
    process, prior = GridWorld().process(), np.full(64, 1 / 64)

    def accuracy(rate: float, temperature: float) -> float:
        game = MarkovCodingGame(process, prior, rate, temperature=temperature)
        return float(np.mean([game.play(seed % 64, seed=seed).correct for seed in range(64)]))

    assert accuracy(1.0, 0.1) > accuracy(1.0, 0.004) > 1 / 64
    assert accuracy(1.0, 0.02) >= accuracy(0.1, 0.02)


@pytest.mark.parametrize("seed", range(3))
def test_each_step_tells_no_more_than_the_entropy_of_the_action(seed):
    game = MarkovCodingGame(GridWorld().process(), np.full(64, 1 / 64), 0.5, temperature=0.05)
    episode = game.play(5, seed=seed)
    assert len(episode.information) == len(episode.actions)
    assert max(episode.information) <= 2.0
    assert episode.belief.sum() == pytest.approx(1)
    assert episode.belief[5] > 0
    assert game.play(5, seed=seed).actions == episode.actions


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mec([0.5, 0.6], [1.0]), "p must sum to 1"),
        (lambda: mec([1.0], [1.5, -0.5]), "q must hold probabilities"),
        (lambda: mec([1.0], [np.nan]), "q holds NaN"),
        (lambda: mec([1.0], [1.0], "least"), "method must be one of"),
        (lambda: ebim(THREE, -1), "rate must be a number"),
        (lambda: ebim(np.full(10, 0.1), 1.0, exact=True), "at most 9 symbols, got 10"),
        (lambda: mec_b(THREE, [1.0], 1.0, compressor="zip"), "compressor must be one of"),
        (lambda: GridWorld(size=4).process(), "walls has the cell"),
        (lambda: GridWorld(start=(0, -1)).process(), "must be different cells"),
        (lambda: GridWorld(slip=0.5).process(), "slip"),
        (lambda: soft_policy(GridWorld().process(), 0.0), "temperature must be positive"),
        (lambda: MarkovCodingGame(GridWorld().process(), [1.0], 2.0), "rate must be at most 1"),
        (lambda: MarkovCodingGame(GridWorld().process(), [1.0, 0.0]).play(1, seed=0), "no probability under the prior"),
        (lambda: MarkovProcess(np.zeros((2, 1, 2)), np.zeros(2), np.zeros(2), 0), "sum to 1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
