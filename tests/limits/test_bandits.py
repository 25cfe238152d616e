"""Search among actions with sparse misspecified rewards: guarantees on random and adversarial instances, needles, configurations."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from tersor.allocation import Problem, Unit, plain_fitness, random_search
from tersor.errors import InvalidArgument
from tersor.limits import bandits


def searched(instance, sparsity: int, **options):
    return bandits.SparseMisspecifiedSearch(instance.features, sparsity, instance.misspecification, **options).run(instance.query)


@pytest.mark.parametrize("adversarial", [False, True], ids=["random", "adversarial"])
@pytest.mark.parametrize("strategy", ["net", "design"])
@pytest.mark.parametrize("sparsity", [1, 2])
def test_no_gap_is_above_its_certificate_and_no_query_above_its_bound(strategy, sparsity, adversarial):
    gaps = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        eps, dimension, actions = float(random.uniform(0.05, 0.5)), int(random.integers(sparsity, 6)), int(random.integers(20, 400))
        instance = bandits.sparse_instance(actions, dimension, sparsity, eps, adversarial=adversarial, seed=seed)
        found = searched(instance, sparsity, strategy=strategy)
        gaps.append(instance.gap(found.action))
        bound = (
            bandits.gap_bound(misspecification=eps)
            if strategy == "net"
            else bandits.design_gap_bound(misspecification=eps, sparsity=sparsity)
        )
        assert gaps[-1] <= found.certificate == pytest.approx(bound)
        if strategy == "net":
            most = bandits.query_bound(dimension=dimension, sparsity=sparsity, misspecification=eps)
            assert found.queries <= min(actions, most)
    assert max(gaps) > 0


def test_the_worst_errors_for_the_net_stay_within_its_certificate():
    gaps = []
    for seed in range(20):
        # Every representative is pushed down and everything else up, knowing which are asked for.
        instance = bandits.sparse_instance(2000, 3, 2, 0.3, seed=seed)
        search = bandits.SparseMisspecifiedSearch(instance.features, 2, 0.3)
        rewards = instance.features @ instance.parameter + 0.3
        rewards[search.representatives()] -= 0.6
        found = search.run(lambda action, rewards=rewards: rewards[action])
        gaps.append(rewards.max() - found.value)
        assert gaps[-1] <= found.certificate == pytest.approx(0.9)
    assert max(gaps) > 0.6


def test_representatives_cover_every_action_in_every_support():
    features = bandits.sparse_instance(200, 5, 2, 0.1, seed=1).features
    search = bandits.SparseMisspecifiedSearch(features, 2, 0.3)
    chosen = features[search.representatives()]
    for support in product(range(5), repeat=2):
        if support[0] < support[1]:
            distances = np.linalg.norm(features[:, None, list(support)] - chosen[None][:, :, list(support)], axis=-1)
            assert distances.min(1).max() <= 0.3 + 1e-12
    assert len(chosen) < 200


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_averaged_away(seed):
    instance, random = bandits.sparse_instance(60, 3, 1, 0.3, seed=seed), np.random.default_rng(seed)
    search = bandits.SparseMisspecifiedSearch(instance.features, 1, 0.3, noise=0.2, failure=0.01)
    found = search.run(lambda action: instance.query(action) + 0.2 * random.standard_normal())
    assert found.queries % len(found.asked) == 0 < found.queries / len(found.asked) - 1
    assert instance.gap(found.action) <= found.certificate == pytest.approx(5 * 0.3)


@pytest.mark.parametrize("seed", range(5))
def test_good_features_are_recovered_from_few_queries(seed):
    instance = bandits.sparse_instance(3000, 60, 3, 0.001, seed=seed)
    found = searched(instance, 3, strategy="recover", seed=seed)
    assert found.queries < 60
    assert found.certificate is None
    assert instance.gap(found.action) < 0.05


def test_recovery_is_exact_without_error_and_within_the_band_with_it():
    random = np.random.default_rng(0)
    rows = random.standard_normal((30, 50))
    theta = np.zeros(50)
    theta[[3, 20, 41]] = [1.0, -0.5, 2.0]
    np.testing.assert_allclose(bandits.recover(rows, rows @ theta, 0.0, 3), theta, atol=1e-8)
    noisy = rows @ theta + random.uniform(-0.01, 0.01, 30)
    found = bandits.recover(rows, noisy, 0.01, 3)
    assert set(np.flatnonzero(found)) == {3, 20, 41}
    np.testing.assert_allclose(found, theta, atol=0.02)
    positive = bandits.recover(rows, rows @ np.abs(theta), 0.0, 3, positive=True)
    np.testing.assert_allclose(positive, np.abs(theta), atol=1e-8)
    assert not bandits.recover(rows, np.zeros(30), 0.1, 3).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_design_is_near_optimal_and_sparse(seed):
    rows = np.random.default_rng(seed).standard_normal((400, 4)) @ np.diag([1.0, 0.1, 3.0, 1e-3])
    weights = bandits.optimal_design(rows)
    leverage = np.einsum("ai,ij,aj->a", rows, np.linalg.inv((rows.T * weights) @ rows), rows)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert (weights > 0).sum() <= 40
    # Kiefer-Wolfowitz: nothing is below the dimension.
    assert 4 - 1e-9 <= leverage.max() <= 8 + 1e-9


def test_the_optimal_design_of_a_basis_is_uniform_and_of_nothing_is_anything():
    np.testing.assert_allclose(bandits.optimal_design(np.eye(3)), 1 / 3)
    assert bandits.optimal_design(np.zeros((4, 2))).sum() == 1
    deficient = np.array([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])
    np.testing.assert_allclose(bandits.optimal_design(deficient), [0, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_a_needle_is_what_it_says(seed):
    instance = bandits.needle_instance(80, 150, 0.05, seed=seed)
    assert np.abs(instance.rewards - instance.features @ instance.parameter).max() <= 0.05 + 1e-12
    assert np.count_nonzero(instance.rewards) == 1
    assert np.linalg.norm(instance.parameter) <= 1
    # The coherence as measured is better than the lemma's.
    assert instance.rewards.max() >= bandits.needle_bound(needles=150, sparsity=80, misspecification=0.05)["gap"]


def strategies():
    yield "in order", lambda instance, seed: range(len(instance.rewards))
    yield "at random", lambda instance, seed: np.random.default_rng(seed).permutation(len(instance.rewards))
    yield "farthest first", farthest_first
    yield "recover", recovered_order


def farthest_first(instance, seed):
    left, order = set(range(len(instance.rewards))), [0]
    left.discard(0)
    while left:
        order.append(min(left, key=lambda action: abs(float(instance.features[action] @ instance.features[order[-1]]))))
        left.discard(order[-1])
    return order


def recovered_order(instance, seed):
    # What a model fitted to unpaid answers would ask for next: all weights are zero, so it has no preference but its own.
    search = bandits.SparseMisspecifiedSearch(instance.features, 4, 0.05, strategy="recover", seed=seed)
    first = list(search.run(lambda action: 0.0).asked)
    return [*first, *(action for action in range(len(instance.rewards)) if action not in set(first))]


@pytest.mark.parametrize(("name", "order"), list(strategies()))
def test_every_strategy_finds_a_needle_after_half_of_the_actions(name, order):
    needles, counts = 60, []
    asked = list(order(bandits.needle_instance(60, needles, 0.05, seed=0), 0))
    assert sorted(asked) == list(range(needles))
    # Unpaid answers tell nothing, so the order is the same for every hidden needle, and all of them can be tried.
    counts = [asked.index(hidden) + 1 for hidden in range(needles)]
    assert np.mean(counts) == bandits.needle_bound(needles=needles)["queries"]


def test_a_poor_budget_misses_the_needle_and_the_whole_net_finds_it():
    missed = 0
    for seed in range(6):
        instance = bandits.needle_instance(300, 40, 0.02, seed=seed)
        assert instance.rewards.max() > 3 * 0.02
        poor = bandits.SparseMisspecifiedSearch(instance.features, 3, 0.02, strategy="recover", budget=10, seed=seed).run(instance.query)
        missed += instance.gap(poor.action) > 3 * 0.02
        full = bandits.SparseMisspecifiedSearch(instance.features, 300, 0.02).run(instance.query)
        assert instance.gap(full.action) <= full.certificate == pytest.approx(0.06)
    assert missed >= 2


def test_a_budget_drops_the_certificate_and_a_later_run_goes_on():
    instance, asked = bandits.sparse_instance(500, 5, 2, 0.1, seed=3), []

    def query(action):
        asked.append(action)
        return instance.query(action)

    search = bandits.SparseMisspecifiedSearch(instance.features, 2, 0.1, budget=20)
    first = search.run(query)
    assert (first.queries, first.certificate, len(asked)) == (20, None, 20)
    rest = bandits.SparseMisspecifiedSearch(instance.features, 2, 0.1).run(query, first.asked)
    assert len(asked) == len(set(asked)) == rest.queries
    assert rest.certificate is not None


def additive(seed: int, units: int = 12, sensitive: int = 3, noise: float = 0.0):
    """A problem whose fitness is the layer errors with hidden weights, few of them large, and the fitness itself."""
    random = np.random.default_rng(seed)
    weights = np.full(units, 0.02)
    weights[random.choice(units, sensitive, replace=False)] = random.uniform(1, 3, sensitive)
    table = tuple(Unit(f"u{i}", (20, 30, 40, 80), (0.5, 0.2, 0.06, 0.0), 100) for i in range(units))
    problem = Problem(table, 30 * units)

    def judge(choices):
        effects = [weight * unit.errors[choice] for weight, unit, choice in zip(weights, table, choices, strict=True)]
        # The error that no linear model sees, a fixed function of the choices.
        return sum(effects) + noise * math.sin(17.0 * sum(7**place * choice for place, choice in enumerate(choices)))

    return problem, judge


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(4))
def test_configurations_need_fewer_evaluations_than_random_search(seed, noise):
    problem, judge = additive(seed, noise=noise)
    found = bandits.configuration_search(problem, plain_fitness(judge), sparsity=4, evaluations=24, seed=seed)
    rival = random_search(problem, plain_fitness(judge), n=3 * 24, seed=seed)
    assert problem.feasible(found.choices)
    assert found.evaluations == len(found.history) == 24
    assert found.fitness == judge(found.choices)
    assert found.fitness < rival.fitness


def test_configurations_respect_fused_units_and_small_problems():
    units = tuple(Unit(f"u{i}", (1, 2), (1.0, 0.0), 10, "pair" if i < 2 else None) for i in range(3))
    problem = Problem(units, 5)
    found = bandits.configuration_search(problem, plain_fitness(lambda choices: 1.0 - 0.1 * sum(choices)), evaluations=8)
    assert found.choices[0] == found.choices[1]
    assert found.choices == (1, 1, 0)


def test_configurations_that_break_the_model_are_never_the_answer():
    problem, judge = additive(0)
    found = bandits.configuration_search(
        problem, plain_fitness(lambda choices: math.inf if choices[0] == 0 else judge(choices)), evaluations=16
    )  # fmt: skip
    assert math.isfinite(found.fitness)
    with pytest.raises(InvalidArgument, match="no judged allocation has a finite fitness"):
        bandits.configuration_search(problem, plain_fitness(lambda choices: math.nan), evaluations=4)


@pytest.mark.parametrize(("sparsity", "eps"), [(1, 0.5), (2, 0.1), (3, 0.25)])
def test_the_query_bound_counts_cells(sparsity, eps):
    cells = math.ceil(2 / (eps / math.sqrt(sparsity))) + 1
    assert bandits.query_bound(dimension=7, sparsity=sparsity, misspecification=eps) == math.comb(7, sparsity) * cells**sparsity
    assert bandits.query_bound(dimension=7, sparsity=sparsity, misspecification=eps, actions=10) == 10


def test_the_needles_gap_is_always_below_the_root_of_the_sparsity():
    for sparsity in (10, 1000, 10**6):
        assert bandits.needle_bound(needles=2 * sparsity, sparsity=sparsity)["delta"] < 0.5


FEATURES = np.eye(3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bandits.SparseMisspecifiedSearch(2 * FEATURES, 1, 0.1), "norm at most 1"),
        (lambda: bandits.SparseMisspecifiedSearch(FEATURES, 4, 0.1), "sparsity must be an integer from 1 to 3"),
        (lambda: bandits.SparseMisspecifiedSearch(FEATURES, 1, 0.0), "misspecification must be"),
        (lambda: bandits.SparseMisspecifiedSearch(FEATURES, 1, 0.1, strategy="luck"), "strategy must be one of"),
        (lambda: bandits.SparseMisspecifiedSearch(np.eye(60), 20, 0.1), "supports are too many"),
        (lambda: bandits.SparseMisspecifiedSearch([[math.nan]], 1, 0.1), "features holds NaN"),
        (lambda: bandits.SparseMisspecifiedSearch(FEATURES, 1, 0.1).run(lambda action: math.inf), "must be finite"),
        (lambda: bandits.SparseMisspecifiedSearch(FEATURES, 1, 0.1).run(float, {9: 1.0}), "asked names action 9"),
        (lambda: bandits.SparseMisspecifiedSearch(FEATURES, 1, 0.1, noise=1.0, budget=2).run(float), "does not suffice for one action"),
        (lambda: bandits.needle_instance(2, 50, 1.0), "is above 1"),
        (lambda: bandits.configuration_search(additive(0)[0], plain_fitness(additive(0)[1]), evaluations=2), "evaluations must be"),
        (lambda: bandits.recover(FEATURES, [1.0], 0.1, 1), "rewards must have shape"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(InvalidArgument, match=said):
        call()
